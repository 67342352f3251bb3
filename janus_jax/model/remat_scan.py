"""A scan over stacked layers with rematerialization, for least memory.

Each layer keeps its input alone, and in the backward pass its gradient takes the place of its weights. When JAX
differentiates a scan, weights and gradients of all layers are in memory at once, though half of each is useless:
gradients of layers not yet visited are zeros, and weights of visited layers are not read again. Here the backward pass
is a loop that carries the stacked weights, reads one layer's, and writes its gradient over them; XLA does so in one
buffer. In a train step these weights are a copy in the compute dtype that ends with the backward pass, so nothing is
lost.

Several microbatches share their weights, so gradients cannot be written over them. There the loop carries the sums of
the gradients so far, and adds each layer's to its own: no more than one layer's gradient is in memory. Nor is there a
copy of all weights in the compute dtype: each layer is narrowed when it runs.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

Block = Callable[[Any, Array, Any], Array]
"""(weights of one layer, hidden states, shared inputs) -> hidden states. It closes over no array."""


def rematerialized(block: Block, weights: Any, x: Array, shared: Any, *, accumulator: Any = None) -> Array:
    """Runs all layers on `x`; the backward pass computes each again from its input.

    Args:
        weights: a tree of arrays with a leading axis of layers.
        shared: a tree of arrays that every layer gets and that have no gradient, such as positions.
        accumulator: a tree like `weights`, whose values change no result. If it is given, its "gradient" is
            `accumulator` + the gradient of `weights`, and `weights` have none: differentiate by `accumulator` instead.
            Layers then run in the dtype of `x`, and their gradients are in it too, before they are added.
    """
    return _run(block, weights, x, shared, accumulator)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(block: Block, weights: Any, x: Array, shared: Any, accumulator: Any) -> Any:
    def body(x: Array, layer: Any) -> tuple[Array, None]:
        return block(_narrow(layer, x, accumulator), x, shared), None

    return jax.lax.scan(body, x, weights)[0]


def _forward(block: Block, weights: Any, x: Array, shared: Any, accumulator: Any) -> tuple[Array, Any]:
    def body(x: Array, layer: Any) -> tuple[Array, Array]:
        return block(_narrow(layer, x, accumulator), x, shared), x

    out, inputs = jax.lax.scan(body, x, weights)
    return out, (weights, inputs, shared, accumulator)


def _backward(block: Block, kept: Any, gradient: Array) -> tuple[Any, Array, None, Any]:
    weights, inputs, shared, accumulator = kept

    def body(carry: tuple[Array, Any], layer_input: tuple[Array, Array]) -> tuple[tuple[Array, Any], None]:
        gradient, stacked = carry
        i, x = layer_input
        pick = functools.partial(jax.lax.dynamic_index_in_dim, index=i, keepdims=False)
        layer = _narrow(jax.tree.map(pick, stacked if accumulator is None else weights), x, accumulator)
        _, vjp = jax.vjp(lambda layer, x: block(layer, x, shared), layer, x)
        result, gradient = vjp(gradient)
        if accumulator is not None:
            result = jax.tree.map(lambda sums, g: pick(sums) + g.astype(sums.dtype), stacked, result)
        put = functools.partial(jax.lax.dynamic_update_index_in_dim, index=i, axis=0)
        return (gradient, jax.tree.map(put, stacked, result)), None

    order, stacked = jnp.arange(inputs.shape[0]), weights if accumulator is None else accumulator
    (gradient, stacked), _ = jax.lax.scan(body, (gradient, stacked), (order, inputs), reverse=True)
    return (stacked, gradient, None, None) if accumulator is None else (None, gradient, None, stacked)


def _narrow(layer: Any, x: Array, accumulator: Any) -> Any:
    def narrow(leaf: Array) -> Array:
        return leaf.astype(x.dtype) if leaf.dtype.itemsize > x.dtype.itemsize else leaf

    # Without the barrier the TPU compiler narrows all layers before the loop.
    return layer if accumulator is None else jax.tree.map(narrow, jax.lax.optimization_barrier(layer))


_run.defvjp(_forward, _backward)
