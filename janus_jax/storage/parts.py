"""Files that grow, in a bucket: written to a local directory, from which a thread uploads them.

Objects cannot be appended to, and take about one write a second. So a file becomes numbered parts. The newest part is
replaced by a longer one every `EVERY_S` seconds; once it has `PART_BYTES` the next one begins, so that a long run has
few of them. The names of a start's parts hold `Uploads.start`, which no other start has: nothing that an earlier start
wrote is touched.
"""

import contextlib
import dataclasses
import hashlib
import os
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from janus_jax.errors import StorageError, counted, first_line
from janus_jax.storage.bucket import BucketPath, Prefix, os_errors
from janus_jax.storage.local import Place, locked_temporary, remove_leftovers

EVERY_S = 5.0
"""Seconds between uploads: what is lost of a file if the machine vanishes."""
PART_BYTES = 1 << 16
EXIT_S, _EXITS = 15.0, 8
"""The end waits so long for one object, and so many times that long for all of them."""
_LAST_ATTEMPTS = 3
_LEAST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 60.0
_COPY_BYTES_PER_S = 100e3
"""How much of a file that is copied whole and changes again and again is copied a second."""

Ends = Callable[[bytes], Sequence[int]]
"""Content -> where its whole entries end, ascending."""


def new_start(after: int = 0) -> str:
    """What tells this start's parts from those of others; later starts have later names.

    Args:
        after: the seconds in the newest earlier name, by another machine's clock.
    """
    return f"{max(int(time.time()), after + 1):010d}.{secrets.token_hex(2)}"


def ends_of_lines(content: bytes) -> list[int]:
    """Where lines end."""
    return [line.end() for line in re.finditer(rb"\n", content)]


@dataclasses.dataclass
class _Growing:
    """A file that is appended to, and how much of it is uploaded."""

    file: Path
    name: Callable[[int], str]  # number of a part, from 1 -> its name below the prefix
    ends: Ends
    headed: bool
    head: bytes = b""
    number: int = 1
    begin: int = 0  # of the newest part, in the file
    end: int = 0  # of what is uploaded, in the file
    generation: int | None = 0  # of the newest part; None: unknown, after a failure

    def upload(self, prefix: Prefix, last: bool) -> Iterator[None]:
        """Uploads what is new; yields after each object."""
        with self.file.open("rb") as file:
            file.seek(self.begin)
            content = file.read()
        ends = self.ends(content)
        if not ends or self.begin + ends[-1] == self.end:
            return
        if self.headed and not self.head:
            self.head = content[: ends[0]]
        content, name = content[: ends[-1]], self.name(self.number)
        if self.generation is None:
            existing = prefix.find(name)
            self.generation = 0 if existing is None else existing.generation
        known, self.generation = self.generation, None
        self.generation = prefix.write(name, (self.head if self.number > 1 else b"") + content, known)
        self.end = self.begin + len(content)
        if len(content) >= PART_BYTES:
            self.number, self.begin, self.generation = self.number + 1, self.end, 0
        yield


@dataclasses.dataclass
class _Copied:
    """A file that is copied whole."""

    since: float  # when it was first seen, or uploaded last
    seen: tuple[int, int] | None = None  # size and time of change, one look earlier
    sent: tuple[int, int] | None = None
    name: str | None = None  # of its object
    failures: int = 0


