"""A directory that several processes write together, and tensors gathered on one of them.

JAX has no transfer from all processes to one that works on every backend: a computation leaves its result on every
device that takes part. So a tensor goes to all devices slice by slice, and only the destination process keeps the
slices. The others hold one slice at a time, however large the tensor is.
"""

import contextlib
import functools
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from janus_jax.errors import JanusError, StorageError
from janus_jax.parallel import processes
from janus_jax.storage import staging
from janus_jax.storage.bucket import is_url
from janus_jax.storage.local import fixed

LAST = "config.json"
"""Uploaded last: without it, no reader takes a directory for a model."""

SLICE_BYTES = 16 << 20
"""Upper bound of one slice."""


@contextlib.contextmanager
def shared_directory(path: str | os.PathLike[str], timeout_s: int = processes.BARRIER_TIMEOUT_S) -> Iterator[Path]:
    """`atomic_directory` for all processes: the directory appears if every process leaves the block without an error.

    For a gs:// URL, process 0 gets a temporary directory, which is uploaded at the end; the others get a path at which
    they must not write (see `writers`).

    Args:
        timeout_s: how long a process may still write after another has finished.

    Raises:
        StorageError: as `atomic_directory`, or a process does not see the directory that process 0 made.
        Exception: the error of this or another process inside the block (`processes.agreement`).
    """
    if jax.process_count() == 1:
        with staging.output(path, LAST) as directory:
            yield directory
        return
    with processes.agreement("shared_directory", timeout_s), contextlib.ExitStack() as stack:
        created = ""
        with processes.agreement("shared_directory/created"):
            if processes.is_main():
                created = os.fspath(stack.enter_context(staging.output(path, LAST)))
        directory = Path(processes.broadcast("shared_directory/path", created))
        with processes.agreement("shared_directory/visible"):
            if not is_url(path) and not directory.is_dir():
                raise StorageError(os.fspath(path), "not on a file system that all processes share")
        with processes.agreement("shared_directory/written", timeout_s):
            try:
                yield directory
            except JanusError as error:
                error.rename(directory, fixed(path))  # the name that the user gave, in the messages of all processes
                raise


def writers(path: str | os.PathLike[str]) -> int:
    """How many processes, from 0 on, write to a `shared_directory`: of one that is uploaded, process 0 alone."""
    return 1 if is_url(path) else jax.process_count()


def gather_on_process(leaf: Any, layer: int | None, process: int) -> np.ndarray | None:
    """A parameter, or one layer of a stacked parameter, as a numpy array on `process`; None on the others.

    If the parameter is spread over processes, this is a collective: all of them must call it in the same order.

    Args:
        leaf: numpy or jax array.
        layer: index on the leading axis; None: the whole parameter.
    """
    is_destination = jax.process_index() == process
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return np.asarray(leaf if layer is None else leaf[layer]) if is_destination else None
    stacked = layer is not None
    shape, shard = leaf.shape[stacked:], leaf.sharding.shard_shape(leaf.shape)[stacked:]
    out = np.empty(shape, leaf.dtype) if is_destination else None
    axis = int(np.argmax(shard))
    length = shard[axis]
    size = max(1, min(length, length * SLICE_BYTES // (math.prod(shape) * leaf.dtype.itemsize)))
    cut = _cutter(leaf.sharding, axis, length, size, stacked)
    for start in range(0, length, size):
        start = min(start, length - size)  # the last slice overlaps, so that one program cuts all of them
        part = jax.block_until_ready(cut(leaf, layer or 0, start))
        if out is not None:
            places = (slice(None),) * (axis + 1) + (slice(start, start + size),)
            _by_shard(out, axis, length)[places] = np.asarray(part.addressable_data(0))
    return out


def _by_shard(array: Any, axis: int, length: int) -> Any:
    """A view with `axis` split in two: the shard, and the index within it."""
    return array.reshape(*array.shape[:axis], array.shape[axis] // length, length, *array.shape[axis + 1 :])


@functools.lru_cache(maxsize=256)
def _cutter(sharding: Any, axis: int, length: int, size: int, stacked: bool) -> Any:
    """A program that puts `size` indices of every shard of `axis` on all devices. It cuts before it sends."""

    def cut(leaf: jax.Array, layer: int, start: int) -> jax.Array:
        tensor = jax.lax.dynamic_index_in_dim(leaf, layer, 0, keepdims=False) if stacked else leaf
        return jax.lax.dynamic_slice_in_dim(_by_shard(tensor, axis, length), start, size, axis + 1)

    return jax.jit(cut, out_shardings=NamedSharding(sharding.mesh, PartitionSpec()))
