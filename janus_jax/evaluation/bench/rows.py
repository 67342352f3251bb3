"""Rows of a bench, with rubrics by which answers are judged, and the answers to them.

A bench is a file of rows (.jsonl, .json, .parquet; packed JSON too) as Multifaceted Bench and BiGGen Bench publish
them. A JSON object of rows keyed by id is read too. `ALIASES` has the names of columns.
"""

import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from janus_jax.data.build.readers import check_type, file_type, raw_records
from janus_jax.data.columns import (
    CheckedRow,
    Columns,
    RecordError,
    alike,
    columns_of,
    distinct_rows,
    filled,
    shown,
    text,
    without,
)
from janus_jax.data.tally import note
from janus_jax.errors import DataError, first_line, named
from janus_jax.storage import staging
from janus_jax.storage.bucket import is_url
from janus_jax.storage.json_text import strict_json

ALIASES = {
    "system": ("system", "system_prompt", "system_message"),
    "prompt": ("prompt", "user_prompt", "instruction"),
    "reference_answer": ("reference_answer", "reference", "output"),
    "rubrics": ("rubrics", "rubric", "score_rubrics", "score_rubric"),
    "source": ("source", "original_source", "main_source", "capability"),
}
"""Column -> the names it has in published benches. Without another prompt, `input` is the prompt; beside one, it
follows the prompt. Of several names of a source, the first one counts."""
_PUBLISHED = ("preference_set",)
"""Columns of Multifaceted Bench that judging does not need."""
OTHER_SYSTEM = "asked_with"
"""Column of answers that were made with another system message than that of their row: which one."""
SCORES = range(1, 6)


@dataclasses.dataclass(frozen=True)
class Rubric:
    criteria: str
    scores: tuple[str, ...]
    """What an answer of score 1, 2, 3, 4 and 5 is like."""


@dataclasses.dataclass(frozen=True)
class BenchRow:
    """A checked row."""

    id: str
    system: str
    prompt: str
    reference_answer: str
    rubrics: tuple[Rubric, ...]
    source: str = ""
    place: str = dataclasses.field(default="", compare=False)
    """FILE:ROW, for messages."""


@staging.naming_urls()
def read_bench(source: str | os.PathLike[str], *, unread: Counter[str] | None = None) -> list[BenchRow]:
    """All rows of a bench, in the order of its file.

    A row without `id` gets one: 16 digits of the SHA-256 of its system message followed by its prompt.

    Args:
        unread: counts rows by columns that are not read; a `Tally` also keeps places.

    Raises:
        DataError: "FILE:ROW: ..." for a row that cannot be used, is of another schema than the first one, or has the
            id of another; "FILE: ..." for a file that is empty, of another type or cannot be read.
    """
    rows = distinct_rows(raw_rows(source), _row, why="a row needs an id of its own", unread=unread)
    if not rows:
        raise DataError(os.fspath(source), "is empty; at least one row is needed")
    return rows


def row_id(system: str, prompt: str) -> str:
    """The id of a row that has none."""
    return hashlib.sha256((system + prompt).encode()).hexdigest()[:16]


@staging.naming_urls()
def read_answers(
    source: str | os.PathLike[str],
    rows: Sequence[BenchRow],
    *,
    may_be_empty: bool = False,
    limit: int | None = None,
    unread: Counter[str] | None = None,
) -> list[str]:
    """The answer to each row, from a file in any order.

    A line has `response` (or `output`), or `answers` as `janus generate` writes them, of which the first counts. It
    belongs to the row of its `id`; without one, to the row of its messages, or of its system message and prompt.

    Args:
        may_be_empty: also take an answer without text.
        limit: only the first rows are used; answers to the others are left out.
        unread: counts answers that are not used.

    Raises:
        DataError: an answer is empty or is to no row of the bench, or a row has no answer or two. Names FILE:ROW.
    """
    numbers = {row.id: number for number, row in enumerate(rows)}
    asked = {(alike(row.system), alike(row.prompt)): number for number, row in enumerate(rows)}
    answers: dict[int, str] = {}
    places: dict[int, str] = {}
    left_out = Counter() if unread is None else unread
    for place, raw in raw_rows(source):
        with named(place):
            columns = columns_of(raw)
            number = _row_of(columns, numbers, asked, rows)
            if (other := places.setdefault(number, place)) != place:
                raise RecordError("duplicate_id", f"answers the row {rows[number].id!r}, as {other} does; keep one")
            answers[number] = _answer(columns, may_be_empty, place, left_out)
    wanted = range(len(rows) if limit is None else min(limit, len(rows)))
    if without := [rows[number] for number in wanted if number not in answers]:
        what = f"{len(without):,} of {len(wanted):,} rows have no answer, first {without[0].id!r} ({without[0].place})"
        raise DataError(os.fspath(source), f"{what}; the judge needs one for each row of the bench")
    for number in sorted(answers.keys() - set(wanted)):
        note(left_out, "answers to rows after the limit", places[number])
    return [answers[number] for number in wanted]


