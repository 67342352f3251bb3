"""The seqio Task over ArrayRecord files: the features it gives, its order, shuffling and shards."""

import numpy as np
import pytest

from janus_jax.data.build.encode import Encoder
from janus_jax.data.build.task import make_task
from janus_jax.data.build.tfds_builder import read_builder
from janus_jax.text.template import MISTRAL_INST
from janus_jax.text.tokenizer import load_tokenizer
from tests.support.records import TEXTS


@pytest.fixture(scope="module")
def task(dpo_build):
    builder = read_builder(dpo_build.directory / "tfds")
    tokenizer = load_tokenizer()
    encode = Encoder("dpo", MISTRAL_INST, "separate", tokenizer)
    return make_task(builder, kind="dpo", tokenizer=tokenizer, encode=encode)


def prompts(task, **options) -> list[str]:
    dataset = task.get_dataset(sequence_length=None, split="train", num_epochs=1, **options)
    return [load_tokenizer().decode(example["prompt"]) for example in dataset.as_numpy_iterator()]


EXPECTED = [MISTRAL_INST.prompt_text(system, prompt) for system, prompt, *_ in TEXTS]


def test_features_are_ids_with_bos_and_eos_once(task):
    tokenizer = load_tokenizer()
    examples = list(task.get_dataset(None, "train", shuffle=False, num_epochs=1).as_numpy_iterator())
    assert [set(example) for example in examples] == [{"prompt", "chosen", "rejected", "margin"}] * 5
    assert np.isnan([example["margin"] for example in examples]).all()
    for example, (_, _, chosen, rejected) in zip(examples, TEXTS, strict=True):
        assert example["prompt"].tolist().count(1) == 1 and example["prompt"][0] == 1
        assert example["chosen"].tolist() == [*tokenizer.encode(chosen), 2]
        assert example["rejected"].tolist() == [*tokenizer.encode(rejected), 2]


def test_records_come_in_source_order(task):
    assert prompts(task, shuffle=False) == EXPECTED


def test_shuffling_follows_the_seed_and_loses_nothing(task):
    first, again, other = (prompts(task, shuffle=True, seed=seed) for seed in (1, 1, 4))
    assert first == again != other
    assert sorted(first) == sorted(EXPECTED)


def test_shards_part_the_records(task):
    import seqio

    shards = [prompts(task, shuffle=False, shard_info=seqio.ShardInfo(index=i, num_shards=2)) for i in range(2)]
    assert shards == [EXPECTED[0::2], EXPECTED[1::2]]


def test_source_knows_its_splits_and_sizes(task):
    assert list(task.splits) == ["train"]
    assert task.num_input_examples("train") == 5
    assert {name: feature.vocabulary.size for name, feature in task.output_features.items()} == dict.fromkeys(
        ("prompt", "chosen", "rejected"), 32000
    )
