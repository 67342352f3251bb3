"""A scan over stacked layers with rematerialization, for least memory.

Each layer keeps its input alone, and in the backward pass its gradient takes the place of its weights. When JAX
differentiates a scan, weights and gradients of all layers are in memory at once, though half of each is useless:
gradients of layers not yet visited are zeros, and weights of visited layers are not read again. Here the backward pass
is a loop that carries the stacked weights, reads one layer's, and writes its gradient over them; XLA does so in one
buffer. In a train step these weights are a copy in the compute dtype that ends with the backward pass, so nothing is
lost.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

Block = Callable[[Any, Array, Any], Array]
"""(weights of one layer, hidden states, shared inputs) -> hidden states. It closes over no array."""


def rematerialized(block: Block, weights: Any, x: Array, shared: Any) -> Array:
    """Runs all layers on `x`; the backward pass computes each again from its input.

    Args:
        weights: a tree of arrays with a leading axis of layers.
        shared: a tree of arrays that every layer gets and that have no gradient, such as positions.
    """
    return _run(block, weights, x, shared)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(block: Block, weights: Any, x: Array, shared: Any) -> Any:
    return jax.lax.scan(lambda x, layer: (block(layer, x, shared), None), x, weights)[0]


def _forward(block: Block, weights: Any, x: Array, shared: Any) -> tuple[Array, Any]:
    out, inputs = jax.lax.scan(lambda x, layer: (block(layer, x, shared), x), x, weights)
    return out, (weights, inputs, shared)


def _backward(block: Block, kept: Any, gradient: Array) -> tuple[Any, Array, None]:
    weights, inputs, shared = kept

    def body(carry: tuple[Array, Any], layer_input: tuple[Array, Array]) -> tuple[tuple[Array, Any], None]:
        gradient, stacked = carry
        i, x = layer_input
        layer = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False), stacked)
        _, vjp = jax.vjp(lambda layer, x: block(layer, x, shared), layer, x)
        layer_gradient, gradient = vjp(gradient)
        put = functools.partial(jax.lax.dynamic_update_index_in_dim, index=i, axis=0)
        return (gradient, jax.tree.map(put, stacked, layer_gradient)), None

    order = jnp.arange(inputs.shape[0])
    (gradient, gradients), _ = jax.lax.scan(body, (gradient, weights), (order, inputs), reverse=True)
    return gradients, gradient, None


_run.defvjp(_forward, _backward)
