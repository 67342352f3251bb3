"""Steps whose loss or gradient is not finite: the run ends, or leaves their updates out."""

import dataclasses
import json
import types

import jax
import numpy as np
import optax
import pytest

from janus_jax.checkpoint.run_dir import RunDir
from janus_jax.config.sections import OptimizerSection
from janus_jax.data.epoch import PackedEpochs
from janus_jax.data.mixture import Mixture
from janus_jax.errors import NonFiniteError
from janus_jax.training import require_finite
from janus_jax.training.curves import read_curves
from janus_jax.training.finite import Skipped, listed, located, not_finite
from janus_jax.training.require_finite import RequireFinite
from janus_jax.training.run import train
from janus_jax.training.setup import prepare
from tests.support.run_configs import ONE_LAYER, run_config
from tests.support.runs import assert_equal_trees, final_params, metric_lines
from tests.support.training_examples import random_examples, write_dataset

pytestmark = pytest.mark.usefixtures("programs")

STEPS = 6
"""Of one epoch."""
SCHEDULE = {"epochs": None, "steps": 2 * STEPS, "warmup_steps": 0}
BAD = 11
"""The example that the tests make not finite."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_dataset(root / "sft", {"train": random_examples(60, pairs=False, seed=1)}, kind="sft")
    return root


@pytest.fixture
def poisoned(monkeypatch):
    """Rows with the example `BAD` weigh infinitely much."""
    read = PackedEpochs.read

    def poison(self, rows):
        batch = read(self, rows)
        bad = (batch.example_id == BAD) & batch.valid
        batch.weights[bad.any(-1)] = np.inf
        return batch

    monkeypatch.setattr(PackedEpochs, "read", poison)


def config(data, run, **changes):
    settings = {
        "model": ONE_LAYER,
        "schedule": SCHEDULE,
        "eval": {"every_steps": None},
        "optimizer": {"on_nonfinite": "skip", "max_skipped": 3},
    }
    return run_config(data, run, **{**settings, **changes})


def assert_close(ours, theirs):
    """Up to rounding: other programs fuse other operations."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-4, atol=2e-6)


def bad_steps(settings):
    """The steps that read the example, counted from 1."""
    loader = prepare(settings).loader
    positions = [position for _, position in zip(range(STEPS), loader.positions(), strict=False)]
    return [step for step, position in enumerate(positions, 1) if BAD in loader.example_ids(position)]


def test_a_step_that_is_skipped_changes_nothing(data, tmp_path):
    """It is one rule for all objectives."""
    setup = prepare(config(data, tmp_path))
    state, step = setup.program.init(setup.initial_params("float32")), setup.program.train
    before = jax.device_get(state)
    good = jax.device_get(next(setup.loader.batches()).batch)
    bad = dataclasses.replace(good, weights=good.weights.copy())
    bad.weights[-1, -1] = np.inf
    after, scalars, _ = step(state, bad)
    assert not_finite(scalars)
    assert_equal_trees(after, before)
    changed = jax.tree.map(lambda old, new: (old != new).any(), before.params, step(after, good)[0].params)
    assert all(jax.tree.leaves(changed))


def test_a_run_leaves_out_the_updates_that_optax_would(data, tmp_path, poisoned):
    """What it counts and notes is what the loader says of the batches that hold the example."""
    settings = config(data, tmp_path / "run")
    bad = bad_steps(settings)
    assert 0 < len(bad) < STEPS
    summary = train(settings, writers=(), until_step=STEPS)
    lines = metric_lines(tmp_path / "run")
    noted = [line for line in lines if line["kind"] == "nonfinite"]
    assert [line["step"] for line in noted] == bad
    for line in noted:
        [part] = line["batch"]
        assert BAD in part["examples"] and part["split"] == "train" and part["data"] == str(data / "sft")
    records = {line["step"]: line for line in lines if line["kind"] == "train"}
    assert [records[step].get("skipped", 0) for step in records] == [sum(b <= step for b in bad) for step in records]
    assert summary.skipped == json.loads((tmp_path / "run/summary.json").read_text())["skipped"] == len(bad)
    assert read_curves(tmp_path / "run").points("train", "loss")[0].tolist() == [*range(1, STEPS + 1)]

    setup = prepare(settings)
    for number, step in enumerate(step for step in records if step not in bad):
        np.testing.assert_allclose(records[step]["learning_rate"], setup.schedule(number), rtol=1e-6)
    functions = setup.program.functions
    oracle = optax.apply_if_finite(functions.transformation, max_consecutive_errors=STEPS)
    stop = dataclasses.replace(functions, transformation=oracle, skip_nonfinite=False)
    state, step = stop.init(setup.initial_params("float32")), jax.jit(stop.train)
    for loaded in setup.loader.batches(steps=STEPS):
        state = step(state, loaded.batch)[0]
    assert int(state.optimizer.total_notfinite) == len(bad)
    assert_close(final_params(tmp_path / "run"), state.params)


def test_a_resumed_run_goes_on_counting(data, tmp_path, poisoned):
    """It stops between two steps that are skipped, and ends bit for bit as the run that was not stopped."""
    bad = bad_steps(config(data, tmp_path / "whole"))
    whole = train(config(data, tmp_path / "whole"), writers=())
    for until in (bad[0], STEPS, None):
        ended = train(config(data, tmp_path / "run"), writers=(), until_step=until)
    assert ended.skipped == whole.skipped > len(bad)
    assert_equal_trees(final_params(tmp_path / "run"), final_params(tmp_path / "whole"))
    runs = [tmp_path / "run", tmp_path / "whole"]
    noted = [[line for line in metric_lines(run) if line["kind"] == "nonfinite"] for run in runs]
    assert noted[0] == noted[1]


