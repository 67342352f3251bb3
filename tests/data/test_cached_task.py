"""Built data as a seqio Task: the stored ids, exact shares of a mixture, the same examples on any number of shards."""

import itertools

import numpy as np
import pytest
import seqio

from janus_jax.data.cached_task import cached_task
from janus_jax.data.dataset import TokenizedDataset
from janus_jax.data.mixture import Mixture
from tests.support.training_examples import random_examples, write_dataset

SIZES = (20, 8)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    root = tmp_path_factory.mktemp("parts")
    for number, size in enumerate(SIZES):
        write_dataset(root / str(number), {"train": random_examples(size, pairs=True, seed=number)}, kind="dpo")
    return [TokenizedDataset(root / str(number)) for number in range(len(SIZES))]


def read(task, **options):
    dataset = task.get_dataset(sequence_length=None, split="train", **options)
    return list(dataset.as_numpy_iterator())


def keys(result) -> list[bytes]:
    return [b"|".join(example[name].tobytes() for name in ("prompt", "chosen", "rejected")) for example in result]


def test_features_are_the_stored_ids_in_order(parts):
    result = read(cached_task(parts[0]), shuffle=False, num_epochs=1)
    for features, example in zip(result, parts[0].read(range(20)), strict=True):
        assert set(features) == {"prompt", "chosen", "rejected", "margin"}
        for name in ("prompt", "chosen", "rejected"):
            np.testing.assert_array_equal(features[name], getattr(example, name))


def test_single_responses_have_two_features(tmp_path):
    write_dataset(tmp_path / "sft", {"train": random_examples(5, pairs=False)}, kind="sft")
    result = read(cached_task(TokenizedDataset(tmp_path / "sft")), shuffle=True, seed=1, num_epochs=1)
    assert len(result) == 5 and all(set(features) == {"prompt", "chosen"} for features in result)


def test_a_mixture_keeps_its_shares_in_every_epoch_and_repeats_nothing_early(parts):
    task = cached_task(Mixture(parts, [3, 1], 16))
    result = keys(read(task, shuffle=True, seed=4, num_epochs=4))
    of = [set(keys(read(cached_task(part), shuffle=False, num_epochs=1))) for part in parts]
    for epoch in range(4):
        now = result[16 * epoch : 16 * (epoch + 1)]
        assert [sum(key in part for key in now) for part in of] == [12, 4]
    firsts = [key for key in result if key in of[1]]
    assert len(set(firsts[:8])) == 8 == len(set(firsts[8:16]))  # the small part, twice round
    assert result == keys(read(task, shuffle=True, seed=4, num_epochs=4))
    assert result != keys(read(task, shuffle=True, seed=5, num_epochs=4))


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_shards_together_are_the_whole_sequence(parts, shards):
    task = cached_task(Mixture(parts, [3, 1], 18))
    whole = keys(read(task, shuffle=True, seed=4, num_epochs=1))
    mine = [
        keys(read(task, shuffle=True, seed=4, num_epochs=1, shard_info=seqio.ShardInfo(index=i, num_shards=shards)))
        for i in range(shards)
    ]
    woven = [key for group in itertools.zip_longest(*mine) for key in group if key is not None]
    assert woven == whole


def test_epochs_go_on_without_end(parts):
    dataset = cached_task(parts[1]).get_dataset(None, "train", shuffle=True, seed=0, num_epochs=None)
    assert len(list(itertools.islice(dataset.as_numpy_iterator(), 30))) == 30
