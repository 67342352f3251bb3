"""Local and gs:// paths behind one interface; files and directories that are written whole or not at all."""

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import math
import os
import re
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from etils import epath

from janus_jax.errors import ConfigError, JanusError, StorageError, first_line
from janus_jax.storage.bucket import BucketPath, Prefix, is_url, os_errors
from janus_jax.storage.gs_path import GsPath

_LONGEST_NAME, _LONGEST_PATH = 255, 4096 - 512
"""In bytes, on Linux; the second leaves room for the files of a checkpoint."""

_NOT_A_URL = "allowed: a local or mounted directory, not a URL"

Place = epath.Path | BucketPath
"""A place to read."""


class LiteralPath(type(epath.Path("/"))):
    """A local path whose every character stands for itself.

    In `glob`, epath takes the whole path for a pattern. Below a directory like `[a]`, Orbax would not find what it has
    just written, and leave a checkpoint that nothing reads.
    """

    def glob(self, pattern: str) -> Iterator["LiteralPath"]:
        for name in glob.iglob(pattern, root_dir=self):
            yield type(self)(self, name)


def place(path: str | os.PathLike[str]) -> Place:
    """A local path (`~` expanded), or a place on gs://."""
    return BucketPath(path) if is_url(path) else as_path(path)


def as_path(path: str | os.PathLike[str]) -> epath.Path:
    """A path object for a local path (`~` expanded) or a gs:// URL."""
    return GsPath(path) if is_url(path) else LiteralPath(os.path.expanduser(path))


def near(path: str | os.PathLike[str]) -> str:
    """The name of a path that people read: one below the working directory starts there."""
    here = os.path.relpath(path)
    return os.fspath(path) if is_url(path) or here.split(os.sep)[0] == os.pardir else here


def absolute(path: str | os.PathLike[str]) -> epath.Path:
    """Like `as_path`, with a local path made absolute, as Orbax requires."""
    return GsPath(path) if is_url(path) else LiteralPath(_absolute(path))


def fixed(path: str | os.PathLike[str]) -> Path | BucketPath:
    """An absolute local path (`~` expanded), or a place on gs://."""
    return BucketPath(path) if is_url(path) else _absolute(path)


def require_free(path: str | os.PathLike[str]) -> None:
    """Does the checks of `atomic_directory` early, before long work.

    Raises:
        ConfigError: `path` is a URL.
        StorageError: `path` exists and is not an empty directory.
    """
    if is_url(path):
        raise ConfigError(os.fspath(path), _NOT_A_URL)
    if reason := occupied(path):
        raise StorageError(_absolute(path), f"{reason}")


def occupied(path: str | os.PathLike[str]) -> str | None:
    """Why `atomic_directory` would refuse a local path, or None."""
    final = _absolute(path)
    if final.is_symlink():
        return "is a symbolic link; allowed: a directory to make, or an empty one"
    try:
        if final.exists() and (not final.is_dir() or any(final.iterdir())):
            return "exists and is not empty; choose another directory or remove it"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None


def unwritable(path: str | os.PathLike[str]) -> str | None:
    """Why nothing can be written to a directory, existing or new, or None.

    Makes and removes an entry in the nearest existing directory: permission bits say little to root, and nothing about
    read-only file systems.
    """
    if reason := unusable(path):
        return reason
    target = _absolute(path)
    existing = next(parent for parent in (target, *target.parents) if parent.exists())
    if not existing.is_dir():
        return f"cannot be written: {existing} is a file"
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".janus.", dir=existing))
    except OSError as error:
        return f"cannot be written: {existing}: {error.strerror}"
    return None


