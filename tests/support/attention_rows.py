"""Packed rows for attention kernels, and whether a kernel equals the rule on them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.data.example import Example
from janus_jax.data.rows import RowFormat, pack
from janus_jax.model.attention import Slots, attention
from tests.support.tolerances import float32_bound

PAIRS, APART, REWARD = (RowFormat("lm", 2), RowFormat("lm", 2, share_prompts=False), RowFormat("value", 2))


def layout_of(rows, form, length) -> Slots:
    """Rows as lists of (tokens of prompt, chosen, rejected or None), laid by the packer."""

    def ids(size):
        return np.zeros(size, np.int32)

    examples = [[Example(ids(p), ids(c), None if r is None else ids(r)) for p, c, r in row] for row in rows]
    batch = pack(examples, row_length=length, max_segments=64, form=form)
    return Slots(*map(jnp.asarray, (batch.segment, batch.branch, batch.position)))


@functools.cache
def output_and_gradients(attend):
    """Jitted (q, k, v, cotangent, slots) -> output and gradients of q, k and v; compiled once for a function."""

    def run(q, k, v, cotangent, slots):
        out, pull = jax.vjp(lambda *qkv: attend(*qkv, slots), q, k, v)
        return out, *pull(cotangent)

    return jax.jit(run)


@functools.cache
def rule(window):
    """The attention rule, as a function of (q, k, v, slots)."""
    return functools.partial(attention, window=window)


def assert_equals_the_rule(attend, slots, *, window, heads, head_dim):
    """`attend(q, k, v, slots)` and its gradients are those of the rule, in float32 on random rows."""
    rows, length = slots.segment.shape
    rng = np.random.default_rng(0)
    real = np.asarray(slots.segment > 0)[:, :, None, None]
    q, cotangent = (rng.normal(size=(rows, length, heads[0], head_dim)).astype(np.float32) for _ in range(2))
    k, v = (rng.normal(size=(rows, length, heads[1], head_dim)).astype(np.float32) for _ in range(2))
    ours = output_and_gradients(attend)(q, k, v, real * cotangent, slots)
    theirs = output_and_gradients(rule(window))(q, k, v, real * cotangent, slots)
    # A score is a sum over the head; a key's gradient one over the queries of all heads that share the key.
    tolerance = float32_bound(head_dim + length * heads[0] // heads[1])
    for name, a, b in zip(("output", "q", "k", "v"), ours, theirs, strict=True):
        assert np.isfinite(a).all(), f"{name}: not finite"
        used = real if name == "output" else 1
        error, size = np.abs((a - b) * used).max(), np.abs(b * used).max()
        assert error <= tolerance * size, f"{name}: {error} of {size}"
