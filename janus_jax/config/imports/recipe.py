"""A file of another trainer becomes a configuration of ours, with an account of every key."""

import contextlib
import dataclasses
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from janus_jax.config import yaml_file
from janus_jax.config.imports import axolotl, openrlhf, training_keys, trl, weights
from janus_jax.config.imports.ledger import VERDICTS, Ledger, Row, devices_row, masked, shown
from janus_jax.config.imports.source import Source, Tool, read
from janus_jax.config.run import RunConfig, load_config
from janus_jax.errors import ConfigError, first_line

Converter = Callable[[Ledger, int | None, str], str]


@dataclasses.dataclass(frozen=True)
class Override:
    """A key of ours from the command line: what the recipe made of it, and what it is now."""

    key: str
    old: Any
    """None: the recipe does not set it."""
    new: Any


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What an import made of a file."""

    file: str
    tool: str
    objective: str
    ledger: Ledger
    text: str
    """Our configuration as YAML, with its source as a comment."""
    overrides: tuple[Override, ...]
    commands: tuple[str, ...]
    notes: tuple[str, ...]
    """The loader's advice on the configuration."""


def import_recipe(
    path: str,
    *,
    tool: Tool | None = None,
    devices: int | None = None,
    objective: str | None = None,
    equal: bool = False,
    overrides: Iterable[str] = (),
    unreadable: Callable[[str], str] = lambda model: "",
) -> Recipe:
    """Reads a recipe and makes a configuration that our loader takes.

    Args:
        tool: None: recognised by the content.
        devices: that the recipe ran on; None: as the file says, otherwise one.
        objective: of a TRL recipe that does not say its trainer.
        equal: set the compat switches that make a run equal to the tool's.
        overrides: our keys, as KEY=VALUE, applied last.
        unreadable: why a model's directory cannot be read here; empty: it can, or there is no such directory.

    Raises:
        ConfigError: the file cannot be read, its objective is not here, or a value is none that its tool takes.
    """
    source = read(path, tool)
    name = re.sub(r"\W+", "_", Path(path).stem).strip("_") or "imported"
    if objective is not None and (source.tool != "trl" or source.trainer not in ("", objective)):
        raise ConfigError(f"--objective {objective}: the file says its trainer; allowed: only where it does not")
    try:
        ledger, kind = _converted(source, devices or source.devices, name, objective, equal)
    except (TypeError, ValueError, AttributeError) as error:  # a list where the tool takes a word, and the like
        raise ConfigError(
            f"{path}: a value has a form that {source.tool} does not take: {first_line(error)}"
        ) from error
    ledger.defects[:0] = source.defects
    for key, value in source.torn.items():
        torn = key if key not in ledger.values else f"{key} (second time)"
        ledger.rows[torn] = Row(torn, masked(key, value), "ignored", note="not part of the command")
    for key, value in source.beside.items():
        note = "beside the command" if value is not None else "belongs to no option"
        row = ("not needed" if value is not None else "ignored", "", note)
        if source.devices is not None and key in source.devices_keys:
            row = devices_row(source.devices, devices)
        ledger.rows[key] = Row(key, masked(key, value), *row)
    for key, value in ledger.values.items():
        unread = ledger.rows[key].verdict == "not needed" or masked(key, value) != value
        if isinstance(value, str) and re.fullmatch(r"<\w.{3,}>", value) and not unread:
            ledger.defects.append(f"{key} = {value}: waits to be filled in")
    if source.trainer:
        _name_computed(ledger)
    changes = list(overrides)
    _require_objective(ledger, changes)
    config, text = _checked(ledger.config, changes)
    names = list(dict.fromkeys(change.partition("=")[0].strip() for change in changes))
    ledger.by_hand[:] = [one for one in dict.fromkeys(ledger.by_hand) if not _is_done(one, names)]
    _judge_by_hand(ledger)
    now = config.model_dump(mode="json", by_alias=True)
    overridden = tuple(Override(one, _at(ledger.config, one), _at(now, one)) for one in names)
    of_file = ledger.devices or source.devices
    if devices is not None and of_file not in (None, devices):
        overridden = (Override("--devices", of_file, devices), *overridden)
    tokenizer = weights.judge(ledger, config.init.from_, config.run.dir, unreadable)
    _move_builds(ledger, now["data"])
    for build in ledger.builds:
        ledger.commands.append(
            build.command(tokenizer=tokenizer, boundary=config.compat.token_boundary, bos=config.compat.bos)
        )
    header = [f"Made from {path} ({ledger.tool}, {kind}) by janus config import.", *_steps(ledger)]
    comment = "".join(f"# {line if line.isprintable() else ascii(line)}\n" for line in header)
    return Recipe(
        path, ledger.tool, kind, ledger, comment + text, overridden, tuple(ledger.commands), tuple(config.advice())
    )


