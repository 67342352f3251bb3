"""Grouped-query attention over packed rows with shared prompts, in bounded memory."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

_SCORES_PER_BLOCK = 1 << 25
"""Score elements (rows x query block x heads x keys) alive at once on a device: 128 MiB in float32. At 32 heads and
L 8192, forward and backward pass of one layer take under 1.5 GiB of temporaries; a whole score matrix takes 8 GiB."""


def queries_per_block(rows: int, length: int, heads: int, keys: int, shards: int = 1) -> int:
    """Queries of each row whose scores are alive at once; rows and heads are spread over `shards` devices."""
    return max(1, min(length, _SCORES_PER_BLOCK * shards // (rows * heads * keys)))


class Slots(NamedTuple):
    """What the attention rule needs of each slot; the fields of that name in a batch."""

    segment: Int[Array, "B L"]
    branch: Int[Array, "B L"]
    position: Int[Array, "B L"]


class Keys(NamedTuple):
    """Keys and values of some slots of each row; int8 ones are multiplied by their scales."""

    k: Num[Array, "B S K H"]
    v: Num[Array, "B S K H"]
    slots: Slots
    k_scale: Float[Array, "B S K"] | None = None
    v_scale: Float[Array, "B S K"] | None = None


def visible(query: Slots, key: Slots, window: int | None) -> Bool[Array, "B Lq Lk"]:
    """True where a query may see a key: same segment, key in the shared prompt or in the query's branch, key not
    later in the example's own sequence and, with a sliding window W, nearer than W positions.

    Positions are those of the example alone, so the window is right for a rejected branch that stands far from its
    prompt in the row. A slot of branch -1 (padding that counts in a loss) sees what follows from branch 1, and no slot
    sees it.
    """
    q_segment, q_branch, q_position = (field[:, :, None] for field in query)
    k_segment, k_branch, k_position = (field[:, None, :] for field in key)
    distance = q_position - k_position
    mask = (q_segment == k_segment) & (q_segment > 0) & (distance >= 0)
    mask &= (k_branch == 0) | (k_branch == jnp.abs(q_branch))
    return mask if window is None else mask & (distance < window)


def attention(
    q: Float[Array, "B L N H"],
    k: Float[Array, "B L K H"],
    v: Float[Array, "B L K H"],
    slots: Slots,
    *,
    window: int | None = None,
    shards: int = 1,
    past: Sequence[Keys] = (),
    on_cpu: bool = False,
) -> Float[Array, "B L N H"]:
    """Softmax attention under the rule of `visible`, softmax in float32. Padding slots get finite, unused values.

    Queries go in blocks whose scores are recomputed in the backward pass, so memory grows with L, not L squared.
    `shards` says over how many devices rows and heads are spread. `past` are further keys that the queries may see.
    `on_cpu` computes a single query with a past in the way that is fastest on CPUs.
    """
    rows, length, heads, head_dim = q.shape
    kv_heads, parts = k.shape[2], (*past, Keys(k, v, slots))
    block = queries_per_block(rows, length, heads, sum(part.k.shape[1] for part in parts), shards)
    blocks = -(-length // block)
    padding = blocks * block - length

    def split(x: Array) -> Array:  # [B, L, ...] -> [blocks, B, block, ...]
        x = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(rows, blocks, block, *x.shape[2:]), 1, 0)

    attend = functools.partial(_attend, parts=parts, window=window, on_cpu=on_cpu)
    grouped = q.reshape(rows, length, kv_heads, heads // kv_heads, head_dim)
    if blocks == 1:
        # CPUs take longer to store and load a score than to compute it.
        attend = jax.checkpoint(attend, prevent_cse=False) if on_cpu and not past else attend
        out = attend((grouped, slots))
    else:
        out = jax.lax.map(jax.checkpoint(attend), (split(grouped), Slots(*map(split, slots))))
        out = jnp.moveaxis(out, 0, 1).reshape(rows, blocks * block, *out.shape[3:])[:, :length]
    return out.reshape(q.shape)


def _attend(block: tuple[Array, Slots], *, parts: Sequence[Keys], window: int | None, on_cpu: bool) -> Array:
    q, slots = block  # q [B, block, K, G, H]
    one_on_cpu = on_cpu and q.shape[1] == 1 and len(parts) > 1

    def masked(part: Keys) -> Array:
        k = part.k.astype(q.dtype)
        if one_on_cpu:
            scores = _scores_of_one(q, k)
        elif on_cpu:  # queries in the order of the scores, which XLA would transpose instead
            scores = _scores_on_cpus(q.transpose(0, 2, 3, 1, 4), k)
        else:
            scores = _einsum("bqkgh,bskh->bkgqs", q, k)
        scores = scaled(scores, part.k_scale)
        mask = visible(slots, part.slots, window)[:, None, None]
        return jnp.where(mask, scores * jnp.float32(q.shape[-1] ** -0.5), jnp.finfo(jnp.float32).min)

    def scaled(x: Array, scale: Array | None) -> Array:
        """[B, K, G, Q, S] times [B, S, K]: cheaper than scaling keys or values."""
        return x if scale is None else x * scale.swapaxes(1, 2)[:, :, None, None]

    if len(parts) == 1:
        v = parts[0].v
        weights = jax.nn.softmax(masked(parts[0]), axis=-1).astype(v.dtype)
        if on_cpu:
            return jnp.einsum("bkgqs,bskh->bkgqh", weights, v).transpose(0, 3, 1, 2, 4)
        return jnp.einsum("bkgqs,bskh->bqkgh", weights, v)
    # Not one array of all keys: it would be a copy of the cache.
    weights = jax.nn.softmax(jnp.concatenate([masked(part) for part in parts], axis=-1), axis=-1)
    out, start = jnp.zeros((), jnp.float32), 0
    for part in parts:
        size = part.v.shape[1]
        own = scaled(weights[..., start : start + size], part.v_scale).astype(q.dtype)
        v = part.v.astype(q.dtype)
        out += _sum_of_one(own, v) if one_on_cpu else _einsum("bkgqs,bskh->bqkgh", own, v)
        start += size
    return out.astype(q.dtype)


_einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


@jax.custom_vjp
def _scores_on_cpus(q: Float[Array, "B K G Q H"], k: Float[Array, "B S K H"]) -> Float[Array, "B K G Q S"]:
    """Its backward pass transposes queries for the gradient of keys, and not the gradient of scores (`products`)."""
    return _einsum("bkgqh,bskh->bkgqs", q, k)


def _scores_backward(kept: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    q, k = kept
    dk = jax.lax.dot_general(q, g, (((2, 3), (2, 3)), ((0, 1), (0, 1))), preferred_element_type=jnp.float32)
    return _einsum("bkgqs,bskh->bkgqh", g, k).astype(q.dtype), dk.transpose(0, 3, 1, 2).astype(k.dtype)


_scores_on_cpus.defvjp(lambda q, k: (_scores_on_cpus(q, k), (q, k)), _scores_backward)


# XLA's CPU backend takes half as long for the products of a single query in these forms.


def _scores_of_one(q: Float[Array, "B 1 K G H"], k: Float[Array, "B S K H"]) -> Float[Array, "B K G 1 S"]:
    heads = [_einsum("bksh,bkh->bks", k.swapaxes(1, 2), q[:, 0, :, head]) for head in range(q.shape[3])]
    return jnp.stack(heads, 2)[:, :, :, None]


def _sum_of_one(weights: Float[Array, "B K G 1 S"], v: Float[Array, "B S K H"]) -> Float[Array, "B 1 K G H"]:
    return _einsum("bkgs,bksh->bkgh", weights[:, :, :, 0], v.swapaxes(1, 2))[:, None]
