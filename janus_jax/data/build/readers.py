"""Reads records from JSONL, JSON, Parquet and Arrow files. `sources.py` chooses the files.

All but JSON are streamed: memory depends on the largest record, not on the file. Every error names FILE:RECORD,
where records count from 1 (in JSONL: the line number).
"""

import dataclasses
import gzip
import io
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from janus_jax.data.build.published import PUBLISHED_COLUMNS, published_record
from janus_jax.data.build.ratings import RATING_COLUMNS, Ratings
from janus_jax.data.columns import Columns, NoPreferenceError, RecordError
from janus_jax.data.schema import COLUMNS_READ, Record, check_kind, parse_record
from janus_jax.data.tally import Tally, note, summary
from janus_jax.errors import DataError, first_line
from janus_jax.storage.json_text import json_fault

_TYPES = (".jsonl", ".ndjson", ".json")
_PACKED = (".gz", ".zst")
SUFFIXES = (*_TYPES, ".parquet", ".arrow", *(kind + packed for packed in _PACKED for kind in _TYPES))
"""File types that are read; upper case counts too."""

ALLOWED = "allowed: .jsonl, .ndjson or .json (also with .gz or .zst), .parquet, .arrow"
"""For messages about other file types."""

_COLUMNS = COLUMNS_READ | PUBLISHED_COLUMNS | RATING_COLUMNS  # that anything reads

_LONGEST_LINE_BYTES = 64 << 20
_LARGEST_JSON_BYTES = 1 << 30  # .json files are read whole
_PARQUET_RECORDS = 32  # records decoded at a time; a published record is about 6 kB
_LARGE_RECORD_BYTES = 64 << 10  # records of this average size or more are decoded one at a time


def read_records(
    files: str | os.PathLike[str] | Sequence[Path],
    kind: str,
    *,
    skip_bad: bool = False,
    ratings: Ratings | None = None,
    dropped: Counter[str] | None = None,
    unread: Counter[str] | None = None,
) -> Iterator[Record]:
    """Iterates over the checked records of one or several files, in order.

    Args:
        skip_bad: Drop bad records instead of stopping at the first; an unreadable file still stops the iteration.
        ratings: What is done with ratings of pairs; None: they are not read.
        dropped: Counts dropped records by reason (the `reason` of RecordError); a `Tally` also keeps places. A pair
            without a preference (two answers with the same score) is always dropped and counted: its file is not at
            fault.
        unread: Counts records by columns that hold a value and are not read; a `Tally` also keeps places.

    Raises:
        DataError: "FILE:RECORD: ..." for a bad record; "FILE: ..." for an empty or unreadable file, or if no record is
            usable.
    """
    check_kind(kind)
    paths = [Path(file) for file in ([files] if isinstance(files, str | os.PathLike) else files)]
    for path in paths:
        check_type(path)
    counts = (Tally() if counter is None else counter for counter in (dropped, unread))
    return _read(paths, kind, skip_bad, ratings, *counts)


def _read(
    paths: list[Path], kind: str, skip_bad: bool, ratings: Ratings | None, dropped: Counter[str], unread: Counter[str]
) -> Iterator[Record]:
    kept = 0
    for path in paths:
        for record in read_file(path, kind, skip_bad=skip_bad, ratings=ratings, dropped=dropped, unread=unread):
            kept += 1
            yield record
    if not kept:
        raise nothing_usable(paths, dropped)


def nothing_usable(paths: Sequence[Path], dropped: Counter[str]) -> RecordError:
    """The error about files of which every record was dropped."""
    what = f"no usable record; dropped: {summary(dropped)}"
    return RecordError(dropped.most_common(1)[0][0], os.path.commonpath(paths), what)


def read_file(
    path: Path,
    kind: str,
    *,
    skip_bad: bool,
    ratings: Ratings | None,
    dropped: Counter[str],
    unread: Counter[str],
    name: str | None = None,
) -> Iterator[Record]:
    """As `read_records`, of one file, which may have no usable record.

    Args:
        name: of the file in places and messages; None: its path.
    """
    shown = os.fspath(path) if name is None else name
    seen = 0
    for number, raw in raw_records(path):
        seen += 1
        place = f"{shown}:{number}"
        try:
            if isinstance(raw, RecordError):
                raise raw
            record = _checked(raw, kind, ratings, unread, place)
        except RecordError as error:
            if not skip_bad and not isinstance(error, NoPreferenceError):
                raise RecordError(error.reason, place, str(error)) from None
            note(dropped, error.reason, place)
            continue
        yield dataclasses.replace(record, place=place)
    if not seen:
        raise DataError(path, "is empty; at least one record is needed")
    if file_type(path) == ".parquet":
        unread.update(_unread_parquet_columns(path))


