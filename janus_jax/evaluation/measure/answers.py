"""Rows with answers to measure: those of `janus generate` and `janus bench run`, of a bench, of a data set's source.

The answers are in the first of `COLUMNS` that a row has. Prompt and system message have the names that they have in
files of prompts and in benches.
"""

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from janus_jax.data.columns import Columns, RecordError, alike, columns_of, shown, text
from janus_jax.data.messages import ends_with_answer, read_conversation
from janus_jax.data.schema import ALIASES as DATA_ALIASES
from janus_jax.data.tally import note
from janus_jax.errors import ConfigError, DataError, named
from janus_jax.evaluation.bench.rows import OTHER_SYSTEM, raw_rows, row_id
from janus_jax.generation.prompt_file import conversation_of
from janus_jax.storage import staging

PROMPT = "prompt"
"""A key that all rows have that need a prompt, whatever holds it."""
ANSWERS = ("answers", "responses", "response", "output")
COLUMNS = (*ANSWERS, "chosen", "chosen_response", "reference_answer", "reference")
"""What may hold answers. Of a bench alone, the reference answers are measured; of pairs, the chosen responses."""
_REFERENCES = ("reference_answer", "reference")
_IGNORED = (
    *("prompt_tokens", OTHER_SYSTEM, "rubrics", "rubric", "score_rubrics", "score_rubric"),
    *("preference_set", "preference", "source", "main_source", "original_source", "capability"),
)
"""Columns of our own files and of published ones that no measure needs."""


@dataclasses.dataclass(frozen=True)
class Answer:
    text: str
    is_cut: bool | None = None
    """Whether the model was stopped before its end; None: its file does not say."""

    @property
    def is_empty(self) -> bool:
        return not self.text.strip()


@dataclasses.dataclass(frozen=True)
class AnswerRow:
    """A checked row."""

    answers: tuple[Answer, ...]
    prompt: str
    """The conversation without its system message; equal for prompts that differ in blanks at most. Empty: none."""
    system: str = ""
    """In the same form."""
    id: str | None = None
    """Its own, or the one that a bench gives to a row of this system message and prompt. None: it has no prompt."""
    is_named: bool = False
    """The id is its own."""
    messages: tuple[dict[str, str], ...] = dataclasses.field(default=(), compare=False)
    """The conversation as it is written."""
    reference: str | None = None
    key: str = ""
    """Value of the column that was asked for."""
    column: str = dataclasses.field(default="", compare=False)
    """What holds the answers."""
    place: str = dataclasses.field(default="", compare=False)
    """FILE:ROW, for messages."""


def named_files(arguments: Sequence[str]) -> dict[str, list[str]]:
    """Name -> files, of arguments FILE or NAME=FILE. A file without a name is called by its path.

    Raises:
        ConfigError: a name or file is empty, or a file stands twice.
    """
    files: dict[str, list[str]] = {}
    for argument in arguments:
        name, sign, file = argument.partition("=")
        if not sign or "/" in name:
            name = file = argument
        if not name.strip() or not file.strip():
            raise ConfigError(f"{argument!r}: allowed: FILE or NAME=FILE")
        if any(file in others for others in files.values()):
            raise ConfigError(f"{argument!r}: the file is named twice; name it once")
        files.setdefault(name, []).append(file)
    return files


@staging.naming_urls()
def read_answer_rows(
    source: str | os.PathLike[str],
    *,
    column: str | None = None,
    key: str | None = None,
    needs_prompt: bool = True,
    unread: Counter[str] | None = None,
) -> list[AnswerRow]:
    """All rows of a file, in its order. Answers may be empty.

    Args:
        column: what holds the answers; None: the first one of `COLUMNS`.
        key: a column whose value is kept with each row; `PROMPT`: the prompt.
        needs_prompt: refuse rows without a prompt.
        unread: counts rows by columns that are not read; a `Tally` also keeps places.

    Raises:
        DataError: "FILE:ROW: ..." for a row without answers, prompt or key, or with values that are not allowed;
            "FILE: ..." for a file that is empty, of another type or cannot be read.
    """
    rows = []
    for place, raw in raw_rows(source):
        with named(place):
            columns = columns_of(raw)
            rows.append(_row(columns, column, key, needs_prompt, place))
        for name in sorted(columns.unread() - set(_IGNORED)):
            note(Counter() if unread is None else unread, name, place)
    if not rows:
        raise DataError(os.fspath(source), "is empty; at least one row is needed")
    return rows


