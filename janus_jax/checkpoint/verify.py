"""Runs two stored models on the same tokens and compares their outputs, with two layers in memory at most.

Both are run by this package. What it reads wrongly from a config.json, it reads wrongly twice: only a comparison with
another library, as the tests make it with transformers, can show that.
"""

import concurrent.futures
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.checkpoint.digest import tensors
from janus_jax.checkpoint.hf.blocks import cpu_device, empty
from janus_jax.checkpoint.hf.keys import KeyEntry, KeyPath, key_table, nest
from janus_jax.checkpoint.stored_model import StoredModel
from janus_jax.model.attention import Slots
from janus_jax.model.config import ModelConfig
from janus_jax.model.mistral import Compute, one_layer, rms_norm

_TOKENS = 48
_HEAD_TOKENS = 4096
"""Vocabulary entries whose logits are computed at a time."""


def largest_logit_difference(ours: "Outputs", theirs: "Outputs") -> float:
    """Largest absolute difference of float32 logits, or rewards, of two models on the same random tokens; NaN if they
    overflow differently.

    Weights are multiplied in float32, whatever dtype they are stored in, so equal weights give exactly zero.
    """
    blocks = zip(ours.result(), theirs.result(), strict=True)
    # Finite weights may give infinite logits. Equal infinities are no difference, but inf - inf is NaN.
    return float(np.max([0.0 if np.array_equal(a, b, equal_nan=True) else np.abs(a - b).max() for a, b in blocks]))


def outputs(model: StoredModel, tokens: np.ndarray | None = None) -> "Outputs":
    """The outputs of a stored model, to compare any two.

    Raises:
        ConversionError: a tensor cannot be read.
    """
    made = Outputs(model.config, tokens)
    for entry, block in tensors(model):
        made.add(entry, block)
    return made


class Outputs:
    """Runs a model whose tensors come one at a time. A thread computes a layer while the next one comes.

    Args:
        tokens: [T] int32; None: random ones, the same for every model of this vocabulary.
    """

    def __init__(self, config: ModelConfig, tokens: np.ndarray | None = None):
        if tokens is None:
            tokens = np.random.default_rng(0).integers(0, config.vocab_size, _TOKENS).astype(np.int32)
        places = jnp.arange(len(tokens), dtype=jnp.int32)[None]
        self._config, self._tokens = config, tokens
        self._layout = Slots(jnp.ones_like(places), jnp.ones_like(places), places)
        self._in_layer = sum(entry.layer == 0 for entry in key_table(config))
        self._weights: dict[KeyPath, np.ndarray] = {}
        self._float32: dict[KeyPath, np.ndarray] = {}  # memory for a layer's cast weights, which the next one reuses
        self._tied: np.ndarray | None = None
        self._x: Any = None
        self._head: list[np.ndarray] = []
        self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="outputs")
        self._work: list[concurrent.futures.Future[None]] = []

    def add(self, entry: KeyEntry, block: np.ndarray) -> None:
        """Takes the next tensor in the order of the key table. Waits for the layer before the one that it completes."""
        weights = {entry.path: block}
        if entry.layer is not None:
            self._weights[entry.path[1:]] = block
            if len(self._weights) < self._in_layer:
                return
            weights, self._weights = self._weights, {}
        while self._work:
            self._work.pop().result()
        self._work.append(self._pool.submit(self._run, entry, weights))

    def result(self) -> list[np.ndarray]:
        """Blocks of [T, V] logits along V, or one [T, 1] of rewards, in float32, when all tensors were added."""
        while self._work:
            self._work.pop().result()
        self._pool.shutdown()
        return self._head

    def _run(self, entry: KeyEntry, weights: dict[KeyPath, np.ndarray]) -> None:
        with jax.default_device(cpu_device()):
            if entry.layer is not None:
                weights = {path: self._cast(path, block) for path, block in weights.items()}
                placed = jax.device_put(nest(weights), cpu_device())  # unlike jit, this copies no aligned array
                self._x = jax.block_until_ready(_layer(self._config, placed, self._x, self._layout))
            elif entry.path == ("embedding",):
                embedding = weights[entry.path]
                self._x = jnp.asarray(embedding[self._tokens], jnp.float32)[None]
                self._tied = embedding.T if self._config.tie_embeddings else None
            elif entry.path == ("final_norm",):
                self._float32.clear()  # there is no other layer
                norm = jnp.asarray(weights[entry.path]).astype(jnp.float32)
                self._x = rms_norm(self._x, norm, self._config.rms_norm_eps)[0]
                if self._config.head == "lm" and self._tied is not None:
                    self._multiply(self._tied)
            else:
                self._multiply(weights[entry.path])

    def _cast(self, path: KeyPath, block: np.ndarray) -> np.ndarray:
        """The block in float32. XLA would ask for new memory, which takes longer than the cast."""
        if block.dtype == np.float32:
            return block
        if path not in self._float32:
            self._float32[path] = empty(block.shape, np.dtype(np.float32))
        np.copyto(self._float32[path], block)
        return self._float32[path]

    def _multiply(self, columns: np.ndarray) -> None:
        starts = range(0, columns.shape[1], _HEAD_TOKENS)
        self._head = [np.asarray(_product(self._x, columns[:, start : start + _HEAD_TOKENS])) for start in starts]


@functools.partial(jax.jit, static_argnums=0)
def _layer(config: ModelConfig, weights: Any, x: jax.Array, layout: Slots) -> jax.Array:
    return one_layer(config, weights, x, layout, Compute(dtype=jnp.float32))


@jax.jit
def _product(x: jax.Array, columns: jax.Array) -> jax.Array:
    return jnp.einsum("td,dv->tv", x, columns.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
