"""Products of activations with weights.

XLA's CPU backend transposes the first operand of a product that sums over rows and slots, as a gradient of weights
does. JAX puts the gradient that arrives first. If it is wide, as in an MLP, XLA computes what leads to it once more in
the order of the transpose, which takes several times as long as the product. Here the narrower operand comes first.
"""

import jax
from jaxtyping import Array, Num

from janus_jax.parallel.mesh import Placement


def product(x: Num[Array, "B L ..."], weight: Num[Array, "..."], place: Placement) -> Num[Array, "B L ..."]:
    """`x` [B, L, *inputs] times `weight` [*inputs, *outputs]: [B, L, *outputs]."""
    return (_on_cpus if place.platform == "cpu" else _product)(x, weight)


def _product(x: Array, weight: Array) -> Array:
    summed = range(x.ndim - 2)
    return jax.lax.dot_general(x, weight, ((tuple(2 + axis for axis in summed), tuple(summed)), ((), ())))


def _forward(x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    return _product(x, weight), (x, weight)


def _backward(kept: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, weight = kept
    inputs = x.ndim - 2
    dx = jax.lax.dot_general(g, weight, ((tuple(range(2, g.ndim)), tuple(range(inputs, weight.ndim))), ((), ())))
    slots = ((0, 1), (0, 1)), ((), ())
    if x.size <= g.size:
        return dx, jax.lax.dot_general(x, g, slots)
    turned = jax.lax.dot_general(g, x, slots)
    return dx, turned.transpose(*range(g.ndim - 2, turned.ndim), *range(g.ndim - 2))


_on_cpus = jax.custom_vjp(_product)
_on_cpus.defvjp(_forward, _backward)
