"""AdamW against the same formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.model.mistral import ParamSpec
from janus_jax.training import optimizer
from janus_jax.training.optimizer import AdamW
from tests.support.tolerances import assert_within, float32_bound


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
        # Three roundings of each moment a step, six to scale: 1.4e-6 at first, where the fault above would show.
        assert_within(updates["w"], expected, float32_bound(3 * step + 6))


def run(moments, gradients, b2=0.999, shape=(64, 64)):
    """The optimizer's state after these gradients (numbers that all elements share)."""
    specs = {"w": ParamSpec(shape, jnp.float32, ("embed", "mlp"))}
    chain = AdamW(b2=b2, moments=moments).transformation(lambda _: jnp.float32(1.0), specs)
    params = {"w": jnp.zeros(shape)}
    update = jax.jit(lambda gradient, state: chain.update({"w": jnp.full(shape, gradient)}, state, params))
    state = chain.init(params)
    for gradient in gradients:
        updates, state = update(jnp.float32(gradient), state)
    return updates["w"], state[0]


def test_bfloat16_moments_go_on_moving():
    """A thousand steps without a gradient shrink the second moment by 0.999^1000 = 0.37; rounded to the nearest it
    would stay where it was, because each step changes it by less than half of what bfloat16 can tell apart."""
    gradients = [1.0, *[0.0] * 1000]
    (_, wide), (_, narrow) = run("float32", gradients), run("bfloat16", gradients)
    moments = narrow.nu["w"].astype(jnp.float32)
    assert narrow.nu["w"].dtype == narrow.mu["w"].dtype == jnp.bfloat16
    assert float(moments.mean()) == pytest.approx(float(wide.nu["w"].mean()), rel=0.02)
    assert float(moments.std() / moments.mean()) < 0.2
    nearest = jnp.bfloat16(wide.nu["w"][0, 0] / 0.999**1000)
    assert nearest * jnp.bfloat16(0.999) == nearest


def test_bfloat16_moments_keep_what_bfloat16_holds_and_the_mean_of_the_rest():
    tree = {"exact": jnp.asarray([0.0, 1.0, -3.5, 2.0**-126]), "between": jnp.full((1 << 16,), 1 + 2**-9)}
    rounded = optimizer._round(tree, jnp.int32(7), 0)
    np.testing.assert_array_equal(rounded["exact"], tree["exact"])
    values, counts = np.unique(rounded["between"].astype(np.float32), return_counts=True)
    np.testing.assert_array_equal(values, [1, 1 + 2**-7])
    assert counts[1] / counts.sum() == pytest.approx(0.25, abs=0.01)  # 1 + 2^-9 is a quarter of the way
    again = optimizer._round(tree, jnp.int32(7), 0)["between"]
    np.testing.assert_array_equal(rounded["between"], again)
    for other in (optimizer._round(tree, jnp.int32(8), 0), optimizer._round(tree, jnp.int32(7), 1)):
        agreeing = float((other["between"] == rounded["between"]).mean())
        assert agreeing == pytest.approx(0.25**2 + 0.75**2, abs=0.02)  # as independent ones do


def test_updates_are_computed_before_moments_are_rounded():
    """The first update is that of float32 moments."""
    np.testing.assert_array_equal(run("float32", [0.3])[0], run("bfloat16", [0.3])[0])