def unusable(path: str | os.PathLike[str]) -> str | None:
    """Why a file system, or a library that writes checkpoints, does not take a local path; None if all take it."""
    if is_url(path):
        return _NOT_A_URL
    text = os.path.abspath(os.path.expanduser(os.fspath(path)))
    if "\0" in text:
        return "holds a NUL character; no path can"
    try:
        sizes = [len(part.encode()) for part in (text, *text.split("/"))]
    except UnicodeEncodeError:
        return "is not UTF-8 text"
    if max(sizes[1:]) > _LONGEST_NAME:
        return f"a name of {max(sizes[1:])} bytes is too long; allowed: at most {_LONGEST_NAME}"
    if sizes[0] > _LONGEST_PATH:
        return f"a path of {sizes[0]} bytes is too long; allowed: at most {_LONGEST_PATH}"
    if "\\" in text:
        return f"holds a backslash ({text}), which tensorstore takes for a slash; choose a path without one"
    if match := re.search(r"^/(gs|s3|az|hf)(?=/|$)|gs:(?=/)", text):
        return f"{match[0]} in {text} looks like a URL to Orbax; choose a path without it"
    return None


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields an empty local directory beside `path`; renames it to `path` on success, removes it on any failure.

    A killed process leaves `.NAME.*.incomplete`; the next process of the same host that writes `path` removes it.

    Raises:
        StorageError: `path` holds something, at the beginning or at the end, or its parent cannot be written.
        JanusError: an error raised inside; its places in the temporary directory are renamed to `path`.
    """
    require_free(path)
    final = _absolute(path)
    with no_empty_leftovers(final.parent):
        with os_errors(final):
            final.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(final)
            temporary, lock = locked_temporary(final)
        try:
            temporary.chmod(0o755)
            yield temporary
            require_free(final)  # another process may have filled it in the meantime
            with os_errors(final):
                temporary.rename(final)
            with contextlib.suppress(OSError):  # the new name is on disk, if the file system can promise that
                sync(final.parent)
        except BaseException as error:
            refused = error if isinstance(error, Exception) and _is_refusal(error) else None
            several = refused or isinstance(error, StorageError)  # writers, of which one met the full disk first
            _remove_tree(temporary, away_s=0.5 if several else 0.0)
            if refused:
                raise StorageError(final, f"cannot be written: {refusal(refused)}") from error
            if isinstance(error, JanusError):
                error.rename(temporary, final)  # the name that the user gave
            raise
        finally:
            os.close(lock)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Yields a file that replaces `path` on success and is removed on any failure.

    Readers find the old content or the new one, also after a kill or a power cut. A device or pipe is written directly.
    """
    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            yield file
        return
    target = Path(os.path.realpath(path))  # a link stays, and its file is replaced
    temporary = target.with_name(f".{_short(target.name)}.{uuid.uuid4().hex[:8]}.incomplete")  # no other writer's
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_bytes(path: Path | Place, content: bytes) -> None:
    """Writes a file as `whole_file` does, or a small object in place of one that is there.

    Raises:
        StorageError: it cannot be written.
    """
    if isinstance(path, BucketPath):
        prefix = Prefix(path)
        existing = prefix.find("")
        prefix.write("", content, 0 if existing is None else existing.generation)
        return
    with os_errors(path), whole_file(Path(path)) as file:
        file.write(content)


def write_whole(path: Path | Place, text: str) -> None:
    """`write_bytes` of a text."""
    write_bytes(path, text.encode())


def write_json(path: Path | Place, value: Any) -> None:
    """Writes `finite(value)` as indented JSON with `write_whole`."""
    write_whole(path, json.dumps(finite(value), indent=1) + "\n")


def finite(value: Any) -> Any:
    """A JSON value with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def no_empty_leftovers(path: str | os.PathLike[str]) -> Iterator[None]:
    """On any failure, removes `path` and those parents that are new and empty."""
    directory = _absolute(path)
    missing = [place for place in (directory, *directory.parents) if not place.exists()]
    try:
        yield
    except BaseException:
        for place in missing:  # innermost first; directories that hold something stay
            with contextlib.suppress(OSError):
                place.rmdir()
        raise


def _absolute(path: str | os.PathLike[str]) -> Path:
    return Path(os.path.abspath(os.path.expanduser(os.fspath(path))))


def refusal(error: Exception) -> str:
    """The operating system's message; tensorstore gives only its number, after names of inner files."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if code := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(code[1]))
    return first_line(error)


def _temporary_prefix(final: Path) -> str:
    """Includes the host's name: some file systems keep locks local, so a lock says nothing about other hosts."""
    return f".{_short(final.name)}.{socket.gethostname()}."


def _short(name: str) -> str:
    """The name, or a part and a hash of one to which nothing could be added."""
    return name if len(name) < 50 else f"{name[:24]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def locked_temporary(final: Path) -> tuple[Path, int]:
    """A new directory beside `final`, and the descriptor that holds its lock while this process lives."""
    while True:
        temporary = Path(tempfile.mkdtemp(prefix=_temporary_prefix(final), suffix=".incomplete", dir=final.parent))
        lock = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY)
        with contextlib.suppress(OSError):  # without locks, leftovers are not removed either
            fcntl.flock(lock, fcntl.LOCK_EX)
        if temporary.exists():  # no process took it for a leftover before it was locked
            return temporary, lock
        os.close(lock)


def remove_leftovers(final: Path) -> None:
    """Removes the temporary directories for `final` that no living process has locked."""
    for leftover in final.parent.glob(f"{glob.escape(_temporary_prefix(final))}*.incomplete"):
        with contextlib.suppress(OSError):  # locked, already removed, or no locks here
            lock = os.open(leftover, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(leftover)
            finally:
                os.close(lock)


def sync(path: Path) -> None:
    """Returns when a file's content, or the names in a directory, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_refusal(error: Exception) -> bool:
    """Whether the disk is full or failing, which TensorFlow, tensorstore and ArrayRecord report only in words."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS):
        return True
    signs = ("RESOURCE_EXHAUSTED", "No space left", "File too large", "Disk quota", "Read-only file system")
    if isinstance(error, OSError) and error.errno is None and " requested and " in str(error):  # numpy's short write
        return True
    return not isinstance(error, JanusError) and any(sign in str(error) for sign in signs)


def _remove_tree(directory: Path, away_s: float = 0.0) -> None:
    """Threads of a failed writer may still write into it, or make it anew: gives up after 10 s.

    Args:
        away_s: how long it must have been gone.
    """
    begun, gone_since = time.monotonic(), None
    while time.monotonic() < begun + 10:
        if directory.exists():
            gone_since = None
            shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            gone_since = gone_since or time.monotonic()
            if time.monotonic() >= gone_since + away_s:
                return
        time.sleep(0.1)
