"""A scan over stacked layers with rematerialization, for least memory.

In the backward pass a layer's gradient takes the place of its weights. When JAX differentiates a scan, weights and
gradients of all layers are in memory at once, though half of each is useless: gradients of layers not yet visited are
zeros, and weights of visited layers are not read again. Here the backward pass is a loop that carries the stacked
weights, reads one layer's, and writes its gradient over them; XLA does so in one buffer. In a train step these weights
are a copy in the compute dtype that ends with the backward pass, so nothing is lost.

Several microbatches share their weights, so gradients cannot be written over them. There the loop carries the sums of
the gradients so far, and adds each layer's to its own: no more than one layer's gradient is in memory. Each layer is
narrowed to the compute dtype where it runs; the TPU compiler narrows all of them before the loop, and keeps that copy.

What else the backward pass reads of the forward pass is each layer's input, or what a policy of JAX keeps. Devices that
hold the same input may keep a share each (`shares`).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from janus_jax.parallel.mesh import WHOLE, Shares

Block = Callable[[Any, Array, Any], Array]
"""(weights of one layer, hidden states, shared inputs) -> hidden states. It closes over no array."""

Policy = Callable[..., Any]
"""As `jax.checkpoint` takes it; `jax.checkpoint_policies` has some."""


def rematerialized(
    block: Block,
    weights: Any,
    x: Array,
    shared: Any,
    *,
    policy: Policy | None = None,
    accumulator: Any = None,
    shares: Shares = WHOLE,
) -> Array:
    """Runs all layers on `x`; the backward pass computes each again, as far as nothing of it was kept.

    Args:
        weights: a tree of arrays with a leading axis of layers.
        shared: a tree of arrays that every layer gets and that have no gradient, such as positions.
        policy: what to keep of each layer. None: its input alone.
        accumulator: a tree like `weights`, whose values change no result. If it is given, its "gradient" is
            `accumulator` + the gradient of `weights`, and `weights` have none: differentiate by `accumulator` instead.
            Layers then run in the dtype of `x`, and their gradients are in it too, before they are added.
        shares: applied to each layer's input before and after the time in which it is kept.
    """
    return _run(block, policy, shares, weights, x, shared, accumulator)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _run(
    block: Block, policy: Policy | None, shares: Shares, weights: Any, x: Array, shared: Any, accumulator: Any
) -> Any:
    def body(x: Array, layer: Any) -> tuple[Array, None]:
        return block(_used(layer, x.dtype, accumulator), x, shared), None

    return jax.lax.scan(body, x, weights)[0]


def _forward(
    block: Block, policy: Policy | None, shares: Shares, weights: Any, x: Array, shared: Any, accumulator: Any
) -> Any:
    def body(x: Array, layer: Any) -> tuple[Array, Any]:
        layer = _used(layer, x.dtype, accumulator)
        if policy is None:
            return block(layer, x, shared), shares[0](x)
        out, kept = _Kept.of(block, policy, layer, x, shared)
        return out, kept.with_input(shares[0])

    out, kept = jax.lax.scan(body, x, weights)
    return out, (weights, kept, shared, accumulator)


def _backward(
    block: Block, policy: Policy | None, shares: Shares, residuals: Any, gradient: Array
) -> tuple[Any, Array, None, Any]:
    weights, kept, shared, accumulator = residuals

    def body(carry: tuple[Array, Any], i_kept: tuple[Array, Any]) -> tuple[tuple[Array, Any], None]:
        gradient, stacked = carry
        i, kept = i_kept
        pick = functools.partial(jax.lax.dynamic_index_in_dim, index=i, keepdims=False)
        layer = jax.tree.map(pick, stacked if accumulator is None else weights)
        layer = _used(layer, gradient.dtype, accumulator)
        if policy is None:
            _, vjp = jax.vjp(lambda layer, x: block(layer, x, shared), layer, shares[1](kept))
        else:
            vjp = kept.with_input(shares[1]).vjp(layer, shared)
        result, gradient = vjp(gradient)
        if accumulator is not None:
            result = jax.tree.map(lambda sums, g: pick(sums) + g.astype(sums.dtype), stacked, result)
        put = functools.partial(jax.lax.dynamic_update_index_in_dim, index=i, axis=0)
        return (gradient, jax.tree.map(put, stacked, result)), None

    order = jnp.arange(jax.tree.leaves(weights)[0].shape[0])
    start = gradient, weights if accumulator is None else accumulator
    (gradient, stacked), _ = jax.lax.scan(body, start, (order, kept), reverse=True)
    return (stacked, gradient, None, None) if accumulator is None else (None, gradient, None, stacked)


def _used(layer: Any, dtype: Any, accumulator: Any) -> Any:
    """The weights that a layer runs with."""

    def narrow(leaf: Array) -> Array:
        return leaf.astype(dtype) if leaf.dtype.itemsize > jnp.dtype(dtype).itemsize else leaf

    return layer if accumulator is None else jax.tree.map(narrow, layer)


_run.defvjp(_forward, _backward)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["arrays"], meta_fields=["tree", "sources", "input"])
@dataclasses.dataclass(frozen=True)
class _Kept:
    """What a policy keeps of a layer: of all that its backward pass reads, what are neither weights nor shared."""

    arrays: list[Any]  # JAX puts other things into trees too, such as descriptions of arrays
    tree: Any  # of JAX's backward function
    sources: tuple[int, ...]  # of each leaf of it: its place among weights, shared inputs and arrays, in this order
    input: int | None  # place of the layer's input among the arrays, if it is kept as it is

    @classmethod
    def of(cls, block: Block, policy: Policy, layer: Any, x: Array, shared: Any) -> "tuple[Array, _Kept]":
        """Runs the block too."""
        if policy is not jax.checkpoint_policies.everything_saveable:
            block = jax.checkpoint(block, prevent_cse=False, policy=policy)
        out, vjp = jax.vjp(lambda layer, x: block(layer, x, shared), layer, x)
        leaves, tree = jax.tree.flatten(vjp)
        known = jax.tree.leaves((layer, shared))
        every = list({id(leaf): leaf for leaf in (*known, *leaves)}.values())
        places = {id(leaf): place for place, leaf in enumerate(every)}
        arrays = every[len(known) :]
        place = next((place for place, leaf in enumerate(arrays) if leaf is x), None)
        return out, cls(arrays, tree, tuple(places[id(leaf)] for leaf in leaves), place)

    def with_input(self, change: Callable[[Array], Array]) -> "_Kept":
        """The same with another form of the layer's input."""
        arrays = [change(leaf) if place == self.input else leaf for place, leaf in enumerate(self.arrays)]
        return dataclasses.replace(self, arrays=arrays)

    def vjp(self, layer: Any, shared: Any) -> Callable[[Array], tuple[Any, Array]]:
        """The backward function: gradient of the output -> gradients of weights and input."""
        every = (*jax.tree.leaves((layer, shared)), *self.arrays)
        return jax.tree.unflatten(self.tree, [every[source] for source in self.sources])