@dataclasses.dataclass
class _Folder:
    """A directory of files that others write. Each is copied when it has stopped changing, or now and then."""

    directory: Path
    name: str
    start: str
    replaces: bool = False
    files: dict[Path, _Copied] = dataclasses.field(default_factory=dict)

    def upload(self, prefix: Prefix, last: bool) -> Iterator[None]:
        """Uploads what is due; yields after each object."""
        paths = [path for path in sorted(self.directory.rglob("*")) if path.is_file() and not path.is_symlink()]
        for path in paths:
            self.files.setdefault(path, _Copied(time.monotonic()))
        for path in sorted(paths, key=lambda path: self.files[path].failures):  # one that fails stops no other
            copied = self.files[path]
            try:
                if self._is_due(path, copied, last):
                    self._send(prefix, path, copied)
                    yield
            except FileNotFoundError:  # its writer has removed it
                continue
            except Exception:
                copied.failures += 1
                raise

    def _is_due(self, path: Path, copied: _Copied, last: bool) -> bool:
        status = path.stat()
        earlier, copied.seen = copied.seen, (status.st_size, status.st_mtime_ns)
        rested = time.monotonic() - copied.since > status.st_size / _COPY_BYTES_PER_S
        return copied.seen != copied.sent and (last or (rested and (copied.sent is not None or copied.seen == earlier)))

    def _send(self, prefix: Prefix, path: Path, copied: _Copied) -> None:
        content = path.read_bytes()
        relative = path.relative_to(self.directory)
        name = copied.name or f"{self.name}/{relative.as_posix()}"
        existing = prefix.find(name)
        another = existing is not None and copied.name is None  # start's, or that of a process on the same machine
        if another and not self.replaces:
            name = f"{self.name}/{relative.with_name(f'{self.start}.{relative.name}').as_posix()}"
            existing = prefix.find(name)
        copied.name = name
        prefix.write(name, content, 0 if existing is None else existing.generation)
        copied.sent, copied.since = copied.seen, time.monotonic()


class Uploads:
    """A local directory of one process, whose registered files appear below a gs:// URL.

    A thread uploads; nobody waits for it before `close`. A bucket that refuses ends nothing: `notify` gets one line,
    and what did not arrive is tried again, with growing pauses.

    Raises:
        ConfigError, StorageError: the URL cannot be used, or the temporary directory cannot be written.
    """

    def __init__(self, url: str | os.PathLike[str], notify: Callable[[str], None], after: int = 0):
        self.start = new_start(after)
        """See `new_start`."""
        self.failed = 0
        """Uploads that failed so far."""
        self._prefix, self._notified = Prefix(url), notify
        key = hashlib.sha256(self._prefix.url.encode()).hexdigest()[:16]
        self._final = Path(tempfile.gettempdir()) / f"janus_run_{key}"
        with os_errors(self._final):
            remove_leftovers(self._final)  # of killed processes of this run
            self.directory, self._held = locked_temporary(self._final)
        self._items: list[_Growing | _Folder] = []
        self._arrived, self._complete, self._given_up = 0, False, False
        self._end, self._wake = False, threading.Event()
        self._thread: threading.Thread | None = None

    def grows(self, file: Path, part: Callable[[int], BucketPath], ends: Ends, *, headed: bool = False) -> None:
        """Uploads a file that is appended to, in parts.

        Args:
            part: number of a part, from 1 -> its place below the URL.
            ends: where the entries of the file end; a part holds whole entries.
            headed: every part begins with the file's first entry.
        """
        self._add(_Growing(file, lambda number: self._below(part(number)), ends, headed))

    def folder(self, directory: Path, place: BucketPath, *, replaces: bool = False) -> None:
        """Uploads all files below a directory, which need not exist yet; each as one object.

        Args:
            replaces: a file takes the place of one that an earlier start has left. Otherwise it gets another name.
        """
        self._add(_Folder(directory, self._below(place), self.start, replaces))

    def soon(self) -> None:
        """Has the thread upload what is new now; does not wait for it."""
        self._wake.set()

    def drop(self) -> None:
        """Ends without uploading anything more."""
        self._given_up = self._end = True
        self._wake.set()
        shutil.rmtree(self.directory, ignore_errors=True)
        os.close(self._held)

    def close(self) -> None:
        """Uploads the rest, for `EXIT_S` without progress at most; says so if something failed. Raises nothing."""
        self._end = True
        self._wake.set()
        for _ in range(_EXITS):
            before = self._arrived
            if self._thread is not None:
                self._thread.join(EXIT_S)
            if self._complete or self._arrived == before:
                break
        failed, url = f"{counted(self.failed, 'upload')} failed", self._prefix.url
        if self._complete or self._thread is None:
            if self.failed:
                self._notify(f"note: {url}: {failed} on the way; everything has arrived since")
            shutil.rmtree(self.directory, ignore_errors=True)
        else:
            self._given_up = True
            kept = self._final.with_name(f"{self._final.name}.{self.start}")
            with contextlib.suppress(OSError):
                self.directory.rename(kept)
            self._notify(f"note: {url}: the newest metrics or profiles did not arrive ({failed}); they are in {kept}")
        os.close(self._held)

    def _notify(self, line: str) -> None:
        with contextlib.suppress(Exception):  # a console that is gone ends neither the thread nor the run
            self._notified(line)

    def _below(self, place: BucketPath) -> str:
        return str(place).removeprefix(f"{self._prefix.url}/")

    def _add(self, item: _Growing | _Folder) -> None:
        self._items.append(item)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="uploads", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        pause, earliest = EVERY_S, 0.0
        while True:
            self._wake.wait(pause)
            while not self._end and (left := earliest - time.monotonic()) > 0:
                time.sleep(min(left, 0.1))
            self._wake.clear()
            if self._end:
                break
            earliest = time.monotonic() + min(_LEAST_PAUSE_S, EVERY_S)
            pause = EVERY_S if self._pass(last=False) else min(2 * pause, _LONGEST_PAUSE_S)
        for attempt in range(_LAST_ATTEMPTS):
            if self._given_up or self._complete:
                return
            time.sleep(min(attempt, 1))
            self._complete = self._pass(last=True)

    def _pass(self, last: bool) -> bool:
        """Uploads what is due; returns whether nothing failed."""
        before = self.failed
        for item in list(self._items):
            try:
                for _ in item.upload(self._prefix, last):
                    self._arrived += 1
                    if self._given_up:
                        return False
            except Exception as error:  # whatever it is, the thread lives on
                if self._given_up:
                    return False
                self.failed += 1
                if self.failed == 1:
                    reason = str(error) if isinstance(error, StorageError) else f"{type(error).__name__}: {error}"
                    self._notify(f"note: {first_line(reason)}; the run goes on and tries again")
        return self.failed == before


