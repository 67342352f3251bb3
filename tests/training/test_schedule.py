"""Learning rates against transformers' schedulers, step by step, and what a configuration may ask for."""

import types

import numpy as np
import pytest
import torch
from transformers import TrainingArguments, optimization

from janus_jax.errors import ConfigError
from janus_jax.training.program import build_schedule
from tests.support.run_configs import run_config

RATE, STEPS = 3e-4, 40


def theirs(make, *args, **settings):
    """The rates of `STEPS` steps, and the one after them."""
    scheduler = make(torch.optim.SGD([torch.zeros(1)], lr=RATE), *args, **settings)
    rates = []
    for _ in range(STEPS + 1):
        rates.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    return rates


def configured(tmp_path, **schedule):
    """Without run_config's warm-up, unless it is given."""
    config = run_config(tmp_path, tmp_path / "run")
    values = {"learning_rate": RATE, "steps": STEPS, **schedule}
    return type(config).model_validate(config.model_dump(mode="json", by_alias=True) | {"schedule": values})


WSD = {"name": "wsd", "decay_ratio": 0.3}


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"name": "cosine", "warmup_ratio": 0.06}, (optimization.get_cosine_schedule_with_warmup, 3, STEPS)),
        ({"name": "linear"}, (optimization.get_linear_schedule_with_warmup, 10, STEPS)),
        ({"name": "constant", "warmup_steps": 7}, (optimization.get_constant_schedule_with_warmup, 7)),
        ({"name": "constant", "warmup_steps": 0}, (optimization.get_constant_schedule,)),
        (
            {"name": "cosine", "min_rate_ratio": 0.1},
            (optimization.get_cosine_with_min_lr_schedule_with_warmup, 10, STEPS, 0.5, -1, None, 0.1),
        ),
        (
            {"name": "linear", "min_rate_ratio": 0.25, "warmup_ratio": 0.0},
            (optimization.get_polynomial_decay_schedule_with_warmup, 0, STEPS, RATE / 4, 1.0),
        ),
        (WSD, (optimization.get_wsd_schedule, 10, 12, STEPS)),
        (
            WSD | {"decay_shape": "1-sqrt", "warmup_ratio": 0.1, "min_rate_ratio": 0.2},
            (optimization.get_wsd_schedule, 4, 12, STEPS, None, "linear", "1-sqrt", 0.2),
        ),
        (
            {"name": "wsd", "decay_steps": 30, "decay_shape": "linear"},
            (optimization.get_wsd_schedule, 10, 30, STEPS, None, "linear", "linear"),
        ),
    ],
)
def test_rates_are_those_of_transformers(tmp_path, schedule, expected):
    ours = build_schedule(configured(tmp_path, **schedule), STEPS)
    rates = [float(ours(step)) for step in range(STEPS + 1)]
    # The cosine near its end is a difference of numbers of size 1: an absolute bound, of the peak's float32 rounding.
    np.testing.assert_allclose(rates, theirs(*expected), rtol=3e-7, atol=2e-7 * RATE)


@pytest.mark.parametrize("ratio", [0.03, 0.1, 0.3, 1 / 3, 0.999])
@pytest.mark.parametrize("steps", [1, 7, 100, 505])
def test_a_share_is_rounded_as_the_trainer_rounds_it(tmp_path, ratio, steps):
    arguments = types.SimpleNamespace(warmup_steps=ratio)  # below 1, the Trainer reads a share
    expected = TrainingArguments.get_warmup_steps(arguments, steps)
    assert configured(tmp_path, name="cosine", warmup_ratio=ratio).schedule.warmup(steps) == expected


def test_a_decay_that_does_not_fit_is_refused(tmp_path):
    config = configured(tmp_path, name="wsd", decay_steps=31)
    with pytest.raises(ConfigError, match="10 steps of warm-up and 31 of decay do not fit into 40 steps"):
        build_schedule(config, STEPS)
