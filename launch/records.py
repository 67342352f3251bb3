"""What a launch remembers: records in its bucket, and the messages between workstation and hosts.

Everything that a second workstation needs lies in the bucket, in FOLDER = `BUCKET/launch/NAME`:

    run.json                             the run that is, or was last, on this slice: `Run`
    stop.json                            the run that a person has stopped, or one before it: `Stop`
    watch.json                           who watches: `Watcher`, renewed at every look
    spent.json                           machines that were deleted at the end: `Spent`
    RUN_ID/heartbeats/ATTEMPT/WORKER     `Heartbeat` of one host's supervisor
    RUN_ID/logs/ATTEMPT-START/WORKER-NUMBER.log   what the host printed, in parts
    code/ID.tar.gz                       files of the checkout that a run was started with, for the starts after it
    RUN_ID/watch.log                     what `watch` did

On a host, in HOME/janus: code/ID (the checkout), env/ID (Python and packages), run/ (the run that is there: spec.json,
heartbeat.json, log, supervisor.pid). This module imports the standard library alone: the hosts use it too.
"""

import dataclasses
import datetime
import json
import re
import secrets
from typing import Any, Literal, Self

FOLDER = "launch"
PORT = 8476
"""Of the coordinator. Firewalls of Google's networks open it between machines of a slice."""
MANY = ("train", "time-step", "generate", "score", "eval")
"""Commands of janus that the hosts run together. All others run on worker 0 alone."""


class Record:
    """A dataclass that is kept as JSON. Keys that a newer version wrote are ignored."""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)  # pyright: ignore[reportArgumentType]

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        known = {field.name for field in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
        return cls(**{name: value for name, value in values.items() if name in known})

    def dumps(self) -> str:
        return json.dumps(self.to_json())


@dataclasses.dataclass(frozen=True)
class Run(Record):
    """A command that all hosts of a slice run together, and everything needed to start it again."""

    run_id: str
    owner: str
    """JANUS_RUN_OWNER: the same over all starts of this run."""
    command: list[str]
    """Words of the janus command without coordinator and process numbers: ["train", "config.yaml", "a.b=c"]."""
    files: dict[str, str]
    """Texts of files that the command names, by the name it uses for them, relative to the working directory."""
    run_dir: str | None
    """gs:// or shared directory of a training run; None for other commands."""
    code: str
    """Identity of the checkout on the hosts (`ship.py`)."""
    environment: str
    """Identity of the Python environment on the hosts (`setup.py`)."""
    created_s: float
    by: str
    """USER@WORKSTATION."""
    attempt: int = 1
    """JANUS_RUN_ATTEMPT: how often machines were created for it."""
    start: int = 1
    """How often its processes were started, on any machines."""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """`Settings` of the launch: a watcher creates the same machines again."""
    env: dict[str, str] = dataclasses.field(default_factory=dict)
    """Environment variables for the command. No secrets: they would lie in the bucket."""
    inputs: list[str] = dataclasses.field(default_factory=list)
    """gs:// URLs that the command reads: every host copies data sets and Hugging Face directories to its disk."""
    paths: dict[str, str] = dataclasses.field(default_factory=dict)
    """Absolute paths that every host must have, by the key that names them."""

    @staticmethod
    def new_id(name: str) -> str:
        """A new run id: the launch's name and a random part."""
        return f"{name}-{secrets.token_hex(4)}"


@dataclasses.dataclass(frozen=True)
class Stop(Record):
    """A person has stopped the run: nobody starts it again. Ids are random, so it says nothing of a later run."""

    run_id: str
    by: str
    at_s: float
    reason: str = ""
    down: bool = False
    """With its machines: `up` allows it again."""


@dataclasses.dataclass(frozen=True)
class Watcher(Record):
    """Who watches a launch."""

    by: str
    token: str
    """Of one `watch` process; empty once it has ended."""
    memory: dict[str, Any] = dataclasses.field(default_factory=dict)
    """`launch.watching.seen.Memory`: what the next one must know."""


@dataclasses.dataclass(frozen=True)
class Spent(Record):
    """For how long machines were there that were deleted and not made again: they cost money too."""

    run_id: str
    """The newest run then; empty without one."""
    seconds: float


State = Literal["starting", "running", "ended"]


@dataclasses.dataclass(frozen=True)
class Heartbeat(Record):
    """What a host's supervisor says, every `HEARTBEAT_S` seconds, to its disk and to the bucket."""

    run_id: str
    attempt: int
    start: int
    worker: int
    """Process id: slice-major, by worker number."""
    host: str
    state: State
    at_s: float
    """The host's clock: only differences between its own times mean something."""
    code: int | None = None
    """Exit code of the command, once it has ended."""
    message: str = ""
    """The command's last line on stderr that says how it ended."""
    step: int | None = None
    """Newest step that the command printed."""
    line: str = ""
    """Newest line that the command printed."""


HEARTBEAT_S = 10.0
STALE_S = 90.0
"""A heartbeat older than this, by the store's clock, is no sign of life."""


@dataclasses.dataclass(frozen=True)
class Spec(Record):
    """What one host is told to run."""

    run: dict[str, Any]
    """The `Run`."""
    worker: int
    """Process id of this host: slice-major, by worker number."""
    workers: int
    """Number of processes."""
    coordinator: str | None
    """HOST:PORT of process 0; None with a single process."""
    hosts_per_slice: int
    bucket: str | None
    """FOLDER, for heartbeat and logs; None: they stay on the host."""
    python: str
    """The interpreter, on the host; `~` is its home directory."""
    cwd: str
    """Working directory on the host: the checkout."""


def number(worker: int, workers: int) -> str:
    """A worker's number with leading zeros, so that names sort."""
    return f"{worker:0{max(2, len(str(workers - 1)))}d}"


def printable(text: str, length: int = 300) -> str:
    """Text from a host on one line, without control characters."""
    return re.sub(r"[^\x20-\x7e -￿]+", " ", text).strip()[:length]


def seconds_of(text: str, unknown: float | None = None) -> float:
    """A time as Google Cloud writes it, in seconds since 1970; `unknown`, or a ValueError, if the text is no time."""
    try:
        return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except ValueError:
        if unknown is None:
            raise
        return unknown


def duration(seconds: float) -> str:
    """For people: 12 s, 3 min, 4 h 5 min, 2 d 3 h."""
    seconds = max(0, round(seconds))
    if seconds < 100:
        return f"{seconds} s"
    minutes = seconds // 60
    if minutes < 100:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
