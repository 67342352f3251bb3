"""The two matrices that are as wide as the vocabulary, on a mesh: how their parts come together, and gradients apart.

Left to the compiler, the whole float32 gradient of each would be summed on every device. Here each device sums what its
own tokens say, and devices exchange the sums so that each is left with the part of the parameter that it keeps. The
functions below run inside `Placement.map`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from janus_jax.parallel.mesh import NOWHERE, Placement

TOKENS = ("batch", "length")
"""Logical axes of token slots."""


def apart(place: Placement) -> tuple[str, ...]:
    """Mesh axes over which every device can work on its part of the vocabulary: they split no tokens."""
    names = place.names("vocab")
    return () if set(names) & set(place.names(*TOKENS)) else names


def _gathers(place: Placement, axes: tuple[str, ...]) -> list[tuple[int, tuple[str, ...]]]:
    """Dimensions of a parameter that come together, with their mesh axes."""
    dimensions = [(dim, place.names(axis)) for dim, axis in enumerate(axes) if axis != "vocab" or not apart(place)]
    return [(dim, names) for dim, names in dimensions if names]


def together(shard: Array, place: Placement, axes: tuple[str, ...]) -> Array:
    """A parameter from its shards: whole but for the vocabulary, where that is `apart`."""
    for dim, names in _gathers(place, axes):
        shard = jax.lax.all_gather(shard, names, axis=dim, tiled=True)
    return shard


def sum_apart(gradient: Array, place: Placement, axes: tuple[str, ...]) -> Array:
    """The shard of the gradient of a parameter that was brought `together`, summed over all tokens."""
    remaining = list(place.names(*TOKENS))
    for dim, names in _gathers(place, axes):
        for name in names:  # the first is the major one
            if name in remaining:
                gradient = _reduce_scatter(gradient, name, dim)
                remaining.remove(name)
            else:  # its devices have seen the same tokens
                size = gradient.shape[dim] // jax.lax.axis_size(name)
                start = jax.lax.axis_index(name) * size
                gradient = jax.lax.dynamic_slice_in_dim(gradient, start, size, dim)
    return jax.lax.psum(gradient, tuple(remaining)) if remaining else gradient


def _reduce_scatter(x: Array, name: str, dim: int) -> Array:
    """`psum_scatter` as an exchange of parts and a sum. The TPU compiler would make the other an all-reduce of which
    everyone takes a slice much later, and hold the whole until then: 0.5 GiB of a 7B model's head."""
    ways = jax.lax.axis_size(name)
    parts = jax.lax.all_to_all(x, name, dim, dim, tiled=True)
    shape = (*x.shape[:dim], ways, x.shape[dim] // ways, *x.shape[dim + 1 :])
    return parts.reshape(shape).sum(dim)


def part_start(place: Placement, size: int) -> Array:
    """First id of this device's part of the vocabulary, `size` ids long."""
    names = apart(place)
    return (jax.lax.axis_index(names) if names else jnp.int32(0)) * size


def embed(
    table: Float[Array, "V D"], tokens: Int[Array, "B L"], *, dtype: Any, place: Placement = NOWHERE
) -> Float[Array, "B L D"]:
    """table[tokens] in `dtype`; the gradient is summed in float32.

    Where widths and rows are sharded over the same devices, the table stays where it is: every device looks up its
    widths for the rows of all, and rows are exchanged for widths. So goes the gradient back.
    """
    axes = ("vocab", "embed")
    exchanged = place.names("embed")
    if not set(exchanged) <= set(place.names("batch")) or apart(place) != place.names("vocab"):
        exchanged = ()

    def local(shard: Array, tokens: Array) -> tuple[Array, Array]:
        """The part of the table in which this device looks up, and what: ids in it."""
        if exchanged:
            tokens = jax.lax.all_gather(tokens, exchanged, axis=0, tiled=True)
        else:
            shard = together(shard, place, axes)
        return shard, tokens - part_start(place, shard.shape[0])

    def look_up(shard: Array, tokens: Array) -> Array:
        part, ids = local(shard, tokens)
        here = (ids >= 0) & (ids < part.shape[0])
        x = jnp.where(here[..., None], part.at[ids].get(mode="clip").astype(dtype), 0)
        if names := apart(place):
            x = jax.lax.psum(x, names)
        return jax.lax.all_to_all(x, exchanged, 0, 2, tiled=True) if exchanged else x

    def add_up(shard: Array, tokens: Array, g: Array) -> Array:
        part, ids = local(shard, tokens)
        if exchanged:
            g = jax.lax.all_to_all(g, exchanged, 2, 0, tiled=True)
        ids = jnp.where(ids < 0, part.shape[0], ids)  # negative ids would count from the end
        total = jnp.zeros((part.shape[0], g.shape[-1]), jnp.float32).at[ids].add(g.astype(jnp.float32), mode="drop")
        if not exchanged:
            return sum_apart(total, place, axes).astype(shard.dtype)
        rest = tuple(name for name in place.names(*TOKENS) if name not in exchanged)
        return (jax.lax.psum(total, rest) if rest else total).astype(shard.dtype)

    hidden = (*TOKENS, None)

    def backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, None]:
        return place.map(add_up, (axes, TOKENS, hidden), axes)(*saved, g), None

    lookup = jax.custom_vjp(place.map(look_up, (axes, TOKENS), hidden))
    lookup.defvjp(lambda *args: (lookup(*args), args), backward)
    return lookup(table, tokens)
