"""A fingerprint of sharded weights, computed where they lie: the same on any mesh and any number of hosts."""

import dataclasses
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

from janus_jax.model.config import ModelConfig
from janus_jax.training.hashing import element_index, mix

_SEEDS = (0x9E3779B1, 0x85EBCA77)
_BITS = {2: jnp.uint16, 4: jnp.uint32}


_NOT_COMPUTED_WITH = ("initializer_range", "max_position_embeddings")
"""Keys that say how weights were made and how long texts may be; no log-prob depends on them."""


def model_fingerprint(config: ModelConfig, params: Any) -> str:
    """sha256 over the weights and what else decides what a model says: window, rotary base and the like.

    Collective: call it on every process.
    """
    shape = {name: value for name, value in dataclasses.asdict(config).items() if name not in _NOT_COMPUTED_WITH}
    return hashlib.sha256(repr((sorted(shape.items()), weights_fingerprint(params))).encode()).hexdigest()


def weights_fingerprint(params: Any) -> str:
    """sha256 over names, shapes, dtypes and checksums of all leaves. Collective: call it on every process.

    A checksum is a sum modulo 2^32 over mixed bits of each element and its place, so the order in which devices add
    does not matter, nothing is gathered, and swapped elements or layers show.
    """
    sums = jax.device_get(jax.jit(lambda tree: jax.tree.map(_checksums, tree))(params))
    digest = hashlib.sha256()
    for (path, leaf), checksums in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(sums), strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        digest.update(repr((name, tuple(leaf.shape), str(leaf.dtype), checksums.tolist())).encode())
    return digest.hexdigest()


def _checksums(leaf: Array) -> UInt32[Array, "2"]:
    bits = jax.lax.bitcast_convert_type(leaf, _BITS[leaf.dtype.itemsize]).astype(jnp.uint32)
    place = element_index(leaf.shape)
    return jnp.stack([mix(bits ^ mix(place + jnp.uint32(seed))).sum(dtype=jnp.uint32) for seed in _SEEDS])