def _is_done(line: str, names: Iterable[str]) -> bool:
    """Whether a line to do by hand is about one key of ours, which the overrides set, alone or with its section."""
    key = re.match(r"(\w+(?:\.\w+)+):", line)
    return key is not None and any(key[1] == one or key[1].startswith(f"{one}.") for one in names)


def _require_objective(ledger: Ledger, overrides: list[str]) -> None:
    """Raises ConfigError if overrides change the objective: every key of the recipe was read for its own."""
    with _written(ledger.config) as file:
        wanted = yaml_file.read_tree(file, overrides)[0].plain().get("objective")
    old, new = ledger.config["objective"]["name"], wanted.get("name") if isinstance(wanted, dict) else None
    if isinstance(new, str) and new != old:
        raise ConfigError(
            f"objective.name = {shown(new)}: the recipe is for {old}, and its keys are read for that; allowed: {old}; "
            "import the recipe as it is, then change `objective` and what depends on it in the new file"
        )


def _name_computed(ledger: Ledger) -> None:
    """Lists by hand what only a shell can compute, where no other line does."""
    for key, row in ledger.rows.items():
        counts = row.verdict in ("kept", "approximated") and training_keys.is_computed(ledger.values.get(key))
        if counts and not any(f" {key} = " in one for one in ledger.by_hand):
            training_keys.known(ledger, key, row.ours.partition(" ")[0] or key, ledger.values[key])


def _judge_by_hand(ledger: Ledger) -> None:
    """Keys whose value stands in a line to do by hand do not mean the same here yet."""
    for key, row in ledger.rows.items():
        if row.verdict == "kept" and any(f" {key} = " in one for one in ledger.by_hand):
            ledger.rows[key] = dataclasses.replace(row, verdict="by hand")


def _move_builds(ledger: Ledger, data: Mapping[str, Any]) -> None:
    """Builds the data sets where the final configuration reads them."""

    def folders(section: Mapping[str, Any]) -> list[str]:
        return [part["dir"] for part in section.get("mixture") or ()] or [one for one in [section.get("dir")] if one]

    before = ledger.config["data"]
    old, new = folders(before), folders(data)
    if len(old) != len(new):
        ledger.by_hand.append(
            f"data: the overrides name {len(new)} directories, the recipe has {len(old)} data sets; give each command "
            "its own --out"
        )
        new = old
    moved = dict(zip(old, new, strict=True))
    if before.get("eval_dir") and data.get("eval_dir"):
        moved[before["eval_dir"]] = data["eval_dir"]
    ledger.builds[:] = [dataclasses.replace(one, out=moved.get(one.out, one.out)) for one in ledger.builds]
    for key, row in ledger.rows.items():
        ours = ", ".join(moved.get(one, one) for one in row.ours.split(", "))
        ledger.rows[key] = dataclasses.replace(row, ours=ours)
    ledger.by_hand[:] = [
        re.sub(r"(?<=^--source of )\S+(?=:)", lambda one: moved.get(one[0], one[0]), line) for line in ledger.by_hand
    ]


def _at(values: Any, key: str) -> Any:
    """The value at a dotted key; None: there is none."""
    for name in key.split("."):
        is_item = isinstance(values, list) and name.isdigit() and int(name) < len(values)
        values = values[int(name)] if is_item else values.get(name) if isinstance(values, Mapping) else None
    return values


def _converted(
    source: Source, devices: int | None, name: str, objective: str | None, equal: bool
) -> tuple[Ledger, str]:
    if source.tool == "axolotl":
        ledger = Ledger(source.path, axolotl.keys.TOOL, source.values, equal=equal)
        return ledger, axolotl.convert(ledger, devices, name)
    if source.tool == "openrlhf":
        ledger = Ledger(source.path, openrlhf.TOOL, source.values, equal=equal)
        return ledger, openrlhf.convert(ledger, devices, name, source.trainer)
    ledger = Ledger(source.path, trl.TOOL, source.values, equal=equal)
    return ledger, trl.convert(ledger, devices, name, objective or source.trainer)


