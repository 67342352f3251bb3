"""A kernel computed beside plain JAX on the device that is to use it, before anything is trained with it.

A kernel is a program of its own on each kind of device, by a compiler of its own or from a library, and what is wrong
there does not stop a run: it trains something else. So a run compares once, on made-up rows of its own length, heads
and limits, output and gradients.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from janus_jax.errors import first_line
from janus_jax.model.attention import Slots, attention
from janus_jax.model.kernels import Kernel, Need
from janus_jax.model.kernels.heads import heads_of_a_device
from janus_jax.parallel.mesh import NOWHERE
from janus_jax.parallel.processes import memory_for

LONGEST_ROW = 8192
"""Slots of the rows that are compared, at most: plain JAX takes time with the square of it, and memory."""

TOLERANCE = 2.0**-5
"""Largest difference at a slot, relative to the slot's size: both as lengths of its vector of all heads.

bfloat16 rounds by up to 2^-9. Softmax weights, gradients of scores, incoming and outgoing vectors are each rounded,
with unequal signs, which moves a vector by two or three of these. A query that sees one key of n too many or too few
moves by about n^-1/2: by 2^-5 at a thousand keys, so a mask that is wrong anywhere is found at early slots at least.
"""

_FLOOR = 2.0**-2
"""Where a slot is smaller than this share of the usual size, its difference is relative to this share: the gradient of
a query that sees one key is zero, and what is computed there is rounding alone."""


def on_a_device(need: Need) -> Need:
    """What one device computes of it, of rows that are long enough."""
    row_length = min(need.row_length, LONGEST_ROW)
    heads, kv_heads = heads_of_a_device(need.heads, need.kv_heads, need.place)
    longest = min(need.longest, row_length)
    return dataclasses.replace(
        need, heads=heads, kv_heads=kv_heads, row_length=row_length, longest=longest, place=NOWHERE
    )


@functools.cache
def failure(kernel: Kernel, need: Need, device: Any) -> str | None:
    """How the kernel differs from plain JAX on this device, or why it does not run there; None if they are equal.

    For rows of 8192 slots and 32 heads of 128 it needs GiB of the device's memory, which nobody has measured on a GPU.
    """
    slots, rng = made_up_rows(need), np.random.default_rng(0)
    real = np.asarray(slots.segment) > 0

    def normal(heads: int) -> np.ndarray:
        size = (*real.shape, heads, need.head_dim)
        return (rng.standard_normal(size, np.float32) * real[:, :, None, None]).astype(need.dtype)

    arrays = [normal(heads) for heads in (need.heads, need.kv_heads, need.kv_heads, need.heads)]
    needs = memory_for("attention in plain JAX, to compare a kernel with")
    with jax.default_device(device), jax.default_matmul_precision("highest"), needs:
        exact = _compute(functools.partial(attention, window=need.window), slots, *(jnp.float32(x) for x in arrays))
    with jax.default_device(device):
        try:
            ours = _compute(functools.partial(kernel, window=need.window), slots, *map(jnp.asarray, arrays))
            jax.block_until_ready(ours)
        except Exception as error:  # whatever compilers, libraries and drivers raise
            return f"does not run on {device.device_kind}: {first_line(error)}"
        return _difference(ours, exact, real, device)


def _compute(attend: Any, slots: Slots, q: Array, k: Array, v: Array, cotangent: Array) -> tuple[Array, ...]:
    """Output, output and gradients of q, k and v: without gradients, as in evaluation, it may be another program."""

    def run(q: Array, k: Array, v: Array, cotangent: Array, slots: Slots) -> tuple[Array, ...]:
        out, pull = jax.vjp(lambda *qkv: attend(*qkv, slots), q, k, v)
        return out, *pull(cotangent)

    return jax.jit(attend)(q, k, v, slots), *jax.jit(run)(q, k, v, cotangent, slots)


def _difference(ours: tuple[Array, ...], exact: tuple[Array, ...], real: np.ndarray, device: Any) -> str | None:
    names = ("outputs", "outputs in training", "gradients of queries", "gradients of keys", "gradients of values")
    for name, a, b in zip(names, ours, exact, strict=True):
        size = np.asarray(jnp.linalg.norm(b, axis=(2, 3)))[real]
        apart = np.asarray(jnp.linalg.norm(a.astype(jnp.float32) - b, axis=(2, 3)))[real]
        usual = float(np.sqrt(np.mean(np.square(size))))
        relative = apart / np.maximum(size, _FLOOR * usual)
        if not (relative <= TOLERANCE).all():  # also if some are NaN
            worst = float(np.nan_to_num(relative, nan=np.inf).max())
            share = f"by {worst:.0%} of their size" if np.isfinite(worst) else "and are not finite"
            return f"{name} differ from those of plain JAX on {device.device_kind}, {share}"
    return None


def made_up_rows(need: Need) -> Slots:
    """Three rows within the limits of a run, as the packer lays them: one with a long first response, one with a long
    last response, and one of tiny segments with padding behind."""
    rng = np.random.default_rng(0)
    rows = [_row(_lengths(need, rng, long), need.row_length) for long in (1, need.branches, None)]
    return Slots(*(jnp.asarray(np.stack(field)) for field in zip(*rows, strict=True)))


def _lengths(need: Need, rng: np.random.Generator, long: int | None) -> list[tuple[int, ...]]:
    """Slots of the shared prompt and of each branch, for each segment.

    Args:
        long: the branch of the first segment that gets most of the row; None: all are tiny.
    """
    left, prompts, segments = need.row_length, need.copies if need.branches > 1 else need.row_length, []
    for number in range(need.segments):
        share = left * 3 // 4 if long and not number else left // (need.segments - number)
        share = share if long else min(share, 6)
        if share < need.branches:
            break
        prompt = int(rng.integers(0, min(share // 3, prompts, need.longest - 1) + 1))
        even = (share - prompt) // need.branches
        sizes = rng.integers(1, even + 1, need.branches)
        if long and not number:
            sizes = 1 + sizes // 8
            sizes[long - 1] += share - prompt - sizes.sum()
        sizes = np.minimum(sizes, need.longest - prompt)
        segments.append((prompt, *sizes.tolist()))
        left, prompts = left - prompt - int(sizes.sum()), prompts - prompt
    return segments


def _row(segments: list[tuple[int, ...]], row_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Segment, branch and position of each slot."""
    fields, at = np.zeros((3, row_length), np.int32), 0
    for number, sizes in enumerate(segments, 1):
        for branch, size in enumerate(sizes):
            positions = np.arange(size) + (sizes[0] if branch else 0)
            fields[:, at : at + size] = np.stack(np.broadcast_arrays(number, branch, positions))
            at += size
    return fields[0], fields[1], fields[2]
