"""Embedding and head on a mesh: how shards of matrices as wide as the vocabulary are gathered, and gradients scattered.

XLA would sum the whole float32 gradient of each on every device. Here each device sums over its own tokens, and devices
exchange the sums, so that each ends with the shard of the gradient whose parameters it holds. The functions below run
inside `Placement.map`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from janus_jax.parallel.mesh import NOWHERE, Placement

TOKENS = ("batch", "length")
"""Logical axes of token slots."""


def vocab_axes(place: Placement) -> tuple[str, ...]:
    """Mesh axes that split the vocabulary but no tokens: each device works on its own part of the vocabulary."""
    names = place.names("vocab")
    return () if set(names) & set(place.names(*TOKENS)) else names


def _gathers(place: Placement, axes: tuple[str, ...]) -> list[tuple[int, tuple[str, ...]]]:
    """Dimensions of a parameter to gather, with their mesh axes."""
    dimensions = [(dim, place.names(axis)) for dim, axis in enumerate(axes) if axis != "vocab" or not vocab_axes(place)]
    return [(dim, names) for dim, names in dimensions if names]


def gather(shard: Array, place: Placement, axes: tuple[str, ...]) -> Array:
    """The parameter from its shards; split over the vocabulary alone, if there are `vocab_axes`."""
    for dim, names in _gathers(place, axes):
        shard = jax.lax.all_gather(shard, names, axis=dim, tiled=True)
    return shard


def scatter_sum(gradient: Array, place: Placement, axes: tuple[str, ...]) -> Array:
    """The shard of the gradient of a parameter after `gather`, summed over all tokens."""
    remaining = list(place.names(*TOKENS))
    for dim, names in _gathers(place, axes):
        for name in names:  # the first is the major one
            if name in remaining:
                gradient = _reduce_scatter(gradient, name, dim, place)
                remaining.remove(name)
            else:  # its devices have seen the same tokens
                size = gradient.shape[dim] // jax.lax.axis_size(name)
                start = jax.lax.axis_index(name) * size
                gradient = jax.lax.dynamic_slice_in_dim(gradient, start, size, dim)
    return jax.lax.psum(gradient, tuple(remaining)) if remaining else gradient


def largest(logits: Float[Array, "B V"], count: int, place: Placement) -> tuple[Float[Array, "B C"], Int[Array, "B C"]]:
    """The largest logits of each row and their ids, from this device's part of the vocabulary. Of equal ones the
    smaller id comes first."""
    size, names = logits.shape[-1], vocab_axes(place)
    values, ids = jax.lax.top_k(logits, min(count, size))
    if names:  # parts stand in the order of their ids, so equal ones do too
        ids = ids + vocab_start(place, size)
        values, ids = (jax.lax.all_gather(part, names, axis=1, tiled=True) for part in (values, ids))
        values, at = jax.lax.top_k(values, min(count, values.shape[1]))
        ids = jnp.take_along_axis(ids, at, 1)
    return values, ids


def _reduce_scatter(x: Array, name: str, dim: int, place: Placement) -> Array:
    """`psum_scatter` on CPUs; on accelerators an all-to-all and a sum, which CPUs are slow at.

    The TPU compiler turns `psum_scatter` into an all-reduce whose slice is taken much later, and holds the whole until
    then: 0.5 GiB of a 7B model's head.
    """
    if place.platform == "cpu":
        return jax.lax.psum_scatter(x, name, scatter_dimension=dim, tiled=True)
    shards = jax.lax.axis_size(name)
    parts = jax.lax.all_to_all(x, name, dim, dim, tiled=True)
    shape = (*x.shape[:dim], shards, x.shape[dim] // shards, *x.shape[dim + 1 :])
    return parts.reshape(shape).sum(dim)


def _exchange_widths(g: Float[Array, "B L D"], names: tuple[str, ...]) -> Float[Array, "R L W"]:
    """Each device's widths of the rows of all. As `all_to_all` from axis 2 to axis 0, but sent as they arrive: the TPU
    compiler would exchange [D, L] and then write out a reshape as long as a layer's code."""
    shards = jax.lax.axis_size(names)
    parts = jnp.moveaxis(g.reshape(*g.shape[:2], shards, g.shape[2] // shards), 2, 0)
    parts = jax.lax.all_to_all(parts, names, 0, 0, tiled=True)
    return parts.reshape(-1, *parts.shape[2:])


def vocab_start(place: Placement, size: int) -> Array:
    """First id of this device's part of the vocabulary, `size` ids long."""
    names = vocab_axes(place)
    return (jax.lax.axis_index(names) if names else jnp.int32(0)) * size


def embed(
    table: Float[Array, "V D"], tokens: Int[Array, "B L"], *, dtype: Any, place: Placement = NOWHERE
) -> Float[Array, "B L D"]:
    """table[tokens] in `dtype`; the gradient is summed in float32.

    Where widths and rows are sharded over the same devices, the table is not gathered: every device looks up its widths
    for the rows of all, and devices exchange rows for widths. The gradient takes the same way back.
    """
    axes = ("vocab", "embed")
    exchanged = place.names("embed")
    if not set(exchanged) <= set(place.names("batch")) or vocab_axes(place) != place.names("vocab"):
        exchanged = ()

    def local(shard: Array, tokens: Array) -> tuple[Array, Array]:
        """The part of the table in which this device looks up, and what: ids in it."""
        if exchanged:
            tokens = jax.lax.all_gather(tokens, exchanged, axis=0, tiled=True)
        else:
            shard = gather(shard, place, axes)
        return shard, tokens - vocab_start(place, shard.shape[0])

    def look_up(shard: Array, tokens: Array) -> Array:
        part, ids = local(shard, tokens)
        here = (ids >= 0) & (ids < part.shape[0])
        x = jnp.where(here[..., None], part.at[ids].get(mode="clip").astype(dtype), 0)
        if names := vocab_axes(place):
            x = jax.lax.psum(x, names)
        return jax.lax.all_to_all(x, exchanged, 0, 2, tiled=True) if exchanged else x

    def add_up(shard: Array, tokens: Array, g: Array) -> Array:
        part, ids = local(shard, tokens)
        if exchanged:
            g = _exchange_widths(g, exchanged)
        ids = jnp.where(ids < 0, part.shape[0], ids)  # negative ids would count from the end

        def add_row(total: Array, row: tuple[Array, Array]) -> tuple[Array, None]:
            return total.at[row[0]].add(row[1].astype(jnp.float32), mode="drop"), None

        # By rows, since the TPU compiler sorts what is added at once, and writes a sort out for its whole length.
        total, _ = jax.lax.scan(add_row, jnp.zeros((part.shape[0], g.shape[-1]), jnp.float32), (ids, g))
        if not exchanged:
            return scatter_sum(total, place, axes).astype(shard.dtype)
        rest = tuple(name for name in place.names(*TOKENS) if name not in exchanged)
        return (jax.lax.psum(total, rest) if rest else total).astype(shard.dtype)

    hidden = (*TOKENS, None)

    def backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, None]:
        return place.map(add_up, (axes, TOKENS, hidden), axes)(*saved, g), None

    lookup = jax.custom_vjp(place.map(look_up, (axes, TOKENS), hidden))
    lookup.defvjp(lambda *args: (lookup(*args), args), backward)
    return lookup(table, tokens)
