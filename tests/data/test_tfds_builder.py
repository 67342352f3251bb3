"""The TFDS build: its metadata, its order at any size, and errors of the rows it reads."""

import json

import numpy as np
import pytest

from janus_jax.data import tfds_builder
from janus_jax.data.schema import Row
from janus_jax.data.tfds_builder import read_builder, write_rows
from janus_jax.errors import DataError

PREFERENCES = tuple(
    {"dimension": name, "subdimension": "Tone", "preference": "Warm", "description": f"It is {name}."}
    for name in ("style", "background_knowledge", "informativeness", "harmlessness")
)


def rows(count: int):
    return [
        Row(
            f"Be {i}.",
            f"Why {i}\0?",
            f"So {i} 😀.",
            None if i % 2 else "No.",
            "nectar",
            "sharegpt",
            PREFERENCES[: i % 5],
            None if i % 3 else i / 4,
        )
        for i in range(count)
    ]


def fields(row: dict) -> Row:
    """A TFDS example as the Row it was made of."""
    texts = {key: row[key].decode() for key in ("system", "prompt", "chosen", "main_source", "original_source")}
    sets = row["preference_set"]
    preferences = tuple(
        {key: sets[key][i].decode() for key in ("dimension", "subdimension", "preference", "description")}
        for i in range(len(sets["dimension"]))
    )
    margin = None if np.isnan(row["margin"]) else float(row["margin"])
    return Row(**texts, rejected=row["rejected"].decode() or None, preference_set=preferences, margin=margin)


def test_rows_come_back_whole_and_in_order_from_the_files_alone(tmp_path):
    write_rows({"train": lambda: iter(rows(40)), "validation": lambda: iter(rows(3))}, tmp_path)
    builder = read_builder(tmp_path)
    assert [fields(row) for row in builder.as_data_source("train")] == rows(40)
    assert [fields(row) for row in builder.as_data_source("validation")] == rows(3)


def test_metadata_names_version_format_and_counts(tmp_path):
    write_rows({"train": lambda: iter(rows(7))}, tmp_path)
    info = json.loads((tmp_path / "janus_rows" / "1.0.0" / "dataset_info.json").read_text())
    assert (info["name"], info["version"], info["fileFormat"]) == ("janus_rows", "1.0.0", "array_record")
    assert [(split["name"], split["shardLengths"]) for split in info["splits"]] == [("train", ["7"])]
    assert {path.name for path in tmp_path.iterdir()} == {"janus_rows"}


def test_order_is_kept_when_tfds_sorts_on_disk(tmp_path, monkeypatch):
    from tensorflow_datasets.core import shuffle

    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 1_000)  # past which records go to buckets on disk
    monkeypatch.setattr(tfds_builder, "_KEY_STEP", (1 << 128) // 2048)  # about two rows in each of the 1000 buckets
    write_rows({"train": lambda: (Row("", f"{i}", "x" * 100) for i in range(300))}, tmp_path)
    assert [int(row["prompt"]) for row in read_builder(tmp_path).as_data_source("train")] == list(range(300))


def test_no_bucket_on_disk_takes_more_rows_than_fit_in_memory():
    from tensorflow_datasets.core import shuffle

    def bucket(row: int) -> int:
        return shuffle.get_bucket_number(hkey=row * tfds_builder._KEY_STEP, num_buckets=shuffle.BUCKETS_NUMBER)

    rows_of_a_bucket = 20_000  # about 120 MB of published rows
    starts = range(0, 200_000, rows_of_a_bucket)
    assert [bucket(row) for row in starts] == sorted({bucket(row) for row in starts})


def test_errors_of_the_rows_come_through_as_they_are(tmp_path):
    def broken():
        yield rows(1)[0]
        raise DataError("rows.jsonl:2: column 'output' is empty")

    with pytest.raises(DataError, match=r"^rows.jsonl:2: column 'output' is empty$"):
        write_rows({"train": broken}, tmp_path)
