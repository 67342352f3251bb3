"""The table of an evaluation: as text beside the paper's, as JSON, as CSV. `janus report` reads the JSON."""

import csv
import dataclasses
import io
import math
from collections.abc import Sequence
from typing import Any

from janus_jax.evaluation.intervals import Cell
from janus_jax.evaluation.paper import paper


@dataclasses.dataclass(frozen=True)
class Row:
    """Values of one model, or of a part of its answers. A value that does not exist is None or NaN."""

    name: str
    values: Sequence[float | None]
    """One for each column."""
    low: Sequence[float | None] | None = None
    """Lower ends of 95 % intervals; None for a column without one, or for all."""
    high: Sequence[float | None] | None = None

    @classmethod
    def from_cells(cls, name: str, cells: Sequence[Cell]) -> "Row":
        return cls(name, *map(list, zip(*cells, strict=True)))

    def cells(self) -> list[Cell]:
        nothing = [None] * len(self.values)
        return list(map(Cell, self.values, self.low or nothing, self.high or nothing))

    def texts(self) -> list[str]:
        """The cells as people read them."""
        return [_text(cell) for cell in self.cells()]


@dataclasses.dataclass(frozen=True)
class Table:
    """What an evaluation measured."""

    kind: str
    """Of the evaluation: bench, pairwise, harness, diversity, verbosity, system_effect, toxicity,
    helpfulness."""
    title: str
    columns: Sequence[str]
    rows: Sequence[Row]
    notes: Sequence[str] = ()
    """What a reader must know: failures, who judged, what does not compare."""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What made the numbers, enough to make them again."""
    paper: str | None = None
    """Section of `paper.yaml` with numbers to show beside these."""
    paper_mark: str = ""
    """Why the paper's numbers do not compare: stands behind the name of each of its rows, in every form."""

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "kind": self.kind,
            "title": self.title,
            "columns": list(self.columns),
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "notes": list(self.notes),
            "settings": self.settings,
            "paper": self._paper_facts(),
        }

    def as_csv(self) -> str:
        """One line for each row, with three columns for each value: itself, and the ends of its interval."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        heads = [head for column in self.columns for head in (column, f"{column} low", f"{column} high")]
        writer.writerow(["name", *heads])
        for row in self.rows:
            numbers = [number for cell in row.cells() for number in cell]
            writer.writerow([row.name, *("" if is_missing(number) else number for number in numbers)])
        return out.getvalue()

    def lines(self) -> list[str]:
        """For a terminal, the paper's rows below."""
        lines = [self.title, *_aligned(self.columns, [(row.name, row.texts()) for row in self.rows])]
        lines += self.notes
        if (facts := self._paper_facts()) is not None:
            lines += ["", f"the paper: {facts['place']}; judge: {facts['judge']}; {facts['note']}"]
            shown = [
                (name, ["-" if is_missing(value) else f"{value:g}" for value in row])
                for name, row in facts["rows"].items()
            ]
            lines += _aligned(facts["columns"], shown)
        return lines

    def _paper_facts(self) -> dict[str, Any] | None:
        if self.paper is None:
            return None
        facts, mark = paper(self.paper), f" ({self.paper_mark})" if self.paper_mark else ""
        return facts | {"rows": {f"{name}{mark}": row for name, row in facts["rows"].items()}}


def is_missing(value: float | None) -> bool:
    """Whether a value of a row does not exist."""
    return value is None or math.isnan(value)


def _text(cell: Cell) -> str:
    value, low, high = cell
    text = "-" if is_missing(value) else _number(value)
    return text if is_missing(low) or is_missing(high) else f"{text} [{_number(low)}, {_number(high)}]"


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"


def _aligned(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    lines = [("", columns), *rows]
    wide = max(24, *(len(name) for name, _ in lines))
    widths = [max(map(len, column)) for column in zip(*(cells for _, cells in lines), strict=True)]
    padded = ([cell.rjust(width) for cell, width in zip(cells, widths, strict=True)] for _, cells in lines)
    return ["  ".join((name.ljust(wide), *cells)) for (name, _), cells in zip(lines, padded, strict=True)]
