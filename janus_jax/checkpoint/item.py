"""The params item of a checkpoint, read and written one block at a time, so that memory never holds a whole leaf.

Orbax itself saves and restores whole leaves, and a stacked leaf of a 7B model is 4 to 8 GB. Its format is plain: zarr
arrays in one OCDBT store, with a few JSON files beside it. So the installed Orbax saves the skeleton of an item: those
files, and every leaf as a single element. Then tensorstore gives each leaf its real shape and its blocks, as Orbax
would have written them. Stock Orbax restores the result.
"""

import itertools
import json
import math
import os
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath

from janus_jax.checkpoint.hf.blocks import empty
from janus_jax.checkpoint.hf.keys import KeyPath, leaves, nest
from janus_jax.errors import ConversionError, JanusError, StorageError
from janus_jax.model.config import ModelConfig
from janus_jax.model.mistral import param_specs
from janus_jax.storage import bucket
from janus_jax.storage.bucket import BucketPath
from janus_jax.storage.local import Place, absolute, refusal

CHUNK_BYTES = 64 << 20
"""Upper bound of one stored chunk. A chunk of a stacked leaf holds one layer, or a part of it: reading a 32 MB layer of
a 1 GiB leaf then takes 63 MB of memory, instead of 2 GB for the whole leaf."""

PENDING_BYTES = 256 << 20
"""Blocks that a writer may still hold. Several at once keep the disk busy, and go into the index together."""
_PENDING = 4

_REFUSALS = (
    "ABORTED",
    "UNAVAILABLE",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "DEADLINE_EXCEEDED",
    "RESOURCE_EXHAUSTED",
)
"""How tensorstore's errors about the service begin. All its other errors are about the stored data."""

_SLOWEST = 1 << 18  # bytes/s; a slower service counts as one that does not answer
_TREE_BYTES = 4 << 20  # cache of OCDBT's index, which it would otherwise fetch again for every chunk


