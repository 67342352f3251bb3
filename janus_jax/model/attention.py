"""Grouped-query attention over packed rows with shared prompts, in bounded memory."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_SCORES_PER_BLOCK = 1 << 25
"""Score elements (rows x query block x heads x keys) alive at once on a device: 128 MiB in float32. At 32 heads and
L 8192, forward and backward pass of one layer take under 1.5 GiB of temporaries; a whole score matrix takes 8 GiB."""


class Slots(NamedTuple):
    """What the attention rule needs of each slot; the fields of that name in a batch."""

    segment: Int[Array, "B L"]
    branch: Int[Array, "B L"]
    position: Int[Array, "B L"]


def visible(query: Slots, key: Slots, window: int | None) -> Bool[Array, "B Lq Lk"]:
    """True where a query may see a key: same segment, key in the shared prompt or in the query's branch, key not
    later in the example's own sequence and, with a sliding window W, nearer than W positions.

    Positions are those of the example alone, so the window is right for a rejected branch that stands far from its
    prompt in the row.
    """
    q_segment, q_branch, q_position = (field[:, :, None] for field in query)
    k_segment, k_branch, k_position = (field[:, None, :] for field in key)
    distance = q_position - k_position
    mask = (q_segment == k_segment) & (q_segment > 0) & (distance >= 0)
    mask &= (k_branch == 0) | (k_branch == q_branch)
    return mask if window is None else mask & (distance < window)


def attention(
    q: Float[Array, "B L N H"],
    k: Float[Array, "B L K H"],
    v: Float[Array, "B L K H"],
    slots: Slots,
    *,
    window: int | None = None,
    shards: int = 1,
) -> Float[Array, "B L N H"]:
    """Softmax attention under the rule of `visible`, softmax in float32. Padding slots get finite, unused values.

    Queries go in blocks whose scores are recomputed in the backward pass, so memory grows with L, not L squared.
    `shards` says over how many devices rows and heads are spread.
    """
    rows, length, heads, head_dim = q.shape
    kv_heads = k.shape[2]
    block = max(1, min(length, _SCORES_PER_BLOCK * shards // (rows * heads * length)))
    blocks = -(-length // block)
    padding = blocks * block - length

    def split(x: Array) -> Array:  # [B, L, ...] -> [blocks, B, block, ...]
        x = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(rows, blocks, block, *x.shape[2:]), 1, 0)

    attend = functools.partial(_attend, k=k, v=v, key_slots=slots, window=window)
    grouped = q.reshape(rows, length, kv_heads, heads // kv_heads, head_dim)
    if blocks == 1:
        out = attend((grouped, slots))
    else:
        out = jax.lax.map(jax.checkpoint(attend), (split(grouped), Slots(*map(split, slots))))
        out = jnp.moveaxis(out, 0, 1).reshape(rows, blocks * block, *out.shape[3:])[:, :length]
    return out.reshape(q.shape)


def _attend(block: tuple[Array, Slots], *, k: Array, v: Array, key_slots: Slots, window: int | None) -> Array:
    q, slots = block  # q [B, block, K, G, H]
    scores = jnp.einsum("bqkgh,bskh->bkgqs", q, k, preferred_element_type=jnp.float32)
    mask = visible(slots, key_slots, window)[:, None, None]
    scores = jnp.where(mask, scores * jnp.float32(q.shape[-1] ** -0.5), jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bkgqs,bskh->bqkgh", weights, v)
