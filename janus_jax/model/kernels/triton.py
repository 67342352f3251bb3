"""The attention rule on NVIDIA GPUs: our own flash attention over packed rows, in Pallas for its Triton backend.

A segment is laid out as [prompt] [chosen] [rejected], so two numbers a slot say the whole rule, a window included:

    query i sees key j  if and only if  first[i] <= j <= i < end[j]

`first` is the first key that a query sees, `end` the slot behind the last query that sees a key: a chosen key ends
with its branch, a prompt's with the segment. They cut the scores into tiles of which each is idle (nobody sees
anything), whole (everybody sees everything) or mixed. Each program has one tile's height of queries (for the gradients
of keys: its width of keys) and goes through the list of its whole tiles, then that of its mixed ones, which alone are
masked. Idle tiles are in no list.

A key's gradient is summed over the query heads that share it inside the kernel, so no key is repeated, and no two
programs write to one place: results are the same in every run.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from janus_jax.model.attention import Slots
from janus_jax.model.kernels import Need
from janus_jax.model.kernels import triton_programs as programs
from janus_jax.model.kernels.heads import apart_reason, keys_of_queries
from janus_jax.model.kernels.triton_programs import Tile
from janus_jax.parallel.mesh import NOWHERE, Placement

_HEAD_DIMS = (16, 32, 64, 128, 256)
"""Triton's arrays have powers of two, and a tensor core multiplies at least 16 at a time."""


class Tiles(NamedTuple):
    """A tile for each of the three kernels: outputs, gradients of queries, gradients of keys and values."""

    outputs: Tile
    queries: Tile
    keys: Tile


_TILES = {
    64: Tiles(Tile(128, 64, 4, 3), Tile(128, 64, 8, 3), Tile(64, 128, 8, 3)),
    128: Tiles(Tile(128, 64, 8, 3), Tile(128, 64, 8, 3), Tile(64, 128, 8, 3)),
    256: Tiles(Tile(128, 64, 8, 2), Tile(64, 64, 8, 2), Tile(32, 64, 8, 2)),
}
"""Of bfloat16 on an H100 or H200, by the largest head_dim. With head_dim 128 they take 176, 194 and 255 registers of a
thread, 4 bytes of which spill, and 129, 161 and 162 of 227 KiB of shared memory, as the compiler says."""

_FLOAT32 = Tiles(Tile(32, 32, 8, 1), Tile(32, 32, 8, 1), Tile(32, 32, 8, 1))
"""No tensor core multiplies float32: it is there to compare numbers, not to train."""


@dataclasses.dataclass(frozen=True)
class Triton:
    """The kernel: call it as `kernel(q, k, v, slots, window=..., place=...)`.

    Args:
        tiles: None: what suits an H100 or H200.
        interpret: run the kernels' programs by XLA, anywhere and slowly.
    """

    tiles: Tiles | None = None
    interpret: bool = False

    def __call__(
        self,
        q: Float[Array, "B L N H"],
        k: Float[Array, "B L K H"],
        v: Float[Array, "B L K H"],
        slots: Slots,
        *,
        window: int | None = None,
        place: Placement = NOWHERE,
    ) -> Float[Array, "B L N H"]:
        """Softmax attention under the rule of `attention.visible`, softmax in float32. Padding slots get 0.

        Args:
            slots: as the packer lays them: each segment, and each branch of it, in one piece.
        """
        kv_heads = k.shape[2]
        local = functools.partial(
            _local, self, window=window, group=q.shape[2] // kv_heads, kv_heads=kv_heads, place=place
        )
        tokens = ("batch", "length")
        queries, keys = (*tokens, "q_heads", None), (*tokens, "kv_heads", None)
        mapped = place.map(local, in_axes=(queries, keys, keys, tokens, tokens, tokens), out_axes=queries)
        return mapped(q, k, v, *slots)


def unsupported_reason(need: Need) -> str | None:
    """Why `Triton` cannot compute this, for a user to read; None if it can."""
    if need.place.mesh is not None and (reason := _device_reason(need.place.mesh.devices.flat[0])) is not None:
        return reason
    if jnp.dtype(need.dtype) not in (jnp.bfloat16, jnp.float32):
        return f"activations are {jnp.dtype(need.dtype).name}, and the kernel takes bfloat16 and, slowly, float32"
    if need.head_dim not in _HEAD_DIMS:
        return f"head_dim {need.head_dim} is not {', '.join(map(str, _HEAD_DIMS[:-1]))} or {_HEAD_DIMS[-1]}"
    if (parts := need.place.shards("length")) > 1:
        return f"a row is split over {parts} devices"
    return apart_reason(need)


