"""The TFDS build: its metadata, its order at any size, and errors of the records it reads."""

import json

import numpy as np
import pytest

from janus_jax.data.build import tfds_builder
from janus_jax.data.build.tfds_builder import read_builder, write_records
from janus_jax.data.schema import Record
from janus_jax.errors import DataError

PREFERENCES = tuple(
    {"dimension": name, "subdimension": "Tone", "preference": "Warm", "description": f"It is {name}."}
    for name in ("style", "background_knowledge", "informativeness", "harmlessness")
)


def records(count: int):
    return [
        Record(
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


def fields(record: dict) -> Record:
    """A TFDS example as the Record it was made of."""
    texts = {key: record[key].decode() for key in ("system", "prompt", "chosen", "main_source", "original_source")}
    sets = record["preference_set"]
    preferences = tuple(
        {key: sets[key][i].decode() for key in ("dimension", "subdimension", "preference", "description")}
        for i in range(len(sets["dimension"]))
    )
    margin = None if np.isnan(record["margin"]) else float(record["margin"])
    return Record(**texts, rejected=record["rejected"].decode() or None, preference_set=preferences, margin=margin)


def test_records_come_back_whole_and_in_order_from_the_files_alone(tmp_path):
    write_records({"train": lambda: iter(records(40)), "validation": lambda: iter(records(3))}, tmp_path)
    builder = read_builder(tmp_path)
    assert [fields(record) for record in builder.as_data_source("train")] == records(40)
    assert [fields(record) for record in builder.as_data_source("validation")] == records(3)


def test_metadata_names_version_format_and_counts(tmp_path):
    write_records({"train": lambda: iter(records(7))}, tmp_path)
    info = json.loads((tmp_path / "janus_rows" / "1.0.0" / "dataset_info.json").read_text())
    assert (info["name"], info["version"], info["fileFormat"]) == ("janus_rows", "1.0.0", "array_record")
    assert [(split["name"], split["shardLengths"]) for split in info["splits"]] == [("train", ["7"])]
    assert {path.name for path in tmp_path.iterdir()} == {"janus_rows"}


def test_many_files_keep_the_order(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_builder, "RECORDS_PER_FILE", 70)
    write_records({"train": lambda: (Record("", f"{i}", "x" * 100) for i in range(300))}, tmp_path)
    assert [int(record["prompt"]) for record in read_builder(tmp_path).as_data_source("train")] == list(range(300))
    assert len(list(tmp_path.rglob("*train*"))) == 5


def test_errors_of_the_records_come_through_as_they_are(tmp_path):
    def broken():
        yield records(1)[0]
        raise DataError("rows.jsonl:2: column 'output' is empty")

    with pytest.raises(DataError, match=r"^rows.jsonl:2: column 'output' is empty$"):
        write_records({"train": broken}, tmp_path)
