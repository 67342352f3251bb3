"""What one look of `watch` has shown, and what it remembers of earlier ones."""

import dataclasses
from typing import Literal

from janus_jax.errors import EXIT_CODES, GIVE_UP
from launch.errors import Kind
from launch.records import Record
from launch.runs.snapshot import Host

_REFUSED = (Kind.QUOTA, Kind.PERMISSION, Kind.SERVICE_DISABLED)
_REFUSED_AT_LOOK = _REFUSED[1:]  # what is read counts against a quota of requests a minute alone
_REFUSED_AT_CREATION = (*_REFUSED, Kind.INVALID, Kind.NOT_FOUND, Kind.EXISTS)


@dataclasses.dataclass(frozen=True)
class Bounds:
    """How long and how often. Seconds by the store's clock."""

    look_s: float = 240.0
    """At most so much of the time between two looks counts: less than any bound after which machines are deleted."""
    settle_s: float = 45.0
    """After an end on live machines: a preemption may be about to show."""
    ending_s: float = 150.0
    """For the other hosts to end."""
    not_ready_s: float = 900.0
    missing_s: float = 300.0
    """For the nodes of an active request to be there: it is just being preempted, or just made."""
    maintenance_s: float = 3600.0
    unreachable_s: float = 1800.0
    tries: int = 8
    """Starts without a newer step."""
    in_place: int = 3
    """Of these, on the same machines."""
    refusals: int = 24
    """Answers in a row that there is no capacity, or none at all."""
    pause_s: float = 20.0
    """Before the second try; doubles with each."""
    longest_pause_s: float = 900.0

    def pause(self, count: int) -> float:
        """Seconds between the last try and the next one, after so many."""
        return 0.0 if count <= 0 else min(self.pause_s * 2.0 ** min(count - 1, 30), self.longest_pause_s)


@dataclasses.dataclass(frozen=True)
class Trouble(Record):
    """A step of `watch` itself that failed."""

    step: Literal["look", "delete", "create", "setup", "start"]
    message: str
    kind: str = ""
    """Name of a `launch.errors.Kind`; empty for other errors."""
    exit_code: int = 1

    @property
    def refused(self) -> bool:
        """Whether the same step would fail again."""
        if self.kind:
            kinds = {"create": _REFUSED_AT_CREATION, "look": _REFUSED_AT_LOOK}.get(self.step, _REFUSED)
            return Kind[self.kind] in kinds
        return self.exit_code not in (1, 16) and EXIT_CODES.get(self.exit_code, ("", ""))[1] == GIVE_UP

    @property
    def passes(self) -> bool:
        """Whether the cloud did not serve the request today: counted apart from starts."""
        if not self.kind:
            return False
        return Kind[self.kind].passes or Kind[self.kind].may_be_network or self.step == "look"


@dataclasses.dataclass(frozen=True)
class Memory(Record):
    """What `watch` must know of its earlier looks. It lies in the bucket, so that any workstation goes on."""

    run_id: str = ""
    row: str = ""
    lasted_s: float = 0.0
    """For how long the row has held."""
    looked_s: float = 0.0
    """When `watch` looked last."""
    tries: int = 0
    in_place: int = 0
    once: int = 0
    """Starts after an internal error."""
    refusals: int = 0
    step: int = -1
    """Newest step at the last start."""
    acted_s: float = 0.0
    token: str = ""
    """Incarnation of the machines on which the run was started last."""
    others: bool = False
    """Whether the machines that were there last are adopted, or others' altogether."""
    created_s: float = 0.0
    """Since when the machines that are there cost money."""
    earlier_s: float = 0.0
    """For how long earlier machines of this run were there."""
    trouble: dict[str, object] | None = None
    gave_up: str = ""
    """Why nobody goes on, until a person starts `watch` or `run` again."""


@dataclasses.dataclass(frozen=True)
class Seen:
    """Everything that one look has shown."""

    now_s: float
    workers: int
    run_id: str | None
    hosts: tuple[Host, ...] = ()
    """Those of the newest start; a host without a heartbeat may be missing."""
    machines: str | None = None
    """State of the queued resource, upper case; empty: Google Cloud did not say; None: it is not there."""
    ready: bool = False
    gone: bool = False
    ours: bool = True
    """This launch made the machines: those that it has adopted are not its own."""
    health: str = "HEALTHY"
    error: str = ""
    stopped: str | None = None
    """Who has stopped this run, and why."""
    memory: Memory = Memory()
    bounds: Bounds = Bounds()

    @property
    def trouble(self) -> Trouble | None:
        return None if self.memory.trouble is None else Trouble.from_json(self.memory.trouble)

    @property
    def newest(self) -> int:
        """Newest step that any host printed; -1 without one."""
        return max((host.step for host in self.hosts if host.step is not None), default=-1)

    @property
    def progressed(self) -> bool:
        return self.newest > self.memory.step

    @property
    def beating(self) -> int:
        return sum(host.beats for host in self.hosts)

    @property
    def healthy(self) -> bool:
        return self.health in ("", "HEALTHY", "HEALTH_UNSPECIFIED")

    def lasted_s(self, row: str) -> float:
        """For how long this row holds. A workstation that slept between two looks does not know that it held."""
        if self.memory.row != row:
            return 0.0
        return self.memory.lasted_s + min(self.now_s - self.memory.looked_s, self.bounds.look_s)

    def count(self, what: str) -> int:
        return sum(host.now == what for host in self.hosts)
