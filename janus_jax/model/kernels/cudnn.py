"""The attention rule on NVIDIA GPUs: cuDNN's kernel for packed sequences, through JAX.

The kernel knows causal order, a window, and where in the memory a sequence begins and how long it is. So each branch
becomes a whole sequence of its own, with the shared prompt in front, and all sequences of a row stand one behind the
other, the longest first:

    row      | prompt | chosen | rejected | next segment ... | padding
    memory   | prompt chosen | prompt rejected | ... | what is left, in pieces |

- What is left is cut into sequences too. Then the kernel writes every slot, and each sequence begins where the one
  before it ends. Memory that nobody wrote may hold NaN, which a masked product does not remove.
- For each sequence cuDNN takes working memory as long as JAX's rows are. So a row is folded into rows that are little
  longer than the longest sequence. A sequence may reach into the next of these rows, because cuDNN counts from the
  begin of the memory. JAX wants for each row the same number of sequences, which begin in it or later: true if the
  longest come first, since then the first n of them fill at least their share of the memory.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from janus_jax.model.attention import Slots
from janus_jax.model.kernels import Need
from janus_jax.model.kernels.heads import apart_reason, keys_of_queries
from janus_jax.parallel.mesh import NOWHERE, Placement

_TILE = 128
"""Folded rows are whole multiples of this, the queries of one block."""

_MOST_ELEMENTS = 2**31 - 1
"""cuDNN gets the begin of a sequence as an int32 number of elements."""

_GROUPED = jax.__version_info__ >= (0, 11, 1)
"""Whether JAX counts the begins of keys in key heads. Older versions count in query heads, which is silently wrong
where several share a key head; there keys and values are repeated."""

PackedAttention = Callable[..., Array]
"""`packed_attention`, or what takes its place in a test."""


def packed_attention(
    q: Float[Array, "R T N H"],
    k: Float[Array, "R T K H"],
    v: Float[Array, "R T K H"],
    lengths: Int[Array, "R M"],
    begins: Int[Array, "R M1"],
    *,
    window: int | None,
) -> Float[Array, "R T N H"]:
    """cuDNN's causal attention inside sequences, scaled by H^-0.5. The one call that needs a GPU.

    Args:
        lengths: slots of each sequence, -1 behind the last one.
        begins: from the begin of the sequence's row, -1 behind the last one; one more column than `lengths`.
        window: keys that a query sees, itself included.
    """
    from jax._src.cudnn.fused_attention_stablehlo import MaskType, dot_product_attention

    ids = {"q_seqlen": lengths, "kv_seqlen": lengths, "q_offsets": begins, "kv_offsets": begins}
    masks: dict[str, Any] = {"mask_type": MaskType.PADDING_CAUSAL, "sliding_window_length": window}
    out: Any = dot_product_attention(q, k, v, **ids, **masks, scale=q.shape[-1] ** -0.5)
    return out


@dataclasses.dataclass(frozen=True)
class Cudnn:
    """The kernel as a program uses it. Rows that break a limit become NaN."""

    copies: int
    """The most shared slots (branch 0) that a row has; 0 where no row has a rejected branch behind a shared prompt."""
    sequences: int
    """The most branches of segments that a row has."""
    longest: int
    """Slots of the longest sequence, a prompt with one of its branches."""
    packed: PackedAttention = packed_attention

    def __call__(
        self,
        q: Float[Array, "B L N H"],
        k: Float[Array, "B L K H"],
        v: Float[Array, "B L K H"],
        slots: Slots,
        *,
        window: int | None,
        place: Placement = NOWHERE,
    ) -> Float[Array, "B L N H"]:
        """See `Kernel`."""
        local = functools.partial(
            self._local, window=window, group=q.shape[2] // k.shape[2], kv_heads=k.shape[2], place=place
        )
        tokens = ("batch", None)
        queries, keys = (*tokens, "q_heads", None), (*tokens, "kv_heads", None)
        mapped = place.map(local, in_axes=(queries, keys, keys, tokens, tokens), out_axes=queries)
        return mapped(q, k, v, slots.segment, slots.branch)

    def _local(
        self,
        q: Array,
        k: Array,
        v: Array,
        segment: Array,
        branch: Array,
        *,
        window: int | None,
        group: int,
        kv_heads: int,
        place: Placement,
    ) -> Array:
        """What one device does: its rows and heads."""
        k, v = keys_of_queries(q, k, v, group=group, kv_heads=kv_heads, place=place)
        if not _GROUPED:
            k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
        if window is not None and window >= self.longest:
            window = None
        rows, slots = self._fold(segment.shape[1])
        most = max(1, _MOST_ELEMENTS // (rows * slots * q.shape[2] * q.shape[3]))
        parts = [
            self._rows(*(x[at : at + most] for x in (q, k, v, segment, branch)), window=window)
            for at in range(0, q.shape[0], most)
        ]
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts)

    def _rows(self, q: Array, k: Array, v: Array, segment: Array, branch: Array, *, window: int | None) -> Array:
        count, length = self._fold(segment.shape[1])
        pack = _pack(segment, branch, sequences=self.sequences, longest=self.longest, rows=count, length=length)

        def folded(x: Array) -> Array:  # [B, T, ...] -> [B * rows, T / rows, ...]
            return x.reshape(-1, length, *x.shape[2:])

        q, k, v = (folded(_lay(x, pack)) for x in (q, k, v))
        lengths, begins = (x.reshape(-1, x.shape[2]) for x in (pack.lengths, pack.begins))
        out = self.packed(q, k, v, lengths, begins, window=window)
        out = _fetch(out.reshape(-1, count * length, *out.shape[2:]), pack)
        return jnp.where(pack.fits[:, None, None, None], out, jnp.nan)  # loud, where the answer would be wrong

    def _fold(self, row_length: int) -> tuple[int, int]:
        """Into how many rows one row is folded, and their slots: as many as the longest sequence allows."""
        needed, longest = row_length + self.copies, _up(min(self.longest, row_length), _TILE)
        rows = max(1, needed // longest)
        return rows, _up(-(-needed // rows), _TILE)


def unsupported_reason(need: Need) -> str | None:
    """Why `Cudnn` cannot compute this, for a user to read; None if it can."""
    if need.place.mesh is not None and (reason := _device_reason(need.place.mesh.devices.flat[0])) is not None:
        return reason
    if jnp.dtype(need.dtype) not in (jnp.bfloat16, jnp.float16):
        return f"activations are {jnp.dtype(need.dtype).name}, and the kernel takes bfloat16"
    if need.head_dim % 8 or need.head_dim > 256:
        return f"head_dim {need.head_dim} is no multiple of 8 up to 256"
    if (parts := need.place.shards("length")) > 1:
        return f"a row is split over {parts} devices"
    return apart_reason(need)


def _device_reason(device: Any) -> str | None:
    if device.platform not in ("gpu", "cuda"):
        return f"devices are {device.platform}"
    if device.client is not jax.local_devices()[0].client:
        return "JAX lowers cuDNN's kernel only where the GPU is"
    capability = re.fullmatch(r"(\d+)\.(\d+)", str(getattr(device, "compute_capability", "")))
    if capability is None:
        return f"{device.device_kind} is no NVIDIA GPU"
    if int(capability[1]) < 9:
        return f"{device.device_kind} has compute capability {capability[0]}, and packed sequences need 9.0 (Hopper)"
    return None


def _up(count: int, unit: int) -> int:
    return -(-count // unit) * unit


class _Pack(NamedTuple):
    """Where a row's slots go in memory [B, T], folded into R rows."""

    source: Int[Array, "B T"]
    """The slot that stands here; any slot in what is left."""
    own: Int[Array, "B L"]
    """Where a slot's own copy stands; T for padding."""
    twin: Int[Array, "B L"]
    """Where a shared slot stands in front of the rejected branch; T without one."""
    lengths: Int[Array, "B R M"]
    begins: Int[Array, "B R M1"]
    fits: Bool[Array, " B"]


