"""Notes on a run's data that are probably not meant."""

import dataclasses
import json

import numpy as np
import pytest

from janus_jax.config.objectives import OBJECTIVES
from janus_jax.data.dataset import TokenizedDataset
from janus_jax.data.epoch import BatchSettings, PackedEpochs
from janus_jax.data.mixture import Mixture
from janus_jax.objectives import Objective, build_objective
from janus_jax.training.data_notes import data_notes
from tests.support.run_configs import run_config
from tests.support.training_examples import random_examples, write_dataset

BATCH = BatchSettings(row_length=64, max_sequence_length=32, rows=2)
MANY = dataclasses.replace(BATCH, rows=None, examples=40)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Built data sets of 24 pairs; `margins` has margins, `other` another template."""
    directory = tmp_path_factory.mktemp("data")
    for number, name in enumerate(("dpo", "margins", "other")):
        splits = {"train": random_examples(24, pairs=True, seed=number)}
        splits["validation"] = random_examples(3, pairs=True, seed=10 + number)
        write_dataset(directory / name, splits, kind="dpo")
        changed = json.loads((directory / name / "manifest.json").read_text()) | {"fingerprint": name}
        changed["template"] = "plain" if name == "other" else changed["template"]
        (directory / name / "manifest.json").write_text(json.dumps(changed))
    np.save(directory / "margins" / "train" / "margins.npy", np.arange(24, dtype=np.float32))
    return directory


def opened(root, name="dpo", split="train") -> TokenizedDataset:
    return TokenizedDataset(root / name, split)


def notes_of(root, dataset, held_out=None, *, settings=BATCH, kind="dpo") -> list[str]:
    objective: Objective = build_objective(run_config(root, root / "run", kind))
    packed = [PackedEpochs(data, settings, branches=2) for data in (dataset, held_out) if data is not None]
    return data_notes(objective, packed[0], packed[1] if held_out is not None else None)


def test_usual_data_get_no_note(root):
    assert notes_of(root, opened(root), opened(root, split="validation")) == []


def test_held_out_examples_that_are_trained_on_are_noted(root):
    (note,) = notes_of(root, opened(root), opened(root))
    assert "dpo, split train, are training examples" in note
    mixture = Mixture([opened(root), opened(root, "margins")])
    assert note in notes_of(root, mixture, Mixture([opened(root, split="validation"), opened(root)]), kind="rm")


def test_a_copy_of_a_split_is_known_by_its_contents(root, tmp_path):
    for name in ("a", "b"):
        write_dataset(tmp_path / name, {name: random_examples(24, pairs=True)}, kind="dpo")
        manifest = json.loads((tmp_path / name / "manifest.json").read_text())
        manifest["splits"][name]["fingerprint"] = "equal"
        (tmp_path / name / "manifest.json").write_text(json.dumps(manifest | {"fingerprint": name}))
    ours, theirs = opened(tmp_path, "a", "a"), opened(tmp_path, "b", "b")
    assert "are training examples" in notes_of(root, ours, theirs)[0]
    assert "a and " in (note := notes_of(root, Mixture([ours, theirs]))[0]) and "the same examples" in note


def test_held_out_data_of_another_template_are_noted(root):
    (note,) = notes_of(root, opened(root), opened(root, "other", "validation"))
    assert note.startswith("the held-out data has template plain, the training data chatml")


@pytest.mark.parametrize("kind", ["dpo", "simpo", "orpo", "rm"])
def test_margins_are_noted_where_the_loss_does_not_use_them(kind, root):
    expected = [f"23 training examples have a margin, which objective {kind} does not use"]
    assert notes_of(root, opened(root, "margins"), kind=kind) == (expected if kind != "rm" else [])
    assert OBJECTIVES[kind].uses_margins == (kind == "rm")


def test_a_batch_that_the_data_cannot_fill_is_noted(root):
    (note,) = notes_of(root, opened(root), settings=dataclasses.replace(BATCH, rows=64))
    used = len([row for row in PackedEpochs(opened(root), BATCH, branches=2)._packed(0) for row in row if len(row)])
    assert note == f"batch.rows = 64, but the examples of an epoch fill {used}: the others are padding"
    (note,) = notes_of(root, opened(root), settings=MANY)
    assert note == "batch.examples = 40, but an epoch has 24: a step reads no more than these"
    (note,) = notes_of(root, opened(root), settings=dataclasses.replace(BATCH, max_segments=1))
    assert note.startswith("batch.max_segments = 1 leaves rows of batch.row_length = 64 mostly empty")


def test_a_mixture_that_repeats_examples_is_noted(root):
    parts = [opened(root), opened(root, "margins")]
    (note,) = notes_of(root, Mixture(parts, [3, 1], 80), kind="rm")
    assert note.endswith(f"reads 60 examples of {root / 'dpo'}, which has 24: they repeat")
    assert notes_of(root, Mixture(parts, [3, 1]), kind="rm") == []
