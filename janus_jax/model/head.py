"""Log-probabilities of given tokens without ever holding [tokens, vocab] whole."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from janus_jax.model import head_on_cpus
from janus_jax.model.vocabulary import TOKENS, gather, largest, scatter_sum, vocab_axes, vocab_start
from janus_jax.parallel.mesh import NOWHERE, Placement

_LOGITS_PER_CHUNK = 1 << 24
"""Logit elements alive at once on a device: 64 MiB in float32."""

_MORE_ON_CPUS = 8
"""A CPU keeps so many times as much: computing logits again would take a tenth of a small model's step."""

BYTES_PER_CHUNK = 4 * _LOGITS_PER_CHUNK
"""Of the logits that are alive at once on a device."""

_ELEMENTS_PER_TILE, _MOST_TILES = 1 << 25, 32
"""Of the head, when its gradient is computed: a tile has 128 MiB in float32, or more, up to four ids for each slot. A
block with its activations then needs more memory than a tile, and smaller ones would only take longer to compile."""

_LANES = 128
"""Of a TPU's vector unit: longer chunks are multiples of it."""

_HIDDEN, _HEAD = (*TOKENS, None), ("embed", "vocab")


def token_logps(
    hidden: Float[Array, "B L D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "B L"],
    *,
    counted: Bool[Array, "B L"] | None = None,
    place: Placement = NOWHERE,
) -> Float[Array, "B L"]:
    """log softmax(hidden @ head)[target] at each slot, in float32.

    Goes along the length in chunks whose logits are recomputed in the backward pass; those of a single chunk are kept.
    Every device has its own tokens and, where the vocabulary is sharded over others, a part of it. Widths of the head
    come together once, in the dtype of `hidden`. In the backward pass, those of a large head come in `tiles` of the
    vocabulary. A tile's gradient is summed over chunks in float32 and sent out before the next tile comes.

    Args:
        counted: the slots whose log-probs matter; None: all. Those of others may be 0, without a gradient.
    """
    single = _chunk(place, hidden.shape[0], head.shape[1]) >= hidden.shape[1] // place.shards("length")
    if single and place.platform == "cpu" and hidden.dtype == jnp.float32:
        counted = jnp.ones(targets.shape, bool) if counted is None else counted
        # Also of a head in bfloat16: a policy that equals its reference must have the same log-probs to the last bit.
        return head_on_cpus.token_logps(hidden, head.astype(jnp.float32), targets, counted, place=place)
    ins = (_HIDDEN, _HEAD, TOKENS)
    kept = (TOKENS, (*TOKENS, "vocab" if vocab_axes(place) else None))  # logsumexp, and logits of a single chunk

    def forward(hidden: Array, head: Array, targets: Array) -> tuple[Array, Any]:
        run = functools.partial(_forward, place=place, single=single)
        out, *residuals = place.map(run, ins, (TOKENS, *kept[: 1 + single]))(hidden, head, targets)
        return out, (hidden, head, targets, residuals)

    def backward(saved: Any, g: Array) -> tuple[Array, Array, None]:
        hidden, head, targets, residuals = saved
        run = functools.partial(_backward, place=place)
        run = place.map(run, (*ins, TOKENS, *kept[: len(residuals)]), (_HIDDEN, _HEAD))
        return *run(hidden, head, targets, g, *residuals), None

    logps = jax.custom_vjp(lambda *args: forward(*args)[0])
    logps.defvjp(forward, backward)
    return logps(hidden, head, targets)


def scored(
    hidden: Float[Array, "B L D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "B L"],
    *,
    top: int = 0,
    place: Placement = NOWHERE,
) -> tuple[Array, ...]:
    """As `token_logps`, without a gradient, and more.

    Returns:
        [B, L] log-probs of the targets, and whether each is a most probable id. If `top` is not 0 also [B, L, top] the
        most probable ids and their log-probs, the most probable first.
    """

    def local(x: Array, shard: Array, targets: Array) -> tuple[Array, ...]:
        head, names = gather(shard.astype(x.dtype), place, _HEAD), vocab_axes(place)

        def chunk(args: tuple[Array, Array]) -> tuple[Array, ...]:
            x, targets = args
            logits = _logits(x, head)
            best, picked, logsumexp = _of_target(logits, targets, names, place)
            scores = picked - logsumexp, picked >= best
            if not top:
                return scores
            values, ids = largest(logits.reshape(-1, logits.shape[-1]), top, place)
            values, ids = (part.reshape(*targets.shape, top) for part in (values, ids))
            return *scores, ids, values - logsumexp[..., None]

        slots, length = _chunk_here(x, head), x.shape[1]
        parts = jax.lax.map(chunk, (_split(x, slots), _split(targets, slots)))
        return tuple(_join(part, length) for part in parts)

    outs = (TOKENS, TOKENS, *[(*TOKENS, None)] * (2 if top else 0))
    return place.map(local, (_HIDDEN, _HEAD, TOKENS), outs)(hidden, head, targets)


def _chunk(place: Placement, rows: int, vocab: int) -> int:
    """Slots of a row whose logits a device holds together; `rows` and `vocab` are those of all devices."""
    shards = place.shards("batch") * (place.shards("vocab") if vocab_axes(place) else 1)
    # Simulated devices share one memory.
    more = max(1, _MORE_ON_CPUS // shards) if place.platform == "cpu" else 1
    slots = max(1, more * _LOGITS_PER_CHUNK * shards // (rows * vocab))
    return slots if slots < _LANES else slots - slots % _LANES


def logits(x: Array, head: Array) -> Array:
    """[b, c, D] @ [D, V] in float32. Rows and length as one axis: XLA's CPU backend is 4 times faster so."""
    return _logits(x, head.astype(x.dtype))


def _logits(x: Array, head: Array) -> Array:
    flat = jnp.matmul(x.reshape(-1, x.shape[-1]), head, preferred_element_type=jnp.float32, precision=_precision(x))
    return flat.reshape(*x.shape[:-1], head.shape[1])


def _precision(x: Array) -> jax.lax.Precision | None:
    """Asked for float32, accelerators would still multiply in fewer bits unless told not to."""
    return jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None


def _is_target(targets: Array, first: Array, size: int) -> Array:
    """[b, c, size]: which of `size` ids, beginning with `first`, is the target."""
    return first + jnp.arange(size, dtype=jnp.int32) == targets[..., None]


def _of_target(logits: Array, targets: Array, names: tuple[str, ...], place: Placement) -> tuple[Array, Array, Array]:
    """Largest logit, the target's logit and logsumexp, each [b, c], over the whole vocabulary."""
    top = logits.max(-1)
    top = jax.lax.pmax(top, names) if names else top
    total = jnp.exp(logits - top[..., None]).sum(-1)
    size = logits.shape[-1]
    if place.platform == "cpu":  # XLA would write the masked logits to memory before it sums them
        at = (targets - vocab_start(place, size))[..., None]
        picked = jnp.take_along_axis(logits, at.clip(0, size - 1), -1)
        picked = jnp.where((at >= 0) & (at < size), picked, 0)[..., 0]
    else:  # a masked sum rather than a gather: the target may be in another device's part
        picked = jnp.where(_is_target(targets, vocab_start(place, size), size), logits, 0).sum(-1)
    if names:
        total, picked = jax.lax.psum((total, picked), names)
    return top, picked, top + jnp.log(total)


def _forward(x: Array, shard: Array, targets: Array, *, place: Placement, single: bool) -> tuple[Array, ...]:
    """Log-probs [b, l], logsumexp [b, l] and, of a single chunk, the logits [b, l, V]."""
    head, names = gather(shard.astype(x.dtype), place, _HEAD), vocab_axes(place)

    def chunk(args: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        x, targets = args
        logits = _logits(x, head)
        _, picked, logsumexp = _of_target(logits, targets, names, place)
        return picked - logsumexp, logsumexp, logits

    if single:
        return chunk((x, targets))
    slots, length = _chunk_here(x, head), x.shape[1]
    out = jax.lax.map(lambda args: chunk(args)[:2], (_split(x, slots), _split(targets, slots)))
    return tuple(_join(part, length) for part in out)


def _backward(
    x: Array, shard: Array, targets: Array, g: Array, logsumexp: Array, *logits: Array, place: Placement
) -> tuple[Array, Array]:
    """Cotangents of x [b, l, D] and of this device's shard of the head."""
    names = vocab_axes(place)
    apart = place.names("vocab") != names  # gathered columns of a tile would not be neighbours
    count = 1 if logits or apart else tiles(x.shape[0] * x.shape[1], x.shape[-1], shard.shape[1])
    size = shard.shape[1] // count

    def tile(number: Array | int) -> tuple[Array, Array]:
        """Cotangents of x, from one tile of the vocabulary, and of this device's shard of the tile. With several tiles,
        that of x is float32 and not yet summed over devices."""
        columns = shard if count == 1 else jax.lax.dynamic_slice_in_dim(shard, number * size, size, 1)
        head = gather(columns.astype(x.dtype), place, _HEAD)
        first = vocab_start(place, shard.shape[1]) + number * size

        def chunk(total: Array, args: tuple[Array, ...]) -> tuple[Array, Array]:
            x, targets, g, logsumexp, *logits = args
            p = jnp.exp((logits[0] if logits else _logits(x, head)) - logsumexp[..., None])
            d = (_is_target(targets, first, head.shape[1]) - p) * g[..., None]
            d = d.astype(x.dtype).reshape(-1, head.shape[1])
            multiply = functools.partial(jnp.matmul, preferred_element_type=jnp.float32, precision=_precision(x))
            total = total + multiply(x.reshape(-1, x.shape[-1]).T, d)
            dx = multiply(d, head.T)
            dx = jax.lax.psum(dx, names) if names and count == 1 else dx
            return total, dx.astype(x.dtype if count == 1 else jnp.float32).reshape(x.shape)

        args, zeros = (x, targets, g, logsumexp, *logits), jnp.zeros(head.shape, jnp.float32)
        if logits:
            total, dx = chunk(zeros, args)
        else:
            slots = _chunk_here(x, head)
            total, dx = jax.lax.scan(chunk, zeros, tuple(_split(arg, slots) for arg in args))
            dx = _join(dx, x.shape[1])
        return dx, scatter_sum(total, place, _HEAD).astype(shard.dtype)

    def add_tile(sums: tuple[Array, Array], number: Array) -> tuple[tuple[Array, Array], None]:
        dx, gradient = tile(number)
        gradient = jax.lax.dynamic_update_slice_in_dim(sums[1], gradient, number * size, 1)
        return (sums[0] + dx, gradient), None

    if count == 1:
        dx, gradient = tile(0)
    else:
        zeros = jnp.zeros(x.shape, jnp.float32), jnp.zeros(shard.shape, shard.dtype)
        (dx, gradient), _ = jax.lax.scan(add_tile, zeros, jnp.arange(count))
        dx = jax.lax.psum(dx, names) if names else dx  # once, not of each tile
    # The blocks' backward pass waits for the gradient, or its parts would be in memory all the while.
    return jax.lax.optimization_barrier((dx.astype(x.dtype), gradient))


def tiles(slots: int, width: int, vocab: int) -> int:
    """In how many equal parts of a device's vocabulary the gradient of a head [width, vocab] is computed.

    As few as make them small enough, of whole vectors if possible. A vocabulary may have no parts that small.
    """
    most = max(_ELEMENTS_PER_TILE, 4 * slots * width)
    counts = [count for count in range(1, _MOST_TILES + 1) if vocab % count == 0]
    whole = [count for count in counts if vocab // count % _LANES == 0]
    return next((count for count in whole + counts if width * vocab <= count * most), counts[-1])


def _chunk_here(x: Array, head: Array) -> int:
    """As `_chunk`, of what one device has: as few chunks, no longer than they need be, so that little is padded."""
    length = x.shape[1]
    chunks = -(-length // _chunk(NOWHERE, x.shape[0], head.shape[1]))
    slots = -(-length // chunks)
    return slots if chunks == 1 or slots < _LANES else -(-slots // _LANES) * _LANES


def _split(x: Array, slots: int) -> Array:
    """[b, l, ...] to [chunks, b, slots, ...], padded with zeros."""
    chunks = -(-x.shape[1] // slots)
    x = jnp.pad(x, [(0, 0), (0, chunks * slots - x.shape[1])] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(x.shape[0], chunks, slots, *x.shape[2:]), 1, 0)


def _join(x: Array, length: int) -> Array:
    """Back from `_split`."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]
