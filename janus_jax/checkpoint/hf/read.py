"""Reads Mistral- and Llama-shaped Hugging Face directories into parameters. Also the import path of `save_hf`."""

import contextlib
import dataclasses
import json
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from janus_jax.checkpoint.hf.blocks import all_finite, contiguous
from janus_jax.checkpoint.hf.config import hf_config, read_json, read_model_config
from janus_jax.checkpoint.hf.files import damage, refuse_adapter, require_whole, unfinished
from janus_jax.checkpoint.hf.keys import LAYOUTS, VALUE_HEADS, KeyEntry, KeyPath, Layout, key_table, leaves, nest
from janus_jax.checkpoint.hf.write import save_hf
from janus_jax.errors import ConversionError
from janus_jax.model.config import ModelConfig
from janus_jax.model.mistral import Params, param_specs
from janus_jax.storage.local import as_path
from janus_jax.text.hf_files import HF_FILES

__all__ = ["HFDirectory", "hf_config", "load_hf", "read_model_config", "save_hf"]

_DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16)}
_DERIVED_SUFFIX = "rotary_emb.inv_freq"  # a buffer that old Llama files store; it follows from rope_theta
_DESCRIPTIONS = ("config.json", "generation_config.json", *(name for name in HF_FILES if not name.endswith(".jinja")))
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_ROWS_AT_A_TIME = 4096


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    file: Path
    shape: tuple[int, ...]
    dtype: str
    start: int  # bytes from the beginning of the file
    stop: int


class SafetensorsFile:
    """A safetensors file, mapped. The pages of a tensor leave this process with it; the system's cache keeps them."""

    def __init__(self, path: Path):
        with path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def read(self, stored: StoredTensor, box: tuple[slice, ...]) -> np.ndarray:
        """A box of a tensor where it lies, as an array that nobody may write to."""
        raw = np.frombuffer(self._bytes, np.uint8, stored.stop - stored.start, stored.start)
        dtype = _DTYPES[stored.dtype]
        aligned = raw if raw.ctypes.data % dtype.itemsize == 0 else raw.copy()  # the format does not ask for it
        return aligned.view(dtype).reshape(stored.shape)[box]

    def read_ahead(self, stored: StoredTensor) -> None:
        self._advise(mmap.MADV_WILLNEED, stored)

    def forget(self, stored: StoredTensor) -> None:
        self._advise(mmap.MADV_DONTNEED, stored)

    def _advise(self, advice: int, stored: StoredTensor) -> None:
        start = stored.start - stored.start % mmap.PAGESIZE
        with contextlib.suppress(OSError):  # it is only advice
            self._bytes.madvise(advice, start, stored.stop - start)


