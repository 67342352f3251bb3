"""The params item of a checkpoint, read and written a block at a time: no more of a model in memory than that.

Orbax itself saves and restores whole leaves, and a stacked leaf of a 7B model is 4 to 8 GB. What it writes is plain:
zarr arrays in one OCDBT store, with a few JSON files beside it. So the skeleton of an item (those files, every leaf as
a single element) is saved by Orbax, whichever version is installed; then each leaf gets its real shape, and its blocks,
through tensorstore, as Orbax would have written them. Stock Orbax restores the result.
"""

import json
import math
import os
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath

from janus_jax.checkpoint.keys import Path, leaves, nest
from janus_jax.errors import ConversionError, StorageError
from janus_jax.model.config import ModelConfig
from janus_jax.model.mistral import param_specs
from janus_jax.storage import absolute, refusal

CHUNK_BYTES = 64 << 20
"""Upper bound of one stored chunk. Chunks of a stacked leaf hold one layer (or a part): reading a 32 MB layer of a
1 GiB leaf then takes 63 MB of memory, instead of 2 GB for the whole leaf."""


class ItemReader:
    """Blocks of the leaves of an item, in the dtypes in which they are stored.

    Raises:
        ConversionError: no such item, or a leaf that cannot be opened or read.
    """

    def __init__(self, item: epath.Path):
        self._item = item
        self._ocdbt = (item / "manifest.ocdbt").exists()
        self._driver = "zarr"
        try:
            if json.loads((item / "_METADATA").read_text()).get("use_zarr3"):
                self._driver = "zarr3"
        except (OSError, ValueError) as error:
            raise ConversionError(f"{item}: not an Orbax item, or a damaged one: {error}") from error
        self._open: dict[Path, Any] = {}

    def dtype(self, path: Path) -> np.dtype:
        """Of a leaf."""
        return self._leaf(path).dtype.numpy_dtype

    def shape(self, path: Path) -> tuple[int, ...]:
        """Of a leaf."""
        return tuple(self._leaf(path).shape)

    def read(self, path: Path, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """The block `index` (unit-step slices; None: all) of a leaf."""
        leaf = self._leaf(path)
        try:
            return (leaf if index is None else leaf[index]).read().result()
        except (ValueError, OSError) as error:
            raise self._damaged(path, error) from error

    def _leaf(self, path: Path) -> Any:
        if path not in self._open:
            try:
                store = _kvstore(self._item, path, ocdbt=self._ocdbt)
                self._open[path] = ts.open({"driver": self._driver, "kvstore": store}, open=True, read=True).result()
            except (ValueError, OSError) as error:
                raise self._damaged(path, error) from error
        return self._open[path]

    def _damaged(self, path: Path, error: Exception) -> ConversionError:
        return ConversionError(f"{self._item}: {'/'.join(path)} is damaged and cannot be read: {first_line(error)}")


class ItemWriter:
    """Writes the params item of a model, block by block; what was not written when `close` returns is zero.

    Args:
        item: directory to make, local or gs://.
    Raises:
        StorageError: it cannot be written.
    """

    def __init__(self, item: epath.Path, config: ModelConfig, dtype: np.dtype):
        self._item = item
        self._specs = leaves(param_specs(config, dtype))
        skeleton = nest({path: np.zeros((1,) * len(spec.shape), dtype) for path, spec in self._specs.items()})
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            checkpointer.save(item, args=ocp.args.StandardSave(skeleton))
        self._leaves = {path: self._create(path, spec.shape, np.dtype(dtype)) for path, spec in self._specs.items()}
        self._pending: list[Any] = []

    def write(self, path: Path, layer: int | None, block: np.ndarray) -> None:
        """A leaf, or one layer of a stacked one. At most one block is on its way when this returns.

        Args:
            block: of the leaf's shape, without the layer axis if `layer` is given; not to be changed afterwards.
        """
        leaf = self._leaves[path]
        target = leaf if layer is None else leaf[layer]
        assert tuple(target.shape) == block.shape, (path, layer, block.shape)
        self._wait(1)
        self._pending.append(target.write(block))

    def close(self) -> None:
        """Returns when everything is written."""
        self._wait(0)

    def _wait(self, left: int) -> None:
        while len(self._pending) > left:
            try:
                self._pending.pop(0).result()
            except (ValueError, OSError) as error:
                raise StorageError(f"{self._item}: cannot be written: {refusal(error)}") from error

    def _create(self, path: Path, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        stacked = self._specs[path].axes[0] == "layers"
        metadata = {
            "shape": list(shape),
            "chunks": chunk_shape(shape, dtype.itemsize, stacked=stacked),
            "dtype": ts.dtype(dtype).name if dtype.name == "bfloat16" else dtype.str,
            "compressor": None,  # trained weights hardly shrink, and Orbax's zstd takes as long as all the rest
            "dimension_separator": ".",
            "fill_value": None,
            "order": "C",
        }
        spec = {"driver": "zarr", "kvstore": _kvstore(self._item, path, ocdbt=True), "metadata": metadata}
        try:
            return ts.open(spec, create=True, delete_existing=True).result()
        except (ValueError, OSError) as error:
            raise StorageError(f"{self._item}: cannot be written: {refusal(error)}") from error


def chunk_shape(shape: tuple[int, ...], itemsize: int, *, stacked: bool) -> list[int]:
    """Chunks of at most `CHUNK_BYTES`, cut along the leading axes; of a stacked leaf each is of one layer."""
    chunk = [1, *shape[1:]] if stacked else list(shape)
    for axis in range(len(chunk)):
        while chunk[axis] > 1 and math.prod(chunk) * itemsize > CHUNK_BYTES:
            chunk[axis] = -(-chunk[axis] // 2)
    return chunk


def first_line(error: Exception) -> str:
    """What happened, without tensorstore's account of where."""
    text = str(error).partition("[tensorstore_spec")[0].partition(" [source locations")[0].strip()
    return text.splitlines()[0][:300] if text else type(error).__name__


def _kvstore(item: epath.Path, path: Path, *, ocdbt: bool) -> dict[str, Any]:
    name = ".".join(path) + "/"
    base = os.fspath(absolute(item))
    base = base if "://" in base else f"file://{base}"
    return {"driver": "ocdbt", "base": f"{base}/", "path": name} if ocdbt else _plain(f"{base}/{name}")


def _plain(url: str) -> dict[str, Any]:
    return ts.KvStore.Spec(url).to_json()
