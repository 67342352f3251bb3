"""Files of every kind into records, and FILE:ROW for what cannot be read."""

import gzip
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from janus_jax.data.build import readers
from janus_jax.data.build.readers import read_records
from janus_jax.data.build.sources import find_splits
from janus_jax.data.schema import Record
from janus_jax.errors import DataError
from tests.support.records import QUESTIONS, READ_QUESTIONS, refusal, write_json_lines, write_records


@pytest.mark.parametrize("suffix", readers.SUFFIXES)
def test_every_file_type_gives_the_same_records(tmp_path, suffix):
    assert list(read_records(write_records(tmp_path / f"rows{suffix}", QUESTIONS), "sft")) == READ_QUESTIONS


def test_json_keyed_by_id_as_in_the_first_bench_release(tmp_path):
    path = tmp_path / "bench.json"
    records = {
        str(7 * i): {
            "id": 7 * i,
            "system_prompt": record["system"],
            "user_prompt": record["prompt"],
            "reference_answer": record["output"],
        }
        for i, record in enumerate(QUESTIONS)
    }
    path.write_text(json.dumps(records))
    assert list(read_records(path, "sft")) == READ_QUESTIONS
    records["14"]["reference_answer"] = ""
    path.write_text(json.dumps(records))
    assert f"{path}:3 (id '14'): column 'reference_answer' is empty" in refusal(path)


def test_parquet_message_lists_as_published(tmp_path):
    message = pa.list_(pa.struct([("content", pa.string()), ("role", pa.string())]))
    columns = {
        "system": pa.array(["Be brief."]),
        "prompt": pa.array(["Why?"]),
        "chosen": pa.array(
            [[{"content": "Why?", "role": "user"}, {"content": "So.", "role": "assistant"}]], type=message
        ),
        "rejected": pa.array(
            [[{"content": "Why?", "role": "user"}, {"content": "No.", "role": "assistant"}]], type=message
        ),
    }
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    assert list(read_records(tmp_path / "p.parquet", "orpo")) == [Record("Be brief.", "Why?", "So.", "No.")]