class HFDirectory:
    """A model directory with checked headers: no tensor missing or unexpected, all shapes and dtypes right.

    Raises:
        ConversionError: a check fails; names the file and the tensor or key. No tensor is read before.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(os.path.expanduser(directory))
        files = [*self.directory.glob("*.safetensors"), *self.directory.glob("*.json")]
        self._stamps = {file: _stamp(file) for file in files}
        refuse_adapter(as_path(self.directory))
        require_whole(self.directory, _DESCRIPTIONS)
        config = read_model_config(self.directory)
        stored = _headers(self.directory)
        self.weight_files = sorted({tensor.file.name for tensor in stored.values()})
        """Names of the safetensors files that are read."""
        # A head of OpenRLHF's name makes it a reward model, whatever class config.json names.
        self.layout: Layout = "openrlhf" if VALUE_HEADS["openrlhf"] in stored else "transformers"
        self.config = dataclasses.replace(config, head="value") if self.layout == "openrlhf" else config
        self.entries = key_table(self.config, self.layout)
        self.stored_dtype = _check(self.directory, self.config, self.entries, stored)
        self.left_out = _left_out(self.config, stored, {entry.key for entry in self.entries})
        """Tensors that are not parameters, under their names with `tensor` before, and the reason why they stay out."""
        self._stored = stored
        self._open: dict[Path, SafetensorsFile] = {}

    def read(self, path: KeyPath, dtype: Any, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """The block `index` (unit-step slices; None: all) of a parameter. Reads only that part of the files.

        Raises:
            ConversionError: a value is NaN or infinite; names file and tensor.
        """
        entries = [entry for entry in self.entries if entry.path == path]
        stacked = entries[0].layer is not None
        if index is None:
            index = (slice(None),) * (stacked + len(entries[0].shape))
        if not stacked:
            return self._read(entries[0], index).astype(dtype, copy=False)
        layers, *rest = index
        chosen = entries[layers]
        first = self._read(chosen[0], tuple(rest)).astype(dtype, copy=False)
        if len(chosen) == 1:
            return first[None]
        out = np.empty((len(chosen), *first.shape), dtype)
        out[0] = first
        for i, entry in enumerate(chosen[1:], start=1):
            out[i] = self._read(entry, tuple(rest))
        return out

    def require_unchanged(self) -> None:
        """Raises ConversionError if a file has been replaced or written to since this object was created."""
        for file, stamp in self._stamps.items():
            if _stamp(file) != stamp:
                raise ConversionError(file, "was changed while it was read; nothing is kept")

    def load(self, dtype: Any, shardings: Any = None) -> Params:
        """All parameters as numpy arrays, or with `shardings` (a tree like the parameters) as jax arrays."""
        placed = None if shardings is None else leaves(shardings)
        flat: dict[KeyPath, Any] = {}
        for path, spec in leaves(param_specs(self.config, dtype)).items():
            if placed is None:
                flat[path] = self.read(path, dtype)
            else:
                read = _once(lambda index, path=path: self.read(path, dtype, index))
                flat[path] = jax.make_array_from_callback(spec.shape, placed[path], read)
        return nest(flat)

    def read_ahead(self, path: KeyPath, layer: int | None) -> None:
        """Has the system read a tensor from the disk, before somebody waits for it."""
        entry = next(entry for entry in self.entries if (entry.path, entry.layer) == (path, layer))
        stored = self._stored[entry.key]
        self._file(stored).read_ahead(stored)

    def _file(self, stored: StoredTensor) -> SafetensorsFile:
        if stored.file not in self._open:
            self._open[stored.file] = SafetensorsFile(stored.file)
        return self._open[stored.file]

    def _read(self, entry: KeyEntry, index: tuple[slice, ...]) -> np.ndarray:
        stored = self._stored[entry.key]
        file = self._file(stored)
        mapped = entry.from_torch(lambda box: file.read(stored, box), index)
        block = contiguous(mapped)
        block = block.copy() if np.may_share_memory(block, mapped) else block
        file.forget(stored)
        if not all_finite(block):
            raise ConversionError(stored.file, f"tensor {entry.key} holds NaN or infinite values")
        return block


def _stamp(file: Path) -> tuple[int, ...] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def load_hf(directory: str | Path, *, dtype: Any = jnp.float32, shardings: Any = None) -> tuple[ModelConfig, Params]:
    """Parameters of a Hugging Face directory as jax arrays.

    Args:
        dtype: of the parameters; None keeps the stored dtype.
        shardings: tree of shardings like the parameters. On a mesh over several processes each process reads the parts
            that its devices hold. None puts everything on the default device.

    Raises:
        ConversionError: names file and tensor or key. Everything but the values is checked before the first read.
    """
    hf = HFDirectory(directory)
    dtype = jnp.dtype(hf.stored_dtype if dtype is None else dtype)
    params = hf.load(dtype, shardings)
    return hf.config, params if shardings is not None else jax.tree.map(jnp.asarray, params)


def _once(read: Callable[[tuple[slice, ...]], np.ndarray]) -> Callable[[Any], np.ndarray]:
    """Caches `read`, so that a block is read once however many devices hold a copy of it."""
    blocks: dict[tuple[tuple[int | None, int | None], ...], np.ndarray] = {}

    def cached(index: tuple[slice, ...]) -> np.ndarray:
        key = tuple((part.start, part.stop) for part in index)
        if key not in blocks:
            blocks[key] = read(index)
        return blocks[key]

    return cached


def _headers(directory: Path) -> dict[str, StoredTensor]:
    """File, shape and dtype of each tensor of a directory, from the headers of its files."""
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file():
        return _header(single)
    if not index.is_file():
        others = sorted(
            file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf") for file in directory.glob(pattern)
        )
        hint = f"; {others[0]} is not read: save the model with safetensors first" if others else unfinished(single)
        if others and (reason := damage(directory / others[0])) is not None:
            hint = f"; {others[0]} {reason}"
        if (directory / "adapter_model.safetensors").is_file():
            hint = "; adapter_model.safetensors is an adapter: merge it into its base model first"
        raise ConversionError(directory, f"neither {single.name} nor {index.name} is present{hint}")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ConversionError(index, "weight_map must be an object of tensor name to file name")
    for key, name in weight_map.items():
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ConversionError(
                index, f"weight_map: {key} is in {name!r}; allowed: a .safetensors file of the same directory"
            )
    stored: dict[str, StoredTensor] = {}
    for name in sorted(set(weight_map.values())):
        file = directory / name
        if not file.is_file():
            key = next(key for key, value in weight_map.items() if value == name)
            raise ConversionError(file, f"missing; {index.name} lists {key} in it{unfinished(file)}")
        header = _header(file)
        for key in (key for key, value in weight_map.items() if value == name and key not in header):
            raise ConversionError(file, f"tensor {key} is missing; {index.name} lists it in this file")
        if unlisted := next((key for key in header if weight_map.get(key) != name), None):
            raise ConversionError(file, f"tensor {unlisted} is in this file, but {index.name} does not list it here")
        stored |= header
    return stored


def _header(file: Path) -> dict[str, StoredTensor]:
    try:
        with safe_open(file, framework="np") as tensors:
            parts = {key: tensors.get_slice(key) for key in tensors.keys()}
        places = _places(file)
        return {
            key: StoredTensor(file, tuple(part.get_shape()), part.get_dtype(), *places[key])
            for key, part in parts.items()
        }
    except (SafetensorError, OSError) as error:
        if (reason := damage(file)) is not None:
            raise ConversionError(file, reason) from error
        raise ConversionError(file, f"not a whole safetensors file: {error}") from error


def _places(file: Path) -> dict[str, tuple[int, int]]:
    """Where the tensors of a file that `safe_open` takes begin and end: 8 bytes of length, the header, the tensors."""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
    header.pop("__metadata__", None)
    return {key: (8 + size + a, 8 + size + b) for key, (a, b) in ((k, v["data_offsets"]) for k, v in header.items())}


def _check(directory: Path, config: ModelConfig, entries: list[KeyEntry], stored: dict[str, StoredTensor]) -> np.dtype:
    """Compares stored tensors with expected ones; returns their common dtype (float32 if they have several)."""
    for entry in entries:
        tensor = stored.get(entry.key)
        if tensor is None:
            hint = ""
            if entry.key == "lm_head.weight":
                hint = "; a model without it needs tie_word_embeddings=true in config.json"
            if entry.path == ("value_head",):
                hint = f"; a reward model has {' or '.join(VALUE_HEADS[layout] for layout in LAYOUTS)}"
            raise ConversionError(directory, f"tensor {entry.key} is missing{hint}")
        if tensor.shape != entry.torch_shape:
            raise ConversionError(
                tensor.file,
                f"tensor {entry.key} has shape {list(tensor.shape)}; config.json asks for {list(entry.torch_shape)}",
            )
        if tensor.dtype not in _DTYPES:
            raise ConversionError(
                tensor.file, f"tensor {entry.key} has dtype {tensor.dtype}; allowed: {', '.join(_DTYPES)}"
            )
    dtypes = {_DTYPES[stored[entry.key].dtype] for entry in entries}
    return dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)


def _left_out(config: ModelConfig, stored: dict[str, StoredTensor], known: set[str]) -> dict[str, str]:
    """The tensors that are not in the key table but allowed, with the reason why nobody needs them."""
    reasons = {}
    for key, tensor in stored.items():
        if key in known:
            continue
        if key.endswith(_DERIVED_SUFFIX):
            reasons[f"tensor {key}"] = "follows from rope_theta"
        elif key == _HEAD and config.tie_embeddings:
            _require_equal(tensor, stored[_EMBEDDING])
            reasons[f"tensor {key}"] = f"equal to {_EMBEDDING}, which is the head too (tie_word_embeddings)"
        else:
            raise ConversionError(tensor.file, f"tensor {key} is not expected: not part of the architecture")
    return reasons


def _require_equal(head: StoredTensor, embedding: StoredTensor) -> None:
    """Compares the two tensors byte by byte, some rows at a time."""
    equal = head.shape == embedding.shape and head.dtype == embedding.dtype
    if equal:
        with safe_open(head.file, framework="np") as a, safe_open(embedding.file, framework="np") as b:
            rows, others = a.get_slice(_HEAD), b.get_slice(_EMBEDDING)
            for start in range(0, head.shape[0], _ROWS_AT_A_TIME):
                part = slice(start, min(start + _ROWS_AT_A_TIME, head.shape[0]))
                if contiguous(rows[part]).tobytes() != contiguous(others[part]).tobytes():
                    equal = False
                    break
    if not equal:
        raise ConversionError(
            head.file,
            f"tensor {_HEAD} differs from {_EMBEDDING}, but config.json has tie_word_embeddings=true; set it to false "
            f"if the model has a head of its own, otherwise remove the tensor",
        )
