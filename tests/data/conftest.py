"""Two small data sets, built once: sft with a validation split and one bad row, and pairs."""

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


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sft_rows() -> list[dict]:
    keys = ("system", "prompt", "output")
    sources = {"main_source": "nectar", "original_source": "sharegpt", "preference_set": [PREFERENCE] * 4}
    return [dict(zip(keys, texts[:3], strict=True)) | sources for texts in TEXTS]


def pair_rows() -> list[dict]:
    return [dict(zip(("system", "prompt", "chosen", "rejected"), texts, strict=True)) for texts in TEXTS]


@pytest.fixture(scope="session")
def sft_build(tmp_path_factory) -> Built:
    from janus_jax.data.build.pipeline import build

    root = tmp_path_factory.mktemp("sft")
    rows = sft_rows()
    train = write_lines(root / "rows.jsonl", [rows[0], rows[0] | {"output": ""}, *rows[1:]])
    held = write_lines(root / "held.jsonl", rows[1:3])
    manifest = build({"train": train, "validation": held}, root / "data", kind="sft", skip_bad=True)
    return Built(root / "data", manifest, TEXTS)


@pytest.fixture(scope="session")
def dpo_build(tmp_path_factory) -> Built:
    from janus_jax.data.build.pipeline import build

    root = tmp_path_factory.mktemp("dpo")
    source = write_lines(root / "rows.jsonl", pair_rows())
    return Built(root / "data", build(source, root / "data", kind="dpo"), TEXTS)
