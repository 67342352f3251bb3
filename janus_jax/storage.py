"""Local and gs:// paths behind one interface, and writes that are whole or absent."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from janus_jax.errors import ConfigError, StorageError


def as_path(path: str | os.PathLike[str]) -> epath.Path:
    """A path object for a gs:// URL, or for a local path: absolute, as Orbax asks, with `~` expanded."""
    text = os.fspath(path)
    return epath.Path(text) if "://" in text else epath.Path(_absolute(text))


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
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        _remove_empty(made)
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


def _remove_empty(directories: list[Path]) -> None:
    for directory in directories:  # innermost first; those that hold something stay
        with contextlib.suppress(OSError):
            directory.rmdir()