def contents(folder: Path | Place) -> dict[str, bytes]:
    """Name -> content of the files directly in a folder, in the order of names; empty if it does not exist.

    Raises:
        StorageError: it cannot be read.
    """
    if not isinstance(folder, BucketPath):
        with os_errors(folder, "cannot be read"):
            paths = sorted(folder.iterdir()) if folder.is_dir() else []
            return {path.name: path.read_bytes() for path in paths if path.is_file()}
    prefix, attempts = Prefix(folder), 5
    while True:
        objects, attempts = [item for item in prefix.list() if "/" not in item.name], attempts - 1
        with tempfile.TemporaryDirectory(prefix="janus_parts_") as scratch:
            try:
                prefix.download(reversed(objects), Path(scratch))  # the newest part may be replaced at any moment
                return {item.name: (Path(scratch) / item.name).read_bytes() for item in objects}
            except StorageError:
                if not attempts or [item for item in prefix.list() if "/" not in item.name] == objects:
                    raise


def names(folder: Path | Place) -> list[str]:
    """Names of the files directly in a folder, in order; empty if it does not exist.

    Raises:
        StorageError: it cannot be listed.
    """
    if isinstance(folder, BucketPath):
        return [item.name for item in Prefix(folder).list() if "/" not in item.name]
    with os_errors(folder, "cannot be read"):
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def content(file: Path | Place) -> bytes | None:
    """The content of a file or small object; None if it does not exist.

    Raises:
        StorageError: it cannot be read.
    """
    if not isinstance(file, BucketPath):
        with os_errors(file, "cannot be read"):
            return file.read_bytes() if file.is_file() else None
    prefix = Prefix(file)
    existing = prefix.find("")
    return None if existing is None else prefix.read(existing)
