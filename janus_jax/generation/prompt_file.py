"""Prompts from a file or standard input: each row a conversation whose next message the model writes.

| source                    | row                                                                          |
|---------------------------|------------------------------------------------------------------------------|
| .jsonl, .ndjson, .json    | prompt and system (optional), or messages; the names and forms of data files |
| .txt                      | a line that is not blank is a prompt                                         |
| - (standard input)        | as .jsonl if it begins with {, otherwise as .txt                             |

All but `-` may be gs:// URLs; JSON may be packed (.gz, .zst).
"""

import dataclasses
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from janus_jax.data.build.readers import file_type, json_lines, raw_records
from janus_jax.data.columns import Columns, RecordError, columns_of, filled, text, without
from janus_jax.data.messages import is_messages, read_conversation
from janus_jax.data.schema import ALIASES, name_of
from janus_jax.data.tally import note
from janus_jax.errors import DataError, counted, named
from janus_jax.storage import staging
from janus_jax.storage.bucket import is_url

_JSON = (".jsonl", ".ndjson", ".json")
ALLOWED = "allowed: .jsonl, .ndjson or .json (also with .gz or .zst), .txt, or - for standard input"
ALLOWED_ROWS = ALLOWED.replace(" .txt,", "")
_OF_PROMPT = frozenset(name for column in ("prompt", "messages", "system", "input") for name in ALIASES[column])
_NEEDED = "a row needs prompt (or instruction, user_prompt) or messages (or conversations, conversation)"


