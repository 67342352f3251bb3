"""What a checkpoint says of the rows that its run reads, and the refusal to go on with others."""

import dataclasses

import pytest

from janus_jax.config.same_run import require_same_config
from janus_jax.config.sections import RunSection
from janus_jax.data.epoch import PackedEpochs
from janus_jax.data.from_config import packed_epochs
from janus_jax.errors import ConfigError
from janus_jax.training.course import Past
from janus_jax.training.resume import examples_read, other_held_out, require_same_run
from janus_jax.training.setup import prepare
from tests.support.run_configs import run_config
from tests.support.training_examples import random_examples, write_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Pairs of which three have equal responses."""
    root = tmp_path_factory.mktemp("data")
    examples = random_examples(40, pairs=True, seed=1)
    for number in (3, 7, 20):
        examples[number] = dataclasses.replace(examples[number], rejected=examples[number].chosen)
    splits = {"train": examples, "validation": random_examples(9, pairs=True, seed=2)}
    write_dataset(root / "dpo", splits, kind="dpo")
    return root


def config(data, **changes):
    return run_config(data, data / "run", "dpo", schedule={"epochs": 1}, **changes)


@pytest.fixture(scope="module")
def setup(data):
    return prepare(config(data))


@pytest.fixture(scope="module")
def meta(setup):
    model, fingerprint = dataclasses.asdict(setup.model), setup.loader.dataset.fingerprint
    return {"model": model, "data_fingerprint": fingerprint, "course": {}, "read": examples_read(setup.loader)}


@pytest.fixture(scope="module")
def of_all_pairs(data):
    """What a version reads that leaves no equal pair out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PackedEpochs, "_equal_responses", lambda self, index, lengths: index < 0)
        return examples_read(packed_epochs(config(data)))


def without(meta, *keys):
    return {key: value for key, value in meta.items() if key not in keys}


def test_a_run_goes_on_with_the_same_rows(setup, meta):
    require_same_run(setup, meta)
    require_same_run(setup, without(meta, "read"))  # older, but equal pairs were left out already


def test_a_run_of_pairs_that_are_left_out_now_does_not_go_on(setup, meta, of_all_pairs):
    message = r"/run: holds a run that read other examples of .*/dpo, or in other batches, .* \(examples 40, not 37; "
    with pytest.raises(ConfigError, match=message + r"equal_pairs 0, not 3\); to train .* init.from=.*/run$"):
        require_same_run(setup, meta | {"read": of_all_pairs})
    with pytest.raises(ConfigError, match=r"the same tokens, as older versions did; 3 of .*/dpo are left out now; to "):
        require_same_run(setup, without(meta, "read", "course"))


def test_batches_in_another_order_are_noticed_and_other_meshes_are_not(data, setup, meta):
    other = examples_read(packed_epochs(config(data).model_copy(update={"run": RunSection(dir="x", seed=4)})))
    with pytest.raises(ConfigError, match=r"or in other batches, than this version does; to train"):
        require_same_run(setup, meta | {"read": other})
    by_examples = config(data, batch={"rows": None, "examples": 8})
    assert examples_read(packed_epochs(by_examples)) == examples_read(packed_epochs(by_examples, row_shards=8))


@pytest.mark.parametrize(
    ("before", "noted"),
    [
        ({}, None),
        (
            {"data": {"eval_dir": "old"}},
            "data.eval_dir was old and is null, and the checkpoint of step 4 does not record",
        ),
        (
            {"data": {"eval_split": "train"}},
            "data.eval_split was train and is validation, and the checkpoint of step 4",
        ),
        ({"data": {"eval_split": "train"}, "eval": {"every_steps": None}}, None),
    ],
)
def test_an_older_checkpoint_that_may_have_been_evaluated_on_other_data_is_noted(setup, before, noted):
    """Its meta has no `held_out`; the configuration it holds says what `data.eval_dir` and `data.eval_split` were."""
    stored = setup.config.model_dump(mode="json", by_alias=True)
    stored |= {section: stored[section] | keys for section, keys in before.items()}
    lines = other_held_out(dataclasses.replace(setup, past=Past(4, {"config": stored})))
    assert lines is None if noted is None else lines is not None and lines.startswith(noted)


@pytest.mark.parametrize("changes", [{"model": {"vocab_size": 32000}}, {"optimizer": {"b1": 0.5}}])
def test_init_from_is_advised_where_it_brings_what_the_configuration_asks_for(data, changes):
    stored = {"config": config(data).model_dump(mode="json", by_alias=True)}
    with pytest.raises(ConfigError) as caught:
        require_same_config(config(data, **changes), stored)
    anew = str(caught.value).endswith(
        "its weights are of that model; put model back as it was, or choose another run.dir to begin anew"
    )
    assert anew == ("model" in changes) != ("init.from" in str(caught.value))
