"""The table of an evaluation: as text beside the paper's, as JSON, as CSV. `janus report` reads the JSON."""

import csv
import dataclasses
import io
import math
from collections.abc import Sequence
from typing import Any

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


@dataclasses.dataclass(frozen=True)
class Table:
    """What an evaluation measured."""

    kind: str
    """Of the evaluation: bench, pairwise, harness, diversity, verbosity, system_effect, toxicity."""
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
            cells = [cell for parts in zip(*self._parts(row), strict=True) for cell in parts]
            writer.writerow([row.name, *("" if _missing(cell) else cell for cell in cells)])
        return out.getvalue()

    def lines(self) -> list[str]:
        """For a terminal, the paper's rows below."""
        lines = [self.title, *_aligned(self.columns, [(row.name, self._cells(row)) for row in self.rows])]
        lines += self.notes
        if (facts := self._paper_facts()) is not None:
            lines += ["", f"the paper: {facts['place']}; judge: {facts['judge']}; {facts['note']}"]
            shown = [
                (name, ["-" if _missing(value) else f"{value:g}" for value in row])
                for name, row in facts["rows"].items()
            ]
            lines += _aligned(facts["columns"], shown)
        return lines

    def _paper_facts(self) -> dict[str, Any] | None:
        if self.paper is None:
            return None
        facts, mark = paper(self.paper), f" ({self.paper_mark})" if self.paper_mark else ""
        return facts | {"rows": {f"{name}{mark}": row for name, row in facts["rows"].items()}}

    def _parts(self, row: Row) -> tuple[Sequence[float | None], ...]:
        nothing = [None] * len(self.columns)
        return row.values, row.low or nothing, row.high or nothing

    def _cells(self, row: Row) -> list[str]:
        cells = []
        for value, low, high in zip(*self._parts(row), strict=True):
            cell = "-" if _missing(value) else _number(value)
            cells.append(cell if _missing(low) or _missing(high) else f"{cell} [{_number(low)}, {_number(high)}]")
        return cells


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"


def _aligned(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    lines = [("", columns), *rows]
    wide = max(24, *(len(name) for name, _ in lines))
    widths = [max(map(len, column)) for column in zip(*(cells for _, cells in lines), strict=True)]
    padded = ([cell.rjust(width) for cell, width in zip(cells, widths, strict=True)] for _, cells in lines)
    return ["  ".join((name.ljust(wide), *cells)) for (name, _), cells in zip(lines, padded, strict=True)]
