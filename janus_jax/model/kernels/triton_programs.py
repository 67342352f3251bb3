"""The three programs of the Triton kernel: outputs, gradients of queries, gradients of keys and values.

`triton` says what a program is given and which tiles it visits.
"""

import dataclasses
import functools
import math
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

_LOWEST = -1e30
"""The largest score so far before the first: finite, so that a query without keys has no inf - inf."""


@dataclasses.dataclass(frozen=True)
class Tile:
    """Scores that one program has at a time, and how Triton compiles the program.

    Args:
        queries, keys: height and width, powers of two from 16 on.
        warps: warps of 32 threads; four make a warp group, which multiplies at least 64 queries.
        stages: tiles of keys (for the gradients of keys: of queries) in shared memory at a time.
    """

    queries: int
    keys: int
    warps: int
    stages: int


class Rule(NamedTuple):
    """What a kernel gets of the rule, in a program of a block of queries; in that of a block of keys the other way."""

    order: Any  # [tiles] int32 blocks of keys: of whole tiles, then of mixed ones, then of idle ones
    counts: Any  # [2] int32 whole tiles, whole and mixed ones
    first: Any  # [block] int32
    end: Any  # [L] int32


class Program(NamedTuple):
    """What a kernel knows beforehand."""

    tile: Tile
    block: Callable[[], Array]  # the number of its own block
    power: Callable[[Array, float, Array], Array]  # see `power`


def outputs(rule: Rule, q: Any, k: Any, v: Any, out: Any, lse: Any, *, program: Program) -> None:
    tile, scale, q_tile = program.tile, _scale(q), q[...]
    query, first = _slots(program.block(), tile.queries), rule.first[...]

    def step(at: Array, carry: tuple[Array, Array, Array], masked: bool) -> tuple[Array, Array, Array]:
        summed, top, total = carry
        keys = _slice(at, tile.keys)
        scores = _dot(q_tile, k[keys, :], 1, 1)
        if masked:
            scores = _masked(scores, first, query, rule.end[keys], _slots(at, tile.keys))
        higher = jnp.maximum(top, jnp.max(scores, axis=1) * scale)
        weights, shrink = program.power(scores, scale, higher[:, None]), jnp.exp2(top - higher)
        summed = summed * shrink[:, None] + _dot(weights.astype(v.dtype), v[keys, :], 1, 0)
        return summed, higher, total * shrink + jnp.sum(weights, axis=1)

    nothing = _zeros(*q.shape), jnp.full(tile.queries, _LOWEST, jnp.float32), _zeros(tile.queries)
    summed, top, total = _visit(rule, step, nothing)
    some = jnp.where(total > 0, total, 1)
    out[...] = (summed / some[:, None]).astype(out.dtype)
    lse[...] = jnp.where(total > 0, top + jnp.log2(some), 0)


def query_gradients(
    rule: Rule, q: Any, k: Any, v: Any, gradient: Any, lse: Any, delta: Any, dq: Any, *, program: Program
) -> None:
    tile, scale, q_tile, gradient_tile = program.tile, _scale(q), q[...], gradient[...]
    query, first, lse_tile, delta_tile = _slots(program.block(), tile.queries), rule.first[...], lse[...], delta[...]

    def step(at: Array, summed: Array, masked: bool) -> Array:
        keys = _slice(at, tile.keys)
        k_tile = k[keys, :]
        scores = _dot(q_tile, k_tile, 1, 1)
        if masked:
            scores = _masked(scores, first, query, rule.end[keys], _slots(at, tile.keys))
        weights = program.power(scores, scale, lse_tile[:, None])
        pulled = weights * (_dot(gradient_tile, v[keys, :], 1, 1) - delta_tile[:, None])
        return summed + _dot(pulled.astype(k.dtype), k_tile, 1, 0)

    summed = _visit(rule, step, _zeros(*q.shape))
    dq[...] = (summed * q.shape[1] ** -0.5).astype(dq.dtype)


