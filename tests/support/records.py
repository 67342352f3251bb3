"""Records of source files: texts, files of every kind that hold them, and what a reader reports about a bad one."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from janus_jax.data.build.readers import read_records
from janus_jax.data.schema import Record
from janus_jax.errors import DataError

PREFERENCE = {"dimension": "style", "subdimension": "Tone", "preference": "Warm", "description": "It is warm."}
TEXTS = [
    ("Be brief.", "Why does bread rise?", "Yeast makes gas.", "Magic."),
    ("", "  What does <s> mean?\n", "A start mark </s>, it is text here.", " Nothing"),
    ("Use emojis 😀", "How is snow formed?", "Vapour freezes ❄️\nand falls.", "中文"),
    ("Say more.", "a\0b?", "long " * 60, "x" * 90),
    ("Say less.", "Why?", "So.", "No."),
]
"""System message, prompt, chosen and rejected response of each record."""


def sft_records() -> list[dict]:
    keys = ("system", "prompt", "output")
    sources = {"main_source": "nectar", "original_source": "sharegpt", "preference_set": [PREFERENCE] * 4}
    return [dict(zip(keys, texts[:3], strict=True)) | sources for texts in TEXTS]


def pair_records() -> list[dict]:
    return [dict(zip(("system", "prompt", "chosen", "rejected"), texts, strict=True)) for texts in TEXTS]


QUESTIONS = [{"system": "Be brief.", "prompt": f"Why {i}?", "output": f"Because of {i}."} for i in range(5)]
READ_QUESTIONS = [Record("Be brief.", f"Why {i}?", f"Because of {i}.") for i in range(5)]
"""What a reader makes of them."""


def write_json_lines(path: Path, records: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def write_records(path: Path, records: list[dict]) -> Path:
    """Writes a file of the kind that its suffix names."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path, write_batch_size=100)  # several pages
    elif path.suffix == ".arrow":
        table = pa.Table.from_pylist(records)
        with pyarrow.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    elif path.suffix in (".gz", ".zst"):
        plain = write_records(path.with_suffix(""), records)
        packed = pa.compress(plain.read_bytes(), "zstd" if path.suffix == ".zst" else "gzip", asbytes=True)
        path.write_bytes(packed)
        plain.unlink()
    elif path.suffix == ".json":
        path.write_text(json.dumps(records))
    else:
        write_json_lines(path, records)
    return path


def refusal(path: Path, kind: str = "sft", **options) -> str:
    """The one line with which the reader refuses a file."""
    with pytest.raises(DataError) as caught:
        list(read_records(path, kind, **options))
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message
