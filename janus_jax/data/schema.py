"""Schemas of published records and their validation: one raw record (a mapping) in, one checked `Record` out.

| kind      | columns (in brackets: names in other releases)                                       |
|-----------|--------------------------------------------------------------------------------------|
| sft       | system (system_prompt), prompt (instruction, user_prompt), output (reference_answer) |
| dpo, orpo | system, prompt, chosen (chosen_response), rejected (rejected_response)               |
| rm        | input (system message and instruction in one text), chosen, rejected                 |

system may be absent, null or empty. prompt, chosen and rejected are strings or message lists (messages.py). Instead of
prompt and output, messages (conversations, conversation) may hold one exchange; beside chosen and rejected it may hold
the prompt. Beside columns that suffice, messages are not read, and refused if they hold another exchange.

Alpaca's input is text that belongs to the prompt: it follows the instruction after a newline, as LLaMA-Factory joins
them. Without another prompt, input is the prompt. For rm, prompt and system are joined where there is no input.

A pair may have a margin, a number: by how much the chosen response is better. Pairs without one have margin 0.

main_source, original_source and preference_set are kept if present. `Columns.unread` (columns.py) names the other
columns. `build/readers.py` reads files; `build/published.py` reads pairs that other projects published in columns of
their own.
"""

import contextlib
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from janus_jax.data.columns import Columns, RecordError, alike, apart, filled, number, optional_text, shown, text
from janus_jax.data.messages import is_messages, read_messages
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
    "messages": ("messages", "conversations", "conversation"),
}
"""Column -> the names it has had in published releases."""

OTHER_NAMES = {
    "system": ("system_message",),
    "prompt": ("question", "query"),
    "output": ("response", "answer", "completion"),
}
"""Column -> names that other projects gave it; they count where a record has it under none of `ALIASES`."""

COLUMNS = {
    "sft": ("prompt", "output"),
    "dpo": ("prompt", "chosen", "rejected"),
    "orpo": ("prompt", "chosen", "rejected"),
    "rm": ("input (or prompt, with or without system)", "chosen", "rejected"),
}
"""Kind -> the columns that its records need, as messages name them."""

