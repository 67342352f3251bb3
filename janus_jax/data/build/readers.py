"""Reads records from JSONL, JSON and Parquet files, directories of them, and data sets of the Hugging Face hub.

JSONL and Parquet are streamed: memory depends on the largest record, not on the file. Every error names FILE:RECORD,
where records count from 1 (in JSONL: the line number).
"""

import dataclasses
import gzip
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from janus_jax.data.build.published import PUBLISHED_COLUMNS, published_record
from janus_jax.data.schema import COLUMNS_READ, NoPreferenceError, Record, RecordError, check_kind, parse_record
from janus_jax.errors import DataError, first_line
from janus_jax.storage import staging
from janus_jax.storage.bucket import is_url

SUFFIXES = (".jsonl", ".json", ".parquet", ".jsonl.gz", ".json.gz")
HUB_ALIASES = {
    "kaist-ai/Multifaceted-Collection-SFT": "kaist-ai/Multifaceted-Collection",
    "kaist-ai/Multifaceted-Collection-SFT-65k": "kaist-ai/Multifaceted-Collection-small",
}
"""Ids in published configurations -> the ids under which the hub has the data today."""

_SPLIT_NAMES = {"train": "train", "test": "test"} | dict.fromkeys(("validation", "valid", "val", "dev"), "validation")
_NOT_RECORDS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_NOT_PAIRS = {"Anthropic/hh-rlhf": "red-team-attempts"}
"""Hub id -> a folder in it whose records are not pairs."""

_LONGEST_LINE_BYTES = 64 << 20
_LARGEST_JSON_BYTES = 1 << 30  # .json files are read whole
_PARQUET_RECORDS = 32  # records decoded at a time; a published record is about 6 kB
_LARGE_RECORD_BYTES = 64 << 10  # records of this average size or more are decoded one at a time


def find_splits(source: str | os.PathLike[str]) -> dict[str, list[Path]]:
    """Split name -> files. The source is a file (split "train") or a directory, local or on gs://, or a hub id.

    In a directory, the start of a file's name (`train-00000-of-00003.parquet`, `validation.jsonl`) or the name of its
    folder gives its split. If no file names a split, all are "train".

    Raises:
        DataError: the source does not exist, holds no readable file, or some files name a split and others do not.
    """
    text = os.fspath(source)
    if is_url(text):
        return find_splits(staging.files(text, select=lambda name: name.endswith(SUFFIXES)))
    path = Path(os.path.expanduser(text))
    if path.is_file():
        _check_suffix(path)
        return {"train": [path]}
    if path.is_dir():
        return _directory_splits(path)
    looks_like_id = re.fullmatch(r"[\w.-]+/[\w.-]+", text) and not text.startswith(".")
    if not looks_like_id or _suffix(path) in SUFFIXES or path.parent.is_dir():
        raise DataError(text, "no such file or directory")
    return _directory_splits(_download(text), leave_out=_NOT_PAIRS.get(text))


def read_records(
    files: str | os.PathLike[str] | Sequence[Path],
    kind: str,
    *,
    skip_bad: bool = False,
    dropped: Counter[str] | None = None,
) -> Iterator[Record]:
    """Iterates over the checked records of one or several files, in order.

    Args:
        skip_bad: Drop bad records instead of stopping at the first; an unreadable file still stops the iteration.
        dropped: Counts dropped records by reason (the `reason` of RecordError). A pair without a preference (two
            answers with the same score) is always dropped and counted: its file is not at fault.

    Raises:
        DataError: "FILE:RECORD: ..." for a bad record; "FILE: ..." for an empty or unreadable file, or if no record is
            usable.
    """
    check_kind(kind)
    paths = [Path(file) for file in ([files] if isinstance(files, str | os.PathLike) else files)]
    for path in paths:
        _check_suffix(path)
    return _read(paths, kind, skip_bad, Counter() if dropped is None else dropped)


def _read(paths: list[Path], kind: str, skip_bad: bool, dropped: Counter[str]) -> Iterator[Record]:
    kept = 0
    for path in paths:
        seen = 0
        for name, raw in _raw_records(path):
            seen += 1
            try:
                if isinstance(raw, RecordError):
                    raise raw
                record = published_record(raw, kind) or parse_record(raw, kind)
            except RecordError as error:
                if not skip_bad and not isinstance(error, NoPreferenceError):
                    raise RecordError(error.reason, f"{path}:{name}", str(error)) from None
                dropped[error.reason] += 1
                continue
            kept += 1
            yield dataclasses.replace(record, place=f"{path}:{name}")
        if not seen:
            raise DataError(path, "is empty; at least one record is needed")
    if not kept:
        reasons = ", ".join(f"{reason} {count}" for reason, count in dropped.items())
        raise DataError(os.path.commonpath(paths), f"no usable record, all {dropped.total()} were dropped ({reasons})")


