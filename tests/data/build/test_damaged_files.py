"""Files that are cut, damaged, uneven or of huge records: refused or counted, by name, and never held whole."""

import gzip
import json
import random
import tracemalloc
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from janus_jax.data.build import readers
from janus_jax.data.build.readers import read_records
from janus_jax.data.build.sources import find_splits
from janus_jax.errors import DataError
from tests.support.records import QUESTIONS, READ_QUESTIONS, refusal, write_records


@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_cut_gzip_file_names_the_last_record_that_could_be_read(tmp_path, skip_bad):
    path = write_records(tmp_path / "rows.jsonl.gz", [record | {"n": i} for i, record in enumerate(QUESTIONS * 200)])
    path.write_bytes(path.read_bytes()[:-20])
    taken = []
    with pytest.raises(
        DataError, match=r"rows\.jsonl\.gz: not a whole gzip file, read up to record (9..): Compressed file"
    ):
        taken.extend(read_records(path, "sft", skip_bad=skip_bad))


def test_a_line_without_end_is_passed_over_and_not_held(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "_LONGEST_LINE_BYTES", 1 << 20)
    path = tmp_path / "rows.jsonl.gz"
    lines = [json.dumps(record).encode() + b"\n" for record in QUESTIONS]
    path.write_bytes(gzip.compress(lines[0] + b"\0" * (20 << 20) + b"\n" + b"".join(lines[1:]) + b"x" * (20 << 20)))
    assert refusal(path).startswith(f"{path}:2: a line of more than 1 MiB")
    dropped: Counter[str] = Counter()
    tracemalloc.start()
    try:
        assert list(read_records(path, "sft", skip_bad=True, dropped=dropped)) == READ_QUESTIONS
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert dropped == {"too_long": 2}


def test_a_json_file_too_large_to_be_held_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "_LARGEST_JSON_BYTES", 1 << 20)
    path = tmp_path / "rows.json.gz"
    path.write_bytes(gzip.compress(b" " * (64 << 20) + b"[]"))
    tracemalloc.start()
    try:
        assert refusal(path) == f"{path}: holds more than 1 MiB; larger data must be .jsonl"
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def damaged(path: Path, **options) -> bytes:
    """A sound file of 300 records in three row groups, written to `path`."""
    records = [{"system": f"s{i}", "prompt": f"p{i}", "output": f"o{i} " * 9} for i in range(300)]
    pq.write_table(pa.Table.from_pylist(records), path, row_group_size=100, use_dictionary=False, **options)
    return path.read_bytes()


@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_parquet_file_cut_in_half_is_refused(tmp_path, skip_bad):
    path = tmp_path / "rows.parquet"
    path.write_bytes(damaged(path)[: path.stat().st_size // 2])
    assert "not a whole Parquet file" in refusal(path, skip_bad=skip_bad)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"compression": "snappy"}, "snappy"), ({"compression": "none", "write_page_checksum": True}, "CRC")],
    ids=["compressed", "checksums"],
)
def test_a_damaged_page_names_the_records_before_it(tmp_path, options, words):
    path = tmp_path / "rows.parquet"
    whole = bytearray(damaged(path, **options))
    chunk = pq.ParquetFile(path).metadata.row_group(2).column(2)
    middle = chunk.data_page_offset + chunk.total_compressed_size // 2
    whole[middle : middle + 40] = bytes(byte ^ 0xFF for byte in whole[middle : middle + 40])
    path.write_bytes(whole)
    message = refusal(path)
    assert message.startswith(f"{path}: not a whole Parquet file, records after 200 cannot be read: ")
    assert words in message


@pytest.mark.parametrize("compression", ["snappy", "none"])
def test_any_damage_to_parquet_is_a_refusal_or_other_text(tmp_path, compression):
    path, draw, refused = tmp_path / "rows.parquet", random.Random(0), 0
    whole = damaged(path, compression=compression)
    for _ in range(60):
        bad = bytearray(whole)
        for _ in range(draw.choice([1, 1, 8])):
            bad[draw.randrange(len(bad))] = draw.randrange(256)
        path.write_bytes(bad)
        try:
            assert len(list(read_records(path, "sft", skip_bad=True))) <= 300
        except DataError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
            refused += 1
    assert refused > 10


def test_files_of_a_directory_may_differ_and_the_odd_one_is_named(tmp_path):
    write_records(tmp_path / "train-0.parquet", QUESTIONS)
    write_records(
        tmp_path / "train-1.parquet", [{"system": record["system"], "output": record["output"]} for record in QUESTIONS]
    )
    write_records(tmp_path / "train-2.parquet", [record | {"output": [record["output"]]} for record in QUESTIONS])
    write_records(tmp_path / "train-3.parquet", [record | {"more": 1} for record in QUESTIONS])
    files = find_splits(tmp_path)["train"]
    with pytest.raises(DataError, match=r"train-1\.parquet:1: column 'prompt' \(or .*\) is missing"):
        list(read_records(files, "sft"))
    with pytest.raises(DataError, match=r"train-2\.parquet:1: column 'output' must be a string, found list \['Because"):
        list(read_records(files[2:], "sft"))
    dropped: Counter[str] = Counter()
    assert list(read_records(files, "sft", skip_bad=True, dropped=dropped)) == READ_QUESTIONS * 2
    assert dropped == {"missing_field": 5, "wrong_type": 5}


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_reading_takes_far_less_memory_than_the_file(tmp_path, suffix):
    records = [QUESTIONS[0] | {"output": f"{i} " + "x" * 4000} for i in range(6000)]
    path = write_records(tmp_path / f"rows{suffix}", records)
    text_bytes = sum(len(record["output"]) for record in records)
    del records
    assert peak_bytes(path, 6000) < text_bytes / 4


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_records_of_megabytes_are_held_a_few_at_a_time(tmp_path, suffix):
    record_bytes = 2_000_000
    records = [
        QUESTIONS[0] | {"output": f"{i} " + random.Random(i).randbytes(record_bytes // 2).hex()} for i in range(12)
    ]
    if suffix == ".parquet":  # in one row group; a page, which holds one record here, is the least that can be decoded
        path = tmp_path / "rows.parquet"
        pq.write_table(
            pa.Table.from_pylist(records), path, write_batch_size=1, compression="none", use_dictionary=False
        )
    else:
        path = write_records(tmp_path / f"rows{suffix}", records)
    del records
    assert peak_bytes(path, 12) < 6 * record_bytes


def peak_bytes(path: Path, expected: int) -> int:
    """The most that reading `path` holds, in Python's memory and in Arrow's."""
    next(iter(read_records(path, "sft")))  # imports happen here
    before, arrow, count = pa.total_allocated_bytes(), 0, 0
    tracemalloc.start()
    try:
        for _ in read_records(path, "sft"):
            count += 1
            arrow = max(arrow, pa.total_allocated_bytes() - before)
        assert count == expected
        return tracemalloc.get_traced_memory()[1] + arrow
    finally:
        tracemalloc.stop()