def test_too_many_in_a_row_end_the_run_even_over_a_resume(data, tmp_path, poisoned, monkeypatch):
    monkeypatch.setattr(PackedEpochs, "read", _all_bad(PackedEpochs.read))
    assert train(config(data, tmp_path / "run"), writers=(), until_step=2).skipped == 2
    with pytest.raises(NonFiniteError, match=r"step 4: .*4 steps in a row, and optimizer\.max_skipped is 3"):
        train(config(data, tmp_path / "run"), writers=())


def test_weights_that_give_nothing_finite_any_more_push_no_good_checkpoint_out(data, tmp_path, monkeypatch):
    """Step 2 is skipped alone, and from step 5 on nothing is finite."""
    reads = iter(range(1, 100))
    monkeypatch.setattr(PackedEpochs, "read", _all_bad(PackedEpochs.read, lambda: next(reads) in (2, *range(5, 100))))
    settings = config(data, tmp_path / "run", checkpoint={"every_steps": 1})
    with pytest.raises(NonFiniteError, match=r"step 8: .*newest checkpoint is of step 4"):
        train(settings, writers=())
    assert RunDir(tmp_path / "run").committed_steps() == [3, 4]


def test_a_save_that_waited_comes_after_the_next_finite_step(data, tmp_path, monkeypatch):
    """Nothing else looks at the devices then: a kill loses no more steps than the configuration says."""
    reads = iter(range(1, 100))
    monkeypatch.setattr(PackedEpochs, "read", _all_bad(PackedEpochs.read, lambda: next(reads) in (5, 6)))
    rare = {"logging": {"every_steps": 100}, "checkpoint": {"every_steps": 5, "keep": 10}}
    settings = config(data, tmp_path / "run", **rare)
    assert train(settings, writers=()).skipped == 2
    assert RunDir(tmp_path / "run").committed_steps() == [7, 10, 12]
    assert [line["step"] for line in metric_lines(tmp_path / "run") if line["kind"] == "nonfinite"] == [5, 6]


def _all_bad(read, when=lambda: True):
    def poison(self, rows):
        batch = read(self, rows)
        if when():
            batch.weights[:] = np.nan
        return batch

    return poison


def test_a_run_that_stops_names_the_first_bad_step_and_its_examples(data, tmp_path, poisoned):
    """Nothing looks at the devices between the steps; the same run goes on with skip."""
    rare = {"logging": {"every_steps": 100}, "optimizer": {"on_nonfinite": "stop"}}
    settings = config(data, tmp_path / "run", **rare)
    first = bad_steps(settings)[0]
    train(settings, writers=(), until_step=first - 1)
    with pytest.raises(NonFiniteError, match=rf"step {first}: loss is nan.*newest checkpoint is of step {first - 1}"):
        train(settings, writers=())
    [noted] = [line for line in metric_lines(tmp_path / "run") if line["kind"] == "nonfinite"]
    assert noted["step"] == first and BAD in noted["batch"][0]["examples"] and noted["loss"] is None
    assert train(config(data, tmp_path / "run"), writers=()).skipped > 0


def test_steps_that_are_finite_are_the_same_with_skip(data, tmp_path):
    for what, changes in {"stop": {"optimizer": {"on_nonfinite": "stop"}}, "skip": {}}.items():
        train(config(data, tmp_path / what, **changes), writers=(), until_step=STEPS)
    assert_close(final_params(tmp_path / "stop"), final_params(tmp_path / "skip"))


def test_examples_of_a_mixture_have_the_numbers_of_their_parts(data):
    from janus_jax.data.dataset import TokenizedDataset

    parts = [TokenizedDataset(data / "sft"), TokenizedDataset(data / "sft")]
    result = located(Mixture(parts), [70, 3, 119, 3])
    assert [part["examples"] for part in result] == [[3], [10, 59]]
    assert listed(result) == f"example 3 of {data}/sft, split train; examples 10, 59 of {data}/sft, split train"
    assert "and 2 more of" in listed(located(parts[0], range(10)))


def test_a_save_that_waits_for_a_good_step_does_not_wait_for_the_next_log(monkeypatch):
    """Only step 2 is logged; it and step 3 are skipped."""
    monkeypatch.setattr(require_finite, "batch_facts", lambda loader, position: {"epoch": 0, "batch": []})
    hook = RequireFinite(lambda step: step == 2, OptimizerSection(on_nonfinite="skip"))
    notices = types.SimpleNamespace(save_due=False)
    run = types.SimpleNamespace(skipped=Skipped(), notices=notices, print=lambda line: None)
    run.metrics, run.setup = types.SimpleNamespace(note=lambda *facts: None), types.SimpleNamespace(loader=None)
    in_a_row = []
    for run.step, loss in enumerate((1.0, np.nan, np.nan, 1.0, 1.0), 1):
        loaded = types.SimpleNamespace(position=None)
        hook.after_step(run, types.SimpleNamespace(loaded=loaded, scalars={"loss": np.float32(loss)}))
        in_a_row.append(run.skipped.in_a_row)
    assert in_a_row == [0, 1, 2, 0, 0] and len(hook.unread) == 1


def test_the_count_of_updates():
    state = Skipped()
    for step, skipped, before in ((1, False, 0), (2, True, 1), (3, True, 1), (4, False, 1), (5, False, 2)):
        state = state.after(skipped=skipped)
        assert state.updates_before(step) == before
    assert (state.total, state.in_a_row) == (2, 0)