@dataclasses.dataclass(frozen=True)
class PromptRow:
    """A checked conversation, up to where the model begins to write."""

    messages: tuple[dict[str, str], ...]
    """Each with `role` and `content`: a system message that is not empty, or none; user and assistant in turn."""
    rest: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Columns that are no part of the prompt, such as `id`: to be kept beside the answer."""
    place: str = dataclasses.field(default="", compare=False)
    """FILE:LINE, for messages."""


@staging.naming_urls()
def read_prompts(
    source: str | os.PathLike[str],
    *,
    system: str = "",
    unread: Counter[str] | None = None,
    written: Collection[str] = (),
) -> list[PromptRow]:
    """All prompts of a file, in its order.

    Args:
        source: a path, a gs:// URL, or `-`.
        system: the system message of rows that have none.
        unread: counts rows by the columns that are no part of the prompt (`id` apart), and by the keys of messages that
            are not used; a `Tally` also keeps places.
        written: columns that the output has of its own. A row that fills one of them is refused.
    Raises:
        DataError: "FILE:LINE: ..." for a row without a prompt or with values that are not allowed; "FILE: ..." for a
            file that is empty, is of another type or cannot be read.
        StorageError: the URL cannot be read.
    """
    rows = []
    for place, raw in raw_rows(source):
        with named(place):
            rows.append(_row(raw, system, place, Counter() if unread is None else unread, written))
    if not rows:
        raise DataError(name_of_source(source), "is empty; at least one prompt is needed")
    return rows


def notes(rows: Sequence[PromptRow], unread: Counter[str], *, left_out: Collection[str] = ()) -> Iterator[str]:
    """What becomes of the columns that are no part of a prompt (`unread` of `read_prompts`), one sentence each.

    Args:
        left_out: columns of the rows that are not written, because the output has its own.
    """
    kept = set().union(*(row.rest for row in rows)).difference(left_out)
    for column, count in unread.items():
        lost = "left out, as the output has its own" if column in left_out else "left out"
        what = "kept beside the answer" if column in kept else lost
        yield f"{column!r} of {counted(count, 'row')} is no part of the prompt; it is {what}"


def name_of_source(source: str | os.PathLike[str]) -> str:
    """What messages call a file, or `-`."""
    return "stdin" if source == "-" else os.fspath(source)


def raw_rows(source: str | os.PathLike[str], *, lines: bool = True) -> Iterator[tuple[str, Any]]:
    """FILE:LINE and the value of each row; a RecordError if the row cannot be decoded.

    Args:
        lines: whether a line of plain text is a row too.
    """
    for number, raw in _numbered_rows(source, lines):
        yield f"{name_of_source(source)}:{number}", raw


def _numbered_rows(source: str | os.PathLike[str], lines: bool) -> Iterator[tuple[str, Any]]:
    if source == "-":
        content = sys.stdin.buffer.read()
        start = content.removeprefix(b"\xef\xbb\xbf").lstrip()
        if start.startswith(b"[") and _is_list_of_objects(start):
            raise DataError("stdin", "is one JSON list; send one object a line, or name a .json file")
        as_text = lines and not start.startswith(b"{")
        yield from _lines(content) if as_text else json_lines(io.BytesIO(content))
        return
    path = Path(os.path.expanduser(source))
    if not is_url(source) and path.is_dir():
        given = os.fspath(source)
        raise DataError(given or "''", "is a directory; allowed: a file" if given else "names no file")
    kind = file_type(path)
    if not kind.startswith(_JSON) and not (lines and kind == ".txt"):
        raise DataError(os.fspath(source), f"unknown file type {kind!r}; {ALLOWED if lines else ALLOWED_ROWS}")
    if is_url(source):
        path = staging.files(os.fspath(source), lambda _: False)
    if kind != ".txt":
        yield from raw_records(path)
        return
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(path, f"cannot be read: {error.strerror}") from error
    yield from _lines(content)


def _is_list_of_objects(content: bytes) -> bool:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def _lines(content: bytes) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            if b"\0" in line:
                yield str(number), RecordError("bad_encoding", "holds a zero byte, so this is no text file")
            elif line.strip():
                yield str(number), {"prompt": line.removesuffix(b"\r").decode("utf-8")}
        except UnicodeDecodeError as error:
            at = f"byte 0x{line[error.start]:02x} at position {error.start + 1}"
            yield str(number), RecordError("bad_encoding", f"not UTF-8: {at}")


def _row(raw: Any, system: str, place: str, unread: Counter[str], written: Collection[str]) -> PromptRow:
    columns = columns_of(raw, _NEEDED)
    messages = conversation_of(columns)
    if messages[0]["role"] != "system" and system:
        messages = [{"role": "system", "content": system}, *messages]
    left = columns.unread()
    for column in sorted(left - {"id"}):
        note(unread, column, place)
    if lost := next((name for name in written if name in left), None):
        raise RecordError("ambiguous_columns", f"column {lost!r} would be lost: the output has its own; rename it")
    empty = {name for name, value in raw.items() if not filled(value)}
    rest = {name: value for name, value in raw.items() if name in left or name in empty - _OF_PROMPT}
    return PromptRow(tuple(message for message in messages if message["content"]), rest, place)


def conversation_of(columns: Columns) -> list[dict[str, str]]:
    """The messages of a row, a user message last. Raises RecordError if it has none, or some that are not allowed."""
    prompt, several, system = (name_of(columns, column) for column in ("prompt", "messages", "system"))
    if prompt and several:
        raise RecordError("ambiguous_columns", f"has both {prompt!r} and {several!r}; keep one")
    if not prompt and not several:
        raise without(columns, (*ALIASES["prompt"], *ALIASES["messages"]), _NEEDED)
    if several or is_messages(columns[prompt]):
        messages = read_conversation(columns, several or prompt)
    else:
        messages = [{"role": "user", "content": _with_input(columns, text(columns[prompt], prompt))}]
    if system:
        own = text(columns[system], system, may_be_empty=True)
        if messages[0]["role"] != "system":
            return [{"role": "system", "content": own}, *messages]
        if messages[0]["content"].strip() != own.strip():
            what = f"column {system!r} and the system message of {several or prompt!r} differ; keep one"
            raise RecordError("ambiguous_columns", what)
    return messages


def _with_input(columns: Columns, prompt: str) -> str:
    """Alpaca's `input` follows the instruction, as in data files."""
    if not any(columns.has(name) for name in ALIASES["input"]):
        return prompt
    more = text(columns["input"], "input")
    return prompt if more.strip() == prompt.strip() else f"{prompt}\n{more}"