def test_record_numbers_count_lines_and_blank_lines_are_passed_over(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\ufeff" + json.dumps(QUESTIONS[0]) + "\n\n" + json.dumps(QUESTIONS[1] | {"output": ""}) + "\n")
    assert refusal(path).startswith(f"{path}:3: column 'output' is empty")


@pytest.mark.parametrize("form", [pa.ipc.new_stream, pa.ipc.new_file])
def test_arrow_streams_and_files(tmp_path, form):
    table = pa.Table.from_pylist([{"prompt": f"Why {n}?", "output": "So.", "extra": n} for n in range(300)])
    path, unread = tmp_path / "data-00000-of-00001.arrow", Counter()
    with form(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    assert [one.prompt for one in read_records(path, "sft", unread=unread)] == [f"Why {n}?" for n in range(300)]
    assert unread == {"extra": 300}
    assert refusal(path, "dpo").startswith(f"{path}:1: column 'chosen'")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert re.match(r"not a whole Arrow file(, records after \d+ cannot be read)?: ", refusal(path)[len(f"{path}: ") :])


def test_a_directory_that_datasets_saved(tmp_path):
    if importlib.util.find_spec("datasets") is None:
        pytest.skip("datasets of Hugging Face is not installed")
    rows = [{"system": "Be brief.", "prompt": f"Why {n}?", "output": "So."} for n in range(5)]
    save = f"""if True:
        from datasets import Dataset, DatasetDict
        saved = DatasetDict(train=Dataset.from_list({rows}), test=Dataset.from_list({rows[:2]}))
        saved.save_to_disk({str(tmp_path / "d")!r}, num_shards=dict(train=2, test=1))
    """
    subprocess.run(
        [sys.executable, "-c", save], check=True, capture_output=True
    )  # it loads pandas, which changes pyarrow
    (tmp_path / "d" / "train" / "cache-0123.arrow").write_bytes(b"what map left")
    unread = Counter()
    found = find_splits(tmp_path / "d", unread)
    assert {name: len(files) for name, files in found.items()} == {"train": 2, "test": 1}
    assert unread == {"that datasets keeps as a cache": 1}
    assert [one.prompt for one in read_records(found["train"], "sft")] == [row["prompt"] for row in rows]


def test_parquet_record_numbers_go_on_over_batches(tmp_path):
    records = [QUESTIONS[0]] * 700 + [QUESTIONS[0] | {"prompt": ""}]
    assert refusal(write_records(tmp_path / "rows.parquet", records)).startswith(
        f"{tmp_path}/rows.parquet:701: column 'prompt'"
    )


def test_truncated_json_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(QUESTIONS[0]) + "\n" + json.dumps(QUESTIONS[1])[:30])
    message = refusal(path)
    assert message.startswith(f"{path}:2: not valid JSON, the last line of the file, which may be cut off")
    assert "at character " in message and 'the line begins \'{"system": "Be brief."' in message
    path.write_text(json.dumps(QUESTIONS[0]) + '\n{"system": }\n')
    assert (
        refusal(path)
        == f"{path}:2: not valid JSON: Expecting value at character 12; the line begins '{{\"system\": }}'"
    )


def test_bytes_that_are_not_utf8(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(QUESTIONS[0]).encode() + b'\n{"system": "caf\xe9"}\n')
    assert refusal(path) == f"{path}:2: not UTF-8: byte 0xe9 at position 16"

    text = pa.array([b"fine", b"caf\xe9"], pa.binary()).view(pa.string())
    table = pa.table({"system": pa.array(["s", "s"]), "prompt": pa.array(["p", "p"]), "output": text})
    pq.write_table(table, tmp_path / "rows.parquet")
    assert refusal(tmp_path / "rows.parquet").startswith(f"{tmp_path}/rows.parquet:2: not UTF-8: byte 0xe9")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b"", "is empty; at least one record is needed"),
        ("a.jsonl", b"\n\n", "is empty; at least one record is needed"),
        ("a.json", b"", "is empty; at least one record is needed"),
        ("a.json", b"[]", "is empty; at least one record is needed"),
        ("a.json", b'[{"system": "s"', "not valid JSON"),
        (
            "a.json",
            b'{"system": "s", "prompt": "p", "output": "o"}',
            "allowed: a list of records, or an object of records",
        ),
        ("a.json", b'{"a": 1}\n{"a": 2}\n', "a file with one object per line must be named .jsonl"),
        ("a.parquet", b"PAR1 and no more", "not a whole Parquet file"),
        ("a.jsonl", b"[" * 100_000, "1: not valid JSON"),
        ("a.jsonl", b"\0" * 64, "1: not valid JSON, the last line of the file, which may be cut off"),
        ("a.jsonl.gz", b"", "is empty; at least one record is needed"),
        ("a.jsonl.gz", b'{"system": "s"}', "not a whole gzip file, read up to record 0: Not a gzipped file"),
        (
            "a.json.gz",
            gzip.compress(b"[]", mtime=0)[:-3],
            "not a whole gzip file, read up to record 0: Compressed file ended",
        ),
        ("a.csv", b"system,prompt", "unknown file type '.csv'; allowed: .jsonl, .ndjson or .json (also "),
        ("a.csv.gz", b"system,prompt", "unknown file type '.csv.gz'; allowed: .jsonl"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    assert words in refusal(path)


ONE = {"system": ["s"], "prompt": ["p"], "output": ["o"]}


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({}, ": is empty; at least one record is needed"),
        ({name: pa.array([], pa.string()) for name in ONE}, ": is empty; at least one record is needed"),
        (
            {"a": [1], "b": [2]},
            ":1: column 'output' (or reference_answer, response, answer, completion) is missing; kind sft needs "
            "prompt, output; found: a, b",
        ),
        (ONE | {"output": [b"o"]}, ":1: column 'output' must be a string, found bytes b'o'"),
        (  # pyarrow makes a Timestamp of it where pandas is imported
            ONE | {"output": pa.array([1 << 62], pa.timestamp("ns"))},
            (":1: holds a value that cannot be decoded: Nanosecond", ":1: column 'output' must be a string, found Tim"),
        ),
        (
            ONE | {"output": pa.array([None], pa.string())},
            ":1: column 'output' (or reference_answer, response, answer, completion) is null",
        ),
    ],
)
def test_parquet_without_records_or_text(tmp_path, columns, words):
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    words = (words,) if isinstance(words, str) else words
    assert refusal(tmp_path / "rows.parquet").startswith(tuple(f"{tmp_path}/rows.parquet{one}" for one in words))


def test_columns_of_no_meaning_may_be_of_any_type_and_twice(tmp_path):
    path = tmp_path / "rows.parquet"
    odd = [pa.array([1 << 62], pa.timestamp("ns")), pa.array([b"caf\xe9"]).view(pa.string()), pa.array([1])]
    pq.write_table(pa.table([*ONE.values(), *odd], names=[*ONE, "time", "text", "text"]), path)
    assert list(read_records(path, "sft")) == [Record("s", "p", "o")]
    pq.write_table(pa.table([*ONE.values(), ["other"]], names=[*ONE, "output"]), path)
    assert refusal(path) == f"{path}: has more than one column 'output'; keep one"


def test_answers_with_scores_read_from_parquet(tmp_path):
    question = {"dataset": "eli5", "full_text": "Why?"}
    record = {"question": question, "answer_0": "So.", "score_0": -0.3, "answer_1": "Thus.", "score_1": 0.3}
    path = write_records(tmp_path / "rows.parquet", [record | {"tokens_0": {"prefix": [1], "completion": [2]}}])
    assert list(read_records(path, "rm")) == [Record("", "Why?", "Thus.", "So.")]


def test_a_list_in_lines_gets_a_hint(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(QUESTIONS, indent=1))
    assert refusal(path).endswith("; a file that is one list must be named .json")


