"""A fingerprint of sharded weights, computed where they lie: the same on any mesh and any number of hosts."""

import dataclasses
import hashlib
from typing import Any

import jax

from janus_jax.model.config import ModelConfig
from janus_jax.parallel.hashing import checksums

_NOT_COMPUTED_WITH = ("initializer_range", "max_position_embeddings")
"""Keys that say how weights were made and how long texts may be; no log-prob depends on them."""

_sums = jax.jit(lambda tree: jax.tree.map(checksums, tree))


def model_fingerprint(config: ModelConfig, params: Any) -> str:
    """sha256 over the weights and what else decides what a model says: window, rotary base and the like.

    Collective: call it on every process.
    """
    shape = {name: value for name, value in dataclasses.asdict(config).items() if name not in _NOT_COMPUTED_WITH}
    return hashlib.sha256(repr((sorted(shape.items()), weights_fingerprint(params))).encode()).hexdigest()


def weights_fingerprint(params: Any) -> str:
    """sha256 over names, shapes, dtypes and checksums of all leaves. Collective: call it on every process.

    Nothing is gathered; see `checksums`.
    """
    sums = jax.device_get(_sums(params))
    digest = hashlib.sha256()
    for (path, leaf), pair in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(sums), strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        digest.update(repr((name, tuple(leaf.shape), str(leaf.dtype), pair.tolist())).encode())
    return digest.hexdigest()