def raw_rows(source: str | os.PathLike[str]) -> Iterator[tuple[str, Any]]:
    """FILE:ROW and the value of each row; a RecordError if it cannot be decoded."""
    name = os.fspath(source)
    path = Path(os.path.expanduser(source))
    check_type(path)
    if is_url(source):
        path = staging.files(name, lambda _: False)
    reader = _parquet_rows if file_type(Path(name)) == ".parquet" else raw_records
    for number, raw in reader(path):
        yield f"{name}:{number}", raw


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """With all columns; a bench is small."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(path, f"cannot be read as Parquet: {first_line(error)}") from error
    for number, row in enumerate(table, 1):
        yield str(number), row


def _row(columns: Columns, place: str) -> CheckedRow:
    """A `BenchRow`. All rows need the same names of columns."""
    names = {column: _name(columns, column) for column in ALIASES}
    system = text(columns[names["system"]], names["system"], may_be_empty=True) if names["system"] else ""
    if names["prompt"]:
        prompt = text(columns[names["prompt"]], names["prompt"])
        if columns.has("input") and (more := text(columns["input"], "input")).strip() != prompt.strip():
            prompt = f"{prompt}\n{more}"
    elif "input" in columns:
        names["prompt"] = "input"
        prompt = text(columns["input"], "input")
    else:
        raise _missing(columns, "prompt", "input")
    for column in ("reference_answer", "rubrics"):
        if not names[column]:
            raise _missing(columns, column)
    reference = text(columns[names["reference_answer"]], names["reference_answer"])
    rubrics, form = _rubrics(columns[names["rubrics"]], names["rubrics"])
    source = "" if not names["source"] else text(columns[names["source"]], names["source"], may_be_empty=True)
    for column in _PUBLISHED:
        columns.get(column)  # read, so that no note names it
    given = columns["id"] if columns.has("id") else None
    if given is not None and (isinstance(given, bool) or not isinstance(given, str | int)):
        raise RecordError("wrong_type", f"column 'id' must be a string or a whole number, found {shown(given)}")
    own = row_id(system, prompt) if given is None else str(given)
    schema = {
        "id": "no id" if given is None else "the column 'id'",
        "prompt": f"the column {names['prompt']!r}",
        "reference_answer": f"the column {names['reference_answer']!r}",
        "rubrics": f"the column {names['rubrics']!r} with {form}",
    }
    if names["system"]:  # a row may have no system message
        schema["system"] = f"the column {names['system']!r}"
    row = BenchRow(own, system, prompt, reference, rubrics, source, place)
    return CheckedRow(row, own, "the id" if given is not None else "the system message and the prompt", schema)


def _name(columns: Columns, column: str) -> str:
    """The name under which a row has a column; empty: it has none."""
    names = [name for name in ALIASES[column] if columns.has(name)]
    if len(names) > 1 and column != "source":
        raise RecordError("ambiguous_columns", f"has both {names[0]!r} and {names[1]!r}; keep one")
    present = [name for name in ALIASES[column] if name in columns and columns.peek(name) is not None]
    return next(iter(names or present), "")


def _missing(columns: Columns, column: str, *more: str) -> RecordError:
    names = (*ALIASES[column], *more)
    return without(columns, names, f"has no {column}: {' or '.join(map(repr, names))} is needed")


def _rubrics(value: Any, column: str) -> tuple[tuple[Rubric, ...], str]:
    """The rubrics of a row, and the form of their scores."""
    value = _decoded(value, f"column {column!r}")
    items = [value] if isinstance(value, Mapping) else value
    if not isinstance(items, list) or not items:
        raise RecordError("wrong_type", f"column {column!r} must be a rubric or a list of them, found {shown(value)}")
    made = [_rubric(item, f"column {column!r}, rubric {number}") for number, item in enumerate(items, 1)]
    forms = {form for _, form in made}
    if len(forms) > 1:
        raise RecordError("mixed_schemas", f"column {column!r} mixes {' and '.join(sorted(forms))}; keep one form")
    rubrics = tuple(rubric for rubric, _ in made)
    if len(set(rubrics)) < len(rubrics):
        raise RecordError("duplicate_rubric", f"column {column!r} has the same rubric twice; keep one")
    return rubrics, forms.pop()


def _rubric(item: Any, where: str) -> tuple[Rubric, str]:
    item = _decoded(item, where)
    if not isinstance(item, Mapping):
        raise RecordError("wrong_type", f"{where} must be an object with criteria, found {shown(item)}")
    if not filled(item.get("criteria")):
        raise RecordError("missing_field", f"{where} has no criteria; found: {', '.join(map(str, item)) or 'nothing'}")
    criteria = text(item["criteria"], f"{where}, criteria")
    inner, form, known = item.get("score_descriptions"), "score1_description to score5_description", {"criteria"}
    if inner is not None:
        form, known = "score_descriptions", known | {"score_descriptions"}
        inner = _decoded(inner, f"{where}, score_descriptions")
        if not isinstance(inner, Mapping):
            raise RecordError("wrong_type", f"{where}, score_descriptions must be an object, found {shown(inner)}")
        scores = {str(key): value for key, value in inner.items()}
        names = {score: str(score) for score in SCORES}
        others = scores.keys() - set(names.values())
    else:
        scores, names = item, {score: f"score{score}_description" for score in SCORES}
        others = set()
    others = {*others, *(key for key in item if key not in known | (set() if inner is not None else {*names.values()}))}
    if wrong := sorted(str(key) for key in others if filled({**item, **scores}.get(key))):
        raise RecordError("wrong_type", f"{where} has {wrong[0]!r}; allowed: criteria and {form}, for scores 1 to 5")
    for name in names.values():
        if not filled(scores.get(name)):
            raise RecordError("missing_field", f"{where} has no text for {name!r}; scores 1 to 5 each need one")
    return Rubric(criteria, tuple(text(scores[name], f"{where}, {name}") for name in names.values())), form


def _decoded(value: Any, where: str) -> Any:
    """The value of a column that may be JSON in a text."""
    if not isinstance(value, str) or not filled(value):
        return value
    try:
        return strict_json(value)
    except ValueError as error:
        raise RecordError("bad_json", f"{where} is a text, but not valid JSON: {first_line(error)}") from error


def _row_of(
    columns: Columns, numbers: Mapping[str, int], asked: Mapping[tuple[str, str], int], rows: Sequence[BenchRow]
) -> int:
    """Which row of the bench is answered."""
    conversation = _conversation(columns)
    if columns.has("id"):
        number = numbers.get(str(columns["id"]))
        if number is None:
            raise RecordError("other_rows", f"has the id {shown(columns['id'])}, which no row of the bench has")
        row = rows[number]
        system = conversation[0] if conversation and columns.has(OTHER_SYSTEM) else alike(row.system)
        if conversation is not None and conversation != (system, alike(row.prompt)):
            what = "its messages" if "messages" in columns else "its prompt"
            raise RecordError("other_rows", f"has the id of {row.place}, but {what} are not those of that row")
        return number
    if conversation is None:
        raise RecordError(
            "missing_field", f"has neither id, messages nor prompt; found: {', '.join(columns) or 'nothing'}"
        )
    if conversation not in asked:
        raise RecordError("other_rows", f"answers {shown(conversation[1])}, which no row of the bench asks")
    return asked[conversation]


def _conversation(columns: Columns) -> tuple[str, str] | None:
    """System message and prompt that were answered, as far as the line says."""
    if not columns.has("messages"):
        prompt = next((name for name in (*ALIASES["prompt"], "input") if columns.has(name)), None)
        if prompt is None:
            return None
        system = next((name for name in ALIASES["system"] if columns.has(name)), None)
        return alike(text(columns[system], system)) if system else "", alike(text(columns[prompt], prompt))
    messages = columns["messages"]
    if not isinstance(messages, list) or not all(
        isinstance(one, Mapping) and isinstance(one.get("content"), str) for one in messages
    ):
        raise RecordError("bad_messages", f"column 'messages' must be a list of messages, found {shown(messages)}")
    texts = {one.get("role"): alike(one["content"]) for one in messages}
    if len(texts) != len(messages) or texts.keys() - {"system"} != {"user"}:
        raise RecordError("bad_messages", "column 'messages' must hold a system message, if any, and one of the user")
    return texts.get("system", ""), texts["user"]


def _answer(columns: Columns, may_be_empty: bool, place: str, left_out: Counter[str]) -> str:
    names = [name for name in ("response", "output", "answers") if name in columns]
    if not names:
        raise RecordError("missing_field", f"has no response or answers; found: {', '.join(columns) or 'nothing'}")
    if len(names) > 1:
        raise RecordError("ambiguous_columns", f"has both {names[0]!r} and {names[1]!r}; keep one")
    value, where = columns[names[0]], f"column {names[0]!r}"
    if names[0] == "answers":
        if not isinstance(value, list) or not value:
            raise RecordError("wrong_type", f"{where} must be a list of at least one, found {shown(value)}")
        if len(value) > 1:
            note(left_out, "answers after the first one", place)
        first = value[0]
        value, where = (first.get("text") if isinstance(first, Mapping) else first), f"{where}, item 1"
    try:
        return text(value, where, may_be_empty=may_be_empty)
    except RecordError as error:
        if error.reason == "empty_field":
            raise RecordError(error.reason, f"{error}; --judge-empty has it judged as it is") from None
        raise


def digest(value: Any) -> str:
    """16 digits for what JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
