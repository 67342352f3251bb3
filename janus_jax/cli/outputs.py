"""Outputs of commands, refused before any work is done for them."""

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

from janus_jax.errors import ConfigError


def require_writable(name: str, path: str | os.PathLike[str], *, empty: bool = False, buckets: bool = False) -> None:
    """Refuses an output that cannot be written, or (with `empty`) holds something, before any work is done for it.

    URLs are refused but for those of `buckets`, of which only the latter is asked.

    The nearest directory that exists is tried with a real entry, because permission bits say little to root and
    nothing about read-only file systems.
    """
    if not os.fspath(path).strip():
        raise ConfigError(f"{name}: is empty; allowed: a directory")
    if buckets and os.fspath(path).startswith("gs://"):
        from janus_jax.storage import staging

        if reason := staging.occupied(os.fspath(path)):
            raise ConfigError(f"{name} {path}: {reason}")
        return
    if "://" in os.fspath(path):
        other = "or gs://BUCKET/PATH" if buckets else "not a URL"
        raise ConfigError(f"{name} {path}: allowed: a local or mounted directory, {other}")
    target = Path(os.path.abspath(os.path.expanduser(os.fspath(path))))
    existing = next(parent for parent in (target, *target.parents) if parent.exists())
    if not existing.is_dir():
        raise ConfigError(f"{name} {path}: cannot be written: {existing} is a file")
    try:
        if empty and existing == target and any(target.iterdir()):
            raise ConfigError(f"{name} {path}: exists and is not empty; choose another directory or remove it")
        os.rmdir(tempfile.mkdtemp(prefix=".janus.", dir=existing))
    except OSError as error:
        raise ConfigError(f"{name} {path}: cannot be written: {existing}: {error.strerror}") from error


def require_file(name: str, path: Path) -> None:
    """Refuses a file that cannot be written, before any work is done for it; one that is there is replaced."""
    folder = path.parent
    if path.is_dir() or not folder.is_dir():
        raise ConfigError(f"{name} {path}: {'is a directory' if path.is_dir() else f'{folder} is no directory'}")
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".janus.", dir=folder))
    except OSError as error:
        raise ConfigError(f"{name} {path}: cannot be written: {error.strerror}") from error


def write_json(path: Path, value: Any) -> None:
    """Indented; what is not finite, such as the time over a network that is not there, is null."""
    path.write_text(json.dumps(_finite(value), indent=1) + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
