"""Adam's moments in 8 bits, with the arithmetic of bitsandbytes' AdamW8bit.

Each step decodes the moments of one layer of one tensor, updates them in float32, takes the update from these numbers,
and encodes them again. Tensors of fewer than 4096 elements keep float32 moments. What differs from bitsandbytes' CUDA
kernel: its fast division and powers may be off by an ulp, and it decays weights after the update instead of before.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import NamedSharding

from janus_jax.model.mistral import ParamSpec
from janus_jax.training.quantized import Blocks, Quantized, shardings, zeros

_SMALLEST = 4096
"""Tensors with fewer elements keep float32 moments: `min_8bit_size` of bitsandbytes."""


@dataclasses.dataclass(frozen=True)
class EightBitMoments:
    """The moments of a tree of parameters.

    Args:
        specs: the tree, with a `ParamSpec` for each parameter.
        size: elements of a block.
        float32_embedding: whether the moments of the embedding stay float32.
    """

    specs: Any
    size: int
    float32_embedding: bool

    def zeros(self) -> Any:
        """Moments before the first step."""
        return self._map(lambda blocks, spec: zeros(blocks, spec) if blocks else jnp.zeros(spec.shape, jnp.float32))

    def shardings(self, params: Any) -> Any:
        """Where moments lie, from the shardings of the parameters."""

        def sharding(blocks: Blocks | None, spec: ParamSpec, param: NamedSharding) -> Any:
            return shardings(blocks, spec, param) if blocks else param

        return self._map(sharding, params)

    def scale_by_adam(
        self, b1: float, b2: float, eps: float, correction: Callable[[float, Array], Array]
    ) -> optax.GradientTransformation:
        """`optax.scale_by_adam`, whose state holds `Quantized` moments. `correction`: 1 - decay**step."""

        def init(params: Any) -> Any:
            del params
            return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), self.zeros(), self.zeros())

        def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
            del params
            count = jnp.asarray(optax.safe_increment(state.count))
            mean, square = correction(b1, count), correction(b2, count)

            def adam(grad: Array, m: Array, v: Array) -> tuple[Array, Array, Array]:
                m, v = b1 * m + (1 - b1) * grad, b2 * v + (1 - b2) * (grad * grad)
                return m / mean / (jnp.sqrt(v / square) + eps), m, v

            def of_leaf(blocks: Blocks | None, spec: ParamSpec, grad: Array, m: Any, v: Any) -> Any:
                if blocks is None:
                    return adam(grad, m, v)

                def of_layer(grad: Array, m: Quantized, v: Quantized) -> Any:
                    decoded = blocks.decoded(m, signed=True), blocks.decoded(v, signed=False)
                    scaled, mean, square = adam(blocks.split(grad), *decoded)
                    return (
                        blocks.join(scaled),
                        blocks.encoded(mean, signed=True),
                        blocks.encoded(square, signed=False),
                    )

                if len(spec.shape) == len(blocks.shape):
                    return of_layer(grad, m, v)
                return _over_layers(of_layer, (grad, m, v))

            triples = self._map(of_leaf, updates, state.mu, state.nu)
            scaled, mu, nu = (
                jax.tree.map(lambda _, triple, part=part: triple[part], self.specs, triples) for part in range(3)
            )
            return scaled, optax.ScaleByAdamState(count, mu, nu)

        return optax.GradientTransformation(init, update)

    def _map(self, function: Callable[..., Any], *trees: Any) -> Any:
        """`function(blocks, spec, ...)` for each parameter; blocks are None where moments stay float32."""

        def of_leaf(path: tuple[Any, ...], spec: ParamSpec, *parts: Any) -> Any:
            blocks = Blocks.of(path, spec, self.size)
            name = str(getattr(path[-1], "key", path[-1]))
            small = math.prod(blocks.shape) < _SMALLEST or (self.float32_embedding and name == "embedding")
            return function(None if small else blocks, spec, *parts)

        return jax.tree_util.tree_map_with_path(of_leaf, self.specs, *trees)


def _over_layers(function: Callable[..., Any], arrays: Any) -> Any:
    """`function` of each layer in turn, written over what it read: float32 moments exist of one layer at a time."""

    def body(layer: Array, arrays: Any) -> Any:
        parts = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, layer, keepdims=False), arrays)
        return jax.tree.map(
            lambda x, part: jax.lax.dynamic_update_index_in_dim(x, part, layer, 0), arrays, function(*parts)
        )

    return jax.lax.fori_loop(0, jax.tree.leaves(arrays)[0].shape[0], body, arrays)