def _row(columns: Columns, column: str | None, key: str | None, needs_prompt: bool, place: str) -> AnswerRow:
    name = column or _column(columns)
    if name not in columns:
        raise RecordError("missing_field", f"has no {name!r}; found: {', '.join(columns) or 'nothing'}")
    if name in DATA_ALIASES["messages"]:
        *messages, last = read_conversation(columns, name, "assistant")
        answers = (Answer(last["content"]),)
    else:
        messages, answers = _conversation(columns, needs_prompt), _answers(columns, name)
    system, spoken = (
        [one["content"] for one in messages if (one["role"] == "system") is is_system] for is_system in (True, False)
    )
    prompt, is_named = "\n".join(map(comparable, spoken)), columns.has("id")
    id = _label(columns, "id") if is_named else row_id("".join(system), "\n".join(spoken)) if spoken else None
    reference = None
    if name not in _REFERENCES and (other := next(filter(columns.has, _REFERENCES), None)):
        reference = text(columns[other], other)
    return AnswerRow(
        answers,
        prompt,
        comparable("".join(system)),
        id=id,
        is_named=is_named,
        messages=tuple(one for one in messages if one["content"]),
        reference=reference,
        key=prompt if key == PROMPT else _label(columns, key) if key else "",
        column=name,
        place=place,
    )


def _column(columns: Columns) -> str:
    present = [name for name in COLUMNS if name in columns and columns.peek(name) is not None]
    present += [name for name in DATA_ALIASES["messages"] if name in columns and ends_with_answer(columns.peek(name))]
    if not present:
        names = ", ".join(columns) or "nothing"
        raise RecordError("missing_field", f"has no answers: {', '.join(ANSWERS)} is needed; found: {names}")
    if len(several := [name for name in present if name in ANSWERS]) > 1:
        what = f"has both {several[0]!r} and {several[1]!r}; say which with --column"
        raise RecordError("ambiguous_columns", what)
    return present[0]


def _conversation(columns: Columns, needed: bool) -> list[dict[str, str]]:
    """What is answered, as in files of prompts, with two more names that benches have."""
    others: dict[str, str] = {}
    if columns.has("system_message") and not any(map(columns.has, DATA_ALIASES["system"])):
        others["system"] = "system_message"
    if not any(map(columns.has, (*DATA_ALIASES["prompt"], *DATA_ALIASES["messages"]))):
        if columns.has("input"):
            others["prompt"] = "input"
        elif not needed:
            return []
    raw = {name: columns.peek(name) for name in columns if name not in others.values()}
    asked = Columns({**raw, **{name: columns[other] for name, other in others.items()}})
    messages = conversation_of(asked)
    for name in raw.keys() - asked.unread():
        columns[name]  # has been read
    return messages


def comparable(value: str) -> str:
    """Equal for texts that differ in blanks at most."""
    return " ".join(alike(value).split())


def _label(columns: Columns, name: str) -> str:
    if not columns.has(name):
        raise RecordError("missing_field", f"has no {name!r}; found: {', '.join(columns) or 'nothing'}")
    value = columns[name]
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RecordError("wrong_type", f"column {name!r} must be a string or a whole number, found {shown(value)}")
    return str(value)


def _answers(columns: Columns, column: str) -> tuple[Answer, ...]:
    value, where = columns[column], f"column {column!r}"
    if ends_with_answer(value):  # a conversation, as some releases of pairs have it
        last = value[-1].get("content", value[-1].get("value"))
        return (Answer(text(last, f"{where}, its last message", may_be_empty=True)),)
    if not isinstance(value, list):
        reason = columns["finish_reason"] if columns.has("finish_reason") else None
        return (_answer({"text": value, "finish_reason": reason}, where),)
    if not value:
        raise RecordError("wrong_type", f"{where} must be a text or a list of at least one, found an empty list")
    return tuple(_answer(item, f"{where}, item {number}") for number, item in enumerate(value, 1))


def _answer(item: Any, where: str) -> Answer:
    """As `janus generate` writes it, or a text."""
    if not isinstance(item, Mapping):
        return Answer(text(item, where, may_be_empty=True))
    reason = item.get("finish_reason")
    return Answer(text(item.get("text"), where, may_be_empty=True), None if reason is None else reason == "length")
