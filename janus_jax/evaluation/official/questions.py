"""Questions of an official tool, as its own file of questions has them."""

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from janus_jax.data.columns import CheckedRow, Columns, RecordError, alike, distinct_rows, shown, text
from janus_jax.errors import DataError
from janus_jax.generation.prompt_file import raw_rows
from janus_jax.storage import staging


@dataclasses.dataclass(frozen=True)
class Question:
    """A checked row."""

    id: str | int
    """What the tool calls it. AlpacaEval has no ids: its instruction."""
    turns: tuple[str, ...]
    """What the user says; the model answers each of them."""
    category: str = ""
    kept: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Columns that the tool's file of answers has too."""
    reference: Mapping[str, Any] | None = None
    """Its line of the tool's file of reference answers, if the row has one."""
    place: str = dataclasses.field(default="", compare=False)
    """FILE:ROW, for messages."""


@staging.naming_urls()
def read_questions(
    source: str | os.PathLike[str],
    read: Callable[[Columns, str], Question],
    *,
    same: Sequence[str] = (),
    unread: Counter[str] | None = None,
) -> list[Question]:
    """All questions of a file, in its order.

    Args:
        source: a path or gs:// URL of .json or .jsonl.
        read: of a row's columns and its place.
        same: columns that all rows have, or none.
        unread: counts rows by columns that are not read.

    Raises:
        DataError: "FILE:ROW: ..." for a row that cannot be used, is of another schema than the first one, or has the id
            of another; "FILE: ..." for a file that is empty, is of another type or cannot be read.
    """

    def checked(columns: Columns, place: str) -> CheckedRow:
        question = read(columns, place)
        key = alike(question.id) if isinstance(question.id, str) else question.id
        name = "the instruction" if question.id == question.turns[0] else f"the id {question.id!r}"
        forms = {one: f"{'the' if columns.has(one) else 'no'} column {one!r}" for one in same}
        return CheckedRow(question, key, name, forms)

    rows = raw_rows(source, lines=False)
    questions = distinct_rows(rows, checked, why="the tool would mix up their answers", unread=unread)
    if not questions:
        raise DataError(os.fspath(source), "is empty; at least one question is needed")
    return questions


def required(columns: Columns, name: str) -> Any:
    """The value of a column that a question needs."""
    if name not in columns:
        names = ", ".join(columns) or "nothing"
        raise RecordError("missing_field", f"has no column {name!r}, which is needed; found: {names}")
    return columns[name]


def required_text(columns: Columns, name: str) -> str:
    return text(required(columns, name), name)


def texts(value: Any, name: str, count: int, *, may_be_empty: bool = False) -> tuple[str, ...]:
    """The value of a column that holds a list of so many texts."""
    if not isinstance(value, list) or len(value) != count:
        kind = f"a list of {len(value)}" if isinstance(value, list) else shown(value)
        raise RecordError("wrong_type", f"column {name!r} must be a list of {count} texts, found {kind}")
    return tuple(text(one, f"{name}[{place}]", may_be_empty=may_be_empty) for place, one in enumerate(value))