def _checked(raw: Any, kind: str, ratings: Ratings | None, unread: Counter[str], place: str) -> Record:
    if not isinstance(raw, Mapping):
        return parse_record(raw, kind)  # raises
    columns = Columns(raw)
    if (record := published_record(columns, kind)) is None:
        columns = Columns(raw)
        record = parse_record(columns, kind)
    if ratings:
        record = ratings.applied(record, columns)
    for column in columns.unread():
        note(unread, column, place)
    return record


def raw_records(path: Path) -> Iterator[tuple[str, Any]]:
    """(name, value) of each record; the value is a RecordError if the record cannot be decoded."""
    packed = file_type(path).endswith(_PACKED)
    kind = os.path.splitext(file_type(path))[0] if packed else file_type(path)
    reader = {".json": _json_records, ".parquet": _parquet_records, ".arrow": _arrow_records}.get(kind, _jsonl_records)
    name = "0"
    try:
        for name, raw in reader(path):
            yield name, raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(path, f"not a whole gzip file, read up to record {name}: {error}") from error
    except OSError as error:
        if error.errno is None and file_type(path).endswith(".zst"):
            raise DataError(path, f"not a whole zstd file, read up to record {name}: {first_line(error)}") from error
        raise DataError(path, f"cannot be read: {error.strerror or first_line(error)}") from error


def _open(path: Path) -> BinaryIO:
    packed = path.suffix.lower()
    if packed == ".zst":
        import pyarrow

        return cast(BinaryIO, io.BufferedReader(pyarrow.input_stream(path, compression="zstd")))
    return cast(BinaryIO, gzip.open(path)) if packed == ".gz" else path.open("rb")


def _jsonl_records(path: Path) -> Iterator[tuple[str, Any]]:
    with _open(path) as lines:
        yield from json_lines(lines)


