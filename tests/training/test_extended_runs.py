"""Runs that go on beyond their end: the same numbers wherever they are killed, and the rates that the rule says."""

import json
import shutil

import numpy as np
import pytest

from janus_jax.checkpoint.convert import to_hf
from janus_jax.checkpoint.stored_model import open_model
from janus_jax.config.run import RunConfig
from janus_jax.errors import ConfigError
from janus_jax.training.run import train
from tests.support.run_configs import ONE_LAYER, run_config
from tests.support.runs import assert_equal_trees, final_params, losses, metric_lines
from tests.support.states import without_checksums
from tests.support.training_examples import random_examples, write_dataset

pytestmark = pytest.mark.usefixtures("programs")

MESH = {"data": 1, "fsdp": 8, "tensor": 1}
SCHEDULE = {"name": "linear", "learning_rate": 1e-2, "warmup_steps": 1, "min_rate_ratio": 0.1, "epochs": None}

NEW_KEYS = {
    "schedule": ("warmup_ratio", "min_rate_ratio", "decay_steps", "decay_ratio", "decay_shape", "extend"),
    "eval": ("stop_after", "stop_metric", "stop_min_change"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    splits = {"train": random_examples(60, pairs=False, seed=1), "validation": random_examples(5, pairs=False, seed=2)}
    write_dataset(root / "sft", splits, kind="sft")
    splits = {"train": random_examples(40, pairs=True, seed=1), "validation": random_examples(5, pairs=True, seed=2)}
    write_dataset(root / "dpo", splits, kind="dpo")
    return root


def config(data, run, kind="sft", batch=None, **schedule):
    return run_config(
        data,
        run,
        kind,
        model=ONE_LAYER,
        schedule=SCHEDULE | schedule,
        mesh=MESH,
        eval={"every_steps": None},
        batch={"microbatches": 1, **(batch or {})},
        checkpoint={"every_steps": 1, "keep": 9},
    )


def go(data, run, until=None, **schedule):
    return train(config(data, run, **schedule), writers=(), until_step=until)


def rates(run):
    return [line["learning_rate"] for line in metric_lines(run) if line["kind"] == "train"]


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A run of four steps."""
    run = tmp_path_factory.mktemp("finished") / "run"
    assert go(data, run, steps=4).ended == "finished"
    return run


def killed(run, copy, step):
    """A copy of the run as if it had been killed after the checkpoint of `step`."""
    shutil.copytree(run, copy)
    for checkpoint in (copy / "checkpoints").iterdir():
        if int(checkpoint.name) > step:
            shutil.rmtree(checkpoint)
    return copy


FIRST = [0, 1, 0.7, 0.4]  # rates of the four steps, relative to the peak
STRETCHED = [1 - 0.9 * step / 7 for step in (3, 4, 5, 6)]  # of four more


@pytest.mark.parametrize(
    ("rule", "added"),
    [
        ("restart", FIRST),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("stretch", STRETCHED), ("constant", [0.1] * 4))),
    ],
)
def test_an_extended_run_is_the_same_wherever_it_is_killed(data, tmp_path, finished, rule, added):
    """`restart` also if it is extended before its end."""
    longer, whole = {"steps": 8, "extend": rule}, killed(finished, tmp_path / "whole", 4)
    assert go(data, whole, **longer).step == 8
    np.testing.assert_allclose(rates(whole), 1e-2 * np.asarray(FIRST + added), rtol=1e-6)
    others = {killed(whole, tmp_path / "late", 6): 6}
    if rule == "restart":
        others[killed(finished, tmp_path / "early", 2)] = 2
    for other, step in others.items():
        assert go(data, other, **longer).resumed_from == step
        assert losses(other) == losses(whole)
        assert_equal_trees(final_params(other), final_params(whole))


def test_a_run_can_be_extended_twice_and_in_epochs(data, tmp_path, finished):
    run = killed(finished, tmp_path / "run", 4)
    go(data, run, steps=8, extend="restart")
    with pytest.raises(ConfigError, match=r"schedule.extend = stretch: .* extended by restart to 8 steps; allowed: re"):
        go(data, run, steps=8, extend="stretch")
    assert go(data, run, steps=8).resumed_from == 8  # without the key it is finished, as it was
    assert go(data, run, steps=None, epochs=5, extend="constant").total_steps == 10
    np.testing.assert_allclose(rates(run), 1e-2 * np.asarray([*FIRST, *FIRST, 0.1, 0.1]), rtol=1e-6)
    to_hf(run, tmp_path / "converted", verify="none")
    card = (tmp_path / "converted/README.md").read_text()
    assert "| extended | restart from step 4, to 8 steps |\n| extended | constant from step 8, to 10 steps |" in card


@pytest.mark.parametrize("rule", ["stretch", pytest.param("restart", marks=pytest.mark.slow)])
def test_an_extended_run_whose_newest_checkpoints_are_damaged_stays_extended(data, tmp_path, finished, rule):
    """The good one is older than the extension, which the start after it need not name; `stretch` began at step 4."""
    added = {"restart": FIRST, "stretch": STRETCHED}[rule]
    whole = killed(finished, tmp_path / "whole", 4)
    go(data, whole, steps=8, extend=rule)
    other = shutil.copytree(whole, tmp_path / "other")
    for step in (4, 5, 6, 7, 8):
        (other / f"checkpoints/{step}/data/metadata").write_text("{}")
    ended = go(data, other, steps=8)
    assert (ended.resumed_from, ended.step) == (3, 8)
    assert losses(other) == losses(whole) and rates(other) == rates(whole)
    np.testing.assert_allclose(rates(whole), 1e-2 * np.asarray(FIRST + added), rtol=1e-6)
    assert_equal_trees(final_params(other), final_params(whole))


def test_another_run_starts_from_a_step_and_the_message_says_how(data, tmp_path, finished):
    with pytest.raises(ConfigError, match=rf"run\.dir and set model=null init\.from={finished}$"):
        go(data, finished, steps=4, learning_rate=0.5)
    start = {"model": None, "init": {"from": str(finished / "checkpoints/3")}}
    values = config(data, tmp_path / "run", steps=4).model_dump(mode="json", by_alias=True) | start
    train(RunConfig.model_validate(values), writers=(), until_step=1)  # the first step has rate 0
    assert_equal_trees(open_model(tmp_path / "run", 1).load_host(), open_model(finished, 3).load_host())
    assert metric_lines(tmp_path / "run")[0]["epoch"] == 0.5  # which counts what was read


def test_a_checkpoint_of_an_older_version_goes_on(data, tmp_path, finished):
    """Without the items and keys that came with extensions."""
    run = killed(finished, tmp_path / "run", 2)
    without_checksums(run / "checkpoints/2")
    file = run / "checkpoints/2/meta/metadata"
    meta = json.loads(file.read_text())
    assert meta.pop("course") == {"begun_with": 4, "extensions": []} and meta.pop("stopping") is None
    assert meta.pop("read")["examples"] == 60
    for section, keys in NEW_KEYS.items():
        for key in keys:
            del meta["config"][section][key]
    meta["config"]["schedule"]["min_rate_ratio"] = 0.1  # of this run
    file.write_text(json.dumps(meta))
    assert go(data, run, steps=4).resumed_from == 2
    assert losses(run) == losses(finished)


def test_pairs_that_only_the_added_steps_read_get_their_reference(data, tmp_path, capsys):
    """Precomputed log-probs cover what a run reads; steps of eight pairs are no epoch of forty."""
    batch = {"rows": None, "examples": 8}
    constant = {"name": "constant", "min_rate_ratio": None, "warmup_steps": 0, "extend": "constant"}
    scored = []
    for name, steps, until in (("extended", 1, None), ("extended", 2, None), ("whole", 2, 0)):
        train(config(data, tmp_path / name, "dpo", batch, **constant, steps=steps), until_step=until)
        notes = capsys.readouterr().out.count("note: the extended run ends at the rate 0.01")
        assert notes == ((name, steps) == ("extended", 2))
        with np.load(tmp_path / name / "reference/train.npz") as stored:
            scored.append(stored["logps"])
        assert np.isfinite(scored[-1]).all(1).sum() == 8 * steps
    np.testing.assert_array_equal(*scored[1:])
    assert [*losses(tmp_path / "extended")] == [1, 2]
