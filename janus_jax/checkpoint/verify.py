"""Whether two stored models say the same: both run on the same tokens, one layer in memory at a time."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.checkpoint.hf.keys import KeyEntry, cpu_device, key_table, nest
from janus_jax.checkpoint.stored_model import StoredModel
from janus_jax.model.attention import Layout
from janus_jax.model.config import ModelConfig
from janus_jax.model.mistral import Compute, one_layer, rms_norm

_TOKENS = 48
_HEAD_ROWS = 4096
"""Rows of the vocabulary whose logits are computed at a time."""


def largest_logit_difference(ours: StoredModel, theirs: StoredModel) -> float:
    """Largest absolute difference of float32 logits, or rewards, on random tokens; NaN where they overflow unlike.

    Weights are read in their stored dtypes and multiplied in float32, so equal weights give exactly zero.

    Raises:
        ConversionError: a tensor cannot be read.
    """
    tokens = np.random.default_rng(0).integers(0, ours.config.vocab_size, _TOKENS).astype(np.int32)
    blocks = zip(outputs(ours, tokens), outputs(theirs, tokens), strict=True)
    # finite weights may give infinite logits, and inf - inf is no difference of two models that say the same
    return float(np.max([0.0 if np.array_equal(a, b, equal_nan=True) else np.abs(a - b).max() for a, b in blocks]))


def outputs(source: StoredModel, tokens: np.ndarray) -> list[np.ndarray]:
    """Blocks of [T, V] logits along V, or one [T, 1] of rewards, in float32.

    Args:
        tokens: [T] int32.
    """
    config = source.config
    table = {(entry.path, entry.layer): entry for entry in key_table(config)}
    places = jnp.arange(len(tokens), dtype=jnp.int32)[None]
    layout = Layout(jnp.ones_like(places), jnp.ones_like(places), places)

    with jax.default_device(cpu_device()):
        embedding = source.read(table[("embedding",), None])
        x = jnp.asarray(embedding[tokens], jnp.float32)[None]
        head = embedding if config.tie_embeddings else None
        del embedding
        layers = sorted({layer for _, layer in table if layer is not None})
        for layer in layers:
            weights = {path[1:]: source.read(entry) for (path, at), entry in table.items() if at == layer}
            x = jax.block_until_ready(_layer(config, nest(weights), x, layout))  # or the next ones are read meanwhile
            del weights
        norm = jnp.asarray(source.read(table[("final_norm",), None]))
        x = rms_norm(x, norm.astype(jnp.float32), config.rms_norm_eps)[0]
        return _head(config, source, table, x, head)


def _head(
    config: ModelConfig, source: StoredModel, table: dict[Any, KeyEntry], x: jax.Array, tied: np.ndarray | None
) -> list[np.ndarray]:
    if config.head == "value":
        columns = source.read(table[("value_head",), None])
    else:
        columns = source.read(table[("lm_head",), None]) if tied is None else tied.T
    return [np.asarray(_product(x, columns[:, at : at + _HEAD_ROWS])) for at in range(0, columns.shape[1], _HEAD_ROWS)]


@functools.partial(jax.jit, static_argnums=0)
def _layer(config: ModelConfig, weights: Any, x: jax.Array, layout: Layout) -> jax.Array:
    return one_layer(config, weights, x, layout, Compute(dtype=jnp.float32))


@jax.jit
def _product(x: jax.Array, columns: jax.Array) -> jax.Array:
    return jnp.einsum("td,dv->tv", x, columns.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
