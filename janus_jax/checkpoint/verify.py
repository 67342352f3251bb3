"""Runs two stored models on the same tokens and compares their outputs, with one layer in memory at a time.

Both are run by this package. What it reads wrongly from a config.json, it reads wrongly twice: only a comparison with
another library, as the tests make it with transformers, can show that.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.checkpoint.hf.blocks import cpu_device
from janus_jax.checkpoint.hf.keys import KeyEntry, key_table, nest
from janus_jax.checkpoint.stored_model import StoredModel
from janus_jax.model.attention import Slots
from janus_jax.model.config import ModelConfig
from janus_jax.model.mistral import Compute, one_layer, rms_norm

_TOKENS = 48
_HEAD_TOKENS = 4096
"""Vocabulary entries whose logits are computed at a time."""


def largest_logit_difference(ours: StoredModel, theirs: StoredModel) -> float:
    """Largest absolute difference of float32 logits, or rewards, on random tokens; NaN if they overflow differently.

    Weights are read in their stored dtypes and multiplied in float32, so equal weights give exactly zero.

    Raises:
        ConversionError: a tensor cannot be read.
    """
    tokens = np.random.default_rng(0).integers(0, ours.config.vocab_size, _TOKENS).astype(np.int32)
    blocks = zip(outputs(ours, tokens), outputs(theirs, tokens), strict=True)
    # Finite weights may give infinite logits. Equal infinities are no difference, but inf - inf is NaN.
    return float(np.max([0.0 if np.array_equal(a, b, equal_nan=True) else np.abs(a - b).max() for a, b in blocks]))


def outputs(model: StoredModel, tokens: np.ndarray) -> list[np.ndarray]:
    """Blocks of [T, V] logits along V, or one [T, 1] of rewards, in float32.

    Args:
        tokens: [T] int32.
    """
    config = model.config
    table = {(entry.path, entry.layer): entry for entry in key_table(config)}
    places = jnp.arange(len(tokens), dtype=jnp.int32)[None]
    layout = Slots(jnp.ones_like(places), jnp.ones_like(places), places)

    with jax.default_device(cpu_device()):
        embedding = model.read(table[("embedding",), None])
        x = jnp.asarray(embedding[tokens], jnp.float32)[None]
        head = embedding if config.tie_embeddings else None
        del embedding
        layers = sorted({layer for _, layer in table if layer is not None})
        for layer in layers:
            weights = {path[1:]: model.read(entry) for (path, index), entry in table.items() if index == layer}
            x = jax.block_until_ready(_layer(config, nest(weights), x, layout))  # before the next layer takes memory
            del weights
        norm = jnp.asarray(model.read(table[("final_norm",), None]))
        x = rms_norm(x, norm.astype(jnp.float32), config.rms_norm_eps)[0]
        return _head(config, model, table, x, head)


def _head(
    config: ModelConfig, model: StoredModel, table: dict[Any, KeyEntry], x: jax.Array, tied: np.ndarray | None
) -> list[np.ndarray]:
    if config.head == "value":
        columns = model.read(table[("value_head",), None])
    else:
        columns = model.read(table[("lm_head",), None]) if tied is None else tied.T
    starts = range(0, columns.shape[1], _HEAD_TOKENS)
    return [np.asarray(_product(x, columns[:, start : start + _HEAD_TOKENS])) for start in starts]


@functools.partial(jax.jit, static_argnums=0)
def _layer(config: ModelConfig, weights: Any, x: jax.Array, layout: Slots) -> jax.Array:
    return one_layer(config, weights, x, layout, Compute(dtype=jnp.float32))


@jax.jit
def _product(x: jax.Array, columns: jax.Array) -> jax.Array:
    return jnp.einsum("td,dv->tv", x, columns.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
