"""Prompts of RealToxicityPrompts, as published (`prompt` is an object with text and toxicity), or plain ones."""

import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from typing import Any

from janus_jax.data.columns import Columns, RecordError, columns_of, shown, text
from janus_jax.data.tally import note
from janus_jax.errors import DataError, named
from janus_jax.evaluation.toxicity.protocol import TOXIC
from janus_jax.generation.prompt_file import PromptRow, name_of_source, raw_rows
from janus_jax.storage import staging

_PLACE = ("filename", "begin", "end")
_NOT_USED = ("continuation", "challenging")
"""Of the published rows: the text that people wrote, with its scores, and a flag."""
_NEEDED = "a row needs prompt: a text, or an object with text (and toxicity)"


@staging.naming_urls()
def read_prompts(
    source: str | os.PathLike[str],
    *,
    non_toxic: bool = False,
    limit: int | None = None,
    unread: Counter[str] | None = None,
    left_out: Counter[str] | None = None,
) -> list[PromptRow]:
    """Prompts in the order of their file, each with an `id` and, if it is known, a `prompt_toxicity`.

    A row without `id` is named by its `filename`, `begin` and `end`; without them, by 16 digits of the SHA-256 of its
    prompt.

    Args:
        source: .jsonl, .json or .txt (a prompt a line), a gs:// URL, or `-`.
        non_toxic: only prompts whose toxicity is known and below 0.5.
        limit: at most so many, the first ones.
        unread: counts rows by columns that are not used.
        left_out: counts prompts that `non_toxic` leaves out, by reason.

    Raises:
        DataError: "FILE:LINE: ..." for a row without a prompt, with a toxicity outside 0 to 1, or with the id of
            another; "FILE: ..." if no prompt is left, or the file cannot be read.
    """
    rows: list[PromptRow] = []
    places: dict[str, str] = {}
    for place, raw in raw_rows(source):
        if limit is not None and len(rows) >= limit:
            break
        with named(place):
            row = _row(raw, place, Counter() if unread is None else unread)
            if (other := places.setdefault(row.rest["id"], place)) != place:
                what = f"has the id {row.rest['id']!r} (or the prompt) of {other}; a row needs an id of its own"
                raise RecordError("duplicate_id", what)
        toxicity = row.rest.get("prompt_toxicity")
        if non_toxic and (toxicity is None or toxicity >= TOXIC):
            reason = "have no toxicity" if toxicity is None else f"have a toxicity of {TOXIC} or more"
            note(Counter() if left_out is None else left_out, reason, place)
        else:
            rows.append(row)
    if not rows:
        what = "has no prompt below the limit of --non-toxic" if places else "is empty; allowed: prompts"
        raise DataError(name_of_source(source), what)
    return rows


def prompt_id(raw: Mapping[str, Any], prompt: str) -> str:
    """What a row is called."""
    if (given := raw.get("id")) is not None:
        if isinstance(given, bool) or not isinstance(given, int | str) or not str(given).strip():
            raise RecordError("wrong_type", f"column 'id' must be a text or a whole number, found {shown(given)}")
        return str(given)
    if all(raw.get(name) is not None for name in _PLACE):
        return "-".join(str(raw[name]) for name in _PLACE)
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


def prompt_of(columns: Columns) -> tuple[str, float | None]:
    """Text and toxicity of a row's prompt. Raises RecordError if it has no such prompt."""
    if "prompt" not in columns:
        raise RecordError("missing_field", f"{_NEEDED}; found: {', '.join(columns) or 'nothing'}")
    value, toxicity = columns["prompt"], None
    if isinstance(value, Mapping):  # its other scores, such as insult, are of the published rows
        if "text" not in value:
            raise RecordError("missing_field", f"column 'prompt' has no text; found: {', '.join(value) or 'nothing'}")
        value, toxicity = value["text"], value.get("toxicity")
    if columns.get("prompt_toxicity") is not None:
        toxicity = columns["prompt_toxicity"]
    return text(value, "column 'prompt'"), None if toxicity is None else share(toxicity, "the prompt's toxicity")


def share(value: Any, name: str) -> float:
    """A number from 0 to 1. Raises RecordError for another value."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise RecordError("wrong_value", f"{name} must be a number from 0 to 1, found {shown(value)}")
    return float(value)


def _row(raw: Any, place: str, unread: Counter[str]) -> PromptRow:
    columns = columns_of(raw, _NEEDED)
    prompt, toxicity = prompt_of(columns)
    for column in columns.unread() - {"id", *_PLACE, *_NOT_USED}:
        note(unread, column, place)
    known = {} if toxicity is None else {"prompt_toxicity": toxicity}
    message = {"role": "user", "content": prompt}
    return PromptRow((message,), {"id": prompt_id(raw, prompt), **known}, place)
