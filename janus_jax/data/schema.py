"""Schemas of published records and their validation: one raw record (a mapping) in, one checked `Record` out.

| kind      | columns (in brackets: names in other releases)                                       |
|-----------|--------------------------------------------------------------------------------------|
| sft       | system (system_prompt), prompt (instruction, user_prompt), output (reference_answer) |
| dpo, orpo | system, prompt, chosen (chosen_response), rejected (rejected_response)               |
| rm        | input (system message and instruction in one text), chosen, rejected                 |

chosen and rejected are strings, or message lists [{role, content}, ...] whose assistant message is the response.

A pair may have a margin, a number: by how much the chosen response is better. Pairs without one have margin 0.

main_source, original_source and preference_set are kept if present; other columns are ignored. `build/readers.py` reads
files; `build/published.py` reads pairs that other projects published in columns of their own.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from janus_jax.errors import DataError

KINDS = ("sft", "dpo", "orpo", "rm")
PREFERENCE_KEYS = ("dimension", "subdimension", "preference", "description")

ALIASES = {
    "system": ("system", "system_prompt"),
    "prompt": ("prompt", "instruction", "user_prompt"),
    "output": ("output", "reference_answer"),
    "chosen": ("chosen", "chosen_response"),
    "rejected": ("rejected", "rejected_response"),
    "input": ("input",),
}
"""Column -> the names it has had in published releases."""

_LARGEST_NUMBER = 3.4e38  # numbers are stored as float32

COLUMNS = {
    "sft": ("system", "prompt", "output"),
    "dpo": ("system", "prompt", "chosen", "rejected"),
    "orpo": ("system", "prompt", "chosen", "rejected"),
    "rm": ("input", "chosen", "rejected"),
}

COLUMNS_READ = frozenset(name for names in ALIASES.values() for name in names) | {
    *("main_source", "original_source", "preference_set", "margin")
}
"""All columns that this module reads."""


@dataclasses.dataclass(frozen=True)
class Record:
    """One checked record, the same for all kinds.

    sft: `chosen` is the output, `rejected` is None. rm: `prompt` is the whole input, `system` is empty.
    """

    system: str
    prompt: str
    chosen: str
    rejected: str | None = None
    main_source: str = ""
    original_source: str = ""
    preference_set: tuple[dict[str, str], ...] = ()
    margin: float | None = None
    """By how much chosen is better; None where the record has no margin."""
    place: str = dataclasses.field(default="", compare=False)
    """FILE:RECORD, for messages."""


class RecordError(DataError):
    """A record that cannot be used. `reason` is the short name under which dropped records are counted."""

    def __init__(self, reason: str, *parts: str):
        super().__init__(*parts)
        self.reason = reason


class NoPreferenceError(RecordError):
    """A valid record that prefers neither response: it is left out and counted, but its file is not at fault."""


def check_kind(kind: str) -> None:
    """Raises DataError for a kind that is not in KINDS."""
    if kind not in KINDS:
        raise DataError(f"kind {kind!r}: unknown; allowed: {', '.join(KINDS)}")


def parse_record(raw: Any, kind: str) -> Record:
    """Checks one raw record.

    Raises:
        RecordError: a column is missing, empty or has a wrong type; a message list is malformed or contradicts the
            columns; chosen and rejected are equal; text is not valid Unicode. The message names column, value and what
            is allowed.
    """
    check_kind(kind)
    if not isinstance(raw, Mapping):
        raise RecordError("wrong_type", f"a record must be an object with columns, found {shown(raw)}")
    if kind == "sft":
        system = text(_column(raw, "system", kind), "system", may_be_empty=True)
        prompt = text(_column(raw, "prompt", kind), "prompt")
        return Record(system, prompt, text(_column(raw, "output", kind), "output"), **_sources(raw))

    sides = {name: _response(_column(raw, name, kind), name) for name in ("chosen", "rejected")}
    if kind == "rm":
        system, prompt = "", _agreed(raw, "input", "user", sides, kind)
    else:
        system, prompt = _agreed(raw, "system", "system", sides, kind), _agreed(raw, "prompt", "user", sides, kind)
    return pair(raw, system, prompt, sides["chosen"]["assistant"], sides["rejected"]["assistant"])


def pair(raw: Mapping[str, Any], system: str, prompt: str, chosen: str, rejected: str) -> Record:
    """The record of two checked responses, with sources and margin from `raw`. Raises RecordError if they are equal."""
    if chosen.strip() == rejected.strip():
        raise RecordError("identical_responses", f"chosen and rejected are equal ({shown(chosen)}); they must differ")
    margin = None if raw.get("margin") is None else number(raw["margin"], "margin")
    return Record(system, prompt, chosen, rejected, **_sources(raw), margin=margin)


def _sources(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "main_source": _optional_text(raw, "main_source"),
        "original_source": _optional_text(raw, "original_source"),
        "preference_set": _preference_set(raw.get("preference_set")),
    }


def _column(raw: Mapping[str, Any], column: str, kind: str, *, required: bool = True) -> Any:
    """The column's value under whichever of its names the record uses; null counts as absent."""
    names = [name for name in ALIASES[column] if raw.get(name) is not None]
    if len(names) > 1 and any(raw[name] != raw[names[0]] for name in names):
        raise RecordError("ambiguous_columns", f"columns {' and '.join(names)} mean the same but differ; keep one")
    if names:
        return raw[names[0]]
    if not required:
        return None
    present = ", ".join(str(name) for name in raw) or "nothing"
    also = "" if len(ALIASES[column]) == 1 else f" (or {', '.join(ALIASES[column][1:])})"
    hint = " (system may be empty)" if column == "system" else ""
    fits = [other for other in KINDS if _has_all(raw, other)]
    looks = f"; these are the columns of kind {' or '.join(fits)}" if fits else ""
    state = "is null" if any(name in raw for name in ALIASES[column]) else "is missing"
    raise RecordError(
        "missing_field",
        f"column {column!r}{also} {state}; kind {kind} needs {', '.join(COLUMNS[kind])}{hint}; found: {present}{looks}",
    )


