"""Log-probabilities of given tokens on CPUs, in float32, where logits of all slots fit into memory.

There arithmetic and passes over arrays as wide as the vocabulary are what takes time. So slots whose log-probs nobody
reads are left out of all products, and the backward pass consists of two products with what the forward pass kept.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from janus_jax.model.vocabulary import TOKENS, gather, scatter_sum, vocab_axes, vocab_start
from janus_jax.parallel.mesh import Placement

_HIDDEN, _HEAD, _KEPT = (*TOKENS, None), ("embed", "vocab"), (*TOKENS, "vocab")

_PARTS = 8
"""How finely the number of slots in a product follows the number that count. More parts take longer to compile."""

_MANY = 256
"""Slots of a device from which on some are left out."""


def token_logps(
    hidden: Float[Array, "B L D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "B L"],
    counted: Bool[Array, "B L"],
    *,
    place: Placement,
) -> Float[Array, "B L"]:
    """log softmax(hidden @ head)[target] at each slot that counts, and 0 elsewhere, without a gradient there."""
    axes = (_HIDDEN, _HEAD, TOKENS, TOKENS)
    kept = (_KEPT if vocab_axes(place) else _HIDDEN,) * 2
    run = functools.partial(_forward, place=place)

    def forward(*args: Array) -> tuple[Array, Any]:
        logps, *residuals = place.map(functools.partial(run, keep=True), axes, (TOKENS, *kept))(*args)
        return logps, (*args, *residuals)

    def backward(saved: Any, g: Array) -> tuple[Array, Array, None, None]:
        run = functools.partial(_backward, place=place)
        return *place.map(run, (*axes, *kept, TOKENS), (_HIDDEN, _HEAD))(*saved, g), None, None

    logps = jax.custom_vjp(lambda *args: place.map(functools.partial(run, keep=False), axes, (TOKENS,))(*args)[0])
    logps.defvjp(forward, backward)
    return logps(hidden, head, targets, counted)


def _in_order(counted: Array) -> tuple[Array, Array]:
    """Numbers of all slots, those that count first; and which of `_sizes` holds those."""
    order = jnp.argsort(~counted.reshape(-1), stable=True)
    sizes = jnp.asarray(_sizes(counted.size)[:-1], jnp.int32)
    return order, (counted.sum() > sizes).sum()


def _sizes(slots: int) -> list[int]:
    """Numbers of slots for which products are compiled."""
    if slots < _MANY:
        return [slots]
    return sorted({-(-slots * part // _PARTS) for part in range(1, _PARTS + 1)})


def _of_first(which: Array, slots: int, run: Callable[[int], tuple[Array, ...]]) -> tuple[Array, ...]:
    """`run(size)` for one of the sizes: arrays whose first axis is as long, or shorter."""
    if len(_sizes(slots)) == 1:
        return run(slots)
    return jax.lax.switch(which, [functools.partial(run, size) for size in _sizes(slots)])


def _forward(
    x: Array, shard: Array, targets: Array, counted: Array, *, place: Placement, keep: bool
) -> tuple[Array, ...]:
    """Log-probs [b, l]; if `keep` also, in the order of `_in_order`, exp(logits - their maximum) [b, l, V] and what
    makes probabilities of it, [b, l, 1]. Maxima are those of this device's part of the vocabulary."""
    head, names, slots = gather(shard, place, _HEAD), vocab_axes(place), counted.size
    order, which = _in_order(counted)
    x = x.reshape(slots, -1)[order]
    target, here = _own(targets.reshape(-1)[order], head, place)

    def first(size: int) -> tuple[Array, ...]:
        logits = _product(x[:size], head)
        picked = jnp.take_along_axis(logits, target[:size, None], -1)[:, 0]
        top = logits.max(-1)
        weights = jnp.exp(logits - top[:, None])
        numbers = [jnp.where(here[:size], picked, 0), top, weights.sum(-1)]
        return (*(_pad(part, slots) for part in (*numbers, *([weights] if keep else []))),)

    picked, top, total, *weights = _of_first(which, slots, first)
    best = jax.lax.pmax(top, names) if names else top
    total = total * jnp.exp(top - best)
    if names:
        total, picked = jax.lax.psum((total, picked), names)
    is_counted = jnp.arange(slots, dtype=jnp.int32) < counted.sum()
    logsumexp = best + jnp.log(jnp.where(is_counted, total, 1))
    logps = jnp.where(is_counted, picked - logsumexp, 0)
    logps = logps[jnp.argsort(order)].reshape(counted.shape)
    if not keep:
        return (logps,)
    share = jnp.where(is_counted, jnp.exp(top - logsumexp), 0)
    return logps, *(part.reshape(*counted.shape, -1) for part in (weights[0], share))


def _backward(
    x: Array, shard: Array, targets: Array, counted: Array, weights: Array, share: Array, g: Array, *, place: Placement
) -> tuple[Array, Array]:
    """Cotangents of x [b, l, D] and of this device's shard of the head.

    Of the log-prob of t, that of the logits is onehot(t) - p. As p is `weights` with rows scaled, products take
    `weights` as they are and the scale goes to what is as narrow as the model. The row and column of t are added.
    """
    head, names, slots = gather(shard, place, _HEAD), vocab_axes(place), counted.size
    order, which = _in_order(counted)
    shape, x = x.shape, x.reshape(slots, -1)[order]
    g = jnp.where(counted, g, 0).reshape(-1)[order][:, None]
    scale, weights = -g * share.reshape(slots, 1), weights.reshape(slots, -1)

    def first(size: int) -> tuple[Array, ...]:
        rows = weights[:size]
        return _pad(_product(rows, head.T), slots), _product((x[:size] * scale[:size]).T, rows)

    dx, dhead = _of_first(which, slots, first)
    target, here = _own(targets.reshape(-1)[order], head, place)
    g = jnp.where(here[:, None], g, 0)
    dx = dx * scale + g * head[:, target].T
    dhead = dhead.at[:, target].add((g * x).T)
    dx = jax.lax.psum(dx, names) if names else dx
    return dx[jnp.argsort(order)].reshape(shape), scatter_sum(dhead, place, _HEAD)


def _own(targets: Array, head: Array, place: Placement) -> tuple[Array, Array]:
    """Columns of targets in this device's part of the vocabulary, and which targets lie in it."""
    column = targets - vocab_start(place, head.shape[1])
    return column.clip(0, head.shape[1] - 1), (column >= 0) & (column < head.shape[1])


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _pad(x: Array, slots: int) -> Array:
    """`x` with zeros behind it, up to `slots`."""
    return jnp.pad(x, [(0, slots - len(x))] + [(0, 0)] * (x.ndim - 1))