def _device_reason(device: Any) -> str | None:
    if device.platform == "cpu":  # interpreted
        return None
    if device.platform not in ("gpu", "cuda"):
        return f"devices are {device.platform}"
    capability = re.fullmatch(r"(\d+)\.\d+", str(getattr(device, "compute_capability", "")))
    if capability is None:
        return f"{device.device_kind} is no NVIDIA GPU"
    if int(capability[1]) < 8:
        return f"{device.device_kind} has compute capability {capability[0]}, and bfloat16 needs 8.0 (Ampere)"
    return None


def _local(
    kernel: Triton,
    q: Array,
    k: Array,
    v: Array,
    *slots: Array,
    window: int | None,
    group: int,
    kv_heads: int,
    place: Placement,
) -> Array:
    """What one device does: its rows and heads."""
    k, v = keys_of_queries(q, k, v, group=group, kv_heads=kv_heads, place=place)
    tiles = kernel.tiles or _tiles(q.shape[3], q.dtype)
    length, unit = q.shape[1], max(max(tile.queries, tile.keys) for tile in tiles)

    def padded(x: Array) -> Array:
        return jnp.pad(x, [(0, 0), (0, -length % unit)] + [(0, 0)] * (x.ndim - 2))

    first, end = _limits(Slots(*map(padded, slots)), window)
    out: Any = _attend(tiles, kernel.interpret, padded(q), padded(k), padded(v), first, end)
    return out[:, :length]


def _tiles(head_dim: int, dtype: Any) -> Tiles:
    return _FLOAT32 if dtype == jnp.float32 else next(_TILES[most] for most in _TILES if head_dim <= most)


def _limits(slots: Slots, window: int | None) -> tuple[Int[Array, "B L"], Int[Array, "B L"]]:
    """`first` and `end` of the rule above. Padding sees nothing, from behind the row on, and is seen by nobody."""
    segment, branch, position = slots
    rows, length = segment.shape
    slot = jnp.arange(length, dtype=jnp.int32)
    edge = jnp.ones((rows, 1), bool)
    new_segment = segment[:, 1:] != segment[:, :-1]
    new_run = new_segment | (branch[:, 1:] != branch[:, :-1])
    starts = jnp.stack([jnp.concatenate([edge, new], axis=1) for new in (new_segment, new_run)])
    ends = jnp.stack([jnp.concatenate([new, edge], axis=1) for new in (new_segment, new_run)])
    first, run = jax.lax.cummax(jnp.where(starts, slot, 0), axis=2)
    segment_end, run_end = jax.lax.cummin(jnp.where(ends, slot + 1, length), axis=2, reverse=True)
    if window is not None:  # the slot of position 0 is first, or where the run would have begun without a prompt
        before = position - window + 1  # how many positions are out of sight
        in_run = before >= position - (slot - run)
        first = jnp.where(in_run, slot - window + 1, first + jnp.maximum(before, 0))
    real = segment > 0
    return jnp.where(real, first, length), jnp.where(real, jnp.where(branch == 0, segment_end, run_end), 0)


def _rule(first: Array, end: Array, tile: Tile, *, by_keys: bool) -> programs.Rule:
    """For all programs: lists and counts are [B, blocks, ...]."""
    rows, length = first.shape
    low, high = (f(first.reshape(rows, -1, 1, tile.queries), axis=3) for f in (jnp.min, jnp.max))
    early, late = (f(end.reshape(rows, 1, -1, tile.keys), axis=3) for f in (jnp.min, jnp.max))
    query = jnp.arange(0, length, tile.queries, dtype=jnp.int32)[:, None]
    key = jnp.arange(0, length, tile.keys, dtype=jnp.int32)
    last_query, last_key = query + tile.queries - 1, key + tile.keys - 1
    whole = (high <= key) & (last_key <= query) & (last_query < early)
    busy = (low <= last_key) & (key <= last_query) & (query < late)
    if by_keys:
        whole, busy = whole.swapaxes(1, 2), busy.swapaxes(1, 2)
    order = jnp.argsort(jnp.where(whole, 0, jnp.where(busy, 1, 2)), axis=2, stable=True)
    counts = jnp.stack([jnp.sum(tiles, axis=2, dtype=jnp.int32) for tiles in (whole, busy)], axis=2)
    return programs.Rule(order.astype(jnp.int32), counts, first, end)


