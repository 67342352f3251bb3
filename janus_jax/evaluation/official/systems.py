"""System messages under which a file of answers is made."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from janus_jax.data.columns import RecordError, text
from janus_jax.errors import ConfigError

DEFAULT = "You are a helpful assistant."
"""The text of the paper's default system message is not known."""
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
"""Names of models that all tools can read: they are names of files, and a tool cuts them at slashes."""
ALLOWED_NAME = "letters, digits, '.', '_' and '-', the first one neither '.' nor '-'"


@dataclasses.dataclass(frozen=True)
class System:
    """A system message; `label` tells it from others of a command."""

    label: str
    text: str
    """Empty: no system message."""


def read_systems(given: Sequence[str]) -> list[System]:
    """Values of --system: default, none, a text, or @FILE.

    Raises:
        ConfigError: a message is empty, cannot be read, or comes twice.
    """
    systems: list[System] = []
    for number, value in enumerate(given, 1):
        system = _read(value, number)
        for other in systems:
            if other.text == system.text:
                raise ConfigError(f"--system {value!r}", "is given twice; each answers all questions once")
            if other.label == system.label:
                raise ConfigError(f"--system {value}", f"another one is named {other.label!r} too; rename the file")
        systems.append(system)
    return systems


def _read(value: str, number: int) -> System:
    known = {"default": DEFAULT, "none": ""}
    if value in known:
        return System(value, known[value])
    label = f"system-{number}"
    if value.startswith("@"):
        path = Path(value[1:]).expanduser()
        try:
            value, label = path.read_text(encoding="utf-8").strip("\r\n"), path.stem
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise ConfigError(f"--system {value}", f"cannot be read: {why}") from error
        if not NAME.fullmatch(label):
            raise ConfigError(f"--system @{path}", f"the file names the model {label!r}; allowed: {ALLOWED_NAME}")
    try:
        return System(label, text(value, label))
    except RecordError as error:
        raise ConfigError(
            f"--system {value[:20]!a}", "shows no text, or is not valid Unicode; for none: none"
        ) from error
