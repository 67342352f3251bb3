"""Two small data sets, built once: sft with a validation split and one bad record, and pairs."""

import dataclasses
import json
from pathlib import Path

import pytest

from janus_jax.data.dataset import Manifest

PREFERENCE = {"dimension": "style", "subdimension": "Tone", "preference": "Warm", "description": "It is warm."}
TEXTS = [
    ("Be brief.", "Why does bread rise?", "Yeast makes gas.", "Magic."),
    ("", "  What does <s> mean?\n", "A start mark </s>, it is text here.", " Nothing"),
    ("Use emojis 😀", "How is snow formed?", "Vapour freezes ❄️\nand falls.", "中文"),
    ("Say more.", "a\0b?", "long " * 60, "x" * 90),
    ("Say less.", "Why?", "So.", "No."),
]


@dataclasses.dataclass(frozen=True)
class Built:
    directory: Path
    manifest: Manifest
    texts: list[tuple[str, str, str, str]]  # system, prompt, chosen, rejected of the train split


def write_lines(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def sft_records() -> list[dict]:
    keys = ("system", "prompt", "output")
    sources = {"main_source": "nectar", "original_source": "sharegpt", "preference_set": [PREFERENCE] * 4}
    return [dict(zip(keys, texts[:3], strict=True)) | sources for texts in TEXTS]


def pair_records() -> list[dict]:
    return [dict(zip(("system", "prompt", "chosen", "rejected"), texts, strict=True)) for texts in TEXTS]


@pytest.fixture(scope="session")
def sft_build(tmp_path_factory) -> Built:
    from janus_jax.data.build.pipeline import build

    root = tmp_path_factory.mktemp("sft")
    records = sft_records()
    train = write_lines(root / "rows.jsonl", [records[0], records[0] | {"output": ""}, *records[1:]])
    held = write_lines(root / "held.jsonl", records[1:3])
    manifest = build({"train": train, "validation": held}, root / "data", kind="sft", skip_bad=True)
    return Built(root / "data", manifest, TEXTS)


@pytest.fixture(scope="session")
def dpo_build(tmp_path_factory) -> Built:
    from janus_jax.data.build.pipeline import build

    root = tmp_path_factory.mktemp("dpo")
    source = write_lines(root / "rows.jsonl", pair_records())
    return Built(root / "data", build(source, root / "data", kind="dpo"), TEXTS)
