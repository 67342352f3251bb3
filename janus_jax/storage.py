"""Local and gs:// paths behind one interface, and writes that are whole or absent."""

import contextlib
import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from janus_jax.errors import ConfigError, JanusError, StorageError, first_line


def as_path(path: str | os.PathLike[str]) -> epath.Path:
    """A path object for a local path (`~` expanded) or a gs:// URL."""
    text = os.fspath(path)
    return epath.Path(text) if "://" in text else epath.Path(os.path.expanduser(text))


def absolute(path: str | os.PathLike[str]) -> epath.Path:
    """As `as_path`, a local path made absolute: Orbax asks for it."""
    return as_path(path) if "://" in os.fspath(path) else epath.Path(_absolute(path))


def require_free(path: str | os.PathLike[str]) -> None:
    """What `atomic_directory` checks, for a refusal before long work.

    Raises:
        ConfigError: `path` is a URL.
        StorageError: `path` exists and is not an empty directory.
    """
    if "://" in os.fspath(path):
        raise ConfigError(f"{os.fspath(path)}: allowed: a local or mounted directory, not a URL")
    final = _absolute(path)
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise StorageError(f"{final}: exists and is not empty; choose another directory or remove it")


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields an empty local directory beside `path`; renames it to `path` on success, removes it on any failure.

    Raises:
        StorageError: `path` holds something, at the beginning or at the end, or its parent cannot be written.
    """
    require_free(path)
    final = _absolute(path)
    made = [parent for parent in (final.parent, *final.parent.parents) if not parent.exists()]
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".incomplete", dir=final.parent))
    except OSError as error:
        _remove_empty(made)
        raise StorageError(f"{final}: cannot be written: {error.strerror or error}") from error
    try:
        temporary.chmod(0o755)
        yield temporary
        require_free(final)  # somebody may have filled it meanwhile
        temporary.rename(final)
    except BaseException as error:
        _remove_tree(temporary)
        _remove_empty(made)
        if isinstance(error, Exception) and _is_refusal(error):
            raise StorageError(f"{final}: cannot be written: {first_line(error)}") from error
        raise


def write_whole(path: Path, text: str) -> None:
    """Replaces a text file at once: readers, and a kill at any moment, find the old text or the new one."""
    temporary = path.with_name(f".{path.name}.incomplete")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise StorageError(f"{path}: cannot be written: {error.strerror or error}") from error
        raise


@contextlib.contextmanager
def no_empty_leftovers(path: str | os.PathLike[str]) -> Iterator[None]:
    """On any failure, removes `path` and its parents as far as they were not there before and hold nothing."""
    final = _absolute(path)
    made = [place for place in (final, *final.parents) if not place.exists()]
    try:
        yield
    except BaseException:
        _remove_empty(made)
        raise


def _absolute(path: str | os.PathLike[str]) -> Path:
    return Path(os.path.abspath(os.path.expanduser(os.fspath(path))))


def _is_refusal(error: Exception) -> bool:
    """A full or failing disk. TensorFlow, tensorstore and ArrayRecord say so in words alone."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS):
        return True
    signs = ("RESOURCE_EXHAUSTED", "No space left", "File too large", "Disk quota", "Read-only file system")
    if isinstance(error, OSError) and error.errno is None and " requested and " in str(error):  # numpy's short write
        return True
    return not isinstance(error, JanusError) and any(sign in str(error) for sign in signs)


def _remove_tree(directory: Path) -> None:
    for _ in range(20):  # threads of whoever failed may still be writing into it
        shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            return
        time.sleep(0.1)


def _remove_empty(directories: list[Path]) -> None:
    for directory in directories:  # innermost first; those that hold something stay
        with contextlib.suppress(OSError):
            directory.rmdir()
