"""Outputs that cannot be written, refused before any work is done for them; lines of notes and progress."""

import os
import re
import sys
from pathlib import Path

from janus_jax.errors import ConfigError


def require_writable(name: str, path: str | os.PathLike[str], *, empty: bool = False, buckets: bool = False) -> None:
    """Refuses an output directory that cannot be written.

    Args:
        name: of the option or key, for the message.
        empty: also refuse one that holds something.
        buckets: allow gs:// URLs, of which only `empty` is checked.
    """
    from janus_jax.storage import local, staging
    from janus_jax.storage.bucket import is_url

    text = os.fspath(path)
    if not text.strip():
        raise ConfigError(f"{name}: is empty; allowed: a directory")
    if buckets and is_url(text):
        reason = None if text.startswith("gs://") else "allowed: a local or mounted directory, or gs://BUCKET/PATH"
    else:
        reason = local.unwritable(text)
    if reason is None and empty:
        reason = staging.occupied(text)
    if reason is not None:
        raise ConfigError(f"{name} {path}: {reason}")


def require_file(name: str, path: Path) -> None:
    """Refuses an output file that cannot be written; an existing file is replaced."""
    from janus_jax.storage.local import unusable, unwritable

    if url := re.match(r"(\w[\w+.-]*):/(.*)", os.fspath(path)):  # Path has taken one slash of it
        raise ConfigError(f"{name} {url[1]}://{url[2]}: is a URL; allowed: a file of this machine")
    if os.fspath(path) == "-":
        raise ConfigError(f"{name} -: names no file; allowed: a file of this machine")
    if reason := unusable(path):
        raise ConfigError(f"{name} {path}: {reason}")
    if path.is_dir():
        raise ConfigError(f"{name} {path}: is a directory")
    if not path.parent.is_dir():
        raise ConfigError(f"{name} {path}: {path.parent} is not a directory")
    if reason := unwritable(path.parent):
        raise ConfigError(f"{name} {path}: {reason}")


def tell(line: str) -> None:
    """Prints a note or progress to stderr, in process 0. Call it after processes are started."""
    from janus_jax.parallel import processes

    if processes.is_main():
        print(line, file=sys.stderr, flush=True)
