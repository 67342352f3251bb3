"""The attention rule on TPUs: jax's splash kernel over packed rows, with copies of shared prompts in front of the keys.

The kernel knows causal order, a window in the row and segment ids: a query sees a key of its own id that does not stand
behind it in the row. Prompt and chosen branch of a segment share one id, the rejected branch has another. So that it
sees its prompt, each shared slot's key and value are there a second time, under the rejected branch's id and before the
whole row, where nothing is too late for anyone:

    keys   | copies of shared slots, then some that match nothing | the row as it is |
    order  | query i sees the first `copies` + i + 1 of them, if they carry its id   |

A block of scores is computed if the order in the row leaves some of it and some query and some key in it share an id.
The kernel takes the order from a static mask; which blocks have no id in common is found from the rows.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from janus_jax.model.attention import Slots
from janus_jax.model.kernels import Need
from janus_jax.model.kernels.heads import apart_reason, keys_of_queries
from janus_jax.parallel.mesh import NOWHERE, Placement

LANES = 128
"""Rows, and each device's part of a row, are whole multiples of this; a TPU's registers are so wide."""

_BLOCKS = (512, 256, LANES)
"""Sizes of blocks, best first. 512 x 512 scores fit the VMEM of every TPU from v4 on, 2048 x 2048 not that of v5e."""

_NOBODY = -1
"""Id of copies in excess. Padding has 0 and sees padding, lest its softmax had no key; segment s has 2s and 2s + 1."""


@dataclasses.dataclass(frozen=True)
class Splash:
    """The kernel as a program uses it; `splash_attention` says what the fields are."""

    copies: int
    interpret: bool = False

    def __call__(
        self, q: Array, k: Array, v: Array, slots: Slots, *, window: int | None, place: Placement = NOWHERE
    ) -> Array:
        """See `Kernel`."""
        return splash_attention(q, k, v, slots, window=window, place=place, **dataclasses.asdict(self))


def unsupported_reason(need: Need) -> str | None:
    """Why `splash_attention` cannot compute this, for a user to read; None if it can."""
    if need.place.device_kind in ("TPU v2", "TPU v3"):
        return f"kernels of a {need.place.device_kind} multiply no bfloat16"
    parts = need.place.shards("length")
    if need.row_length % (LANES * parts):
        slots = f"{LANES * parts} ({LANES} on each of {parts} devices)"
        return f"rows of {need.row_length} slots are no multiple of {slots}"
    if need.head_dim % (LANES // 2):
        return f"head_dim {need.head_dim} is no multiple of {LANES // 2}"
    if need.copies and need.window is not None and need.window < need.longest:
        return (
            f"a window of {need.window} is shorter than the longest sequence, {need.longest}, and a rejected branch "
            "stands farther from its shared prompt in the row than in its own sequence"
        )
    return apart_reason(need)


def splash_attention(
    q: Float[Array, "B L N H"],
    k: Float[Array, "B L K H"],
    v: Float[Array, "B L K H"],
    slots: Slots,
    *,
    window: int | None,
    copies: int,
    place: Placement = NOWHERE,
    interpret: bool = False,
) -> Float[Array, "B L N H"]:
    """Softmax attention under the rule of `attention.visible`, softmax in float32, by a kernel for TPUs.

    Args:
        copies: the most shared slots (branch 0) that a row has; 0 where no row has a rejected branch behind a shared
            prompt. They are rounded up to whole blocks. With more the result is the same, with fewer it is NaN.
        window: ignored with copies, where `unsupported_reason` says if it may be.
        interpret: run the kernel's program by XLA, anywhere and slowly.
    Returns:
        as `attention` where there is a segment. Padding slots get finite, unused values.
    """
    parts = place.shards("length")
    block = _block(q.shape[1] // parts)
    copies = -(-copies // block) * block
    kernel, tree = _kernel(
        length=q.shape[1],
        copies=copies,
        window=None if copies else window,
        heads=q.shape[2] // place.shards("q_heads"),
        parts=parts,
        block=block,
        interpret=interpret,
    )
    local = functools.partial(
        _local, tree=tree, copies=copies, group=q.shape[2] // k.shape[2], kv_heads=k.shape[2], place=place
    )
    tokens = ("batch", "length")
    queries, keys = (*tokens, "q_heads", None), (*tokens, "kv_heads", None)
    steps = [(None, "length", None) if leaf.ndim == 3 else ("length",) for leaf in kernel]
    mapped = place.map(local, in_axes=(queries, keys, keys, tokens, tokens, steps), out_axes=queries)
    return mapped(q, k, v, slots.segment, slots.branch, kernel)


def _local(
    q: Array,
    k: Array,
    v: Array,
    segment: Array,
    branch: Array,
    kernel: list[Any],
    *,
    tree: Any,
    copies: int,
    group: int,
    kv_heads: int,
    place: Placement,
) -> Array:
    """What one device does: its queries over all keys of its rows and heads."""
    from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel import SegmentIds

    ids = _ids(segment, branch)
    if place.shards("length") > 1:  # here and not by the mesh: transposed it sums and scatters at once
        whole = functools.partial(jax.lax.all_gather, axis_name=place.names("length"), axis=1, tiled=True)
        k, v, segment, branch = whole(k), whole(v), whole(segment), whole(branch)
    k, v = keys_of_queries(q, k, v, group=group, kv_heads=kv_heads, place=place)
    key_ids = _ids(segment, branch)
    if copies:
        taken, rank, copy_ids, enough = _copies(segment, branch, copies)
        k, v = _extend(k, taken, rank), _extend(v, taken, rank)
        key_ids = jnp.concatenate([copy_ids, key_ids], axis=1)
    else:
        shared = (branch == 0) & (segment > 0)
        enough = ~(shared.any(1) & (branch == 2).any(1))
    q = jnp.where(enough[:, None, None, None], q, jnp.nan)  # loud, where the answer would be wrong
    q = (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(q.dtype)  # the kernel does not scale
    every_block = jax.tree.unflatten(tree, kernel)

    def one_row(q: Array, k: Array, v: Array, ids: Array, key_ids: Array) -> Array:
        return _without_idle_blocks(every_block, ids, key_ids)(q, k, v, SegmentIds(ids, key_ids))

    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    # Rows differ in their blocks, of which this makes a loop; written as one, it took a single row 0.08 GiB more.
    return jnp.swapaxes(jax.vmap(one_row)(q, k, v, ids, key_ids), 1, 2)


def _ids(segment: Array, branch: Array) -> Array:
    return jnp.where(segment > 0, 2 * segment + (branch == 2), 0)


def _copies(segment: Array, branch: Array, copies: int) -> tuple[Array, Array, Array, Array]:
    """Where the copies come from [B, C], which copy is a slot's own [B, L] (C if none), their ids [B, C], and whether
    there is one for every shared slot [B]."""
    shared: Bool[Array, "B L"] = (branch == 0) & (segment > 0)
    count = jnp.cumsum(shared, axis=1, dtype=jnp.int32)
    number = jnp.arange(copies, dtype=jnp.int32)
    # The slot at which the count reaches c + 1: as many as have a lower one stand before it. Compared all with all, in
    # one fused loop; a sort or a scatter would take a TPU longer.
    taken = jnp.sum(count[:, None, :] <= number[:, None], axis=2, dtype=jnp.int32)
    taken = jnp.minimum(taken, segment.shape[1] - 1)
    ids = jnp.where(number < count[:, -1:], 2 * _take(segment, taken) + 1, _NOBODY)
    return taken, jnp.where(shared, jnp.minimum(count - 1, copies), copies), ids, count[:, -1] <= copies


def _take(x: Array, index: Array) -> Array:
    """[B, L, ...] at [B, C] of its slots."""
    return jax.vmap(lambda row, at: row.at[at].get(mode="promise_in_bounds"))(x, index)


@jax.custom_vjp
def _extend(x: Array, taken: Array, rank: Array) -> Array:
    """The copies, then all of `x`. No slot is taken twice: its gradient is looked up, not scattered."""
    return jnp.concatenate([_take(x, taken), x], axis=1)


def _extend_forward(x: Array, taken: Array, rank: Array) -> tuple[Array, Array]:
    return _extend(x, taken, rank), rank


def _extend_backward(rank: Array, gradient: Array) -> tuple[Array, None, None]:
    copies = gradient.shape[1] - rank.shape[1]
    copied, own = gradient[:, :copies], gradient[:, copies:]
    is_copied = (rank < copies)[:, :, None, None]
    return own + jnp.where(is_copied, _take(copied, jnp.minimum(rank, copies - 1)), 0), None, None


_extend.defvjp(_extend_forward, _extend_backward)


def _without_idle_blocks(kernel: Any, ids: Array, key_ids: Array) -> Any:
    """The kernel for one row, without the blocks in which no query has the id of a key.

    Its steps stay: it goes through `data_next`, the block of keys (in the pass for their gradients, of queries) brought
    at each step, and computes where `block_mask` is not 0. A block of queries keeps its own keys, so it has some.
    """
    block = kernel.kwargs["block_sizes"].block_q
    queries, keys = ids.reshape(-1, block), key_ids.reshape(-1, block)
    meet = jnp.any(queries[:, None, :, None] == keys[None, :, None, :], axis=(2, 3))

    def needed(info: Any, axis: int) -> Any:
        kept = jnp.take_along_axis(meet, info.data_next[0].astype(jnp.int32), axis=axis)
        return info._replace(block_mask=jnp.where(kept, info.block_mask, 0))

    forward, queries_back, keys_back = kernel.fwd_mask_info, kernel.dq_mask_info, kernel.dkv_mask_info
    return type(kernel)(needed(forward, 1), needed(queries_back, 1), needed(keys_back, 0), **kernel.kwargs)


def _block(length: int) -> int:
    """The best block that divides what a device has of a row; copies are rounded up to it, so that it divides all."""
    return next(size for size in _BLOCKS if length % size == 0)


@functools.cache
def _kernel(
    *, length: int, copies: int, window: int | None, heads: int, parts: int, block: int, interpret: bool
) -> tuple[list[Any], Any]:
    """The kernel's steps, which blocks of scores it computes in what order, as arrays [1, blocks, blocks] and [L] to be
    split over the length, and the tree that makes a kernel of them. Takes a second at 8192, hence kept."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    shape = (length, copies + length)
    if window is None or window >= length:
        mask = masks.CausalMask(shape, offset=copies)
    else:
        mask = masks.LocalMask(shape, (window - 1, 0), offset=0)
    # The fused backward kernel saves two of seven products and holds a gradient of q for each block of keys: 1.08
    # GiB where two kernels take 0.19 (v5e, 32 heads, 8192 slots).
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    sizes: dict[str, Any] = {f"block_{name}": block for name in names}
    with jax.ensure_compile_time_eval():
        kernel = splash.make_splash_mha(
            masks.MultiHeadMask([mask] * heads),
            block_sizes=splash.BlockSizes(**sizes),
            head_shards=1,
            q_seq_shards=parts,
            interpret=interpret,
            residual_checkpoint_name="attention",
        )
        leaves, tree = jax.tree.flatten(kernel)
        return jax.device_get(leaves), tree