class ItemReader:
    """Blocks of the leaves of an item, local or on gs://, in their stored dtypes.

    Args:
        mapped: reads local files through mappings, which spares a copy and the memory for it. For files that nobody
            truncates: the system ends a process that reads behind the new end of a mapped file.

    Raises:
        ConversionError: the item does not exist, or a leaf cannot be opened or read.
        StorageError: gs:// refuses access, or cannot be reached for `bucket.RETRY_S`.
    """

    def __init__(self, item: Place, *, mapped: bool = False):
        self._item = item
        self._mapped = mapped and not isinstance(item, BucketPath)
        self._ocdbt = (item / "manifest.ocdbt").exists()
        try:
            metadata = json.loads((item / "_METADATA").read_text())
            self._driver = "zarr3" if metadata.get("use_zarr3") else "zarr"
            trees = metadata["tree_metadata"].values()
            arrays = [leaf for leaf in trees if not leaf["value_metadata"]["skip_deserialize"]]  # not empty states
            self._paths = [tuple(part["key"] for part in leaf["key_metadata"]) for leaf in arrays]
        except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
            raise ConversionError(item, f"not an Orbax item, or a damaged one: {error}") from error
        local = {"file_io_mode": {"mode": "memmap"}} if self._mapped else {}
        self._context = _context() if isinstance(item, BucketPath) else ts.Context(local)
        self._open: dict[KeyPath, Any] = {}

    def leaves(self) -> dict[KeyPath, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of all leaves."""
        return {path: jax.ShapeDtypeStruct(self.shape(path), self.dtype(path)) for path in self._paths}

    def dtype(self, path: KeyPath) -> np.dtype:
        return self._leaf(path).dtype.numpy_dtype

    def shape(self, path: KeyPath) -> tuple[int, ...]:
        return tuple(self._leaf(path).shape)

    def read(self, path: KeyPath, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """The block `index` (unit-step slices; None: all) of a leaf."""
        if not self._mapped:
            return self._result(path, self._start(path, index))
        leaf = self._leaf(path)
        block = leaf if index is None else leaf[index]
        out = empty(block.shape, block.dtype.numpy_dtype)
        self._result(path, (ts.array(out).write(block.translate_to[(0,) * block.rank]), out.nbytes))
        return out

    def rows(self, path: KeyPath, start: int, stop: int, index: tuple[slice, ...]) -> Iterator[tuple[int, np.ndarray]]:
        """Yields `leaf[start:stop, *index]` in pieces along the first axis, each one row of chunks high, with the
        index at which the piece begins. The next piece is read while the caller uses this one."""
        height = self._leaf(path).chunk_layout.read_chunk.shape[0]
        cuts = [start, *range((start // height + 1) * height, stop, height), stop]
        pieces = ((a, self._start(path, (slice(a, b), *index))) for a, b in itertools.pairwise(cuts))
        ahead = next(pieces, None)
        while ahead is not None:
            (first, started), ahead = ahead, next(pieces, None)
            yield first, self._result(path, started)

    def _start(self, path: KeyPath, index: tuple[slice, ...] | None) -> tuple[Any, int]:
        leaf = self._leaf(path)
        block = leaf if index is None else leaf[index]
        return block.read(), block.size * block.dtype.numpy_dtype.itemsize

    def _result(self, path: KeyPath, started: tuple[Any, int]) -> Any:
        future, size = started
        limit = 3 * bucket.RETRY_S + size / _SLOWEST if isinstance(self._item, BucketPath) else None
        try:
            return future.result(timeout=limit)
        except (ValueError, OSError) as error:
            raise self._read_error(path, error) from error

    def _leaf(self, path: KeyPath) -> Any:
        if path not in self._open:
            try:
                store = _kvstore(self._item, path, ocdbt=self._ocdbt)
                # Orbax stores zeros too, so a chunk that does not exist is missing, not zero.
                spec = {"driver": self._driver, "kvstore": store, "fill_missing_data_reads": False}
                opening = ts.open(spec, open=True, read=True, context=self._context)
            except (ValueError, OSError) as error:
                raise self._read_error(path, error) from error
            self._open[path] = self._result(path, (opening, 0))
        return self._open[path]

    def _read_error(self, path: KeyPath, error: Exception) -> JanusError:
        if isinstance(self._item, BucketPath):
            if isinstance(error, TimeoutError):
                return StorageError(self._item, f"{'/'.join(path)} cannot be read: the service does not answer")
            if str(error).startswith(_REFUSALS):
                reason = re.sub(r"^.*gs://\S+: ", "", _first_part(error))[:300]
                return StorageError(self._item, f"{'/'.join(path)} cannot be read: {reason}")
        return ConversionError(
            self._item, f"{'/'.join(path)} is damaged and cannot be read: {tensorstore_message(error)}"
        )


def restore_blocks(item: Place, abstract: Any) -> Any:
    """Arrays of an item, as `state.restore_item` returns them.

    A process reads each chunk that its devices need once. Beside its part of one leaf it keeps two rows of chunks.
    """
    reader = ItemReader(item)

    def restored(path: Any, leaf: jax.ShapeDtypeStruct) -> Any:
        return _restore_leaf(reader, tuple(jax.tree_util.keystr((key,), simple=True) for key in path), leaf)

    return jax.tree_util.tree_map_with_path(restored, abstract)


def _restore_leaf(reader: ItemReader, path: KeyPath, leaf: jax.ShapeDtypeStruct) -> Any:
    if not leaf.shape:
        value = reader.read(path).astype(leaf.dtype)
        return value if leaf.sharding is None else jax.make_array_from_callback((), leaf.sharding, lambda index: value)
    if leaf.sharding is None:
        boxes = {tuple((0, size) for size in leaf.shape)}
    else:
        boxes = {
            _box(index, leaf.shape) for index in leaf.sharding.addressable_devices_indices_map(leaf.shape).values()
        }
    blocks = {box: np.empty([stop - start for start, stop in box], leaf.dtype) for box in boxes}
    hull = [(min(start for start, _ in axis), max(stop for _, stop in axis)) for axis in zip(*boxes, strict=True)]
    others = tuple(slice(*axis) for axis in hull[1:])
    for begin, piece in reader.rows(path, *hull[0], others):
        for box, block in blocks.items():
            first, last = max(begin, box[0][0]), min(begin + len(piece), box[0][1])
            inner = tuple(slice(a - low, b - low) for (a, b), (low, _) in zip(box[1:], hull[1:], strict=True))
            if first < last:
                block[first - box[0][0] : last - box[0][0]] = piece[(slice(first - begin, last - begin), *inner)]
    if leaf.sharding is None:
        return next(iter(blocks.values()))
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: blocks[_box(index, leaf.shape)])


def _box(index: Any, shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def retries() -> dict[str, Any]:
    """tensorstore retries requests to gs:// for about `bucket.RETRY_S`: nine times, after 1, 2, 4 and six times 8
    units."""
    unit = bucket.RETRY_S / 60
    return {"max_retries": 9, "initial_delay": f"{unit * 1000:.0f}ms", "max_delay": f"{unit * 8000:.0f}ms"}


def _context() -> Any:
    return ts.Context({"gcs_request_retries": retries(), "cache_pool#ocdbt": {"total_bytes_limit": _TREE_BYTES}})


class ItemWriter:
    """Writes the params item of a model, block by block. Blocks that you do not write are missing from the item.

    Args:
        item: the directory to create, local or gs://.

    Raises:
        StorageError: the item cannot be written.
    """

    def __init__(self, item: epath.Path, config: ModelConfig, dtype: np.dtype):
        self._item = item
        self._specs = leaves(param_specs(config, dtype))
        skeleton = nest({path: np.zeros((1,) * len(spec.shape), dtype) for path, spec in self._specs.items()})
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            checkpointer.save(item, args=ocp.args.StandardSave(skeleton))
        self._leaves = {path: self._create(path, spec.shape, np.dtype(dtype)) for path, spec in self._specs.items()}
        self._pending: list[tuple[Any, int]] = []

    def write(self, path: KeyPath, layer: int | None, block: np.ndarray) -> None:
        """Starts to write a leaf, or one layer of a stacked leaf. Four writes, of `PENDING_BYTES` together or of one
        block that is larger, may still go on afterwards.

        Args:
            block: has the leaf's shape, without the layer axis if `layer` is given. Do not change it afterwards.
        """
        leaf = self._leaves[path]
        target = leaf if layer is None else leaf[layer]
        assert tuple(target.shape) == block.shape, (path, layer, block.shape)
        self._wait(max(0, PENDING_BYTES - block.nbytes))
        self._pending.append((target.write(block, can_reference_source_data_indefinitely=True), block.nbytes))

    def close(self) -> None:
        """Returns when everything is written."""
        self._wait(0)

    def _wait(self, left: int) -> None:
        """Returns when at most `left` bytes are not written yet."""
        while len(self._pending) >= _PENDING or sum(size for _, size in self._pending) > left:
            try:
                self._pending.pop(0)[0].result()
            except (ValueError, OSError) as error:
                raise StorageError(self._item, f"cannot be written: {refusal(error)}") from error

    def _create(self, path: KeyPath, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        stacked = self._specs[path].axes[0] == "layers"
        metadata = {
            "shape": list(shape),
            "chunks": chunk_shape(shape, dtype.itemsize, stacked=stacked),
            "dtype": ts.dtype(dtype).name if dtype.name == "bfloat16" else dtype.str,
            "compressor": None,  # trained weights hardly shrink, and Orbax's zstd takes as long as everything else
            "dimension_separator": ".",
            "fill_value": None,
            "order": "C",
        }
        spec = {"driver": "zarr", "kvstore": _kvstore(self._item, path, ocdbt=True), "metadata": metadata}
        spec["store_data_equal_to_fill_value"] = True
        try:
            return ts.open(spec, create=True, delete_existing=True).result()
        except (ValueError, OSError) as error:
            raise StorageError(self._item, f"cannot be written: {refusal(error)}") from error


def chunk_shape(shape: tuple[int, ...], itemsize: int, *, stacked: bool) -> list[int]:
    """Chunks of at most `CHUNK_BYTES`, cut along the leading axes. A chunk of a stacked leaf holds one layer."""
    chunk = [1, *shape[1:]] if stacked else list(shape)
    for axis in range(len(chunk)):
        while chunk[axis] > 1 and math.prod(chunk) * itemsize > CHUNK_BYTES:
            chunk[axis] = -(-chunk[axis] // 2)
    return chunk


def tensorstore_message(error: Exception) -> str:
    """The first part of tensorstore's message, without its list of specs and source locations."""
    return _first_part(error)[:300] or type(error).__name__


def _first_part(error: Exception) -> str:
    text = re.split(r" \[(?:tensorstore_spec|source locations|http_\w+|curl_code)", str(error))[0].strip()
    return text.partition("\n")[0]


def _kvstore(item: Place, path: KeyPath, *, ocdbt: bool) -> dict[str, Any]:
    name = ".".join(path) + "/"
    base = os.fspath(absolute(item))
    remote = bucket.is_url(base)
    if not ocdbt:
        whole = f"{base}/{name}"
        return ts.KvStore.Spec(whole).to_json() if remote else {"driver": "file", "path": whole}
    if not remote:  # a path, not a file:// URL: in a URL %, ?, # and | have meanings
        return {"driver": "ocdbt", "base": {"driver": "file", "path": f"{base}/"}, "path": name}
    return {"driver": "ocdbt", "base": f"{base}/", "path": name, "cache_pool": "cache_pool#ocdbt"}
