"""The curve of the best of n answers, by going through all draws."""

import itertools

import numpy as np
import pytest

from janus_jax.generation.best_of import expected_best


@pytest.mark.parametrize("rewards", [[0.5], [1.0, -3.0, 2.0, 2.0, 0.25, -7.0]])
def test_the_curve_is_the_mean_over_all_draws(rewards):
    curve = expected_best(rewards)
    assert len(curve) == len(rewards)
    for n, value in enumerate(curve, 1):
        draws = [max(draw) for draw in itertools.combinations(rewards, n)]
        assert value == pytest.approx(np.mean(draws))


def test_the_curve_of_many_answers_is_exact_at_its_ends():
    rewards = np.random.default_rng(0).normal(size=1024)
    curve = expected_best(rewards.tolist())
    assert curve[0] == pytest.approx(rewards.mean()) and curve[-1] == pytest.approx(rewards.max())
    assert (np.diff(curve) > 0).all()
