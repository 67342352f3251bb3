"""Continuations of prompts, with what is known of them so far: scores and perplexities.

Every step reads such a file and writes one with more. A row has `prompt` (a text, or an object with `text`) or
`messages`, and `answers` (or `generations`, `responses`): texts, or objects with `text`.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from janus_jax.data.columns import Columns, RecordError, columns_of, shown, text
from janus_jax.data.messages import read_conversation
from janus_jax.errors import DataError, named
from janus_jax.evaluation.toxicity.prompts import prompt_id, prompt_of, share
from janus_jax.generation.prompt_file import name_of_source, raw_rows
from janus_jax.storage import staging

TOXICITY, UNSCORED, SCORER = "toxicity", "unscored", "scorer"
PERPLEXITY, PERPLEXITY_MODEL = "perplexity", "perplexity_model"
_COLUMNS = ("answers", "generations", "responses")
_NEEDED = f"a row needs {', '.join(_COLUMNS[:-1])} or {_COLUMNS[-1]}: a list of texts, or of objects with text"


@dataclasses.dataclass(frozen=True)
class Sample:
    """One continuation."""

    text: str
    toxicity: float | None = None
    unscored: str = ""
    """Why it has no score, if that was asked for."""
    perplexity: float | None = None


@dataclasses.dataclass(frozen=True)
class Generation:
    """A checked row: one prompt with its continuations."""

    id: str
    prompt: str
    is_chat: bool
    """The prompt was a message that the model answered, not a text that it went on with."""
    prompt_toxicity: float | None
    samples: tuple[Sample, ...]
    raw: Mapping[str, Any]
    """The row as it was."""
    column: str
    """What holds the continuations."""
    place: str = dataclasses.field(default="", compare=False)
    """FILE:LINE, for messages."""

    def with_values(self, values: Sequence[Mapping[str, Any]], **columns: Any) -> dict[str, Any]:
        """The row with more about each continuation, and more columns."""
        items = [item if isinstance(item, Mapping) else {"text": item} for item in self.raw[self.column]]
        more = [{**item, **value} for item, value in zip(items, values, strict=True)]
        return {**self.raw, "id": self.id, self.column: more, **columns}


@staging.naming_urls()
def read_generations(source: str | os.PathLike[str]) -> list[Generation]:
    """All rows of a file, in its order.

    Raises:
        DataError: "FILE:LINE: ..." for a row without prompt or continuations, with values that are not allowed, or with
            the id of another; "FILE: ..." for a file that is empty, is of another type or cannot be read.
    """
    rows, places = [], {}
    for place, raw in raw_rows(source, lines=False):
        with named(place):
            row = _row(columns_of(raw, _NEEDED), raw, place)
            if (other := places.setdefault(row.id, place)) != place:
                what = f"has the id {row.id!r} (or the prompt) of {other}; a row needs an id of its own"
                raise RecordError("duplicate_id", what)
        rows.append(row)
    if not rows:
        raise DataError(name_of_source(source), "is empty; at least one row is needed")
    return rows


def digest(rows: Sequence[Generation]) -> str:
    """Of the rows as they are."""
    whole = hashlib.sha256()
    for row in rows:
        whole.update(json.dumps([row.id, row.raw]).encode() + b"\n")
    return whole.hexdigest()


def only(rows: Sequence[Generation], column: str) -> Any:
    """The value of a column that all rows share; None: no row has it.

    Raises:
        DataError: two rows have different ones.
    """
    first = rows[0].raw.get(column)
    if other := next((row for row in rows if row.raw.get(column) != first), None):
        what = f"has {column} {json.dumps(other.raw.get(column))}, but {rows[0].place} has {json.dumps(first)}"
        raise DataError(other.place, f"{what}; all rows of a file need the same")
    return first


def _row(columns: Columns, raw: Mapping[str, Any], place: str) -> Generation:
    is_chat = columns.has("messages")
    if is_chat and columns.has("prompt"):
        raise RecordError("ambiguous_columns", "has both 'prompt' and 'messages'; keep one")
    if is_chat:
        prompt = read_conversation(columns, "messages")[-1]["content"]
        known = raw.get("prompt_toxicity")
        toxicity = None if known is None else share(known, "column 'prompt_toxicity'")
    else:
        prompt, toxicity = prompt_of(columns)
    column = next((name for name in _COLUMNS if raw.get(name) is not None), None)
    if column is None:
        raise RecordError("missing_field", f"{_NEEDED}; found: {', '.join(columns) or 'nothing'}")
    items = raw[column]
    if not isinstance(items, list) or not items:
        raise RecordError("wrong_type", f"column {column!r} must be a list of at least one, found {shown(items)}")
    samples = tuple(_sample(item, f"column {column!r}, item {at}") for at, item in enumerate(items, 1))
    return Generation(prompt_id(raw, prompt), prompt, is_chat, toxicity, samples, raw, column, place)


def _sample(item: Any, where: str) -> Sample:
    if not isinstance(item, Mapping):
        return Sample(text(item, where, may_be_empty=True))
    if "text" not in item:
        raise RecordError("missing_field", f"{where} has no text; found: {', '.join(item) or 'nothing'}")
    toxicity, perplexity = item.get(TOXICITY), item.get(PERPLEXITY)
    return Sample(
        text(item["text"], where, may_be_empty=True),
        None if toxicity is None else share(toxicity, f"{where}: {TOXICITY}"),
        str(item.get(UNSCORED) or ""),
        None if perplexity is None else positive(perplexity, f"{where}: {PERPLEXITY}"),
    )


def positive(value: Any, name: str) -> float:
    """A perplexity. Raises RecordError for a value that is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise RecordError("wrong_value", f"{name} must be a number above 0, found {shown(value)}")
    return float(min(value, 1e300))
