"""The report as one self-contained page."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import escape

from janus_jax import __version__
from janus_jax.data.inspect import html
from janus_jax.evaluation.report import charts, facts, samples
from janus_jax.evaluation.report.inputs import Inputs
from janus_jax.evaluation.report.results import Group, grouped
from janus_jax.evaluation.result_table import Row, is_missing

_ANSWER, _CONFIG, _CELL = 1500, 20_000, 400
"""Characters that are shown of an answer, of a configuration, and of a cell or a note."""
_BUDGET = 400_000
"""Characters of all questions and answers."""
_ROWS, _COLUMNS, _BARS = 100, 24, 12
"""Rows and columns that are shown of a table, and bars of a chart."""
_CHARTS = 6


@dataclasses.dataclass(frozen=True)
class Bar:
    """A value in a chart of bars, as shares of its width; interval None: there is none."""

    name: str
    start: float
    width: float
    interval: tuple[float, float] | None
    text: str


def page(inputs: Inputs, title: str, out: Path) -> str:
    """The whole page as text.

    Args:
        out: where it will be written; links are relative to it.
    """
    runs = inputs.runs
    drawn, thinned = charts.charts([run.curves for run in runs])
    all_samples = [sample for run in runs for sample in run.samples] + inputs.answers
    questions, more = samples.questions(all_samples)
    shown = _affordable(questions)
    differences = facts.differences(runs) if len(runs) > 1 else ([], 0)
    return html.render(
        Path(__file__).parent / "assets",
        "report",
        title,
        {"cut": cut, "answer": lambda text: cut(text, _ANSWER), "config": lambda text: cut(text, _CONFIG)},
        inputs=inputs,
        made_from=made_from(inputs),
        runs=runs,
        facts=facts,
        out=out,
        version=__version__,
        drawn=drawn,
        thinned=thinned,
        charts=charts,
        differences=differences,
        questions=shown,
        more_questions=more + len(questions) - len(shown),
        groups=[(group, _bars(group)) for group in grouped(inputs.results)],
        bars_shown=_BARS,
        rows_shown=_ROWS,
        columns_shown=_COLUMNS,
    )


def made_from(inputs: Inputs) -> str:
    """How many runs, evaluations and files of answers."""
    counts = {
        ("run", "runs"): len(inputs.runs),
        ("evaluation", "evaluations"): len(inputs.results),
        ("file of answers", "files of answers"): len(inputs.files),
    }
    return ", ".join(f"{count:,} {one if count == 1 else many}" for (one, many), count in counts.items() if count)


def cut(text: Any, most: int = _CELL) -> str:
    """A text, or its beginning with how much is left out."""
    text = str(text)
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most:,} more characters)"


def _affordable(questions: Sequence[samples.Question]) -> list[samples.Question]:
    """As many as a page of bounded size can hold."""
    shown, left = [], _BUDGET
    for one in questions:
        texts = [text for row in one.rows for answers in row.cells for text, _ in answers]
        left -= sum(min(len(escape(text)), _ANSWER * 5) for text in [one.text, *one.systems, *texts])
        if left < 0 and shown:
            break
        shown.append(one)
    return shown


def _bars(group: Group) -> list[tuple[str, list[Bar]]]:
    """A chart for each of the first columns with intervals; without any, for each of the first with values."""
    made, columns = [], list(enumerate(group.table.columns))
    sure = [one for one in columns if any(row.low is not None and row.low[one[0]] is not None for row in group.rows)]
    for column, name in (sure or columns)[:_CHARTS]:
        rows = [row for row in group.rows if not is_missing(row.values[column])][:_BARS]
        ends = [0.0]
        for row in rows:
            ends += [float(part[column] or 0) for part in (row.values, row.low, row.high) if part is not None]
        low, high = min(ends), max(ends)
        if not rows or not high - low > 0:
            continue
        made.append((name, [_bar(row, column, low, high - low) for row in rows]))
    return made


def _bar(row: Row, column: int, low: float, width: float) -> Bar:
    def share(value: float) -> float:
        return 100 * (value - low) / width

    value, *ends = (None if is_missing(part) else share(float(part or 0)) for part in row.cells()[column])
    first, last = sorted((share(0.0), value or 0.0))
    interval = None if ends[0] is None or ends[1] is None else (ends[0], ends[1])
    return Bar(row.name, first, last - first, interval, row.texts()[column])
