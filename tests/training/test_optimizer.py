"""AdamW against the same formulas in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.model.mistral import ParamSpec
from janus_jax.training.optimizer import AdamW


@pytest.mark.parametrize(("b1", "b2"), [(0.9, 0.999), (0.9, 0.95), (0.0, 0.9999)])
def test_adam_keeps_float32_precision_from_the_first_step_on(b1, b2):
    """Taken in float32, 1 - 0.999 alone would scale the first update wrongly by 6e-6."""
    specs = {"w": ParamSpec((3, 4), jnp.float32, ("embed", "mlp"))}
    optimizer = AdamW(b1=b1, b2=b2).transformation(lambda _: jnp.float32(1.0), specs)
    params = {"w": jnp.zeros((3, 4))}
    state, mean, square = optimizer.init(params), np.zeros((3, 4)), np.zeros((3, 4))
    for step in range(1, 30):
        gradient = np.random.default_rng(step).normal(size=(3, 4)).astype(np.float32)
        updates, state = optimizer.update({"w": jnp.asarray(gradient)}, state, params)
        gradient = gradient.astype(np.float64)
        mean, square = b1 * mean + (1 - b1) * gradient, b2 * square + (1 - b2) * gradient**2
        expected = -mean / (1 - b1**step) / (np.sqrt(square / (1 - b2**step)) + 1e-8)
        assert np.abs(np.asarray(updates["w"]) - expected).max() <= 1e-6 * np.abs(expected).max()