def _pack(segment: Array, branch: Array, *, sequences: int, longest: int, rows: int, length: int) -> _Pack:
    """Places the sequences of each row. Tables are small: [sequences] for a row, looked up and not sorted by slot."""
    batch, slots, total = *segment.shape, rows * length
    real = segment > 0
    before = jnp.pad(segment[:, :-1], ((0, 0), (1, 0))), jnp.pad(branch[:, :-1], ((0, 0), (1, 0)))
    new_segment = real & (segment != before[0])
    opens = new_segment | (real & (branch == 2) & (before[1] != 2))
    number = jnp.cumsum(opens, axis=1, dtype=jnp.int32) - 1  # of a slot's sequence in the row

    def count(slots: Array, table: int) -> Array:  # [B, L] -> [B, table]: true slots of each sequence
        member = number[:, None, :] == jnp.arange(table, dtype=jnp.int32)[:, None]
        return jnp.sum(member & slots[:, None, :], axis=2, dtype=jnp.int32)

    own, shared = count(real, sequences), count(real & (branch == 0), sequences)
    follows = count(opens & ~new_segment, sequences) > 0  # a rejected branch behind the prompt of its segment
    lead = jnp.where(follows, jnp.pad(shared[:, :-1], ((0, 0), (1, 0))), 0)
    first = jnp.cumsum(own, axis=1) - own  # slots stand one behind the other, padding last
    order = jnp.where(real, 4 * segment + branch, jnp.iinfo(jnp.int32).max)
    fits = (order[:, 1:] >= order[:, :-1]).all(1) & (number[:, -1] < sequences)
    size = lead + own
    fits &= (size.sum(1) <= total) & (size.max(1) <= longest)
    size = jnp.where(fits[:, None], size, 0)

    rest = total - size.sum(1, keepdims=True)  # in `rows` pieces: none is longer than a folded row
    pieces = (rest + jnp.arange(rows, dtype=jnp.int32)) // rows
    table = rows * max(2, -(-(sequences + rows) // rows))  # with one sequence in a row, JAX would ignore its begin
    size = jnp.pad(jnp.concatenate([size, pieces], axis=1), ((0, 0), (0, table - sequences - rows)))
    by_size = jnp.argsort(-size, axis=1, stable=True)
    size = _take(size, by_size)
    begin = jnp.cumsum(size, axis=1) - size
    place = _take(begin, jnp.argsort(by_size, axis=1))  # where each sequence begins, by its number

    at = jnp.arange(total, dtype=jnp.int32)
    rank = jnp.sum(begin[:, None, :] <= at[:, None], axis=2, dtype=jnp.int32) - 1
    here = _take(by_size, rank)
    inside, known = at - _take(begin, rank), jnp.minimum(here, sequences - 1)
    prompt = inside < _take(lead, known)
    start = _take(jnp.pad(first[:, :-1], ((0, 0), (1, 0))), known), _take(first - lead, known)
    source = jnp.where(prompt, start[0], start[1]) + inside
    source = jnp.where(here < sequences, jnp.clip(source, 0, slots - 1), 0)

    mine = jnp.clip(number, 0, sequences - 1)
    offset = jnp.arange(slots, dtype=jnp.int32) - _take(first, mine)
    after = jnp.minimum(mine + 1, sequences - 1)
    twinned = real & (branch == 0) & (mine + 1 < sequences) & (_take(lead, after) > 0)
    used = size.reshape(batch, rows, -1)
    relative = begin.reshape(used.shape) - length * jnp.arange(rows, dtype=jnp.int32)[:, None]
    return _Pack(
        source=source,
        own=jnp.where(real, _take(place, mine) + _take(lead, mine) + offset, total),
        twin=jnp.where(twinned, _take(place, after) + offset, total),
        lengths=jnp.where(used > 0, used, -1),
        begins=jnp.pad(jnp.where(used > 0, relative, -1), ((0, 0), (0, 0), (0, 1)), constant_values=-1),
        fits=fits,
    )


def _take(x: Array, index: Array) -> Array:
    """[B, L, ...] at [B, T] of its slots; an index behind the last slot gives the last one."""
    return jax.vmap(lambda row, at: row.at[at].get(mode="clip"))(x, index)


def _where(condition: Array, x: Array) -> Array:
    """0 where the condition [B, L] is false, whatever x [B, L, N, H] is there."""
    return jnp.where(condition[:, :, None, None], x, 0)


@jax.custom_vjp
def _lay(x: Array, pack: _Pack) -> Array:
    """[B, L, N, H] -> [B, T, N, H]: the slots at their places in memory. A gradient is looked up, not scattered."""
    return _take(x, pack.source)


def _lay_forward(x: Array, pack: _Pack) -> tuple[Array, _Pack]:
    return _lay(x, pack), pack


def _lay_backward(pack: _Pack, gradient: Array) -> tuple[Array, None]:
    total = gradient.shape[1]
    own, twin = (_where(at < total, _take(gradient, at)) for at in (pack.own, pack.twin))
    return own + twin, None


_lay.defvjp(_lay_forward, _lay_backward)


@jax.custom_vjp
def _fetch(x: Array, pack: _Pack) -> Array:
    """[B, T, N, H] -> [B, L, N, H]: each slot's own copy, 0 for padding."""
    return _where(pack.own < x.shape[1], _take(x, pack.own))


def _fetch_forward(x: Array, pack: _Pack) -> tuple[Array, _Pack]:
    return _fetch(x, pack), pack


def _fetch_backward(pack: _Pack, gradient: Array) -> tuple[Array, None]:
    own = _take(pack.own, pack.source) == jnp.arange(pack.source.shape[1], dtype=jnp.int32)
    return _where(own, _take(gradient, pack.source)), None


_fetch.defvjp(_fetch_forward, _fetch_backward)
