"""Columns of records: checks of single values, which columns a reader used, and rows that need one schema."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from janus_jax.data.tally import note
from janus_jax.errors import DataError, named

_LARGEST_NUMBER = 3.4e38  # numbers are stored as float32

_BLANK_LETTERS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0") | frozenset(
    map(chr, range(0xFE00, 0xFE10))
)
"""Characters that show nothing, though Unicode counts them as letters, marks or symbols."""


class RecordError(DataError):
    """A record that cannot be used. `reason` is the short name under which dropped records are counted."""

    def __init__(self, reason: str, *parts: str):
        super().__init__(*parts)
        self.reason = reason


class NoPreferenceError(RecordError):
    """A valid record that prefers neither response: it is left out and counted, but its file is not at fault."""


class Columns(Mapping[str, Any]):
    """A record that notes which of its columns are read."""

    def __init__(self, raw: Mapping[str, Any]):
        self._raw = raw
        self._read: set[str] = set()
        self._ignored: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        value = self._raw[name]
        self._read.add(name)
        return value

    def __contains__(self, name: object) -> bool:
        return name in self._raw  # asking whether there is a column is not reading it

    def __iter__(self) -> Iterator[str]:
        return iter(self._raw)

    def __len__(self) -> int:
        return len(self._raw)

    def has(self, name: str) -> bool:
        """Whether the column holds a value, without reading it."""
        return filled(self._raw.get(name))

    def peek(self, name: str) -> Any:
        """The value of a column, without reading it."""
        return self._raw[name]

    def ignore(self, column: str, value: Mapping[str, Any], keys: tuple[str, ...]) -> None:
        """Notes the keys of an object that are not read."""
        self._ignored |= {f"{column}.{key}" for key, inner in value.items() if key not in keys and filled(inner)}

    def unread(self) -> set[str]:
        """Columns, and keys of objects in columns, that hold a value that was not read."""
        return {
            str(name) for name, value in self._raw.items() if name not in self._read and filled(value)
        } | self._ignored


def columns_of(raw: Any, needed: str = "") -> Columns:
    """The columns of a row, which may also be the reason why it cannot be decoded.

    Args:
        needed: what a row needs, for the message.

    Raises:
        RecordError: it has none.
    """
    if isinstance(raw, RecordError):
        raise raw
    if not isinstance(raw, Mapping):
        raise RecordError("wrong_type", f"a row must be an object, found {shown(raw)}" + (needed and f"; {needed}"))
    return Columns(raw)


def without(columns: Mapping[str, Any], names: Iterable[str], missing: str) -> RecordError:
    """The error about a row without a value under any of the names: one of them is null or empty, or all are missing.

    Args:
        missing: the message if all are missing.
    """
    empty = next((name for name in names if name in columns), None)
    if empty is not None:
        value = columns[empty]
        state = "is null" if value is None else f"is empty ({shown(value)})"
        return RecordError(
            "missing_field" if value is None else "empty_field", f"column {empty!r} {state}; text is needed"
        )
    return RecordError("missing_field", f"{missing}; found: {', '.join(map(str, columns)) or 'nothing'}")


class CheckedRow(NamedTuple):
    """What was read from a row, and what it must have in common with other rows, or for itself."""

    value: Any
    key: str | int
    """No other row has it."""
    key_name: str
    """What messages call the key."""
    schema: Mapping[str, str]
    """Part of the row -> how it is given, which is the same in all rows."""


def distinct_rows(
    rows: Iterable[tuple[str, Any]],
    read: Callable[[Columns, str], CheckedRow],
    *,
    why: str,
    unread: Counter[str] | None = None,
) -> list[Any]:
    """The values of rows with one schema and a key of their own, in order.

    Args:
        rows: (FILE:ROW, value) of each row.
        read: of a row's columns and its place.
        why: a row needs a key of its own, for the message.
        unread: counts rows by columns that are not read; a `Tally` also keeps places.

    Raises:
        DataError: "FILE:ROW: ..." for a row that cannot be used, is of another schema than those before, or has the key
            of one of them.
    """
    values: list[Any] = []
    schema: dict[str, tuple[str, str]] = {}
    places: dict[str | int, str] = {}
    for place, raw in rows:
        with named(place):
            columns = columns_of(raw)
            row = read(columns, place)
            for part, form in row.schema.items():
                before, first = schema.setdefault(part, (form, place))
                if before != form:
                    what = f"has {form}, but {first} has {before}; all rows need the same schema"
                    raise RecordError("mixed_schemas", what)
            if (earlier := places.setdefault(row.key, place)) != place:
                raise RecordError("duplicate_id", f"has {row.key_name} of {earlier}; {why}")
        if unread is not None:
            for column in columns.unread():
                note(unread, column, place)
        values.append(row.value)
    return values


def filled(value: Any) -> bool:
    """Whether a value is more than null, blank text, or an empty list or object."""
    value = value.strip() if isinstance(value, str) else value
    return value is not None and value not in ("", [], {})


def text(value: Any, column: str, *, may_be_empty: bool = False) -> str:
    """The value of a text column. Raises RecordError if it is not a string, not valid Unicode, or shows nothing."""
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
    if not may_be_empty and not any(map(_visible, value)):
        state = "holds only invisible characters" if value.replace("\0", " ").strip() else "is empty"
        raise RecordError("empty_field", f"{where} {state} ({value[:20]!a}); text is needed")
    return value


def _visible(character: str) -> bool:
    # C: control, format (zero width, byte order mark), private, unassigned; Z: spaces
    return unicodedata.category(character)[0] not in "CZ" and character not in _BLANK_LETTERS


def alike(value: str) -> str:
    """A form that is equal for texts that look equal: Unicode composed, no blanks at the ends."""
    return unicodedata.normalize("NFC", value).strip()


def optional_text(raw: Mapping[str, Any], column: str) -> str:
    """The value of a text column that may be absent, null or empty."""
    value = raw.get(column)
    return "" if value is None else text(value, column, may_be_empty=True)


def number(value: Any, column: str) -> float:
    """The value of a number column. Raises RecordError if float32 cannot hold it."""
    # compare before converting: an integer in JSON may be too large for any float
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST_NUMBER:
        raise RecordError("wrong_type", f"column {column!r} must be a finite number (float32), found {shown(value)}")
    return float(value)


def apart(one: str, other: str) -> str:
    """Where two texts part, on one line."""
    pairs = enumerate(zip(one, other, strict=False))
    at = next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))
    rests = [shown(text[at:]).removeprefix("str ") if text[at:] else "its end" for text in (one, other)]
    return f"from character {at + 1:,} on, {rests[0]} and {rests[1]}"


def shown(value: Any) -> str:
    """Type and start of a value, on one line; ASCII so that any terminal can print it. None is `null`, as in JSON."""
    if value is None:
        return "null"
    printed = ascii(value[:80] if isinstance(value, str | bytes) else value)  # a value may be megabytes long
    return f"{type(value).__name__} {printed if len(printed) <= 80 else printed[:77] + '...'}"
