"""What the bucket says of a launch: run, stop record, watcher, heartbeats; and of the run directory: metrics, saves."""

import dataclasses
import json
import math
import re
from collections.abc import Iterable
from typing import Any

from launch.cloud.bucket import Bucket, Entry, Stored
from launch.context import Context
from launch.errors import CloudError, Kind
from launch.records import Heartbeat, Run, Stop, Watcher
from launch.settings import Settings
from launch.watching.seen import Host

RUN, STOP, WATCH = "run.json", "stop.json", "watch.json"


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

    def read(self) -> Snapshot:
        """One list of objects, and one read of what is new.

        Raises:
            CloudError: the bucket refused.
        """
        entries = self._entries()
        known = self._run
        self._read([entry for entry in entries if entry.name in (RUN, STOP, WATCH)])
        self._run = self._record(entries, RUN, Run)
        if self._run is not None and (known is None or _place(known) != _place(self._run)):
            entries = self._entries()
        stop, watcher = self._record(entries, STOP, Stop), self._record(entries, WATCH, Watcher)
        by_name = {entry.name: entry for entry in entries}
        beats = self._beats([entry for entry in entries if "/heartbeats/" in entry.name])
        return Snapshot(
            run=self._run,
            # Generations of what was read: a second list may already know a newer record.
            stored=None if self._run is None else Stored(self._known[RUN][1], self._known[RUN][0], 0.0),
            stop=stop,
            stop_generation=self._known[STOP][0] if STOP in self._known and STOP in by_name else 0,
            watcher=watcher,
            watched_s=by_name[WATCH].updated_s if WATCH in by_name else -math.inf,
            beats=tuple(sorted(beats, key=lambda pair: pair[0].worker)),
        )

    def _entries(self) -> list[Entry]:
        patterns = ["*.json"] if self._run is None else ["*.json", f"{_place(self._run)}/*"]
        return self._records.entries(*patterns)

    def _read(self, entries: list[Entry]) -> None:
        """Reads the records that have changed, in one call."""
        new = [entry for entry in entries if self._known.get(entry.name, (0, None))[0] != entry.generation]
        values = objects(self._records.text(entry.name for entry in new))
        if len(values) != len(new):
            raise CloudError(Kind.UNAVAILABLE, self._records.url, "a record is being written; try again")
        self._known |= {entry.name: (entry.generation, value) for entry, value in zip(new, values, strict=True)}

    def _record(self, entries: Iterable[Entry], name: str, kind: Any) -> Any:
        if name not in self._known or all(entry.name != name for entry in entries):
            return None
        try:
            return kind.from_json(self._known[name][1])
        except TypeError:  # {} or {"cleared": ...} stands for an object that cannot be removed
            return None

    def _beats(self, entries: list[Entry]) -> list[tuple[Heartbeat, float]]:
        names = ((re.search(r"/(\d+)(\.json)?$", entry.name), entry.updated_s) for entry in entries)
        updated = {int(match[1]): at_s for match, at_s in names if match}
        beats = [Heartbeat.from_json(value) for value in objects(self._records.text(entry.name for entry in entries))]
        return [(beat, updated[beat.worker]) for beat in beats if beat.worker in updated]


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