def _run(
    kernel: Callable[..., None],
    tile: Tile,
    interpret: bool,
    rule: tuple[Array, Array],
    inputs: tuple[Array, ...],
    outs: tuple[jax.ShapeDtypeStruct, ...],
    *,
    by_keys: bool = False,
) -> Any:
    """Runs a kernel with a program for each row, query head and block of queries (`by_keys`: key head, block of keys).

    A program gets its own block of what belongs to its side, [block, H] or [block], and the whole length of the other
    side: [L, H] of keys; of queries those of all heads that share its key, [L, group, H] or [group, L].

    Args:
        inputs: q, k, v, then what belongs to queries: [B, L, N, H] or [B, N, L].
        outs: belong to the program's own side.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton as backend

    q, k, *_ = inputs
    (rows, length, heads, head_dim), kv_heads = q.shape, k.shape[2]
    group, size = heads // kv_heads, tile.keys if by_keys else tile.queries
    blocks = length // size
    lists = _rule(*rule, tile, by_keys=by_keys)

    def own(i: Any) -> Any:  # the last queries tend to have most keys: they start first, lest one runs on alone
        return i if by_keys else blocks - 1 - i

    def shared(head: Any) -> Any:
        return head if by_keys else jax.lax.div(head, jnp.int32(group))

    def of_slots(mine: bool) -> pl.BlockSpec:
        if mine:
            return pl.BlockSpec((None, size), lambda i, n, b: (b, own(i)))
        return pl.BlockSpec((None, length), lambda i, n, b: (b, 0))

    mine = pl.BlockSpec((None, size, None, head_dim), lambda i, n, b: (b, own(i), n, 0))
    my_number = pl.BlockSpec((None, None, size), lambda i, n, b: (b, n, own(i)))
    if by_keys:
        keys, queries = mine, pl.BlockSpec((None, length, group, head_dim), lambda i, n, b: (b, 0, n, 0))
        number = pl.BlockSpec((None, group, length), lambda i, n, b: (b, n, 0))
    else:
        keys = pl.BlockSpec((None, length, None, head_dim), lambda i, n, b: (b, 0, shared(n), 0))
        queries, number = mine, my_number

    def listed(count: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, count), lambda i, n, b: (b, own(i), 0))

    program = programs.Program(
        tile, lambda: own(pl.program_id(0)), programs.power if interpret else programs.power_on_a_gpu
    )
    rules = programs.Rule(listed(lists.order.shape[2]), listed(2), of_slots(not by_keys), of_slots(by_keys))
    return pl.pallas_call(
        functools.partial(kernel, program=program),
        grid=(blocks, kv_heads if by_keys else heads, rows),
        in_specs=[rules, queries, keys, keys, *(queries if x.ndim == 4 else number for x in inputs[3:])],
        out_specs=[mine if x.ndim == 4 else my_number for x in outs],
        out_shape=outs,
        compiler_params=backend.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        interpret=interpret,
        name=kernel.__name__,
    )(lists, *inputs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(tiles: Tiles, interpret: bool, q: Array, k: Array, v: Array, first: Array, end: Array) -> Array:
    return _attend_forward(tiles, interpret, q, k, v, first, end)[0]


def _attend_forward(
    tiles: Tiles, interpret: bool, q: Array, k: Array, v: Array, first: Array, end: Array
) -> tuple[Array, tuple[Array, ...]]:
    rows, length, heads, _ = q.shape
    lse = jax.ShapeDtypeStruct((rows, heads, length), jnp.float32)
    out = jax.ShapeDtypeStruct(q.shape, q.dtype)
    out, lse = _run(programs.outputs, tiles.outputs, interpret, (first, end), (q, k, v), (out, lse))
    out, lse = checkpoint_name(out, "attention"), checkpoint_name(lse, "attention")
    return out, (q, k, v, first, end, out, lse)


def _attend_backward(
    tiles: Tiles, interpret: bool, kept: tuple[Array, ...], gradient: Array
) -> tuple[Array, Array, Array, None, None]:
    q, k, v, first, end, out, lse = kept
    delta = jnp.sum(out.astype(jnp.float32) * gradient.astype(jnp.float32), axis=3).swapaxes(1, 2)
    inputs = q, k, v, gradient, lse, delta
    dq, dk, dv = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v))
    (dq,) = _run(programs.query_gradients, tiles.queries, interpret, (first, end), inputs, (dq,))
    dk, dv = _run(programs.key_gradients, tiles.keys, interpret, (first, end), inputs, (dk, dv), by_keys=True)
    return dq, dk, dv, None, None


_attend.defvjp(_attend_forward, _attend_backward)
