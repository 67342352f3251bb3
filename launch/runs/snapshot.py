"""What the bucket says of a launch: run, stop record, watcher, heartbeats; and of the run directory: metrics, saves."""

import dataclasses
import json
import math
import re
from collections.abc import Iterable
from typing import Any

from launch.cloud.bucket import Bucket, Entry, Stored
from launch.context import Context
from launch.errors import CloudError, Kind, cause
from launch.records import STALE_S, Heartbeat, Run, Spent, Stop, Watcher
from launch.settings import Settings

RUN, STOP, WATCH, CLOCK, SPENT = "run.json", "stop.json", "watch.json", "clock.json", "spent.json"
RUNNING, ENDED = ("starting", "running"), "ended"


@dataclasses.dataclass(frozen=True)
class Host:
    """A host of the run: its heartbeat, and where that is old what the host itself says."""

    worker: int
    age_s: float = math.inf
    """Of the heartbeat, by the store's clock; infinite without one."""
    state: str = "none"
    code: int | None = None
    message: str = ""
    step: int | None = None
    answer: str | None = None
    """none | starting | running | ended | dead | unreachable; None: not asked."""

    @property
    def beats(self) -> bool:
        return self.state in RUNNING and self.age_s <= STALE_S

    @property
    def now(self) -> str:
        """ended | beats | one of the answers | unknown."""
        if self.state == ENDED or self.beats:
            return ENDED if self.state == ENDED else "beats"
        return self.answer or "unknown"


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The records at one time."""

    run: Run | None = None
    stored: Stored | None = None
    """run.json as it was read, for the condition on writing the next start."""
    stop: Stop | None = None
    stop_generation: int = 0
    watcher: Watcher | None = None
    watched_s: float = -math.inf
    """When the watcher renewed its lease last, by the store's clock."""
    beats: tuple[tuple[Heartbeat, float], ...] = ()
    """Heartbeats of the run's attempt, by worker, each with the store's time of writing."""
    spent: Spent | None = None
    clock_s: float | None = None
    """The store's time at this look, if it was asked for and could be had."""

    @property
    def gave_up(self) -> str:
        """Why the last watcher of this very run gave up; "" if it did not."""
        memory = {} if self.watcher is None else self.watcher.memory
        if self.run is not None and (memory.get("run_id") or self.run.run_id) != self.run.run_id:
            return ""
        return "" if self.run is not None and memory.get("row") == "no run" else str(memory.get("gave_up") or "")

    @property
    def stopped(self) -> str | None:
        """Who has stopped the run; None if nobody has."""
        if self.stop is None or self.run is None or self.stop.run_id != self.run.run_id:
            return None
        return f"{self.stop.by} ({self.stop.reason})" if self.stop.reason else self.stop.by

    @property
    def newest_beat_s(self) -> float:
        """When the newest heartbeat of any start was written; minus infinity without one."""
        return max((updated_s for _, updated_s in self.beats), default=-math.inf)

    def hosts(self, now_s: float) -> tuple[Host, ...]:
        """The hosts of the newest start, by worker. Heartbeats of earlier starts do not count."""
        if self.run is None:
            return ()
        return tuple(
            Host(beat.worker, max(0.0, now_s - at_s), beat.state, beat.code, beat.message, beat.step)
            for beat, at_s in self.beats
            if (beat.run_id, beat.attempt, beat.start) == (self.run.run_id, self.run.attempt, self.run.start)
        )


class Reader:
    """Reads the records of a launch with few calls: objects that have not changed are not read again."""

    def __init__(self, records: Bucket):
        self._records = records
        self._known: dict[str, tuple[int, Any]] = {}
        self._run: Run | None = None
        self.lease: Stored | None = None
        """watch.json, as it was read last."""

    def read(self, *, clock: bool = False) -> Snapshot:
        """One list of objects, and one read of what is new.

        Args:
            clock: ask for the store's time, with one call more.
        Raises:
            CloudError: the bucket refused.
        """
        ticked = clock and self._tick()
        known, entries = self._run, self._entries()
        beats = _newest(entries)
        texts = self._read([entry for entry in entries if entry.name in (RUN, STOP, WATCH, SPENT)], beats)
        self._run = self._record(entries, RUN, Run)
        place = None if self._run is None else _place(self._run)
        if self._run is not None and known is not None and _place(known) != place:
            entries = self._entries()
        wanted = [entry for entry in entries if place is not None and entry.name.startswith(f"{place}/")]
        if wanted != beats:
            texts = objects(self._records.text(entry.name for entry in wanted))
        stop, watcher = self._record(entries, STOP, Stop), self._record(entries, WATCH, Watcher)
        by_name = {entry.name: entry for entry in entries}
        if watcher is not None:
            entry = by_name[WATCH]
            self.lease = Stored(self._known[WATCH][1], entry.generation, entry.updated_s)
        return Snapshot(
            run=self._run,
            # Generations of what was read: a second list may already know a newer record.
            stored=None if self._run is None else Stored(self._known[RUN][1], self._known[RUN][0], 0.0),
            stop=stop,
            stop_generation=self._known[STOP][0] if STOP in self._known and STOP in by_name else 0,
            watcher=watcher,
            watched_s=by_name[WATCH].updated_s if WATCH in by_name else -math.inf,
            beats=tuple(sorted(_beats(wanted, texts), key=lambda pair: pair[0].worker)),
            spent=self._record(entries, SPENT, Spent),
            clock_s=by_name[CLOCK].updated_s if ticked and CLOCK in by_name else None,
        )

    def _tick(self) -> bool:
        try:
            self._records.write(CLOCK, {})
        except CloudError:  # a bucket that may only be read
            return False
        return True

    def _entries(self) -> list[Entry]:
        """Records, and heartbeats: of the run if it is known, else of all."""
        return self._records.entries("*.json", f"{_place(self._run) if self._run else '*/heartbeats/*'}/*")

    def _read(self, entries: list[Entry], beats: list[Entry]) -> list[dict[str, Any]]:
        """Reads the records that have changed, and heartbeats, in one call; the heartbeats."""
        new = [entry for entry in entries if self._known.get(entry.name, (0, None))[0] != entry.generation]
        values = objects(self._records.text(entry.name for entry in [*new, *beats]))
        if len(values) < len(new):
            raise CloudError(Kind.UNAVAILABLE, self._records.url, "a record is being written; try again")
        self._known |= {entry.name: (entry.generation, value) for entry, value in zip(new, values, strict=False)}
        return values[len(new) :]

    def _record(self, entries: Iterable[Entry], name: str, kind: Any) -> Any:
        if name not in self._known or all(entry.name != name for entry in entries):
            return None
        try:
            return kind.from_json(self._known[name][1])
        except TypeError:  # {} or {"cleared": ...} stands for an object that cannot be removed
            return None


