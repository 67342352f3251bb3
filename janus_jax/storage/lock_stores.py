"""Where the lock of a run directory is, a file or an object in a bucket, and what it says of its holder."""

import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from janus_jax.errors import ConfigError, StorageError
from janus_jax.storage.bucket import Prefix, os_errors
from janus_jax.storage.local import whole_file

_SETTLE_S = 0.5

OWNER, ATTEMPT = "JANUS_RUN_OWNER", "JANUS_RUN_ATTEMPT"
"""Environment variables: a token that all starts of one launch share, and the number of this re-creation of its
machines. Whoever raises the number says that the machines of smaller numbers are gone."""


@dataclasses.dataclass(frozen=True)
class Holder:
    """What a lock says of who holds it."""

    host: str
    pid: int
    machine: str  # boot id and process namespace: process ids say something only within both
    process_start: int  # in clock ticks since the machine started; a process id may be used again
    since: str
    owner: str | None
    attempt: int
    generation: int  # grows by one with every takeover
    id: str

    @classmethod
    def me(cls, generation: int, environ: Mapping[str, str] = os.environ) -> "Holder":
        """This process.

        Raises:
            ConfigError: a variable of the environment that cannot be used.
        """
        owner, attempt = environ.get(OWNER) or None, environ.get(ATTEMPT) or "0"
        if not attempt.isdecimal():
            raise ConfigError(f"{ATTEMPT}={attempt}: allowed: a whole number, counted up by whoever starts the run")
        if int(attempt) and owner is None:
            raise ConfigError(f"{ATTEMPT}={attempt}: needs {OWNER}, the same for all starts of one launch")
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        host, pid = socket.gethostname(), os.getpid()
        start = _process_start(pid) or 0
        return cls(host, pid, _machine(), start, now, owner, int(attempt), generation, uuid.uuid4().hex)

    @classmethod
    def parse(cls, content: bytes) -> "Holder | None":
        """None for what no version of this package wrote."""
        try:
            return cls(**{field.name: json.loads(content)[field.name] for field in dataclasses.fields(cls)})
        except (ValueError, KeyError, TypeError):
            return None

    def content(self, beat: int = 0) -> bytes:
        """As JSON; `beat` makes every renewal of an object another content."""
        return (json.dumps({**dataclasses.asdict(self), "beat": beat}, indent=1) + "\n").encode()

    def is_dead_here(self) -> bool:
        """Whether it ran on this machine, since its last start, and has ended."""
        return self.machine == _machine() != "" and _process_start(self.pid) != self.process_start


@dataclasses.dataclass(frozen=True)
class Seen:
    """A lock as it was found."""

    holder: Holder | None
    version: Any  # changes when another process takes it
    renewed_s: float  # by the store's clock
    age_s: float


class Taken(Exception):
    """Another process was faster."""


class Store(Protocol):
    """Where the lock is. Everything raises StorageError if the store refuses or does not answer."""

    cheap: bool  # whether `renew` may be asked at every step

    def look(self) -> Seen | None:
        """The lock, or None if nobody holds it."""
        ...

    def take(self, holder: Holder, seen: Seen | None) -> None:
        """Writes the lock in place of what was seen. Raises Taken if that is no longer there."""
        ...

    def held(self) -> bool:
        """Whether the lock is still this process's."""
        ...

    def renew(self) -> bool:
        """`held`, and tells others that this process is alive."""
        ...

    def release(self) -> None:
        """Removes the lock if it is this process's."""
        ...


