"""What the official tools found, beside the paper's Table 3: `janus bench helpfulness`."""

import csv
import dataclasses
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from janus_jax.data.columns import shown
from janus_jax.errors import DataError, counted
from janus_jax.evaluation.intervals import Cell, mean_cell
from janus_jax.evaluation.paper import paper
from janus_jax.evaluation.result_table import Row, Table

_LC, _WINS, _MT_BENCH, _ARENA_HARD = paper("helpfulness")["columns"]
_NORMAL = 1.96  # standard errors on each side of a 95 % interval
_GAMES = "wins of both games; the paper's tool of 2024 fits them to a model of strength"
_STRONG = 3
"""How often Arena-Hard-Auto counts a verdict with two signs."""


@dataclasses.dataclass
class Results:
    """Model -> column -> what a tool measured, and what there is to say of it."""

    models: dict[str, dict[str, Cell]] = dataclasses.field(default_factory=lambda: defaultdict(dict))
    notes: list[str] = dataclasses.field(default_factory=list)

    def table(self, files: Sequence[str], only: Sequence[str] = ()) -> Table:
        """Args: only: names of models; none: all.

        Raises:
            DataError: there is no such model.
        """
        if missing := [name for name in only if name not in self.models]:
            raise DataError(f"--model {missing[0]}", f"in none of the files; there are: {', '.join(self.models)}")
        columns = (_LC, _WINS, _MT_BENCH, _ARENA_HARD)
        rows = [
            Row.from_cells(name, [self.models[name].get(column, Cell()) for column in columns])
            for name in only or self.models
        ]
        title = "General helpfulness, by the official tools, with 95 % intervals"
        return Table("helpfulness", title, columns, rows, self.notes, {"files": list(files)}, "helpfulness")


def read_results(paths: Sequence[str]) -> Results:
    """AlpacaEval's leaderboard.csv, and the judgments (.jsonl) of fschat and of Arena-Hard-Auto.

    Raises:
        DataError: a file is none of these, or gives a model a second value. Names FILE or FILE:ROW.
    """
    results = Results()
    for path in paths:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise DataError(path, f"cannot be read: {why}") from error
        read = _leaderboard if path.endswith(".csv") else _judgments
        for name, column, measured in read(path, text, results.notes):
            if column in results.models[name]:
                raise DataError(path, f"has {column!r} of {name!r}, as an earlier file has; leave one out")
            results.models[name][column] = measured
    return results


def _leaderboard(path: str, text: str, _: list[str]) -> list[tuple[str, str, Cell]]:
    rows, measured = list(csv.DictReader(text.splitlines())), []
    if not rows or "win_rate" not in rows[0]:
        raise DataError(path, "has no column 'win_rate'; allowed: leaderboard.csv of AlpacaEval")
    for number, row in enumerate(rows, 2):
        for column, value, error in (
            (_LC, "length_controlled_winrate", "lc_standard_error"),
            (_WINS, "win_rate", "standard_error"),
        ):
            if row.get(value):
                try:
                    mean, wide = float(row[value]), _NORMAL * float(row[error]) if row.get(error) else None
                except ValueError as fault:
                    raise DataError(f"{path}:{number}", f"column {value!r}: {fault}") from fault
                ends = (None, None) if wide is None else (mean - wide, mean + wide)
                measured.append((row[""] if "" in row else next(iter(row.values())), column, Cell(mean, *ends)))
    return measured


def _judgments(path: str, text: str, notes: list[str]) -> list[tuple[str, str, Cell]]:
    lines: dict[str, list[tuple[str, Any]]] = defaultdict(list)
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            place = f"{path}:{number}"
            try:
                value = json.loads(line)
                lines[value["model"]].append((place, value))
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(place, f"is no judgment of fschat or Arena-Hard-Auto: {shown(line)}") from error
    first = next(iter(lines.values()), [("", {})])[0][1]
    kind = next((kind for kind in _KINDS if kind.key in first), None)
    if kind is None:
        raise DataError(path, "holds no judgments; allowed: those of fschat (score) or of Arena-Hard-Auto (games)")
    measured = []
    for model, own in lines.items():
        by_question: dict[Any, list[float]] = defaultdict(list)
        failed = 0
        for place, line in own:
            try:
                values, question = kind.values(line), line[kind.question]
            except (KeyError, TypeError, IndexError, ValueError) as error:
                raise DataError(place, f"is another judgment than the first line: {error!r}") from error
            by_question[question] += values
            failed += not values
        if failed:
            notes.append(f"warning: {path}: {counted(failed, 'judgment')} of {model} failed and counts nowhere")
        kept = [values for values in by_question.values() if values]
        means, counts = np.array([np.mean(values) for values in kept]), np.array([len(values) for values in kept])
        measured.append((model, kind.column, mean_cell(means, counts)))  # what is said of one question is alike
    notes.append(f"{path}: {kind.note}")
    return measured


def _score(line: Mapping[str, Any]) -> list[float]:
    return [] if line["score"] == -1 else [float(line["score"])]


def _wins(line: Mapping[str, Any]) -> list[float]:
    """Percentages for the model, which is B in the first game and A in the second."""
    if line["category"] != "arena-hard-v0.1":
        raise ValueError(f"category {line['category']!r}; Table 3 has arena-hard-v0.1")
    scores: list[float] = []
    for game, ours in zip(line["games"], "BA", strict=True):
        if game is None or game["score"] is None:
            return []
        verdict = game["score"]
        count = _STRONG if verdict in ("A>>B", "A<<B", "B>>A", "B<<A") else 1
        better = "" if "=" in verdict else verdict[0] if ">" in verdict else verdict[-1]
        scores += [50.0 if not better else 100.0 * (better == ours)] * count
    return scores


@dataclasses.dataclass(frozen=True)
class _Kind:
    key: str
    """That its lines have."""
    question: str
    """What names the question of a line; its values are resampled together."""
    column: str
    values: Callable[[Mapping[str, Any]], list[float]]
    """Of a line; none: the judgment failed."""
    note: str


_KINDS = (
    _Kind(
        "games",
        "uid",
        _ARENA_HARD,
        _wins,
        "wins of both games; the paper's tool of 2024 fits them to a model of strength",
    ),
    _Kind("score", "question_id", _MT_BENCH, _score, "mean over both turns, as show_result has it"),
)
