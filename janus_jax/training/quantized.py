"""Arrays in 8 bits: block-wise dynamic quantization as bitsandbytes has it (Dettmers et al. 2022, arXiv 2110.02861).

An element is a code: an index into 256 ascending numbers of [-1, 1], or of [0, 1] for what is never negative. A block
of elements shares a float32 scale, the largest of its magnitudes. Blocks are cut from the tensor as a Hugging Face file
holds it, flat, one layer at a time: so codes and scales are those of bitsandbytes, on every mesh.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, UInt8

from janus_jax.checkpoint.hf.keys import stored_axes
from janus_jax.model.mistral import ParamSpec


class Quantized(NamedTuple):
    """Codes in the shape of the parameter, and the scales of their blocks."""

    codes: Any  # uint8
    scales: Any  # float32


@functools.cache
def dynamic_map(*, signed: bool) -> np.ndarray:
    """The 256 numbers that codes stand for, ascending, float32; `create_dynamic_map` of bitsandbytes.

    Decade i of seven, from 1e-6 on, has 2^i means of equal parts of [0.1, 1], signed 2^i of either sign, unsigned twice
    as many; 0 and 1 are added.
    """
    numbers = [np.float32(0), np.float32(1)]
    for decade in range(7):
        bounds = _linspace(2 ** (decade + (0 if signed else 1)) + 1)
        means = np.float32(10.0 ** (decade - 6)) * ((bounds[:-1] + bounds[1:]) / np.float32(2))
        numbers += [*means, *(-means if signed else ())]
    return np.sort(np.array(numbers, np.float32))


def _linspace(count: int) -> np.ndarray:
    """torch's linspace(0.1, 1) in float32: from both ends to the middle, a product and a sum rounded once."""
    start, step = float(np.float32(0.1)), float(np.float32((np.float32(1) - np.float32(0.1)) / np.float32(count - 1)))
    index = np.arange(count)
    return np.where(index < count // 2, start + step * index, 1 - step * (count - 1 - index)).astype(np.float32)


@functools.cache
def _bounds(*, signed: bool) -> np.ndarray:
    """What a number must exceed to get code 1, 2, ...: midpoints, which themselves go to the even neighbour."""
    numbers = dynamic_map(signed=signed)
    middle = (numbers[:-1] + numbers[1:]) * np.float32(0.5)
    odd = np.arange(len(middle)) % 2 == 1
    return np.where(odd, np.nextafter(middle, np.float32(-np.inf)), middle)


def encode(x: Float[Array, "*n"], *, signed: bool) -> UInt8[Array, "*n"]:
    """The nearest codes of numbers that were divided by their scale.

    A negative number never becomes 0, as in bitsandbytes' CUDA kernel: it keeps its sign.
    """
    bounds = _bounds(signed=signed)

    def search(x: Array) -> Array:
        return jnp.searchsorted(jnp.asarray(bounds), x, side="left").astype(jnp.uint8)

    def count(x: Array) -> Array:  # TPUs look up slowly; as a sum of comparisons nothing but the result is stored
        passed = x[None] > jnp.asarray(bounds).reshape(-1, *(1,) * x.ndim)
        return passed.astype(jnp.int32).sum(0).astype(jnp.uint8)

    codes = jax.lax.platform_dependent(x, cpu=search, default=count)
    if signed:
        zero = int(np.searchsorted(dynamic_map(signed=True), 0))
        codes = jnp.where((codes == zero) & jnp.signbit(x), jnp.uint8(zero - 1), codes)
    return codes


def decode(codes: UInt8[Array, "*n"], *, signed: bool) -> Float[Array, "*n"]:
    """The numbers that codes stand for, to be multiplied by their scale."""
    numbers = dynamic_map(signed=signed)

    def look_up(codes: Array) -> Array:
        return jnp.asarray(numbers)[codes.astype(jnp.int32)]

    def select(codes: Array) -> Array:
        lead = (-1, *(1,) * codes.ndim)
        here = codes[None] == jnp.arange(len(numbers), dtype=jnp.uint8).reshape(lead)
        return jnp.where(here, jnp.asarray(numbers).reshape(lead), jnp.float32(0)).sum(0)

    return jax.lax.platform_dependent(codes, cpu=look_up, default=select)


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How one tensor is cut into blocks. Shapes are those of one layer.

    Where the rows of the Hugging Face matrix hold whole blocks, the blocks lie along one axis of ours (or several that
    follow each other, merged), and nothing is moved. Otherwise the tensor is brought into that order.
    """

    shape: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]  # for each axis of the Hugging Face tensor, the axes of ours that it folds
    size: int  # elements of a block

    @classmethod
    def of(cls, path: tuple[Any, ...], spec: ParamSpec, size: int) -> "Blocks":
        """Of a parameter at a path of `jax.tree_util`."""
        shape = spec.shape[1:] if _stacked(spec) else spec.shape
        names = tuple(str(getattr(key, "key", key)) for key in path)
        return cls(shape, stored_axes(names) or tuple((axis,) for axis in range(len(shape))), size)

    @property
    def row(self) -> tuple[int, ...]:
        """The axes that a row of the Hugging Face tensor folds."""
        return self.groups[-1]

    @property
    def in_rows(self) -> bool:
        """Whether a row holds whole blocks."""
        return math.prod(self.shape[axis] for axis in self.row) % self.size == 0

    @property
    def axis(self) -> int:
        """The axis of `split` along which a block lies."""
        return self.row[0] + 1 if self.in_rows else 1

    @property
    def scales_shape(self) -> tuple[int, ...]:
        count = -(-math.prod(self.shape) // self.size)
        if not self.in_rows:
            return (count,)
        first, last = self.row[0], self.row[-1]
        width = math.prod(self.shape[first : last + 1])
        return (*self.shape[:first], width // self.size, *self.shape[last + 1 :])

    def split(self, x: Array) -> Array:
        """The tensor with an axis of blocks' elements; what fills the last block is zero."""
        if self.in_rows:
            scales = self.scales_shape
            return x.reshape(*scales[: self.axis], self.size, *scales[self.axis :])
        flat = x.transpose(self._order).reshape(-1)
        return jnp.pad(flat, (0, -len(flat) % self.size)).reshape(-1, self.size)

    def join(self, x: Array) -> Array:
        """The reverse of `split`."""
        if self.in_rows:
            return x.reshape(self.shape)
        stored = tuple(self.shape[axis] for axis in self._order)
        flat = x.reshape(-1)[: math.prod(stored)]
        return flat.reshape(stored).transpose(np.argsort(self._order))

    def partition(self, codes: PartitionSpec, mesh: Any) -> PartitionSpec:
        """The mesh axes of the scales: those of the codes, where every shard holds whole blocks."""
        if not self.in_rows:
            return PartitionSpec(None)
        parts = [*codes, *[None] * (len(self.shape) - len(codes))]
        first, last = self.row[0], self.row[-1]
        names = parts[first]
        names = () if names is None else (names,) if isinstance(names, str) else names
        whole = self.scales_shape[first] % math.prod(mesh.shape[name] for name in names) == 0
        whole = whole and all(parts[axis] is None for axis in self.row[1:])
        return PartitionSpec(*parts[:first], parts[first] if whole else None, *parts[last + 1 :])

    @property
    def _order(self) -> tuple[int, ...]:
        return tuple(axis for group in self.groups for axis in group)

    def decoded(self, moment: Quantized, *, signed: bool) -> Array:
        """The numbers, split into blocks."""
        return self.split(decode(moment.codes, signed=signed)) * jnp.expand_dims(moment.scales, self.axis)

    def encoded(self, x: Array, *, signed: bool) -> Quantized:
        """From numbers in blocks. Where all of a block are zero, so is its scale, and any code stands for zero."""
        scales = jnp.abs(x).max(self.axis)
        divisor = jnp.expand_dims(jnp.where(scales > 0, scales, jnp.float32(1)), self.axis)
        return Quantized(self.join(encode(x / divisor, signed=signed)), scales)


def zeros(blocks: Blocks, spec: ParamSpec) -> Quantized:
    """A tensor of zeros."""
    layers = spec.shape[:1] if _stacked(spec) else ()
    return Quantized(
        jnp.zeros((*layers, *blocks.shape), jnp.uint8), jnp.zeros((*layers, *blocks.scales_shape), jnp.float32)
    )


def shardings(blocks: Blocks, spec: ParamSpec, sharding: NamedSharding) -> Quantized:
    """Of codes and scales, from that of the parameter."""
    layers = 1 if _stacked(spec) else 0
    partition = [*sharding.spec, *[None] * (len(spec.shape) - len(sharding.spec))]
    scales = blocks.partition(PartitionSpec(*partition[layers:]), sharding.mesh)
    return Quantized(sharding, NamedSharding(sharding.mesh, PartitionSpec(*partition[:layers], *scales)))


def _stacked(spec: ParamSpec) -> bool:
    return bool(spec.axes) and spec.axes[0] == "layers"
