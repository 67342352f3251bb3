"""A hash of each element's place or bits, computed where the elements lie: the same on every mesh."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

_SEEDS = (0x9E3779B1, 0x85EBCA77)
_BITS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def element_index(shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """The number of each element in C order, modulo 2^32."""
    index = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = math.prod(shape[axis + 1 :]) % 2**32
        index += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
    return index


def mix(x: UInt32[Array, "*n"]) -> UInt32[Array, "*n"]:
    """The finaliser of MurmurHash3: every bit of the result depends on every bit of x."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return x ^ (x >> 16)


def checksums(leaf: Array) -> UInt32[Array, "2"]:
    """Two sums modulo 2^32 over mixed bits of each element and its place.

    The order in which devices add does not matter, nothing is gathered, and swapped elements or layers show.
    """
    bits = _bits(leaf)
    place = element_index(leaf.shape)
    return jnp.stack([mix(bits ^ mix(place + jnp.uint32(seed))).sum(dtype=jnp.uint32) for seed in _SEEDS])


def _bits(leaf: Array) -> UInt32[Array, "..."]:
    if leaf.dtype == jnp.bool_:
        return leaf.astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(leaf, _BITS[leaf.dtype.itemsize]).astype(jnp.uint32)