class File:
    """A lock on a local or mounted file system: its file is replaced by a takeover, and touched by its holder."""

    cheap = True

    def __init__(self, path: str):
        self._path = Path(path)
        self._mine: tuple[int, str] | None = None  # descriptor of this process's file, which keeps its inode's number

    def look(self) -> Seen | None:
        with os_errors(self._path, "cannot be read or written"):
            try:
                with self._path.open("rb") as file:  # opening makes NFS ask for the time anew
                    status, content = os.fstat(file.fileno()), file.read()
            except FileNotFoundError:
                return None
            with tempfile.NamedTemporaryFile(prefix=".lock.", dir=self._path.parent) as fresh:
                os.utime(fresh.fileno())
                now = os.fstat(fresh.fileno()).st_mtime
        return Seen(Holder.parse(content), content, status.st_mtime, now - status.st_mtime)

    def take(self, holder: Holder, seen: Seen | None) -> None:
        with os_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
        with os_errors(self._path), self._guard() as guarded:
            latest = self.look()
            if (latest and latest.version) != (seen and seen.version):
                raise Taken
            with whole_file(self._path) as file:
                file.write(holder.content())
            if not guarded:
                time.sleep(_SETTLE_S)  # the last of several that were here at once wins
            descriptor = os.open(self._path, os.O_RDONLY)
            self._mine = descriptor, holder.id
            if not self.held():
                os.close(descriptor)
                raise Taken

    def held(self) -> bool:
        assert self._mine is not None
        descriptor, mine = self._mine
        with os_errors(self._path, "cannot be read"):
            try:
                if os.path.samestat(os.stat(self._path), os.fstat(descriptor)):
                    return _id(os.pread(descriptor, 1 << 16, 0)) == mine
                return _id(self._path.read_bytes()) == mine  # some file systems do not keep numbers of inodes
            except FileNotFoundError:
                return False

    def renew(self) -> bool:
        assert self._mine is not None
        if not self.held():
            return False
        with contextlib.suppress(OSError):
            os.utime(self._mine[0])
        return True

    def release(self) -> None:
        assert self._mine is not None
        with os_errors(self._path):
            if self._path.parent.exists():  # nobody removed the whole run
                with self._guard():
                    if self.held():
                        self._path.unlink(missing_ok=True)
            os.close(self._mine[0])

    @contextlib.contextmanager
    def _guard(self) -> Iterator[bool]:
        """Lets one process at a time read the lock and replace it. Yields False where there are no such locks."""
        guard = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(guard, fcntl.LOCK_EX)
            except OSError:
                yield False
            else:
                yield True
        finally:
            os.close(guard)


class Object:
    """A lock in a bucket: every write names the generation that it replaces."""

    cheap = False

    def __init__(self, url: str):
        parent, _, self._name = url.rpartition("/")
        self._prefix = Prefix(parent)
        self._generation = self._beat = 0
        self._mine: Holder | None = None

    def look(self) -> Seen | None:
        if (item := self._prefix.find(self._name)) is None:
            return None
        try:
            content = self._prefix.read(item)
        except StorageError:  # renewed in between, as often as not
            if (item := self._prefix.find(self._name)) is None:
                return None
            content = self._prefix.read(item)
        fresh = f"{self._name}.{uuid.uuid4().hex}"
        self._prefix.write(fresh, b"")
        clock = self._prefix.find(fresh)
        assert clock is not None
        self._prefix.delete([clock])
        return Seen(Holder.parse(content), item.generation, item.updated_s, clock.updated_s - item.updated_s)

    def take(self, holder: Holder, seen: Seen | None) -> None:
        try:
            self._generation = self._prefix.write(self._name, holder.content(), 0 if seen is None else seen.version)
        except StorageError:
            latest = self._prefix.find(self._name)
            if (latest and latest.generation) == (seen and seen.version):
                raise  # it is as it was: another reason
            raise Taken from None
        self._mine = holder

    def held(self) -> bool:
        assert self._mine is not None
        if (item := self._prefix.find(self._name)) is None:
            return False
        if item.generation != self._generation and _id(self._prefix.read(item)) != self._mine.id:
            return False
        self._generation = item.generation  # of a renewal whose answer was lost
        return True

    def renew(self) -> bool:
        assert self._mine is not None
        self._beat += 1
        try:
            self._generation = self._prefix.write(self._name, self._mine.content(self._beat), self._generation)
        except StorageError:
            return self.held()
        return True

    def release(self) -> None:
        if (item := self._prefix.find(self._name)) is not None and item.generation == self._generation:
            self._prefix.delete([item])


def _id(content: bytes) -> str | None:
    holder = Holder.parse(content)
    return None if holder is None else holder.id


def _machine() -> str:
    """Empty where Linux's /proc is missing."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _process_start(pid: int) -> int | None:
    """When a process started; None if it has ended, also if nobody has asked for its exit code yet."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
