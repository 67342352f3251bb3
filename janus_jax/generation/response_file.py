"""Responses from a file or standard input, with the conversations that they answer.

The first of these columns that a row has holds its responses:

| column             | what it holds                                                          |
|--------------------|------------------------------------------------------------------------|
| answers            | a list, as `janus generate` writes it: objects with `text`; or texts   |
| responses          | the same                                                               |
| response           | one text                                                               |
| chosen (, rejected)| a pair, as in data files                                               |
| output             | one text, as in data files                                             |
| messages           | a conversation of one or more turns that ends with the response        |

The other columns hold the conversation, as in files of prompts or of data.
"""

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from janus_jax.data.columns import Columns, RecordError, columns_of, shown, text
from janus_jax.data.messages import ends_with_answer, read_conversation
from janus_jax.data.schema import ALIASES, name_of, parse_texts
from janus_jax.data.tally import note
from janus_jax.errors import DataError, named
from janus_jax.generation.prompt_file import conversation_of, name_of_source, raw_rows
from janus_jax.generation.prompts import conversation
from janus_jax.storage import staging

_LISTS = ("answers", "responses")
_KINDS = {name: kind for kind, column in (("dpo", "chosen"), ("sft", "output")) for name in ALIASES[column]}
_COLUMNS = (*_LISTS, "response", *_KINDS)
_NEEDED = "a row needs answers, responses, response, output, chosen and rejected, or messages that end with an answer"


@dataclasses.dataclass(frozen=True)
class Response:
    text: str
    is_cut: bool = False
    """The model was stopped before its end."""


@dataclasses.dataclass(frozen=True)
class ResponseRow:
    """A checked row."""

    messages: tuple[dict[str, str], ...]
    """The conversation, a user message last."""
    responses: tuple[Response, ...]
    raw: Mapping[str, Any]
    """The row as it was."""
    column: str
    """What holds the responses."""
    place: str = dataclasses.field(default="", compare=False)
    """FILE:LINE, for messages."""

    def with_scores(self, scores: Sequence[Any], key: str) -> dict[str, Any]:
        """The row with its scores, one for each response, under `key`.

        They stand in the objects of a list; as a list beside a list of texts; as an object with chosen and rejected
        beside a pair; alone beside a single response.
        """
        if self.column not in _LISTS:
            pair = len(scores) == 2
            return {**self.raw, key: dict(zip(("chosen", "rejected"), scores, strict=True)) if pair else scores[0]}
        items = self.raw[self.column]
        if not isinstance(items[0], Mapping):
            return {**self.raw, key: list(scores)}
        return {**self.raw, self.column: [{**item, key: score} for item, score in zip(items, scores, strict=True)]}


@staging.naming_urls()
def read_responses(
    source: str | os.PathLike[str], *, key: str, system: str = "", unscored: Counter[str] | None = None
) -> list[ResponseRow]:
    """All rows of a file, in its order.

    Args:
        source: a path, a gs:// URL, or `-`.
        key: what scores are written under; no row has it.
        system: the system message of rows that have none.
        unscored: counts rows by columns that hold responses too, but are not read.

    Raises:
        DataError: "FILE:LINE: ..." for a row without responses or with values that are not allowed; "FILE: ..." for a
            file that is empty, is of another type or cannot be read.
        StorageError: the URL cannot be read.
    """
    rows = []
    for place, raw in raw_rows(source, lines=False):
        with named(place):
            columns = columns_of(raw, _NEEDED)
            row = _row(raw, system, place)
            if key in raw or any(isinstance(one, Mapping) and key in one for one in _items(row)):
                where = "" if key in raw else f" in {row.column!r}"
                raise RecordError("ambiguous_columns", f"has {key!r}{where} already; choose another name with --key")
        for other in _COLUMNS:
            if columns.has(other) and _KINDS.get(other, other) != _KINDS.get(row.column, row.column):
                note(Counter() if unscored is None else unscored, other, place)
        rows.append(row)
    if not rows:
        raise DataError(name_of_source(source), "is empty; at least one row is needed")
    return rows


def _items(row: ResponseRow) -> Sequence[Any]:
    return row.raw[row.column] if row.column in _LISTS else ()


def _row(raw: Mapping[str, Any], system: str, place: str) -> ResponseRow:
    columns = Columns(raw)
    present = [one for one in _COLUMNS if raw.get(one) is not None]
    column = next(filter(columns.has, present), "")
    several = name_of(columns, "messages")
    is_answered = bool(several) and ends_with_answer(columns.peek(several))
    column = column or ("" if is_answered else next(iter(present), ""))  # an empty one is named
    if column in _KINDS:
        _, own_system, prompt, texts = parse_texts(columns, _KINDS[column])
        messages, responses = conversation(prompt, own_system), [Response(one) for one in texts]
    elif column:
        messages = conversation_of(columns)
        value = columns[column]
        responses = _listed(value, column) if column in _LISTS else [Response(text(value, column))]
    elif is_answered:
        *messages, last = read_conversation(columns, several, "assistant")
        column, responses = several, [Response(last["content"])]
    else:
        raise RecordError("missing_field", f"{_NEEDED}; found: {', '.join(columns) or 'nothing'}")
    if messages[0]["role"] != "system" and system:
        messages = [{"role": "system", "content": system}, *messages]
    return ResponseRow(tuple(one for one in messages if one["content"]), tuple(responses), raw, column, place)


def _listed(items: Any, column: str) -> list[Response]:
    if not isinstance(items, list) or not items:
        raise RecordError("wrong_type", f"column {column!r} must be a list of at least one, found {shown(items)}")
    objects, responses = isinstance(items[0], Mapping), []
    for number, item in enumerate(items, 1):
        where = f"column {column!r}, item {number}"
        if isinstance(item, Mapping) is not objects or (objects and "text" not in item):
            raise RecordError(
                "wrong_type", f"{where} is {shown(item)}; allowed: all texts, or all objects with a text {{text}}"
            )
        made = objects and "finish_reason" in item  # what a model has written may be empty
        value = text(item["text"] if objects else item, where, may_be_empty=made)
        responses.append(Response(value, is_cut=made and item["finish_reason"] == "length"))
    return responses
