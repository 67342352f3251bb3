"""Notes on settings that can run and are probably not meant."""

import pytest

from janus_jax.config.run import load_config
from tests.support.run_configs import SMALLEST_YAML


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SMALLEST_YAML)
    return path


@pytest.mark.parametrize(
    ("overrides", "note"),
    [
        (["schedule.learning_rate=0.05"], "schedule.learning_rate = 0.05 is unusual; usual values are 1e-08 to 0.01"),
        (["schedule.learning_rate=1e-12"], "schedule.learning_rate = 1e-12 is unusual"),
        (["schedule.epochs=1000"], "schedule.epochs = 1000 is unusual; usual values are 1 to 100"),
        (["optimizer.weight_decay=3"], "optimizer.weight_decay = 3 is unusual; usual values are 0 to 0.5"),
        (["optimizer.b1=0.995"], "optimizer.b1 = 0.995 is unusual"),
        (["optimizer.b2=0.99999"], "optimizer.b2 = 0.99999 is unusual"),
        (["optimizer.b1=0.99", "optimizer.b2=0.9"], "optimizer.b1 = 0.99 is larger than optimizer.b2 = 0.9"),
        (["optimizer.eps=1"], "optimizer.eps = 1 is unusual"),
        (["optimizer.clip_norm=1e6"], "optimizer.clip_norm = 1e+06 is unusual"),
        (["objective={name: dpo, beta: 1e3}"], "objective.beta = 1000 is unusual; usual values are 0.001 to 10"),
        (["objective={name: simpo, gamma: 100}"], "objective.gamma = 100 is unusual"),
        (["objective={name: orpo, beta: 0}"], "objective.beta = 0 is unusual"),
        (["objective={name: rm, center_weight: 9}"], "objective.center_weight = 9 is unusual"),
        (["objective={name: dpo, loss: robust}"], "objective.loss = robust without objective.label_smoothing is"),
        (["data.eval_dir=x"], "data.eval_dir = x has no effect: eval.every_steps is null"),
        (["eval.rows=8"], "eval.rows = 8 has no effect: eval.every_steps is null"),
        (["eval.at_start=false"], "eval.at_start = false has no effect: eval.every_steps is null"),
        (["export.dtype=bfloat16"], "export.dtype = bfloat16 has no effect: export.hf is false"),
        (["batch.share_prompts=false"], "batch.share_prompts = false has no effect: the objective reads one response"),
        (["init.allow_other_tokenizer=true"], "init.allow_other_tokenizer = true has no effect: init.from and referen"),
        (["compat.token_mean=per_microbatch"], "compat.token_mean = per_microbatch has no effect: batch.microbatches"),
        (["objective={name: dpo, loss: ipo, length_normalised: false}"], "objective.length_normalised = false has no"),
        (["data={mixture: [{dir: a/}, {dir: b}, {dir: ./a}]}"], "data.mixture names a 2 times"),
        (["compat.bfloat16_weights=true"], "compat.bfloat16_weights = true: a step of about schedule.learning_rate = "),
    ],
)
def test_what_can_run_and_is_probably_not_meant_gets_a_note(small, overrides, note):
    (advice,) = load_config(small, overrides).advice()
    assert advice.startswith(note)


@pytest.mark.parametrize(
    "overrides",
    [
        ["objective={name: dpo}", "batch.share_prompts=false"],
        ["model=null", "init.from=model", "init.allow_other_tokenizer=true"],
        ["objective={name: dpo}", "reference.from=model", "init.allow_other_tokenizer=true"],
        ["compat.token_mean=per_microbatch", "batch.microbatches=2"],
        ["objective={name: dpo, loss: ipo}"],
        ["data={mixture: [{dir: a}, {dir: b}]}"],
        ["compat.bfloat16_weights=true", "schedule.learning_rate=1e-4"],
        ["eval.every_steps=5", "eval.rows=2", "eval.at_start=false", "data.eval_split=test"],
    ],
)
def test_what_has_an_effect_gets_none(small, overrides):
    assert load_config(small, overrides).advice() == []


def test_weights_that_a_note_calls_large_do_not_move():
    import jax.numpy as jnp

    rate = 5e-6
    weights = jnp.array([512 * rate * 1.01, 128 * rate], jnp.bfloat16)
    moved = (weights - rate).astype(jnp.bfloat16)
    assert moved[0] == weights[0] and moved[1] != weights[1]


@pytest.mark.parametrize(
    ("overrides", "note"),
    [
        (
            ["schedule.warmup_steps=5"],
            "the warm-up, 5 steps, is as long as the run, which has 5 steps: the highest rate",
        ),
        (
            ["schedule.warmup_steps=8"],
            "the warm-up, 8 steps, is longer than the run, which has 5 steps: the highest ra",
        ),
        (
            ["eval.every_steps=6"],
            "eval.every_steps = 6 is longer than the run, which has 5 steps: only the last step is",
        ),
        (["checkpoint.every_steps=6"], "checkpoint.every_steps = 6 is longer than the run"),
        (["logging.every_steps=6"], "logging.every_steps = 6 is longer than the run"),
        (
            ["profile.steps=[6, 9]"],
            "profile.steps = [6, 9]: step 9 is after the run, which has 5 steps: nothing is pro",
        ),
        (
            ["profile.steps=[4, 9]"],
            "profile.steps = [4, 9]: step 9 is after the run, which has 5 steps: the profile en",
        ),
    ],
)
def test_what_the_number_of_steps_leaves_without_effect_gets_a_note(small, overrides, note):
    known = load_config(small, ["schedule.epochs=null", "schedule.steps=5", "schedule.warmup_steps=0", *overrides])
    (advice,) = known.advice()
    assert advice.startswith(note)
    counted = load_config(small, ["schedule.warmup_steps=0", *overrides])
    assert counted.advice() == [] and counted.step_advice(5) == [advice] and counted.step_advice(100) == []


def test_the_note_on_a_warm_up_names_the_rate_that_the_optimizer_reaches(small):
    from janus_jax.training.optimizer import Schedule

    config = load_config(small, ["schedule.epochs=null", "schedule.steps=4", "schedule.learning_rate=8e-6"])
    highest = max(float(Schedule(8e-6, 4, 10)(step)) for step in range(4))
    assert f"the highest rate is {highest:.3g}, not schedule.learning_rate = 8e-06" in config.advice()[0]