def json_lines(lines: BinaryIO) -> Iterator[tuple[str, Any]]:
    """As `raw_records`, of an open JSONL file."""
    number = 0
    while line := lines.readline(_LONGEST_LINE_BYTES):
        number += 1
        if len(line) == _LONGEST_LINE_BYTES and not line.endswith(b"\n"):
            while (rest := lines.readline(_LONGEST_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield str(number), RecordError("too_long", f"a line of more than {_LONGEST_LINE_BYTES >> 20} MiB")
            continue
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if line.strip():
            yield str(number), _parse_json(line)


def _parse_json(line: bytes) -> Any:
    try:
        value, twice = _decode(line.decode("utf-8"))
        return _twice(twice[0]) if twice else value
    except UnicodeDecodeError as error:
        return RecordError("bad_encoding", _not_utf8(error))
    except (ValueError, RecursionError) as error:
        start = ascii(line[:60].decode("utf-8", "replace").rstrip())
        cut = "" if line.endswith(b"\n") else ", the last line of the file, which may be cut off"
        reason = (
            f"{error.msg.removesuffix(' at')} at character {error.pos + 1}"
            if isinstance(error, json.JSONDecodeError)
            else str(error)
        )
        hint = "; a file that is one list must be named .json" if line.startswith(b"[") else ""
        return RecordError("bad_json", f"not valid JSON{cut}: {reason}; the line begins {start}{hint}")


class _Twice(dict[str, Any]):
    """An object that names a key twice."""

    key = ""


def _decode(content: str) -> tuple[Any, list[str]]:
    """A JSON value, and the keys that an object in it names twice; such an object is a `_Twice`."""
    keys: list[str] = []

    def to_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) == len(pairs):
            return value
        value = _Twice(value)
        value.key = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        keys.append(value.key)
        return value

    return json.loads(content, object_pairs_hook=to_object), keys


def _key_twice(value: Any) -> str | None:
    """The key that `value`, or an object in it, names twice."""
    if isinstance(value, _Twice):
        return value.key
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((key for key in map(_key_twice, inner) if key is not None), None)


def _twice(key: str) -> RecordError:
    return RecordError("duplicate_key", f"names the key {ascii(key)[:60]} twice; keep one")


def _json_records(path: Path) -> Iterator[tuple[str, Any]]:
    """Reads a list of records, or an object of records keyed by id as in the first release of the bench."""
    try:
        with _open(path) as file:
            content = file.read(_LARGEST_JSON_BYTES + 1)
        if len(content) > _LARGEST_JSON_BYTES:  # a gzip file may unpack to far more than its size
            raise DataError(path, f"holds more than {_LARGEST_JSON_BYTES >> 20} MiB; larger data must be .jsonl")
        value, twice = _decode(content.decode("utf-8-sig") or "[]")
    except UnicodeDecodeError as error:
        raise DataError(path, f"{_not_utf8(error)}") from error
    except json.JSONDecodeError as error:
        hint = "; a file with one object per line must be named .jsonl" if error.msg == "Extra data" else ""
        raise DataError(path, f"{json_fault(error)}{hint}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(path, f"not valid JSON: {error}") from error
    if isinstance(value, dict) and all(isinstance(record, dict) for record in value.values()):
        if isinstance(value, _Twice):
            raise DataError(path, f"names the record {ascii(value.key)[:60]} twice; keep one")
        records = (
            (f"{number} (id {ascii(key)[:40]})", record) for number, (key, record) in enumerate(value.items(), 1)
        )
    elif isinstance(value, list):
        records = ((str(number), record) for number, record in enumerate(value, 1))
    else:
        raise DataError(
            path, f"holds {ascii(value)[:60]}; allowed: a list of records, or an object of records keyed by id"
        )
    for name, record in records:
        key = _key_twice(record) if twice else None
        yield name, record if key is None else _twice(key)


def _parquet_records(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        # buffered, without read-ahead: by default pyarrow reads a whole row group even for a few records
        options = {"buffer_size": 1 << 20, "pre_buffer": False, "page_checksum_verification": True}
        with pyarrow.parquet.ParquetFile(path, **options) as file:
            names = file.schema_arrow.names
            columns = [name for name in names if name in _COLUMNS]
            for name in columns:
                if columns.count(name) > 1:
                    raise DataError(path, f"has more than one column {name!r}; keep one")
            unread = dict.fromkeys(names)  # messages list all columns
            for group in range(file.num_row_groups):
                metadata = file.metadata.row_group(group)
                records, size = metadata.num_rows, metadata.total_byte_size
                at_a_time = _PARQUET_RECORDS if size < records * _LARGE_RECORD_BYTES else 1
                for batch in file.iter_batches(at_a_time, [group], columns, use_threads=False):
                    for index in range(batch.num_rows):
                        number += 1
                        yield str(number), _parquet_record(batch, index, unread)
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        where = f", records after {number} cannot be read" if number else ""
        raise DataError(path, f"not a whole Parquet file{where}: {first_line(error)}") from error


def _arrow_records(path: Path) -> Iterator[tuple[str, Any]]:
    """Reads what `Dataset.save_to_disk` of Hugging Face datasets writes: a stream of batches; or an Arrow file."""
    import pyarrow
    import pyarrow.ipc

    number = 0
    try:
        with pyarrow.memory_map(os.fspath(path)) as file:
            is_file = file.read(6) == b"ARROW1"
            file.seek(0)
            reader = (pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream)(file)
            for name in (names := reader.schema.names):
                if names.count(name) > 1:
                    raise DataError(path, f"has more than one column {name!r}; keep one")
            for batch in map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader:
                for index in range(batch.num_rows):
                    number += 1
                    yield str(number), _parquet_record(batch, index, {})
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        where = f", records after {number} cannot be read" if number else ""
        raise DataError(path, f"not a whole Arrow file{where}: {first_line(error)}") from error


def _parquet_record(batch: Any, index: int, unread: dict[str, None]) -> Any:
    try:
        return unread | {name: column[index].as_py() for name, column in zip(batch.schema.names, batch, strict=True)}
    except UnicodeDecodeError as error:
        return RecordError("bad_encoding", _not_utf8(error))
    except (ValueError, OverflowError) as error:  # a time that Python cannot represent
        return RecordError("wrong_type", f"holds a value that cannot be decoded: {first_line(error)}")


def _unread_parquet_columns(file: Path) -> Counter[str]:
    """Columns that are not read -> records in which they hold a value, as far as the file's statistics tell."""
    import pyarrow.parquet

    counts: Counter[str] = Counter()
    metadata = pyarrow.parquet.read_metadata(file)
    fields = metadata.schema.to_arrow_schema()
    ours = _COLUMNS | {field.name for field in fields if pyarrow.types.is_null(field.type)}
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        of_group: Counter[str] = Counter()
        for column in map(group.column, range(group.num_columns)):
            path, statistics = column.path_in_schema, column.statistics
            name = max((name for name in fields.names if f"{path}.".startswith(f"{name}.")), key=len)
            empty = statistics.null_count if statistics is not None and statistics.has_null_count else 0
            if statistics is not None and statistics.has_min_max and statistics.min_raw == statistics.max_raw == b"":
                empty = group.num_rows
            if name not in ours:
                # a list has more values than its file has records
                of_group[name] = max(of_group[name], min(column.num_values - empty, group.num_rows))
        counts.update(of_group)
    return +counts


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"not UTF-8: byte 0x{error.object[error.start]:02x} at position {error.start + 1}"


def check_type(path: Path) -> None:
    """Raises DataError for a file type that is not in SUFFIXES."""
    if path.is_dir():
        raise DataError(path, "is a directory; allowed: a file")
    if file_type(path) not in SUFFIXES:
        raise DataError(path, f"unknown file type {file_type(path)!r}; {ALLOWED}")


def file_type(path: Path) -> str:
    """The suffix in lower case, with the one before it if that says what is packed: `.jsonl.gz`."""
    suffix = path.suffix.lower()
    return path.with_suffix("").suffix.lower() + suffix if suffix in _PACKED else suffix