def key_gradients(
    rule: Rule, q: Any, k: Any, v: Any, gradient: Any, lse: Any, delta: Any, dk: Any, dv: Any, *, program: Program
) -> None:
    """Scores are transposed here, [keys, queries]: as weights they multiply queries without being turned."""
    tile, scale, k_tile, v_tile = program.tile, _scale(k), k[...], v[...]
    key, end = _slots(program.block(), tile.keys), rule.end[...]

    def step(at: Array, carry: tuple[Array, Array], masked: bool, head: Array) -> tuple[Array, Array]:
        k_sum, v_sum = carry
        queries = _slice(at, tile.queries)
        q_tile, gradient_tile = q[queries, head, :], gradient[queries, head, :]
        scores = _dot(k_tile, q_tile, 1, 1)
        if masked:
            scores = _masked(scores, rule.first[queries], _slots(at, tile.queries), end, key, turned=True)
        weights = program.power(scores, scale, lse[head, queries][None, :])
        v_sum = v_sum + _dot(weights.astype(gradient.dtype), gradient_tile, 1, 0)
        pulled = weights * (_dot(v_tile, gradient_tile, 1, 1) - delta[head, queries][None, :])
        return k_sum + _dot(pulled.astype(q.dtype), q_tile, 1, 0), v_sum

    def one_head(head: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        return _visit(rule, functools.partial(step, head=head), carry)

    k_sum, v_sum = jax.lax.fori_loop(0, q.shape[1], one_head, (_zeros(*k.shape), _zeros(*v.shape)))
    dk[...] = (k_sum * k.shape[1] ** -0.5).astype(dk.dtype)
    dv[...] = v_sum.astype(dv.dtype)


def _visit(rule: Rule, step: Callable[..., Any], carry: Any) -> Any:
    """`step(block, carry, masked)` for the whole tiles, then for the mixed ones.

    Which block comes next is read one step ahead: then Triton copies its tile while this one is computed.
    """
    whole, busy, last = rule.counts[0], rule.counts[1], rule.order.shape[0] - 1

    def visit(t: Array, state: tuple[Array, Any], masked: bool) -> tuple[Array, Any]:
        at, carry = state
        return rule.order[jnp.minimum(t + 1, last)], step(at, carry, masked=masked)

    state = jax.lax.fori_loop(0, whole, functools.partial(visit, masked=False), (rule.order[0], carry))
    return jax.lax.fori_loop(whole, busy, functools.partial(visit, masked=True), state)[1]


def _masked(scores: Array, first: Array, query: Array, end: Array, key: Array, *, turned: bool = False) -> Array:
    """Scores [queries, keys] where the rule lets a query see a key. `turned`: [keys, queries]."""
    first, query = (jnp.expand_dims(x, 1 - turned) for x in (first, query))
    lifetime, key = (jnp.expand_dims(x, int(turned)) for x in (jnp.maximum(end - key, 0), key))
    # Without a sign, the age of a key that is not there yet is beyond every lifetime: one comparison for two.
    alive = (query - key).astype(jnp.uint32) < lifetime.astype(jnp.uint32)
    return jnp.where((first <= key) & alive, scores, -jnp.inf)


def power(scores: Array, scale: float, minus: Array) -> Array:
    """2^(scores * scale - minus)."""
    return jnp.exp2(scores * scale - minus)


def power_on_a_gpu(scores: Array, scale: float, minus: Array) -> Array:
    """The same in two instructions. Of `exp2` Triton makes five, for results below 2^-126, which here may be 0."""
    from jax.experimental.pallas import triton as backend

    (factor,) = struct.unpack("<I", struct.pack("<f", scale))
    (result,) = backend.elementwise_inline_asm(
        f"{{ .reg .f32 x; fma.rn.f32 x, $1, 0f{factor:08X}, $2; ex2.approx.ftz.f32 $0, x; }}",
        args=[scores, jnp.broadcast_to(-minus, scores.shape)],
        constraints="=f,f,f",
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(scores.shape, jnp.float32)],
    )
    return result


def _dot(a: Array, b: Array, axis_a: int, axis_b: int) -> Array:
    """Summed in float32; HIGHEST, lest factors in float32 are cut to 10 bits."""
    dimensions = (((axis_a,), (axis_b,)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


def _scale(x: Any) -> float:
    """Makes a product of a query and a key a score whose weight is a power of 2: GPUs have a unit for these."""
    return x.shape[-1] ** -0.5 * math.log2(math.e)


def _zeros(*shape: int) -> Array:
    return jnp.zeros(shape, jnp.float32)


def _slots(block: Array, size: int) -> Array:
    return block * size + jnp.arange(size, dtype=jnp.int32)


def _slice(block: Array, size: int) -> Any:
    from jax.experimental import pallas as pl

    return pl.ds(block * size, size)
