"""Attention over long rows on CPUs: the rule of `attention.visible`, without the blocks in which nobody sees anything.

XLA has no attention kernel for CPUs. Plain JAX computes a whole row's square of scores, most of which packing masks,
and writes it to memory several times. Here a loop visits only pairs of query and key blocks that may see each other,
with a running softmax (Dao et al. 2022), so scores stay in the cache.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from janus_jax.model.attention import Slots, visible
from janus_jax.parallel.mesh import Placement

_PART = 32
"""Slots whose segments, branches and positions are summed up to tell which blocks may see each other."""

_LONG = 1024
"""Slots from which on rows are taken block by block."""

_LEAST = jnp.finfo(jnp.float32).min


def block_size(group: int, width: int) -> int:
    """Slots of a block of queries or keys.

    Small blocks leave out more pairs of slots that do not see each other, and their scores fit into a core's cache.
    Large ones pay where the products of a block take long beside its bookkeeping.

    Args:
        group: query heads of a key head.
        width: of a head.
    """
    return 256 if group * width >= 128 else 128


def suits(length: int, place: Placement, platform: str | None = None) -> bool:
    """Whether `on_devices` is the way to compute rows of this length: on CPU devices with whole rows and with the key
    heads of their query heads, if rows are long.

    Args:
        platform: of the devices; None: what `place` says, whose mesh must then have devices.
    """
    whole = place.shards("length") == 1 and place.names("q_heads") == place.names("kv_heads")
    return length >= _LONG and place.mesh is not None and (platform or place.platform) == "cpu" and whole


def on_devices(
    q: Float[Array, "B L N H"],
    k: Float[Array, "B L K H"],
    v: Float[Array, "B L K H"],
    slots: Slots,
    *,
    window: int | None = None,
    place: Placement,
) -> Float[Array, "B L N H"]:
    """`blockwise` on every device, of its own rows and heads; where `suits`."""
    queries, keys = (("batch", "length", heads, None) for heads in ("q_heads", "kv_heads"))
    slot: Any = ("batch", "length")
    axes = (queries, keys, keys, Slots(slot, slot, slot))
    return place.map(functools.partial(blockwise, window=window), axes, queries)(q, k, v, slots)


def blockwise(
    q: Float[Array, "B L N H"],
    k: Float[Array, "B L K H"],
    v: Float[Array, "B L K H"],
    slots: Slots,
    *,
    window: int | None = None,
    block: int | None = None,
) -> Float[Array, "B L N H"]:
    """As `attention.attention` where no query sees a key that stands later in its row, as in packed rows.

    Gradients of padding slots are zero.

    Args:
        block: a multiple of 32; None for `block_size`.
    """
    (rows, length, heads, width), kv_heads = q.shape, k.shape[2]
    group = heads // kv_heads
    block = block or block_size(group, width)
    blocks = -(-length // block)

    def split(x: Array) -> Array:  # [B, L, ...] -> [B * blocks, block, ...]
        x = jnp.pad(x, [(0, 0), (0, blocks * block - length)] + [(0, 0)] * (x.ndim - 2))
        return x.reshape(rows * blocks, block, *x.shape[2:])

    def by_head(x: Array) -> Array:  # [B, L, K * G, H] -> [B * blocks, K, G * block, H]
        x = split(x).reshape(rows * blocks, block, kv_heads, -1, width)
        return x.transpose(0, 2, 3, 1, 4).reshape(rows * blocks, kv_heads, -1, width)

    pieces = Slots(*map(split, slots))
    out: Any = _blocks(window, rows, by_head(q), by_head(k), by_head(v), pieces)
    out = out.reshape(rows * blocks, kv_heads, group, block, width).transpose(0, 3, 1, 2, 4)
    return out.reshape(rows, blocks * block, heads, width)[:, :length]


def _may_see(slots: Slots, rows: int, window: int | None) -> Bool[Array, "B n n"]:
    """For blocks of queries and of keys of a row: False only where no query sees a key.

    Args:
        slots: fields [B * n, block].
    """
    segment, branch, position = (field.reshape(rows, -1, _PART) for field in slots)
    real = segment > 0

    def bits(number: Array, where: Array) -> Array:  # [B, parts]; numbers that differ by 32 are not told apart
        return jnp.bitwise_or.reduce(jnp.where(where, jnp.uint32(1) << (number % 32).astype(jnp.uint32), 0), axis=-1)

    own, shared = bits(segment * 5 + jnp.abs(branch), real), bits(segment, real & (branch == 0))
    common = own[:, :, None] & own[:, None, :] | bits(segment, real)[:, :, None] & shared[:, None, :]
    first = jnp.where(real, position, jnp.iinfo(jnp.int32).max).min(-1)
    last = jnp.where(real, position, -1).max(-1)
    seen = (common != 0) & (last[:, :, None] >= first[:, None, :])
    if window is not None:
        seen &= first[:, :, None] - last[:, None, :] < window
    block = slots.segment.shape[1] // _PART
    parts = seen.shape[1]
    seen = seen.reshape(rows, parts // block, block, parts // block, block).any((2, 4))
    return seen & jnp.tri(seen.shape[1], dtype=bool)


def _visits(slots: Slots, rows: int, window: int | None) -> tuple[Int[Array, ""], Int[Array, " P"], Int[Array, " P"]]:
    """How many pairs of blocks are visited, and the numbers of their query and key blocks, which come first."""
    table = _may_see(slots, rows, window)
    blocks = table.shape[1]
    row, query, key = jnp.nonzero(table, size=table.size, fill_value=0)
    return table.sum(), row * blocks + query, row * blocks + key


def _mask(slots: Slots, window: int | None, query: Array, key: Array) -> Bool[Array, "q k"]:
    """Who sees whom of a query and a key block."""
    one, other = (Slots(*(field[number][None] for field in slots)) for number in (query, key))
    return visible(one, other, window)[0]


_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _blocks(window: int | None, rows: int, q: Array, k: Array, v: Array, slots: Slots) -> Array:
    return _forward(window, rows, q, k, v, slots)[0]


def _forward(window: int | None, rows: int, q: Array, k: Array, v: Array, slots: Slots) -> tuple[Array, Any]:
    count, queries, keys = _visits(slots, rows, window)

    scale = jnp.float32(q.shape[-1] ** -0.5)

    def visit(number: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        i, j = queries[number], keys[number]
        total, top, out = (part[i] for part in state)
        mask = _mask(slots, window, i, j)
        scores = _product("kqh,ksh->kqs", q[i], k[j]) * scale
        scores = jnp.where(jnp.tile(mask, (1, scores.shape[1] // len(mask), 1)), scores, _LEAST)
        best = jnp.maximum(top, scores.max(-1))
        weights, old = jnp.exp(scores - best[..., None]), jnp.exp(top - best)
        out = out * old[..., None] + _product("kqs,ksh->kqh", weights.astype(v.dtype), v[j])
        total = total * old + weights.sum(-1)
        return state[0].at[i].set(total), state[1].at[i].set(best), state[2].at[i].set(out)

    flat = q.shape[:-1]
    state = jnp.zeros(flat, jnp.float32), jnp.full(flat, _LEAST, jnp.float32), jnp.zeros(q.shape, jnp.float32)
    total, top, out = jax.lax.fori_loop(0, count, visit, state)
    total = jnp.maximum(total, 1e-30)  # blocks of padding
    out = (out / total[..., None]).astype(q.dtype)
    return out, (q, k, v, slots, out, top + jnp.log(total))


def _backward(window: int | None, rows: int, kept: Any, g: Array) -> tuple[Array, Array, Array, None]:
    q, k, v, slots, out, logsumexp = kept
    count, queries, keys = _visits(slots, rows, window)
    inner = _product("nkqh,nkqh->nkq", g, out)  # XLA takes far longer for a sum of products on CPUs
    scale = jnp.float32(q.shape[-1] ** -0.5)

    def visit(number: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        i, j = queries[number], keys[number]
        mask = _mask(slots, window, i, j)
        weights = jnp.exp(_product("kqh,ksh->kqs", q[i], k[j]) * scale - logsumexp[i][..., None])
        weights = jnp.where(jnp.tile(mask, (1, weights.shape[1] // len(mask), 1)), weights, 0)
        d = weights * (_product("kqh,ksh->kqs", g[i], v[j]) - inner[i][..., None])
        d = (d * scale).astype(q.dtype)
        dq, dk, dv = state
        dq = dq.at[i].add(_product("kqs,ksh->kqh", d, k[j]))
        dk = dk.at[j].add(_product("kqs,kqh->ksh", d, q[i]))
        return dq, dk, dv.at[j].add(_product("kqs,kqh->ksh", weights.astype(g.dtype), g[i]))

    state = tuple(jnp.zeros(x.shape, jnp.float32) for x in (q, k, v))
    dq, dk, dv = jax.lax.fori_loop(0, count, visit, state)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


_blocks.defvjp(_forward, _backward)