def _has_all(raw: Mapping[str, Any], kind: str) -> bool:
    return all(any(raw.get(name) is not None for name in ALIASES[column]) for column in COLUMNS[kind])


def _response(value: Any, column: str) -> dict[str, str]:
    """Role -> text of a response column: assistant, and system and user if a message list has them."""
    if isinstance(value, str):
        return {"assistant": text(value, column)}
    if not isinstance(value, list):
        raise RecordError(
            "wrong_type", f"column {column!r} must be a string or a list of messages, found {shown(value)}"
        )
    allowed = "allowed: an optional system, an optional user, then one assistant message, each {role, content}"
    roles: dict[str, str] = {}
    for number, message in enumerate(value, 1):
        where = f"column {column!r}, message {number}"
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            raise RecordError("bad_messages", f"{where} is {shown(message)}; {allowed}")
        role = message["role"]
        if role not in ("system", "user", "assistant"):
            raise RecordError("bad_messages", f"{where} has role {shown(role)}; {allowed}")
        if role in roles:
            raise RecordError("bad_messages", f"{where} is a second {role} message; {allowed}")
        roles[role] = text(message["content"], where, may_be_empty=role == "system")
    if list(roles) != [role for role in ("system", "user", "assistant") if role in roles] or "assistant" not in roles:
        raise RecordError("bad_messages", f"column {column!r} has the roles {', '.join(roles) or 'none'}; {allowed}")
    return roles


def _agreed(raw: Mapping[str, Any], column: str, role: str, sides: dict[str, dict[str, str]], kind: str) -> str:
    """The column's text, or without the column the text of the messages with `role`. They must all agree."""
    texts = {f"the {role} message of {name!r}": roles[role] for name, roles in sides.items() if role in roles}
    value = _column(raw, column, kind, required=not texts)
    if value is not None:
        texts = {f"column {column!r}": text(value, column, may_be_empty=column == "system")} | texts
    (first_name, first), *others = texts.items()
    for name, other in others:
        if other.strip() != first.strip():
            raise RecordError(
                "bad_messages", f"{name} ({shown(other)}) differs from {first_name} ({shown(first)}); they must agree"
            )
    return first


def text(value: Any, column: str, *, may_be_empty: bool = False) -> str:
    """The value of a text column. Raises RecordError if it is not a string, not valid Unicode, or blank."""
    where = column if column.startswith("column") else f"column {column!r}"
    if not isinstance(value, str):
        raise RecordError("wrong_type", f"{where} must be a string, found {shown(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        bad = ascii(value[error.start])
        raise RecordError(
            "bad_encoding", f"{where} holds {bad} at character {error.start + 1}, which is not valid Unicode"
        ) from error
    if not may_be_empty and not value.replace("\0", " ").strip():
        raise RecordError("empty_field", f"{where} is empty ({value[:20]!r}); text is needed")
    return value


def _optional_text(raw: Mapping[str, Any], column: str) -> str:
    value = raw.get(column)
    return "" if value is None else text(value, column, may_be_empty=True)


def number(value: Any, column: str) -> float:
    """The value of a number column. Raises RecordError if float32 cannot hold it."""
    # compare before converting: an integer in JSON may be too large for any float
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST_NUMBER:
        raise RecordError("wrong_type", f"column {column!r} must be a finite number (float32), found {shown(value)}")
    return float(value)


def _preference_set(value: Any) -> tuple[dict[str, str], ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise RecordError("wrong_type", f"column 'preference_set' must be a list of objects, found {shown(value)}")
    return tuple({key: _optional_text(item, key) for key in PREFERENCE_KEYS} for item in value)


def shown(value: Any) -> str:
    """Type and start of a value, on one line; ASCII so that any terminal can print it."""
    printed = ascii(value[:80] if isinstance(value, str | bytes) else value)  # a value may be megabytes long
    return f"{type(value).__name__} {printed if len(printed) <= 80 else printed[:77] + '...'}"
