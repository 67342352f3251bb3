"""Pairs of equal responses: which of them a run leaves out, against a comparison of every pair as it would be read."""

import dataclasses

import numpy as np
import pytest

from janus_jax.data import epoch
from janus_jax.data.dataset import TokenizedDataset
from janus_jax.data.epoch import BatchSettings, PackedEpochs, Position
from tests.support.training_examples import random_examples, write_dataset

SETTINGS = BatchSettings(row_length=64, max_sequence_length=16, rows=2)


@pytest.fixture(scope="module")
def examples():
    """Responses of two ids, so that many pairs are equal. 0 is equal as built, 1 if cut, 2 if cut with EOS last."""
    made = random_examples(400, pairs=True, seed=4, vocab=2, longest=14)
    for number, (chosen, rejected) in enumerate([([], []), ([1, 5], [1, 6]), ([5, 3], [6, 3])]):
        chosen, rejected = (np.array([1] * 13 + ids, np.int32) for ids in (chosen, rejected))
        made[number] = dataclasses.replace(made[number], prompt=np.array([1, 9]), chosen=chosen, rejected=rejected)
    return made


@pytest.fixture(scope="module")
def dataset(examples, tmp_path_factory):
    return TokenizedDataset(
        write_dataset(tmp_path_factory.mktemp("equal") / "d", {"train": examples}, kind="dpo"), "train"
    )


@pytest.mark.parametrize("head", ["lm", "value"])
@pytest.mark.parametrize("overlong", ["truncate", "drop", "zero_grad"])
def test_exactly_the_pairs_that_would_be_read_as_equal_are_left_out(dataset, examples, monkeypatch, overlong, head):
    monkeypatch.setattr(epoch, "_AT_ONCE", 7)  # several reads
    settings = dataclasses.replace(SETTINGS, overlong=overlong)
    packed = PackedEpochs(dataset, settings, branches=2, head=head)

    def cut(ids, longest):
        if overlong != "truncate" or len(ids) <= longest:
            return ids.tolist()
        return ids[:longest].tolist() if head == "lm" else [*ids[: longest - 1].tolist(), int(ids[-1])]

    def fits(example):
        return overlong == "truncate" or len(example.prompt) + max(len(example.chosen), len(example.rejected)) <= 16

    room = [16 - len(example.prompt) for example in examples]
    equal = {
        number
        for number, example in enumerate(examples)
        if fits(example) and cut(example.chosen, room[number]) == cut(example.rejected, room[number])
    }
    after_cut = {"lm": {1}, "value": {2}}[head] if overlong == "truncate" else set()
    assert equal & {0, 1, 2} == {0} | after_cut
    assert packed.fitted.counts["equal_pairs"] == len(equal) > 1
    read = set()
    for step in range(packed.steps(0)):
        batch = packed.read(packed.members(Position(0, step * packed.unit)))
        read |= set(batch.example_id[batch.valid].tolist())
    assert read == set(packed.fitted.index.tolist()) and not read & equal
    assert len(read) + len(equal) == sum(map(fits, examples)) + packed.fitted.counts["zeroed"]


def test_no_pair_is_read_to_be_compared_if_no_two_responses_are_equally_long(tmp_path, monkeypatch):
    examples = [
        dataclasses.replace(example, chosen=np.arange(4), rejected=np.arange(5))
        for example in random_examples(9, pairs=True)
    ]
    dataset = TokenizedDataset(write_dataset(tmp_path / "d", {"train": examples}, kind="dpo"), "train")
    monkeypatch.setattr(dataset, "read", lambda indices: pytest.fail() if len(indices) else [])
    assert len(PackedEpochs(dataset, SETTINGS, branches=2).fitted.index) == 9


def test_the_limits_of_a_runs_rows_are_those_of_its_fullest_row(dataset):
    """Of all epochs: each packs other rows."""
    packed = PackedEpochs(dataset, SETTINGS, branches=2, epochs=3)
    batches = [
        packed.read(packed.members(Position(epoch, step * packed.unit)))
        for epoch in range(3)
        for step in range(packed.steps(epoch))
    ]
    assert packed.most_segments() == max(batch.segment.max() for batch in batches) < packed.max_segments
    shared = [((batch.segment > 0) & (batch.branch == 0)).sum(1).max() for batch in batches]
    assert packed.most_shared_slots() == max(shared) > min(shared)
    assert packed.longest_sequence() - 1 == max(batch.position.max() + 1 for batch in batches)  # EOS is not fed


def test_a_sequence_that_is_fed_whole_is_as_long_as_its_tokens(dataset):
    packed = PackedEpochs(dataset, SETTINGS, branches=2, head="value")
    batches = [packed.read(packed.members(Position(0, step * packed.unit))) for step in range(packed.steps(0))]
    assert packed.longest_sequence() == max(batch.position.max() + 1 for batch in batches)