COLUMNS_READ = frozenset(name for table in (ALIASES, OTHER_NAMES) for names in table.values() for name in names) | {
    *("main_source", "original_source", "preference_set", "margin", "history")
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
    rated_higher_by: float | None = dataclasses.field(default=None, compare=False)
    """By how much chosen is rated higher, where responses were picked by their ratings."""
    place: str = dataclasses.field(default="", compare=False)
    """FILE:RECORD, for messages."""


def check_kind(kind: str) -> None:
    """Raises DataError for a kind that is not in KINDS."""
    if kind not in KINDS:
        raise DataError(f"kind {kind!r}: unknown; allowed: {', '.join(KINDS)}")


def parse_record(raw: Any, kind: str) -> Record:
    """Checks one raw record. If it is a `Columns`, that notes what was read.

    Raises:
        RecordError: a column is missing, empty or has a wrong type; messages are malformed, are more than one exchange
            or contradict the columns; chosen and rejected are equal; text is not valid Unicode. The message names
            column, value and what is allowed.
    """
    columns, system, prompt, responses = parse_texts(raw, kind)
    if kind == "sft":
        return Record(system, prompt, responses[0], **_sources(columns))
    return pair(columns, system, prompt, *responses)


def parse_texts(raw: Any, kind: str) -> tuple[Columns, str, str, list[str]]:
    """The columns of a raw record, its system message, prompt and responses. As `parse_record`, but responses may be
    equal."""
    check_kind(kind)
    if not isinstance(raw, Mapping):
        raise RecordError("wrong_type", f"a record must be an object with columns, found {shown(raw)}")
    columns = raw if isinstance(raw, Columns) else Columns(raw)
    if columns.has("history"):
        raise RecordError(
            "several_exchanges",
            f"column 'history' holds earlier turns ({shown(columns['history'])}); a record is one exchange",
        )
    messages = next((name for name in ALIASES["messages"] if columns.has(name)), None)
    if kind != "sft":
        sides = dict(_response(columns, column, kind) for column in ("chosen", "rejected"))
    elif messages is not None and not any(columns.has(name) for name in ALIASES["output"]):
        sides = {messages: read_messages(columns, name_of(columns, "messages"), "assistant")}
    else:
        value, name = _column(columns, "output", kind)
        sides = {name: {"assistant": text(value, name)}}

    parts = _prompt(columns, kind, messages, required=not any("user" in roles for roles in sides.values())) | sides
    system, prompt = _agreed(parts, "system") or "", _agreed(parts, "user", kind)
    _require_same_exchange(columns, parts, kind)
    assert prompt is not None  # otherwise `_prompt` has raised
    responses = [roles["assistant"] for roles in sides.values()]
    if kind == "rm":
        whole = columns.has("input") and _holds(prompt, system)
        system, prompt = "", prompt if whole else joined(system, prompt)
    return columns, system, prompt, responses


def pair(
    raw: Mapping[str, Any], system: str, prompt: str, chosen: str, rejected: str, *, gap: float | None = None
) -> Record:
    """The record of two checked responses, with sources and margin from `raw`. Raises RecordError if they are equal.

    Args:
        gap: by how much `chosen` is rated higher.
    """
    if alike(chosen) == alike(rejected):
        raise RecordError("identical_responses", f"chosen and rejected are equal ({shown(chosen)}); they must differ")
    margin = None if raw.get("margin") is None else number(raw["margin"], "margin")
    return Record(system, prompt, chosen, rejected, **_sources(raw), margin=margin, rated_higher_by=gap)


def _sources(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "main_source": optional_text(raw, "main_source"),
        "original_source": optional_text(raw, "original_source"),
        "preference_set": _preference_set(raw),
    }


def _column(raw: Columns, column: str, kind: str) -> tuple[Any, str]:
    """The column's value, and the name under which the record has it; null counts as absent."""
    if name := _name(raw, column):
        return raw[name], name
    present = ", ".join(str(name) for name in raw) or "nothing"
    names = (*ALIASES[column], *OTHER_NAMES.get(column, ()))
    also = f" (or {', '.join(names[1:])})" if len(names) > 1 else ""
    fits = [other for other in KINDS if _has_all(raw, other)]
    looks = f"; these are the columns of kind {' or '.join(fits)}" if fits else ""
    state = "is null" if any(name in raw for name in names) else "is missing"
    raise RecordError(
        "missing_field",
        f"column {column!r}{also} {state}; kind {kind} needs {', '.join(COLUMNS[kind])}; found: {present}{looks}",
    )


def name_of(raw: Mapping[str, Any], column: str) -> str:
    """The name under which the record has the column; empty if it has none. Its values must agree."""
    names = [name for name in ALIASES[column] if raw.get(name) is not None]
    if len(names) > 1 and any(raw[name] != raw[names[0]] for name in names):
        raise RecordError("ambiguous_columns", f"columns {' and '.join(names)} mean the same but differ; keep one")
    return names[0] if names else ""


def _name(columns: Columns, column: str) -> str:
    """As `name_of`, with the names that other projects gave the column."""
    return name_of(columns, column) or next(filter(columns.has, OTHER_NAMES.get(column, ())), "")


def _has_all(raw: Mapping[str, Any], kind: str) -> bool:
    """Whether the columns of a kind are there; `input` is as good as a prompt."""
    names = {column: ALIASES[column] for column in ("output", "chosen", "rejected") if column in COLUMNS[kind]}
    names["prompt"] = (*ALIASES["prompt"], *ALIASES["input"])
    return all(any(filled(raw.get(name)) for name in one) for one in names.values())


def _response(columns: Columns, column: str, kind: str) -> tuple[str, dict[str, str]]:
    """Name of a response column, and role -> text: assistant, and system and user if a message list has them."""
    value, name = _column(columns, column, kind)
    if isinstance(value, str):
        return name, {"assistant": text(value, name)}
    if not is_messages(value):
        raise RecordError("wrong_type", f"column {name!r} must be a string or a list of messages, found {shown(value)}")
    return name, read_messages(columns, name, "assistant")


def _prompt(columns: Columns, kind: str, messages: str | None, *, required: bool) -> dict[str, dict[str, str]]:
    """Place -> role -> text of the columns that hold system message and prompt."""
    more = columns.has("input")
    name, parts = (_name if required and not more and messages is None else name_of)(columns, "prompt"), {}
    if system := _name(columns, "system"):
        parts[system] = {"system": text(columns[system], system, may_be_empty=True)}
    if name and is_messages(columns[name]):
        parts[name] = read_messages(columns, name, "user")
    elif name and not (more and not filled(columns[name])):
        parts[name] = {"user": text(columns[name], name)}
    elif more:
        return parts | {"input": _input(columns)}
    elif kind != "sft" and messages is not None and required:
        return parts | {messages: read_messages(columns, name_of(columns, "messages"), "user")}
    elif required:
        value, name = _column(columns, "input" if kind == "rm" else "prompt", kind)
        text(value, name)  # raises
    if more and name in parts:
        prompt, extra = parts[name]["user"], _input(columns)["user"]
        whole = extra.strip()
        if kind == "rm" and _holds(whole, prompt):
            return parts | {name: {"user": extra}}
        if whole not in (prompt.strip(), joined(_agreed(parts, "system") or "", prompt).strip()):
            parts[name] |= {"user": f"{prompt}\n{extra}"}
    return parts


def _input(columns: Columns) -> dict[str, str]:
    value = columns["input"]
    return read_messages(columns, "input", "user") if is_messages(value) else {"user": text(value, "input")}


def joined(system: str, prompt: str) -> str:
    """System message and prompt as one text, unless the text begins with the system message already."""
    return prompt if re.match(rf"\s*{_words(system)}", prompt) else f"{system}\n{prompt}"


def _holds(whole: str, part: str) -> bool:
    return re.search(_words(part), whole) is not None


def _words(part: str) -> str:
    """A pattern of a text that does not begin or end inside a word: `I` is not in `Is`."""
    return rf"(?<!\w){re.escape(part.strip())}(?!\w)" if part.strip() else ""


def _agreed(parts: dict[str, dict[str, str]], role: str, kind: str = "") -> str | None:
    """The text of a role, which must be the same wherever a record has it; None without one."""
    places = {name: roles for name, roles in parts.items() if roles.get(role, "").strip()}
    if not places:
        return None

    def place(name: str) -> str:
        return f"column {name!r}" if len(places[name]) == 1 else f"the {role} message of {name!r}"

    first, *others = places
    expected = places[first][role]
    for name in others:
        other = places[name][role]
        # for rm, a column may hold in one text what messages hold in two
        whole = joined(places[name].get("system", ""), other) if kind == "rm" else other
        if expected.strip() not in (other.strip(), whole.strip()):
            raise RecordError(
                "bad_messages", f"{place(name)} differs from {place(first)} {apart(other, expected)}; they must agree"
            )
    return expected


def _require_same_exchange(columns: Columns, parts: dict[str, dict[str, str]], kind: str) -> None:
    """Raises RecordError if messages beside the columns that are read hold another exchange.

    Messages that are no single exchange stay a column that is not read.
    """
    for name in ALIASES["messages"]:
        roles = _exchange(name, columns.peek(name)) if columns.has(name) and name not in parts else {}
        for role, content in roles.items():
            given = {place: known[role] for place, known in parts.items() if known.get(role, "").strip()}
            one, others = _spaced(content), list(map(_spaced, given.values()))
            # for rm, a column may hold in one text what messages hold in two
            if one and given and one not in others and not (kind == "rm" and any(one in other for other in others)):
                place, expected = next(iter(given.items()))
                raise RecordError(
                    "bad_messages",
                    f"the {role} message of {name!r} differs from column {place!r} {apart(content, expected)}; they "
                    "must agree",
                )


def _exchange(name: str, value: Any) -> dict[str, str]:
    """Role -> text of messages that hold one exchange or a prompt; empty for others."""
    for ends in ("assistant", "user"):
        with contextlib.suppress(RecordError):
            return read_messages(Columns({name: value}), name, ends)
    return {}


def _spaced(text: str) -> str:
    """The text with single spaces between words."""
    return " ".join(text.split())


def _preference_set(raw: Mapping[str, Any]) -> tuple[dict[str, str], ...]:
    value = raw.get("preference_set")
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise RecordError("wrong_type", f"column 'preference_set' must be a list of objects, found {shown(value)}")
    if isinstance(raw, Columns):
        for item in value:
            raw.ignore("preference_set", item, PREFERENCE_KEYS)
    return tuple({key: optional_text(item, key) for key in PREFERENCE_KEYS} for item in value)
