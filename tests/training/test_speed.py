"""Model FLOPs and peaks are those of the planner; keys are counted on the attention rule itself."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.data.dataset import TokenizedDataset
from janus_jax.data.epoch import START, BatchSettings, PackedEpochs
from janus_jax.model.attention import Slots, visible
from janus_jax.model.config import PRESETS
from janus_jax.planning.chips import roofline
from janus_jax.planning.chips.slices import load_chips
from janus_jax.training.speed import PEAK_BF16_FLOPS, flops_per_token, keys_per_query, mfu_per_rate
from tests.support.training_examples import random_examples, write_dataset


def test_peaks_are_those_of_the_planners_table():
    table = load_chips()
    planned = {
        family.device_kind: table.chips[name].peak_bf16_flops / table.chips[name].devices
        for name, family in table.families.items()
    }
    assert {kind: peak for kind, peak in PEAK_BF16_FLOPS.items() if kind.startswith("TPU")} == planned


@pytest.mark.parametrize("head", ["lm", "value"])
def test_flops_are_the_planners(head):
    model = dataclasses.replace(PRESETS["mistral-7b"], head=head)
    work = roofline.Workload(model, rows=3, length=4096, segment=800)
    ours = flops_per_token(model, work.keys) * work.tokens
    assert ours == pytest.approx(roofline.training_flops(work).model, rel=1e-9)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize(("kind", "head", "share"), [("sft", "lm", True), ("dpo", "lm", True), ("dpo", "value", False)])
def test_keys_are_those_that_the_mask_leaves(tmp_path, kind, head, share, window):
    pairs = kind == "dpo"
    data = TokenizedDataset(
        write_dataset(tmp_path / kind, {"train": random_examples(30, pairs=pairs)}, kind=kind), "train"
    )
    settings = BatchSettings(row_length=64, max_sequence_length=32, rows=4, share_prompts=share)
    epochs = PackedEpochs(data, settings, branches=1 + pairs, head=head)
    keys = slots = 0
    for step in range(epochs.steps(0)):
        batch = epochs.read(epochs.members(dataclasses.replace(START, row=step * 4)))
        layout = Slots(*map(jnp.asarray, (batch.segment, batch.branch, batch.position)))
        mask = np.asarray(visible(layout, layout, window))
        keys, slots = keys + mask.sum(), slots + (batch.segment > 0).sum()
    assert keys_per_query(epochs, window) == pytest.approx(keys / slots)


def test_a_device_without_a_known_peak_has_no_mfu():
    assert mfu_per_rate(PRESETS["tiny"], None, "cpu", 8) is None
