"""What a user asks hosts to run: the words of a janus command, and its configuration, read on the workstation."""

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from janus_jax.errors import ConfigError
from launch.context import Context
from launch.records import MANY

if TYPE_CHECKING:
    from janus_jax.config.run import RunConfig

WITH_CONFIG = ("train", "time-step")
"""Commands whose first word is a configuration, and whose others change keys of it."""
_VALUED = ("--devices", "--start-timeout", "--steps", "--trace", "--json", "--chips")
"""Options of these that take a value."""
_OURS = ("--coordinator", "--num-processes", "--process-id")
_OUTPUTS = ("--out", "--json", "--trace", "--picture")
"""Options whose value is written, not read."""
_SECRET = re.compile(r"TOKEN(?!IZER)|KEY|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
_RESERVED = ("JANUS_RUN_OWNER", "JANUS_RUN_ATTEMPT", "PYTHONPATH", "PYTHONUNBUFFERED")


@dataclasses.dataclass(frozen=True)
class Command:
    """A janus command, read but not changed."""

    words: list[str]
    """After `janus`, without configuration and overrides where those are read here."""
    config: "RunConfig | None" = None
    config_name: str = ""
    """As the hosts will call the file."""
    overridden: frozenset[str] = frozenset()
    """Keys that overrides set."""

    @property
    def trains(self) -> bool:
        return self.words[0] == "train"

    @property
    def together(self) -> bool:
        """Whether all hosts run it together."""
        return self.words[0] in MANY


def read(words: Sequence[str]) -> Command:
    """Reads `CONFIG [a.b=c ...]`, which is short for a training, or `janus ANY ...`.

    Raises:
        ConfigError: there is nothing to run, or the configuration has mistakes.
    """
    words = list(words)
    if words[:1] == ["janus"]:
        words = words[1:]
    elif words:
        words = ["train", *words]
    if not words or words[0].startswith("-"):
        raise ConfigError("run: nothing to run; allowed: run CONFIG [a.b=c ...], or run -- janus COMMAND ...")
    for word in words:
        if word.partition("=")[0] in _OURS and words[0] in MANY:
            raise ConfigError(f"{word}: `run` sets this itself, by the machines' own numbers; leave it out")
        if "\0" in word:
            raise ConfigError(f"{word!r}: holds a NUL character")
    if words[0] not in WITH_CONFIG:
        return Command(words)
    return _with_config(words)


def _with_config(words: list[str]) -> Command:
    from janus_jax.config.run import load_config

    options: list[str] = []
    given: list[str] = []
    rest = iter(words[1:])
    for word in rest:
        if word == "--":
            given += rest
        elif word.startswith("-"):
            options.append(word)
            if word in _VALUED:
                options += [value for value in [next(rest, None)] if value is not None]
        else:
            given.append(word)
    if not given:
        raise ConfigError(f"janus {words[0]}: no configuration; allowed: a YAML file, then changes like batch.rows=4")
    path, *overrides = given
    config = load_config(path, overrides)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", os.path.basename(path)).strip(".-") or "config.yaml"
    overridden = frozenset(key.strip() for text in overrides if (key := text.partition("=")[0]))
    return Command([words[0], *options], config, name, overridden)


def environment(pairs: Sequence[str]) -> dict[str, str]:
    """Environment variables from texts NAME=VALUE.

    Raises:
        ConfigError: no such text, a name that this package sets, or one that looks like a secret.
    """
    values = {}
    for text in pairs:
        name, equals, value = text.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ConfigError(f"--env {name}: allowed: NAME=VALUE")
        if name in _RESERVED:
            raise ConfigError(f"--env {name}: `run` sets this itself")
        if name in values:
            raise ConfigError(f"--env {name}: given twice")
        if _SECRET.search(name):
            raise ConfigError(
                f"--env {name}: looks like a secret, and would lie in the bucket; put it in a file on the hosts "
                "(for wandb: ~/.netrc), or use the machines' service account"
            )
        values[name] = value
    return values


def run_dir(
    context: Context, command: Command, *, workers: int, given: str | None, shared_mount: str | None
) -> tuple[str, str]:
    """The run directory of a training, and a sentence that says why it is this one.

    Args:
        given: wins over the configuration.
        shared_mount: a directory that is the same one on all hosts.
    Raises:
        ConfigError: a directory of a single host's disk, where it would be lost or differ.
    """
    assert command.config is not None
    own = given or command.config.run.dir
    is_given = given is not None or bool({"run.dir", "run"} & command.overridden)
    if "://" in own:
        return own, "as the configuration says"
    if shared_mount is not None and os.path.isabs(own) and _is_below(own, shared_mount):
        return own, f"on the shared mount {shared_mount}"
    if not is_given:
        return f"{context.bucket.url}/runs/{context.settings.name}", f"instead of {own}, which would lie on one host"
    reason = None
    if workers > 1:
        reason = f"{workers} hosts would write to {workers} directories"
    elif context.settings.provisioning == "spot":
        reason = "a preemption deletes the disk of a spot machine"
    if reason is None:
        return own, "on the host's own disk: `down` deletes it"
    raise ConfigError(
        f"run.dir = {own}: {reason}; allowed: a gs:// URL, or an absolute path on a mount that all hosts share, with "
        "--shared-mount DIRECTORY"
    )


def _is_below(path: str, directory: str) -> bool:
    path, directory = os.path.normpath(path), os.path.normpath(directory)
    return f"{path}/".startswith(f"{directory.rstrip('/')}/")


def replace_inputs(config: "RunConfig", replace: Callable[[str, str], str]) -> dict[str, Any]:
    """Changes, by dotted key, of all keys that name data or weights.

    Args:
        replace: called with key and value; what to put there.
    """
    values: Mapping[str, Any] = config.model_dump(mode="json", by_alias=True)
    changes: dict[str, Any] = {}
    for section, key in (
        ("init", "from"),
        ("reference", "from"),
        ("reference", "dir"),
        ("data", "dir"),
        ("data", "eval_dir"),
        ("samples", "prompts"),
    ):
        if (old := (values[section] or {}).get(key)) is not None:
            changes[f"{section}.{key}"] = replace(f"{section}.{key}", old)
    if parts := values["data"]["mixture"]:
        changes["data.mixture"] = [
            {**part, "dir": replace(f"data.mixture.{number}.dir", part["dir"])} for number, part in enumerate(parts)
        ]
    return changes


def differences(before: Iterable[str], after: Iterable[str], most: int = 5) -> str:
    """Keys whose values differ between two configurations in full, as YAML texts, with both values."""
    (old, new) = (_flat("", yaml.safe_load(next(iter(texts), "")) or {}) for texts in (before, after))
    changes = [f"{key} = {new.get(key)}, not {old.get(key)}" for key in {**old, **new} if old.get(key) != new.get(key)]
    return ", ".join(changes[:most]) + (f" and {len(changes) - most} more" if len(changes) > most else "")


def _flat(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    return {k: v for key, part in value.items() for k, v in _flat(f"{name}.{key}".strip("."), part).items()}


def replace_words(command: Command, replace: Callable[[str, str], str | None]) -> list[str]:
    """The words of another command, with what it reads replaced.

    Args:
        replace: called with a name for messages and a word that may be a path; None: leave it.
    """
    words = [command.words[0]]
    before = ""
    for word in command.words[1:]:
        option, equals, value = word.partition("=")
        if word.startswith("-") and equals:
            new = None if option in _OUTPUTS else replace(option, value)
            words.append(word if new is None else f"{option}={new}")
        elif word.startswith("-") or before in _OUTPUTS:
            words.append(word)
        else:
            name = before if before.startswith("-") else f"janus {command.words[0]}"
            words.append(replace(name, word) or word)
        before = word
    return words
