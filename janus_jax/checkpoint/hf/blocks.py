"""Blocks of weights in host memory: put in C order, and searched for NaN, by several threads and part by part."""

import collections
import concurrent.futures
import contextlib
import functools
import math
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

_THREADS = min(4, os.cpu_count() or 1)
_PANEL_BYTES = 16 << 20
"""A part that is put in order at a time: longer rows of the result than with less, and little memory."""
_SEARCHED = 1 << 17
"""Elements that are searched for NaN at a time."""
_SMALLEST_KEPT, _KEPT_BYTES = 4 << 20, 512 << 20
"""Memory of earlier blocks that is kept for later ones: of one block, and of all. The system clears what it gives,
which may take longer than all the work on a block."""
_ALIGNMENT = 64
"""Bytes. JAX reads an array that begins at such an address where it lies, and copies any other."""

_contexts: list[None] = []
_kept: collections.deque[np.ndarray] = collections.deque()


def contiguous(array: np.ndarray) -> np.ndarray:
    """The array in C order. JAX reorders a transposed array four times faster than numpy."""
    if array.flags.c_contiguous or array.ndim < 2:
        return np.ascontiguousarray(array)
    cpu = cpu_device()
    axis = max(range(array.ndim), key=lambda axis: array.shape[axis] > 1 and abs(array.strides[axis]))
    step = max(1, _PANEL_BYTES * array.shape[axis] // max(1, array.nbytes))
    out = empty(array.shape, array.dtype)

    def put(start: int) -> None:
        """Rows that lie together in the source."""
        part = (slice(None),) * axis + (slice(start, start + step),)
        out[part] = array[part] if cpu is None else np.asarray(jax.device_put(array[part], cpu))

    _in_threads(put, range(0, array.shape[axis], step))
    return out


def all_finite(array: np.ndarray) -> bool:
    """Whether no element is NaN or infinite. Looks at the bits of the exponents: numpy is slow with bfloat16."""
    bits = np.dtype(f"u{array.dtype.itemsize}")
    infinity = np.array(np.inf, array.dtype).view(bits)
    flat = np.ascontiguousarray(array).reshape(-1).view(bits)
    without_sign = np.iinfo(bits).max >> 1
    return all((flat[i : i + _SEARCHED] & without_sign).max() < infinity for i in range(0, flat.size, _SEARCHED))


def cpu_device() -> Any:
    """JAX's CPU device, or None if JAX_PLATFORMS excludes it."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


@contextlib.contextmanager
def recycled() -> Iterator[None]:
    """Within this context the memory of a block that nobody holds any more becomes that of a later block."""
    _contexts.append(None)
    try:
        yield
    finally:
        _contexts.pop()
        if not _contexts:
            _kept.clear()


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """A new array that JAX need not copy; see `recycled`."""
    size = math.prod(shape) * dtype.itemsize
    if size < _SMALLEST_KEPT or not _contexts:
        return _aligned(size).view(dtype).reshape(shape)
    memory = _taken(size)
    return np.asarray(_Lent(_aligned(size) if memory is None else memory)).view(dtype).reshape(shape)


def _aligned(size: int) -> np.ndarray:
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size]


def _taken(size: int) -> np.ndarray | None:
    for _ in range(len(_kept)):
        try:
            memory = _kept.popleft()
        except IndexError:  # another thread took the last one
            return None
        if memory.nbytes == size:
            return memory
        _kept.append(memory)
    return None


class _Lent:
    """Memory that comes back when the last array in it is gone: all of them have this object as their base."""

    def __init__(self, memory: np.ndarray):
        self._memory = memory
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:  # takes no lock: the garbage collector may be here in the middle of anything
        if _contexts and sum(memory.nbytes for memory in tuple(_kept)) + self._memory.nbytes <= _KEPT_BYTES:
            _kept.append(self._memory)
            if not _contexts:  # the last one ended meanwhile
                _kept.clear()


@functools.cache
def _pool() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(_THREADS, thread_name_prefix="blocks")


def _in_threads(work: Callable[[int], None], items: Iterable[int]) -> None:
    for _ in _pool().map(work, items):
        pass
