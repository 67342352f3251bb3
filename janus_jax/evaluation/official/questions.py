"""Questions of an official tool, as its own file of questions has them."""

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from janus_jax.data.columns import Columns, RecordError, alike, columns_of, shown, text
from janus_jax.data.tally import note
from janus_jax.errors import DataError, named
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
    questions: list[Question] = []
    places: dict[str | int, str] = {}
    first: dict[str, bool] = {}
    for place, raw in raw_rows(source, lines=False):
        with named(place):
            columns = columns_of(raw)
            question = read(columns, place)
            present = {name: columns.has(name) for name in same}
            first = first or present
            if other := next((name for name in same if present[name] != first[name]), None):
                own, before = ("has", "does not") if present[other] else ("has no", "has one")
                what = f"{own} column {other!r}, but {questions[0].place} {before}; all rows need the same schema"
                raise RecordError("mixed_schemas", what)
            key = alike(question.id) if isinstance(question.id, str) else question.id
            if (earlier := places.setdefault(key, place)) != place:
                name = "instruction" if question.id == question.turns[0] else f"id {question.id!r}"
                raise RecordError("duplicate_id", f"has the {name} of {earlier}; the tool would mix up their answers")
        for column in columns.unread():
            note(Counter() if unread is None else unread, column, place)
        questions.append(question)
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
