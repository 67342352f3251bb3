"""The attention rule and its memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.model.attention import Slots, attention, visible
from tests.support.tolerances import float32_bound


def packed_row(rng, length, padding=0):
    """A random row as the packer lays it: segments of prompt, chosen, (sometimes) rejected and padding that counts in a
    loss, then padding that does not."""
    rows = []
    segment = 0
    while len(rows) < length - 8:
        segment += 1
        prompt, chosen, rejected = rng.integers(1, 9), rng.integers(0, 9), rng.integers(0, 9) * rng.integers(0, 2)
        rows += [(segment, 0, i) for i in range(prompt - 1)]
        for branch, size in ((1, chosen), (2, rejected)):
            rows += [(segment, branch, prompt - 1 + i) for i in range(size)]
        rows += [(segment, -1, prompt - 1 + chosen + i) for i in range(padding)]
    rows = (rows + [(0, 0, 0)] * length)[:length]
    return np.array(rows, np.int32)


def sees(query, key, window):
    """The rule in words: the example read alone, each branch a sequence of its own after the shared prompt."""
    (q_segment, q_branch, q_position), (k_segment, k_branch, k_position) = query, key
    if q_segment == 0 or k_segment != q_segment:
        return False
    if k_branch not in (0, 1 if q_branch == -1 else q_branch):
        return False
    if k_position > q_position:
        return False
    return window is None or q_position - k_position < window


@pytest.mark.parametrize("window", [None, 1, 4])
def test_visible_equals_the_rule_slot_by_slot(window):
    row = packed_row(np.random.default_rng(0), 96, padding=2)
    assert set(row[:, 1]) == {-1, 0, 1, 2} and (row[:, 0] == 0).any()
    layout = Slots(*(jnp.asarray(row[None, :, i]) for i in range(3)))
    expected = np.array([[sees(query, key, window) for key in row] for query in row])
    np.testing.assert_array_equal(np.asarray(visible(layout, layout, window))[0], expected)


@pytest.mark.parametrize("window", [None, 4])
def test_attention_equals_softmax_over_the_visible_keys_only(window):
    rng = np.random.default_rng(1)
    length, heads, kv_heads, head_dim = 64, 4, 2, 6
    row = packed_row(rng, length)
    q = rng.normal(size=(1, length, heads, head_dim)).astype(np.float32)
    k, v = (rng.normal(size=(1, length, kv_heads, head_dim)).astype(np.float32) for _ in "kv")
    layout = Slots(*(jnp.asarray(row[None, :, i]) for i in range(3)))
    out = np.asarray(attention(jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), layout, window=window))
    assert np.isfinite(out).all()
    for i in np.flatnonzero(row[:, 0]):
        keys = [j for j in range(length) if sees(row[i], row[j], window)]
        for n in range(heads):
            scores = k[0, keys, n // (heads // kv_heads)] @ q[0, i, n] / np.sqrt(head_dim)
            weights = np.exp(scores - scores.max())
            expected = weights @ v[0, keys, n // (heads // kv_heads)] / weights.sum()
            np.testing.assert_allclose(out[0, i, n], expected, rtol=0, atol=float32_bound(head_dim + length))


@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
def test_one_layer_at_length_8192_stays_under_1_5_gib(dtype):
    """Compiled, never run: 32 heads, 8 key heads, head dim 128; a whole score matrix alone would be 8 GiB."""
    length = 8192
    q = jax.ShapeDtypeStruct((1, length, 32, 128), dtype)
    kv = jax.ShapeDtypeStruct((1, length, 8, 128), dtype)
    field = jax.ShapeDtypeStruct((1, length), jnp.int32)

    def loss(q, k, v, layout):
        return attention(q, k, v, layout).astype(jnp.float32).sum()

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    memory = step.lower(q, kv, kv, Slots(field, field, field)).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 1.5 * 2**30
