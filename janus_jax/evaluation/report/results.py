"""Tables of evaluations: their JSON checked, and those of judged directories made."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from janus_jax.errors import DataError
from janus_jax.evaluation.bench import judgements, pairwise, tables
from janus_jax.evaluation.paper import paper
from janus_jax.evaluation.result_table import Row, Table

_KINDS = ("absolute", "pairwise")
"""Directories of verdicts, as their settings call them and the paper's numbers too."""
_LARGEST = 1e290
"""Numbers past it, and those that are not finite, show as missing."""
_ALWAYS = ("judge", "scorer", "model", "fail", "left", "drop", "skip", "limit", "error", "without")
"""Settings that are never folded away have one of these in their names."""

_COMPARED = ("scorer", *judgements.COMPARED, "rows_digest")
"""Settings that must be the same where numbers are compared."""


@dataclasses.dataclass(frozen=True)
class Result:
    """A table, and where it is from."""

    label: str
    path: str
    table: Table
    paper: dict[str, Any] | None

    @property
    def settings(self) -> tuple[dict[str, str], dict[str, str]]:
        """Those that are always visible, and the rest."""
        first, rest = {}, {}
        for name, value in _flat(self.table.settings).items():
            key = name.lower().rpartition(": ")[2]
            seen = value is not None and any(part in key for part in _ALWAYS)
            (first if seen else rest)[name] = _setting(value)
        return first, rest


@dataclasses.dataclass(frozen=True)
class Group:
    """Results of one kind with the same columns, as one table."""

    members: tuple[Result, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    paper: dict[str, Any] | None
    paper_is_above: bool
    """Another group has shown the same numbers."""

    @property
    def table(self) -> Table:
        """That of the first: kind and columns are those of all."""
        return self.members[0].table

    @property
    def title(self) -> str:
        return "; ".join(dict.fromkeys(one.table.title for one in self.members))


def grouped(results: Sequence[Result]) -> list[Group]:
    """Results that compare stand in one table. The paper's numbers are shown once."""
    by_shape: dict[tuple[Any, ...], list[Result]] = {}
    for one in results:
        by_shape.setdefault((one.table.kind, *one.table.columns), []).append(one)
    made, shown = [], []
    for members in by_shape.values():
        several = len(members) > 1
        rows = [
            dataclasses.replace(row, name=_named(one.label, row.name) if several else row.name)
            for one in members
            for row in one.table.rows
        ]
        notes = [_named(one.label, note) if several else note for one in members for note in one.table.notes]
        notes += _unlike(members)
        published = next((one.paper for one in members if one.paper), None)
        made.append(Group(tuple(members), tuple(rows), tuple(notes), published, published in shown))
        shown += [published] if published else []
    return made


def _named(label: str, text: str) -> str:
    """A text that says whose it is."""
    return text if text == label or f"{label}: " in text else f"{label}: {text}"


def _unlike(members: Sequence[Result]) -> list[str]:
    """A warning for settings that make numbers, and that are not the same."""
    all_settings = [setting for one in members for setting in _flat(one.table.settings).items()]
    texts: dict[str, set[str]] = {}
    for name, value in all_settings:
        texts.setdefault(name.rpartition(": ")[2], set()).add(_setting(value))
    differ = [name for name in _COMPARED if len(texts.get(name, ())) > 1]
    return [f"warning: {', '.join(differ)} differ, so these rows do not compare"] if differ else []


def is_table(value: Any) -> bool:
    """Whether a JSON value is meant to be `Table.as_json`."""
    return isinstance(value, dict) and {"kind", "columns", "rows"} <= value.keys()


def of_json(value: dict[str, Any], label: str, path: str) -> Result:
    """The table in `Table.as_json`.

    Raises:
        DataError: names the first part that has another form.
    """
    columns, rows = value["columns"], value["rows"]
    if not isinstance(columns, list) or not all(isinstance(one, str) for one in columns):
        raise DataError(path, "columns: allowed: a list of texts")
    if not isinstance(rows, list):
        raise DataError(path, "rows: allowed: a list of objects")
    made = [_row(row, len(columns), path, number) for number, row in enumerate(rows, 1)]
    title, notes, settings = (value.get(name) for name in ("title", "notes", "settings"))
    notes = notes if isinstance(notes, list) else [] if notes is None else [notes]
    table = Table(
        str(value["kind"]),
        str(title or value["kind"]),
        columns,
        made,
        [note if isinstance(note, str) else json.dumps(note) for note in notes],
        settings if isinstance(settings, dict) else {} if settings is None else {"settings": settings},
    )
    return Result(label, path, table, _published(value.get("paper"), path))


def _row(row: Any, columns: int, path: str, number: int) -> Row:
    place = f"{path}: row {number}"
    if not isinstance(row, dict) or "name" not in row or not isinstance(row.get("values"), list):
        raise DataError(place, "allowed: an object with name and values")
    parts = [_numbers(row.get(name), columns, place, name) for name in ("values", "low", "high")]
    return Row(str(row["name"]), parts[0] or [], parts[1], parts[2])


def _numbers(values: Any, columns: int, place: str, name: str) -> list[float | None] | None:
    if values is None and name != "values":
        return None
    if not isinstance(values, list) or len(values) != columns:
        raise DataError(place, f"{name}: allowed: {columns} numbers, one for each column")
    for one in values:
        if one is not None and (isinstance(one, bool) or not isinstance(one, int | float)):
            raise DataError(place, f"{name} has {json.dumps(one)[:60]}; allowed: numbers and null")
    return [one if one is not None and abs(one) < _LARGEST else None for one in values]


def _published(value: Any, path: str) -> dict[str, Any] | None:
    """The paper's numbers as the table has them, checked."""
    if value is None:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("rows"), dict):
        raise DataError(path, "paper: allowed: null, or an object with place, judge, note, columns and rows")
    columns = value.get("columns")
    if not isinstance(columns, list):
        raise DataError(path, "paper: columns: allowed: a list of texts")
    rows = {
        str(name): _numbers(row, len(columns), f"{path}: paper: {name}", "values")
        for name, row in value["rows"].items()
    }
    facts = {name: str(value.get(name, "not given")) for name in ("place", "judge", "note")}
    return facts | {"columns": [str(one) for one in columns], "rows": rows}


def is_judged(path: Path) -> bool:
    """Whether a directory is one that a judge writes, to its end or not."""
    return _judge_settings(path).get("kind") in _KINDS


def of_directory(path: Path, label: str) -> Result:
    """The table of a directory of verdicts.

    Raises:
        ConfigError: a file is damaged.
    """
    settings = _judge_settings(path)
    kind = settings["kind"]
    if not (path / judgements.JUDGEMENTS).exists():
        note = "warning: the judge has not come to its end, so no verdict is counted"
        table = Table(kind, f"{label}: not judged yet", [], [], [note], settings)
    else:
        judged = judgements.read(path, kind)
        made = pairwise.table(judged, label) if kind == "pairwise" else None
        table = made or tables.table([judged], [tables.groups(judged, label, {})])
    return Result(label, str(path), table, paper(kind))


def _judge_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads((path / judgements.SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings by name; those of models are one level deeper, and several get their model's name before theirs."""
    if not all(isinstance(value, dict) for value in settings.values()):
        return settings
    if len(settings) == 1:
        return next(iter(settings.values()))
    return {f"{model}: {name}": value for model, own in settings.items() for name, value in own.items()}


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