def _newest(entries: list[Entry]) -> list[Entry]:
    """Heartbeats of one attempt of one run: those of which one was written last. Nearly always the run's."""
    beats = [entry for entry in entries if "/heartbeats/" in entry.name]
    place = max(beats, key=lambda entry: entry.updated_s).name.rpartition("/")[0] if beats else ""
    return [entry for entry in beats if entry.name.rpartition("/")[0] == place]


def _beats(entries: list[Entry], values: list[dict[str, Any]]) -> list[tuple[Heartbeat, float]]:
    names = ((re.search(r"/(\d+)(\.json)?$", entry.name), entry.updated_s) for entry in entries)
    updated = {int(match[1]): at_s for match, at_s in names if match}
    beats = [Heartbeat.from_json(value) for value in values]
    return [(beat, updated[beat.worker]) for beat in beats if beat.worker in updated]


def exit_of(hosts: tuple[Host, ...]) -> Host | None:
    """The host that says best why the run ended: that with the most specific exit code; None if none has ended."""
    ended = [host for host in hosts if host.now == ENDED]
    return min(ended, key=lambda host: (cause(exit_code(host)), host.worker), default=None)


def exit_code(host: Host) -> int:
    """Of a host that has ended: 128 + N for death by signal N; 1 if the host does not know."""
    return 1 if host.code is None else 128 - host.code if host.code < 0 else host.code


def asked(run: Run, workers: int, hosts: tuple[Host, ...], answers: dict[int, dict[str, Any]]) -> tuple[Host, ...]:
    """The hosts with what those say whose heartbeat is old or missing."""
    known = {host.worker: host for host in hosts}
    result = []
    for worker in range(workers):
        host = known.get(worker, Host(worker))
        answer = answers.get(worker)
        if host.beats or host.state == ENDED or answer is None:
            result += [host] if worker in known or answer is not None else []
            continue
        state = str(answer.get("state", "none"))
        ours = (answer.get("run_id"), answer.get("attempt"), answer.get("start")) == (
            run.run_id,
            run.attempt,
            run.start,
        )
        if state != "unreachable" and not ours:
            state = "none"
        host = dataclasses.replace(host, answer=state)
        if state == ENDED:
            host = dataclasses.replace(host, code=answer.get("code"), message=str(answer.get("message", "")))
        if isinstance(step := answer.get("step"), int) and ours:
            host = dataclasses.replace(host, step=max(step, -1 if host.step is None else host.step))
        result.append(host)
    return tuple(result)


def settled(context: Context, run: Run | None) -> Context:
    """The context with the settings that the run was started with: any workstation then makes the same machines. How
    this workstation reaches them stays its own."""
    if run is None or not run.settings:
        return context
    known = {key: value for key, value in run.settings.items() if key in Settings.model_fields}
    own = context.settings.model_dump(include={"name", "bucket", "ssh_key", "iap"})
    settings = Settings.model_validate({**known, **own})
    for key in ("project", "zone", "type", "slices", "provisioning"):
        if (kept := getattr(settings, key)) != getattr(context.settings, key):
            context.warn(f"note: {key} is {kept}, as of {run.run_id}; here it is {getattr(context.settings, key)}")
    return dataclasses.replace(context, settings=settings)


def _place(run: Run) -> str:
    return f"{run.run_id}/heartbeats/{run.attempt}"


def objects(text: str) -> list[dict[str, Any]]:
    """JSON objects that follow each other in a text; one that is cut short ends the list."""
    decoder, values, at = json.JSONDecoder(), [], 0
    while match := re.compile(r"\s*(?=\{)").match(text, at):
        try:
            value, at = decoder.raw_decode(text, match.end())
        except ValueError:
            break
        values.append(value)
    return values
