"""What all hosts print, as one text: parts of logs from the bucket, merged by the time of their arrival."""

import contextlib
import dataclasses
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

from launch.cloud.bucket import Bucket, Entry
from launch.errors import CloudError
from launch.records import number
from launch.runs.snapshot import ENDED, Snapshot, exit_code, exit_of

_PART = re.compile(r"(\d+)-(\d+)/(\d+)-(\d+)\.log")
_CONTROL = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|[@-Z\\-_])|[\x00-\x08\x0b-\x1f\x7f]")


@dataclasses.dataclass(frozen=True, order=True)
class Part:
    """A part of what one host printed in one start."""

    attempt: int
    start: int
    worker: int
    number: int
    entry: Entry = dataclasses.field(compare=False)


class Merged:
    """Follows the logs of a run: one list of objects a poll, and one copy of what is new.

    Args:
        folder: of the run's logs, RUN_ID/logs.
        worker: only this one; None: all.
    """

    def __init__(self, folder: Bucket, *, worker: int | None = None):
        self._folder, self._worker = folder, worker
        self._shown: dict[str, tuple[int, int]] = {}
        """Name of a part -> its generation, and how many of its bytes were shown."""
        self._rest: dict[tuple[int, int, int], bytes] = {}
        """A line that has not ended, by attempt, start and worker."""
        self._width = 1
        self._latest: tuple[int, int] | None = None
        self._first = (0, 0)
        """Attempt and start of the earliest lines that are wanted."""

    def parts(self, *, every_start: bool = False) -> list[Part]:
        """Parts there are, in the order of their arrival; of the newest start, unless all are wanted."""
        parts = []
        for entry in self._folder.entries("**"):
            if match := _PART.fullmatch(entry.name):
                attempt, start, worker, count = map(int, match.groups())
                parts.append(Part(attempt, start, worker, count, entry))
        self._width = max([self._width, *(part.worker + 1 for part in parts)])
        if parts and not every_start:
            newest = max((part.attempt, part.start) for part in parts)
            parts = [part for part in parts if (part.attempt, part.start) == newest]
        parts = [part for part in parts if self._worker in (None, part.worker)]
        return sorted(parts, key=lambda part: (part.entry.updated_s, part))

    def last(self, parts: list[Part], count: int) -> list[str]:
        """The last lines of each host, and marks everything as shown.

        Raises:
            CloudError: the bucket refused.
        """
        wanted: dict[int, list[Part]] = {}
        for part in sorted(parts, reverse=True):
            wanted.setdefault(part.worker, []).append(part)
        lines: dict[int, list[str]] = {}
        depth = 0
        while count:
            short = [at for at in wanted if len(lines.get(at, ())) < count and len(wanted[at]) > depth]
            if not short:
                break
            depth = max(1, 4 * depth)
            contents = self._contents(part for worker in short for part in wanted[worker][:depth])
            for worker in short:
                newest = wanted[worker][0]
                texts = [contents.get(part.entry.name, b"") for part in reversed(wanted[worker][:depth])]
                whole, newline, rest = b"".join(texts).rpartition(b"\n")
                lines[worker] = _lines(whole + newline)[-count:]
                self._rest[(newest.attempt, newest.start, worker)] = rest
        for part in parts:
            self._shown[part.entry.name] = (part.entry.generation, part.entry.size)
        if parts:
            self._latest = max((part.attempt, part.start) for part in parts)
            self._first = min((part.attempt, part.start) for part in parts)
        return [self._prefix(worker) + line for worker in sorted(lines) for line in lines[worker]]

    def new(self, parts: list[Part]) -> list[str]:
        """Lines that have come since the last call, with prefixes, and a line where another start begins.

        Raises:
            CloudError: the bucket refused.
        """
        fresh = [part for part in parts if self._shown.get(part.entry.name, (0, 0))[0] != part.entry.generation]
        fresh = [part for part in fresh if (part.attempt, part.start) >= self._first]
        contents, lines = self._contents(fresh), []
        for part in fresh:
            content = contents.get(part.entry.name)
            if content is None:
                continue  # it comes with the next call
            begin = self._shown.get(part.entry.name, (0, 0))[1]
            self._shown[part.entry.name] = (part.entry.generation, len(content))
            place = (part.attempt, part.start)
            if self._latest is not None and place > self._latest:
                lines.append(f"--- attempt {part.attempt}, start {part.start} ---")
            self._latest = max(place, self._latest or place)
            key = (*place, part.worker)
            whole, newline, rest = (self._rest.pop(key, b"") + content[begin:]).rpartition(b"\n")
            if rest:
                self._rest[key] = rest
            lines += [self._prefix(part.worker) + line for line in _lines(whole + newline)]
        return lines

    def rest(self) -> list[str]:
        """Last lines without an end."""
        lines = [self._prefix(key[2]) + line for key, text in sorted(self._rest.items()) for line in _lines(text)]
        self._rest.clear()
        return lines

    def _prefix(self, worker: int) -> str:
        return f"[worker {number(worker, self._width)}] "

    def _contents(self, parts: Iterable[Part]) -> dict[str, bytes]:
        """Contents by name. Parts of different starts have the same last names, so each start has its own directory."""
        by_start: dict[tuple[int, int], list[Part]] = {}
        for part in parts:
            by_start.setdefault((part.attempt, part.start), []).append(part)
        contents = {}
        for group in by_start.values():
            with tempfile.TemporaryDirectory(prefix="janus-logs-") as directory:
                try:
                    self._folder.fetch([part.entry.name for part in group], directory)
                except CloudError as error:
                    if not any(Path(directory).iterdir()):
                        raise error
                for part in group:
                    with contextlib.suppress(FileNotFoundError):
                        path = Path(directory) / part.entry.name.rpartition("/")[2]
                        contents[part.entry.name] = path.read_bytes()
        return contents


def outcome(snapshot: Snapshot, workers: int, run_id: str, *, watched: bool) -> tuple[int, str] | None:
    """The exit code of a run that is over, and how it ended; None while it goes on, or will go on.

    Args:
        watched: somebody keeps it going.
    """
    if snapshot.run is None or snapshot.run.run_id != run_id:
        return 0, f"run {run_id} is not the run of this launch any more"
    hosts = snapshot.hosts(0.0)
    ended = sum(host.state == ENDED for host in hosts)
    best = exit_of(hosts)
    code = 0 if best is None else exit_code(best)
    gave_up = snapshot.gave_up
    if ended >= workers > 0:
        if code == 0:
            return 0, "the run ended: all hosts with exit code 0"
        if snapshot.stopped or gave_up or not watched:
            assert best is not None
            return code, f"the run ended with exit code {code}: {best.message}"
        return None
    if gave_up:
        return code or CloudError.exit_code, f"watch gave up: {gave_up}"
    return None


def _lines(text: bytes) -> list[str]:
    """Lines without what moves the cursor; of a progress bar that redraws itself, its last state."""
    lines = text.decode(errors="replace").split("\n")
    if lines and not lines[-1]:
        lines.pop()
    return [_CONTROL.sub("", line.rstrip("\r").rpartition("\r")[2]) for line in lines]


def plain(text: str) -> list[str]:
    """`_lines` of text that a host has answered."""
    return _lines(text.encode(errors="replace"))
