"""Two small data sets, built once: sft with a validation split and one bad record, and pairs."""

import dataclasses
from pathlib import Path

import pytest

from janus_jax.data.dataset import Manifest
from tests.support.records import TEXTS, pair_records, sft_records, write_records


@dataclasses.dataclass(frozen=True)
class Built:
    directory: Path
    manifest: Manifest
    texts: list[tuple[str, str, str, str]]  # system, prompt, chosen, rejected of the train split


@pytest.fixture(scope="session")
def sft_build(tmp_path_factory) -> Built:
    from janus_jax.data.build.pipeline import build

    root = tmp_path_factory.mktemp("sft")
    records = sft_records()
    train = write_records(root / "rows.jsonl", [records[0], records[0] | {"output": ""}, *records[1:]])
    held = write_records(root / "held.jsonl", records[1:3])
    manifest = build({"train": train, "validation": held}, root / "data", kind="sft", skip_bad=True)
    return Built(root / "data", manifest, TEXTS)


@pytest.fixture(scope="session")
def dpo_build(tmp_path_factory) -> Built:
    from janus_jax.data.build.pipeline import build

    root = tmp_path_factory.mktemp("dpo")
    source = write_records(root / "rows.jsonl", pair_records())
    return Built(root / "data", build(source, root / "data", kind="dpo"), TEXTS)
