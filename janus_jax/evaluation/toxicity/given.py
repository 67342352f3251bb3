"""Scores or perplexities that were made elsewhere: JSONL lines with `id`, `sample` (from 0) and a number."""

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from janus_jax.data.columns import Columns, RecordError, columns_of, shown
from janus_jax.data.tally import note
from janus_jax.errors import DataError, counted, named
from janus_jax.evaluation.toxicity.generations import Generation
from janus_jax.generation.prompt_file import name_of_source, raw_rows


@dataclasses.dataclass(frozen=True)
class Given:
    """What a file says of one continuation."""

    value: float | None
    """None: the file says that it has none."""
    reason: str
    """Why it has none."""


def read_given(
    source: str | os.PathLike[str],
    rows: Sequence[Generation],
    column: str,
    check: Callable[[Any, str], float],
    *,
    unread: Counter[str] | None = None,
) -> list[list[Given]]:
    """A value for each continuation, from lines in any order. A line with null (and `reason`) says that it has none.

    Args:
        column: that holds the number.
        check: makes a number of a JSON value and the column's name, or raises RecordError.
        unread: counts lines by columns that are not used.

    Raises:
        DataError: a line names no continuation of the rows, or one that another line has named; its number is not
            allowed; or a continuation that is not empty has no line.
    """
    numbers = {row.id: at for at, row in enumerate(rows)}
    values: list[dict[int, Given]] = [{} for _ in rows]
    for place, raw in raw_rows(source, lines=False):
        with named(place):
            columns = columns_of(raw)
            if any(one not in columns for one in ("id", "sample", column)):
                raise RecordError("missing_field", f"a line needs id, sample and {column}, found {shown(raw)}")
            number, sample = _place(columns, numbers, rows)
            if sample in values[number]:
                raise RecordError("duplicate_id", f"is the second line of id {raw['id']!r}, sample {sample}; keep one")
            value = columns[column]
            reason = str(columns.get("reason") or "no number in the file")
            values[number][sample] = Given(None if value is None else check(value, f"column {column!r}"), reason)
            for other in columns.unread():
                note(Counter() if unread is None else unread, other, place)
    missing = [
        (row.id, sample)
        for row, known in zip(rows, values, strict=True)
        for sample, one in enumerate(row.samples)
        if sample not in known and one.text.strip()
    ]
    if missing:
        first, sample = missing[0]
        what = f"lacks {counted(len(missing), 'continuation')}, the first of them id {first!r}, sample {sample}"
        what = f"{what}; a line for each is needed, with {column} null if there is no number"
        raise DataError(name_of_source(source), what)
    empty = Given(None, "empty")
    return [
        [known.get(sample, empty) for sample in range(len(row.samples))]
        for row, known in zip(rows, values, strict=True)
    ]


def _place(columns: Columns, numbers: Mapping[str, int], rows: Sequence[Generation]) -> tuple[int, int]:
    id_, sample = columns["id"], columns["sample"]
    number = numbers.get(str(id_))
    if number is None:
        raise RecordError("unknown_id", f"id {shown(id_)} is no id of the continuations")
    count = len(rows[number].samples)
    if isinstance(sample, bool) or not isinstance(sample, int) or not 0 <= sample < count:
        raise RecordError("wrong_value", f"sample {shown(sample)}: allowed: 0 to {count - 1}")
    return number, sample
