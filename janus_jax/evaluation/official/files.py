"""A file of answers, and what is beside it: how it was made, and the journal of a command that was stopped."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from janus_jax.errors import ConfigError
from janus_jax.storage import local
from janus_jax.storage.bucket import os_errors
from janus_jax.storage.json_text import difference


def made_of(path: Path) -> Path:
    """The file that says how a file of answers was made. No tool takes it for answers."""
    return path.with_name(f"{path.stem}.meta.json")


def is_made(path: Path, settings: Mapping[str, Any]) -> bool:
    """Whether a file of answers is there already.

    Raises:
        ConfigError: there is one of other settings, or that says nothing of them.
    """
    if not path.exists():
        return False
    beside, remedy = made_of(path), "remove it, or choose another --name or --out"
    try:
        before = json.loads(beside.read_text(encoding="utf-8"))["settings"]
        changed = difference(before, settings)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"--out {path}", f"exists, but {beside.name} does not say how it was made; {remedy}"
        ) from error
    if changed is not None:
        name, old, new = changed
        raise ConfigError(f"--out {path}", f"exists, and its {name} is {old}, not {new}; {remedy}")
    return True


def require_same_text(path: Path, text: str) -> None:
    """Raises ConfigError if a file exists with another text."""
    try:
        same = not path.exists() or path.read_text(encoding="utf-8") == text
    except (OSError, UnicodeDecodeError):
        same = False
    if not same:
        raise ConfigError("--reference", f"{path} exists with other contents; remove it, or choose another --out")


def write_text(path: Path, text: str) -> None:
    """Writes a file whole, and makes its directory."""
    make_directory(path)
    local.write_whole(path, text)


def make_directory(path: Path) -> None:
    """Makes the directory of a file."""
    with os_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)


def remove_journal(path: Path) -> None:
    """Removes the journal of a file that is written, if a command was killed before it did."""
    with os_errors(path):
        path.with_name(f"{path.name}.part").unlink(missing_ok=True)