def test_skip_bad_drops_and_counts_by_reason(tmp_path):
    path = tmp_path / "rows.jsonl"
    bad = [QUESTIONS[0] | {"output": ""}, QUESTIONS[0] | {"output": 3}, {"system": "s"}, QUESTIONS[0] | {"prompt": " "}]
    write_json_lines(path, [QUESTIONS[0], *bad, *QUESTIONS[1:]])
    with path.open("ab") as file:
        file.write(b'{"system": "cut o')
    dropped: Counter[str] = Counter()
    assert list(read_records(path, "sft", skip_bad=True, dropped=dropped)) == READ_QUESTIONS
    assert dropped == {"empty_field": 2, "wrong_type": 1, "missing_field": 1, "bad_json": 1}


def test_nothing_left_after_skipping_is_an_error(tmp_path):
    path = write_records(tmp_path / "rows.jsonl", QUESTIONS)
    message = refusal(path, "dpo", skip_bad=True)
    places = ", ".join(f"{path}:{number}" for number in (1, 2, 3))
    assert f"no usable record; dropped: 5 missing_field ({places} and 2 more)" in message


def test_kind_and_file_type_are_checked_before_reading(tmp_path):
    with pytest.raises(DataError, match="'ppo': unknown"):
        read_records(tmp_path / "absent.jsonl", "ppo")
    with pytest.raises(DataError, match="unknown file type"):
        read_records(tmp_path / "absent.txt", "sft")
    assert "cannot be read: No such file" in refusal(tmp_path / "absent.jsonl")


@pytest.mark.parametrize(
    "record",
    [
        '{"system": "", "prompt": "first", "prompt": "second", "output": "o"}',
        '{"prompt": "p", "output": "o", "preference_set": [{"prompt": 1, "prompt": 1}]}',
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_a_key_that_stands_twice_makes_a_record_bad(tmp_path, record, suffix):
    path, good = tmp_path / f"rows{suffix}", json.dumps(QUESTIONS[0])
    path.write_text(f"{good}\n{record}\n" if suffix == ".jsonl" else f"[{good}, {record}]")
    assert refusal(path) == f"{path}:2: names the key 'prompt' twice; keep one"
    dropped: Counter[str] = Counter()
    assert list(read_records(path, "sft", skip_bad=True, dropped=dropped)) == READ_QUESTIONS[:1]
    assert dropped == {"duplicate_key": 1}


def test_an_id_that_stands_twice_is_refused(tmp_path):
    path, record = tmp_path / "bench.json", json.dumps(QUESTIONS[0])
    path.write_text(f'{{"7": {record}, "7": {record}}}')
    assert refusal(path) == f"{path}: names the record '7' twice; keep one"


def test_a_zstd_file_of_several_frames_is_read_and_a_damaged_one_is_refused(tmp_path):
    whole = write_records(tmp_path / "rows.jsonl.zst", QUESTIONS).read_bytes()
    path = tmp_path / "ROWS.JSONL.ZST"
    path.write_bytes(whole + whole)
    assert list(read_records(path, "sft")) == READ_QUESTIONS * 2
    path.write_bytes(whole[:-3])
    assert "not a whole zstd file, read up to record 0: Truncated" in refusal(path)
    path.write_bytes(b"{}")
    assert "not a whole zstd file, read up to record 0: " in refusal(path, skip_bad=True)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_columns_that_hold_values_and_are_not_read_are_counted(tmp_path, suffix):
    more = {"score": 1.5, "tags": ["a", "b"], "blank": "", "gone": None, "output.raw": "x"}
    records = [record | more | {"some": f"{i}" if i < 2 else None} for i, record in enumerate(QUESTIONS)]
    unread: Counter[str] = Counter()
    path = write_records(tmp_path / f"rows{suffix}", records)
    assert list(read_records(path, "sft", unread=unread)) == READ_QUESTIONS
    assert unread == {"score": 5, "tags": 5, "output.raw": 5, "some": 2}


@pytest.mark.skipif("JANUS_REAL_DATA" not in os.environ, reason="JANUS_REAL_DATA names no folder of published records")
def test_published_records_of_all_printed_releases_read(tmp_path):
    blocks = json.loads((Path(os.environ["JANUS_REAL_DATA"]) / "multifaceted_rows.json").read_text())
    sft = blocks["5529fba:README.md#1"]
    assert list(read_records(write_records(tmp_path / "sft.jsonl", [sft]), "sft")) == [
        Record(sft["system"], sft["instruction"], sft["output"])
    ]
    (tmp_path / "first.json").write_text(json.dumps(blocks["5529fba:README.md#3"]))
    first = blocks["5529fba:README.md#3"]["468"]
    (record,) = read_records(tmp_path / "first.json", "sft")
    assert (record.system, record.prompt, record.chosen) == (
        first["system_prompt"],
        first["user_prompt"],
        first["reference_answer"],
    )
    bench = blocks["HEAD:README.md#0"]
    (record,) = read_records(write_records(tmp_path / "bench.jsonl", [bench]), "sft")
    assert (record.prompt, record.chosen) == (bench["prompt"], bench["reference_answer"])
