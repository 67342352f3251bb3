"""Early stopping: the decisions of transformers' callback, and runs that end, resume and go on."""

import json
import shutil

import numpy as np
import pytest
from transformers import EarlyStoppingCallback, TrainerControl, TrainerState, TrainingArguments

from janus_jax.config.sections import EvalSection
from janus_jax.training.run import train
from janus_jax.training.stopping import Stopping
from tests.support.run_configs import ONE_LAYER, run_config
from tests.support.runs import assert_equal_trees, final_params, losses
from tests.support.training_examples import random_examples, write_dataset


def transformers_stops_at(values, metric, patience, least):
    """The number of the evaluation after which transformers' Trainer stops; None: it does not."""
    callback = EarlyStoppingCallback(patience, least)
    state, control = TrainerState(), TrainerControl()
    arguments = TrainingArguments.__new__(TrainingArguments)  # its __init__ asks for accelerate
    arguments.metric_for_best_model, arguments.greater_is_better = metric, metric != "loss"
    for number, value in enumerate(values, 1):
        callback.on_evaluate(arguments, state, control, {f"eval_{metric}": value})
        if control.should_training_stop:
            return number
        better = np.greater if arguments.greater_is_better else np.less
        if state.best_metric is None or better(value, state.best_metric):  # as Trainer._determine_best_metric
            state.best_metric = value
    return None


@pytest.mark.parametrize("metric", ["loss", "rewards/accuracies"])
@pytest.mark.parametrize("patience", [1, 2, 3])
@pytest.mark.parametrize("least", [0.0, 0.05])
def test_the_decision_is_that_of_transformers(metric, patience, least):
    section = EvalSection(every_steps=1, stop_after=patience, stop_metric=metric, stop_min_change=least)
    stops = set()
    for seed in range(20):
        values = np.random.default_rng(seed).normal(size=12).cumsum() / 10
        state, stopped_at = Stopping.resumed(section, "data", None), None
        for number, value in enumerate(values.tolist(), 1):
            state = state.evaluated(section, number, value)
            if state.stopped:
                stopped_at = number
                break
        assert stopped_at == transformers_stops_at(values.tolist(), metric, patience, least)
        stops.add(stopped_at)
    assert len(stops) > 2


def test_a_number_that_is_not_finite_is_no_improvement():
    section = EvalSection(every_steps=1, stop_after=2)
    state = Stopping.resumed(section, "data", None).evaluated(section, 1, float("nan"))
    assert (state.best, state.stale, state.stopped) == (None, 1, False)
    assert state.evaluated(section, 2, float("inf")).stopped
    assert state.evaluated(section, 2, 3.0).best_step == 2


def test_what_is_watched_may_change():
    """Numbers of another metric or other data are not compared; more patience goes on."""
    section = EvalSection(every_steps=1, stop_after=1)
    saved = {"metric": "loss", "data": "data", "best": 2.0, "best_step": 3, "stale": 1, "stopped": True}
    assert Stopping.resumed(section, "data", saved) == Stopping(**saved)
    assert not Stopping.resumed(section.model_copy(update={"stop_after": 2}), "data", saved).stopped
    assert Stopping.resumed(section, "other", saved) == Stopping("loss", "other")
    other = section.model_copy(update={"stop_metric": "rewards/margins"})
    assert Stopping.resumed(other, "data", saved) == Stopping("rewards/margins", "data")


@pytest.mark.usefixtures("programs")
def test_a_run_that_stops_early_is_finished_until_it_is_extended(tmp_path):
    splits = {name: random_examples(count, pairs=False, seed=1) for name, count in (("train", 40), ("validation", 5))}
    write_dataset(tmp_path / "sft", splits, kind="sft")

    def go(run, **schedule):
        config = run_config(
            tmp_path,
            tmp_path / run,
            model=ONE_LAYER,
            schedule={"name": "linear", "epochs": None, "steps": 8, **schedule},
            mesh={"data": 1, "fsdp": 8, "tensor": 1},
            batch={"microbatches": 1},
            eval={"every_steps": 1, "stop_after": 2, "stop_min_change": 9.0},  # only the first improves
            checkpoint={"every_steps": 2, "keep": 9},
            export={"hf": True, "verify": "none"},
        )
        return train(config, writers=())

    whole = go("whole")
    assert (whole.step, whole.total_steps) == (3, 8) and whole.export_dir.endswith("exports/3")
    written = (tmp_path / "whole/summary.json").read_text()
    assert json.loads(written)["ended"] == whole.ended
    assert whole.ended.startswith("eval.stop_after: 2 evaluations in a row did not improve loss enough; best ")

    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    shutil.rmtree(tmp_path / "killed/checkpoints/3")
    shutil.rmtree(tmp_path / "killed/exports")
    killed = go("killed")
    assert (killed.resumed_from, killed.step, killed.ended) == (2, 3, whole.ended)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert_equal_trees(final_params(tmp_path / "killed"), final_params(tmp_path / "whole"))

    again = go("whole")
    assert (again.resumed_from, again.step, again.ended) == (3, 3, whole.ended)
    assert (tmp_path / "whole/summary.json").read_text() == written

    extended = go("whole", steps=9, extend="restart")  # with all its patience, and rates from step 3 on
    assert (extended.resumed_from, extended.step) == (3, 5)
    lines = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    assert [line["learning_rate"] for line in lines if line["kind"] == "train"][3:] == pytest.approx([0, 1.5e-3])