def _raw_records(path: Path) -> Iterator[tuple[str, Any]]:
    """(name, value) of each record; the value is a RecordError if the record cannot be decoded."""
    readers = {".jsonl": _jsonl_records, ".json": _json_records, ".parquet": _parquet_records}
    reader = readers[_suffix(path).removesuffix(".gz")]
    name = "0"
    try:
        for name, raw in reader(path):
            yield name, raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(path, f"not a whole gzip file, read up to record {name}: {error}") from error
    except OSError as error:
        raise DataError(path, f"cannot be read: {error.strerror or first_line(error)}") from error


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _jsonl_records(path: Path) -> Iterator[tuple[str, Any]]:
    number = 0
    with _open(path) as lines:
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
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return RecordError("bad_encoding", _not_utf8(error))
    except (ValueError, RecursionError) as error:
        start = ascii(line[:60].decode("utf-8", "replace").rstrip())
        cut = "" if line.endswith(b"\n") else ", the last line of the file, which may be cut off"
        reason = f"{error.msg} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else str(error)
        return RecordError("bad_json", f"not valid JSON{cut}: {reason}; the line begins {start}")


def _json_records(path: Path) -> Iterator[tuple[str, Any]]:
    """Reads a list of records, or an object of records keyed by id as in the first release of the bench."""
    try:
        with _open(path) as file:
            content = file.read(_LARGEST_JSON_BYTES + 1)
        if len(content) > _LARGEST_JSON_BYTES:  # a gzip file may unpack to far more than its size
            raise DataError(path, f"holds more than {_LARGEST_JSON_BYTES >> 20} MiB; larger data must be .jsonl")
        value = json.loads(content.decode("utf-8-sig") or "[]")
    except UnicodeDecodeError as error:
        raise DataError(path, f"{_not_utf8(error)}") from error
    except (ValueError, RecursionError) as error:
        hint = "; a file with one object per line must be named .jsonl" if "Extra data" in str(error) else ""
        raise DataError(path, f"not valid JSON: {error}{hint}") from error
    if isinstance(value, dict) and all(isinstance(record, dict) for record in value.values()):
        for number, (key, record) in enumerate(value.items(), 1):
            yield f"{number} (id {ascii(key)[:40]})", record
    elif isinstance(value, list):
        yield from ((str(number), record) for number, record in enumerate(value, 1))
    else:
        raise DataError(
            path, f"holds {ascii(value)[:60]}; allowed: a list of records, or an object of records keyed by id"
        )


def _parquet_records(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        # buffered, without read-ahead: by default pyarrow reads a whole row group even for a few records
        options = {"buffer_size": 1 << 20, "pre_buffer": False, "page_checksum_verification": True}
        with pyarrow.parquet.ParquetFile(path, **options) as file:
            names = file.schema_arrow.names
            columns = [name for name in names if name in COLUMNS_READ | PUBLISHED_COLUMNS]
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


def _parquet_record(batch: Any, index: int, unread: dict[str, None]) -> Any:
    try:
        return unread | {name: column[index].as_py() for name, column in zip(batch.schema.names, batch, strict=True)}
    except UnicodeDecodeError as error:
        return RecordError("bad_encoding", _not_utf8(error))
    except (ValueError, OverflowError) as error:  # a time that Python cannot represent
        return RecordError("wrong_type", f"holds a value that cannot be decoded: {first_line(error)}")


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"not UTF-8: byte 0x{error.object[error.start]:02x} at position {error.start + 1}"


def _check_suffix(path: Path) -> None:
    if _suffix(path) not in SUFFIXES:
        raise DataError(path, f"unknown file type {_suffix(path)!r}; allowed: {', '.join(SUFFIXES)}")


def _suffix(path: Path) -> str:
    return "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix


def _directory_splits(directory: Path, *, leave_out: str | None = None) -> dict[str, list[Path]]:
    files = [
        path
        for path in sorted(directory.rglob("*"))
        if _suffix(path) in SUFFIXES
        and path.name not in _NOT_RECORDS
        and path.is_file()
        and not any(part.startswith(".") or part == leave_out for part in path.relative_to(directory).parts)
    ]
    if not files:
        raise DataError(directory, f"holds no {', '.join(SUFFIXES)} file")
    splits: dict[str, list[Path]] = {}
    unnamed = []
    for path in files:
        name = _split_name(path.stem) or (_split_name(path.parent.name) if path.parent != directory else None)
        if name is None:
            unnamed.append(path)
        else:
            splits.setdefault(name, []).append(path)
    if not splits:
        return {"train": files}
    if unnamed:
        raise DataError(
            unnamed[0],
            f"names no split, but other files beside it do; start its name with one of "
            f"{', '.join(_SPLIT_NAMES)}, or pass the files one by one",
        )
    return splits


def _split_name(name: str) -> str | None:
    return _SPLIT_NAMES.get(re.split(r"[-_.]", name, maxsplit=1)[0])


def _download(hub_id: str) -> Path:
    import huggingface_hub

    name = HUB_ALIASES.get(hub_id, hub_id)
    try:
        snapshot = huggingface_hub.snapshot_download(
            name,
            repo_type="dataset",
            allow_patterns=[f"*{suffix}" for suffix in SUFFIXES],
            ignore_patterns=[f"{_NOT_PAIRS[name]}/*"] if name in _NOT_PAIRS else None,
        )
        return Path(snapshot)
    except Exception as error:  # without network, httpx, the hub's client and the system raise many types
        reason = first_line(error)
        raise DataError(
            hub_id,
            f"no such file here, and the data set {name} could not be downloaded from the Hugging Face hub: "
            f"{reason}; without network, give the path of a copy",
        ) from error