def _steps(ledger: Ledger) -> list[str]:
    return [
        *(["Before training:", *(f"  {one}" for one in ledger.commands)] if ledger.commands else []),
        *([f"Not here: {', '.join(map(_not_here, ledger.refused))}"] if ledger.refused else []),
        *(["By hand:", *(f"  {one}" for one in ledger.by_hand)] if ledger.by_hand else []),
    ]


def _not_here(row: Row) -> str:
    """A key that cannot be imported, with what stands for its value."""
    old, (_, equals, new) = shown(row.value), row.ours.partition(" = ")
    return f"{row.key} ({old}; instead {row.ours})" if equals and new != old else row.key


@contextlib.contextmanager
def _written(values: dict[str, Any]) -> Iterator[str]:
    """A file with the values; errors call it the imported configuration."""
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "imported.yaml")
        Path(file).write_text(yaml_file.dump(values), encoding="utf-8")
        try:
            yield file
        except ConfigError as error:
            raise ConfigError(str(error).replace(file, "the imported configuration")) from error


def _checked(values: dict[str, Any], overrides: list[str]) -> tuple[RunConfig, str]:
    """The configuration as our loader reads it, and the keys that were set, in our order."""
    with _written(values) as file:
        config = load_config(file, overrides)
    return config, yaml_file.dump(config.model_dump(mode="json", by_alias=True, exclude_unset=True))


def as_json(recipe: Recipe) -> dict[str, Any]:
    """The report as JSON values."""

    def row(one: Row) -> dict[str, Any]:
        return {key: value for key, value in dataclasses.asdict(one).items() if key != "verdict" or value}

    return {
        "file": recipe.file,
        "tool": recipe.tool,
        "objective": recipe.objective,
        "keys": [row(one) for one in recipe.ledger.rows.values()],
        "defaults": [row(one) for one in recipe.ledger.defaults],
        "defects": recipe.ledger.defects,
        "overrides": [dataclasses.asdict(one) for one in recipe.overrides],
        "by_hand": recipe.ledger.by_hand,
        "commands": list(recipe.commands),
        "notes": list(recipe.notes),
        "refused": [one.key for one in recipe.ledger.refused],
        "config": yaml.safe_load(recipe.text),
    }


def lines(recipe: Recipe) -> list[str]:
    """The report as lines for a terminal."""
    ledger = recipe.ledger
    keys = "1 key" if len(ledger.rows) == 1 else f"{len(ledger.rows)} keys"
    out = [f"{recipe.file}: {recipe.tool}, objective {recipe.objective}, {keys}"]
    for verdict, meaning in VERDICTS.items():
        rows = [one for one in ledger.rows.values() if one.verdict == verdict]
        if rows and verdict == "not set":
            out += ["", f"{verdict} ({len(rows)}): {', '.join(one.key for one in rows)}"]
        elif rows:
            out += ["", f"{verdict} ({len(rows)}), {meaning}:", *(_line(one) for one in rows)]
    for title, texts in (
        (f"defaults of {recipe.tool} that are written out", [_default(one) for one in ledger.defaults]),
        ("overrides of the command line", [_override(one) for one in recipe.overrides]),
        ("defects of the file", ledger.defects),
        ("to do by hand", ledger.by_hand),
        ("before training", list(recipe.commands)),
    ):
        out += ["", f"{title} ({len(texts)}):", *(f"  {one}" for one in texts)] if texts else []
    return [line if line.isprintable() else ascii(line) for line in out]


def _line(row: Row) -> str:
    ours = f" -> {row.ours}" if row.ours else ""
    note = f"; {row.note}" if row.note and ours else f": {row.note}" if row.note else ""
    return f"  {row.key}: {shown(row.value)}{ours}{note}"


def _default(row: Row) -> str:
    return f"{row.key} -> {row.ours}{f'; {row.note}' if row.note else ''}"


def _override(one: Override) -> str:
    return f"{one.key}: {'not set' if one.old is None else shown(one.old)} -> {shown(one.new)}"


def refusal(recipe: Recipe) -> str | None:
    """Why the import fails without --force; None if it does not."""
    rows = recipe.ledger.refused
    if not rows:
        return None
    names = ", ".join(one.key for one in rows[:8]) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
    what = "change the result and have nothing like them here, or are unknown"
    return f"{recipe.file}: keys that {what}: {names}; --force imports the rest"
