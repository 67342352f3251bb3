"""Stacked layers run one after another, for least memory: what a layer keeps is its input, and in the backward pass
its gradient takes the place of its weights.

Differentiated by jax, a scan over layers has weights and gradients of all layers at once, though one half of each is of
no use: gradients of layers not yet visited are zeros, weights of those visited are not read again. Here the backward
pass is a loop that carries the stacked weights, reads a layer's, and writes its gradient over them; XLA does so in one
buffer. A train step's weights in the compute dtype are a copy that ends with the backward pass, so nothing is lost.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

Block = Callable[[Any, Array, Any], Array]
"""(a layer's weights, hidden states, what all layers are told) -> hidden states. Takes arrays as arguments alone."""


def rematerialized(block: Block, weights: Any, x: Array, told: Any) -> Array:
    """What all layers make of `x`; in the backward pass each is computed again from its input.

    Args:
        weights: a tree of arrays with a leading axis of layers.
        told: a tree of arrays that have no gradient, such as positions.
    """
    return _run(block, weights, x, told)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(block: Block, weights: Any, x: Array, told: Any) -> Any:
    return jax.lax.scan(lambda x, layer: (block(layer, x, told), None), x, weights)[0]


def _forward(block: Block, weights: Any, x: Array, told: Any) -> tuple[Array, Any]:
    out, inputs = jax.lax.scan(lambda x, layer: (block(layer, x, told), x), x, weights)
    return out, (weights, inputs, told)


def _backward(block: Block, kept: Any, gradient: Array) -> tuple[Any, Array, None]:
    weights, inputs, told = kept

    def body(carry: tuple[Array, Any], each: tuple[Array, Array]) -> tuple[tuple[Array, Any], None]:
        gradient, stacked = carry
        i, x = each
        layer = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False), stacked)
        _, vjp = jax.vjp(lambda layer, x: block(layer, x, told), layer, x)
        of_layer, gradient = vjp(gradient)
        put = functools.partial(jax.lax.dynamic_update_index_in_dim, index=i, axis=0)
        return (gradient, jax.tree.map(put, stacked, of_layer)), None

    order = jnp.arange(inputs.shape[0])
    (gradient, gradients), _ = jax.lax.scan(body, (gradient, weights), (order, inputs), reverse=True)
    return gradients, gradient, None


_run.defvjp(_forward, _backward)
