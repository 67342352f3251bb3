"""Writes a Hugging Face directory: config, sharded safetensors, generation config and tokenizer, whole or absent."""

import contextlib
import dataclasses
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.checkpoint.hf.config import hf_config
from janus_jax.checkpoint.hf.facts import CARD, ModelFacts
from janus_jax.checkpoint.hf.keys import LAYOUTS, KeyEntry, KeyPath, Layout, key_table, leaves
from janus_jax.checkpoint.hf.shared_directory import gather_on_process, shared_directory
from janus_jax.errors import ConversionError, StorageError
from janus_jax.model.config import ModelConfig
from janus_jax.model.mistral import Params, param_specs
from janus_jax.parallel import processes
from janus_jax.storage.local import whole_file

_SAFETENSORS_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}

_SLOWEST = 5 * 10**6
"""Bytes a second at which process 0 may verify, while the others wait: two cores do 7B at 60 MB/s from their disk."""


@dataclasses.dataclass(frozen=True)
class Companions:
    """What a directory holds beside its weights."""

    tokenizer: Any = None
    """A `janus_jax.text.tokenizer` tokenizer whose files go in; it gives the bos and eos ids that `facts` does not."""
    chat_template: str | None = None
    """Jinja text of the form that was trained; see `save_hf_tokenizer` for what None does."""
    facts: ModelFacts = dataclasses.field(default_factory=ModelFacts)
    layout: Layout = "transformers"
    card: str | None = None
    """README.md."""


def save_hf(
    params: Params,
    config: ModelConfig,
    out: str | os.PathLike[str],
    *,
    dtype: Any = None,
    max_shard_size: int | str = "5GB",
    tokenizer: Any = None,
    chat_template: str | None = None,
    facts: ModelFacts | None = None,
    layout: Layout = "transformers",
    card: str | None = None,
    verify: Callable[[Path], None] | None = None,
) -> None:
    """Writes `params` as a directory that transformers, vllm and mistralrs load. Call it on every process.

    Args:
        params: numpy or jax arrays. Every tensor goes to the process that writes its file; files take turns over
            the processes, each of which holds one tensor of its own and a slice of another's.
        out: must be absent or empty, on a file system that all processes share; it appears whole, or not at all.
        dtype: of the stored tensors (float32, bfloat16 or float16); None keeps that of the parameters.
        max_shard_size: bytes, or text as "5GB", "200MB"; a larger tensor gets a file of its own.
        tokenizer, chat_template, facts, layout, card: see `Companions`.
        verify: looks at the whole directory, on process 0, before it appears; what it raises leaves nothing.

    Raises:
        ConversionError: parameters that are not those of `config`, or that are NaN or infinite (also by the cast), or
            another layout for a language model.
        StorageError: `out` holds something or cannot be written.
        JanusError: what another process met.
    """
    flat = _check_params(params, config)
    dtype = export_dtype(flat["embedding",].dtype if dtype is None else dtype)
    limit = parse_size(max_shard_size)
    check_layout(config, layout)
    companions = Companions(tokenizer, chat_template, facts or ModelFacts(), layout, card)
    files = plan_files(config, dtype, limit, layout)
    size = sum(_count(entry) for file in files for entry in file.entries) * dtype.itemsize
    with shared_directory(out, processes.BARRIER_TIMEOUT_S + size // _SLOWEST) as directory:
        with processes.agreement("export/tensors"), _refusals(out):
            _write_own_files(directory, files, dtype, flat)
        with _refusals(out):
            if processes.is_main():
                write_index(directory, files, dtype)
                write_companions(directory, config, dtype, companions)
        if verify is not None and processes.is_main():
            verify(directory)
        with _refusals(out):
            if processes.is_main():
                sync_tree(directory)


@contextlib.contextmanager
def _refusals(out: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{os.fspath(out)}: cannot be written: {error.strerror or error}") from error


def _write_own_files(directory: Path, files: "list[TensorFile]", dtype: np.dtype, flat: dict[KeyPath, Any]) -> None:
    """The files of this process: each process in turn has one, so that they write side by side."""
    arriving = _arriving(files, flat)
    try:
        for file in files[jax.process_index() :: jax.process_count()]:
            write_file(directory, file, dtype, arriving)
    finally:
        if jax.process_count() > 1:  # the others' files need what this one holds, whatever befell it
            for _ in arriving:
                pass


def _arriving(files: "list[TensorFile]", flat: dict[KeyPath, Any]) -> Iterator[np.ndarray]:
    """The tensors of this process's files, one at a time; all processes take part in bringing each to its owner."""
    count, this = jax.process_count(), jax.process_index()
    for first in range(0, len(files), count):
        for turn in itertools.zip_longest(*(file.entries for file in files[first : first + count])):
            mine = block = None  # nothing is kept of the tensor before
            for owner, entry in enumerate(turn):
                if entry is not None:
                    block = gather_on_process(flat[entry.path], entry.layer, owner)
                    mine = block if owner == this else mine
            if mine is not None:
                yield mine


def export_dtype(dtype: Any) -> np.dtype:
    """The dtype of a name or dtype-like.

    Raises:
        ConversionError: safetensors directories are not written in it.
    """
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in _SAFETENSORS_NAMES:
        raise ConversionError(f"dtype={name}: cannot be exported; allowed: {', '.join(_SAFETENSORS_NAMES)}")
    return jnp.dtype(name)


def check_layout(config: ModelConfig, layout: str) -> None:
    """Raises ConversionError for a layout that there is not, or that a language model does not have."""
    if layout not in LAYOUTS:
        raise ConversionError(f"layout={layout}: allowed: {', '.join(LAYOUTS)}")
    if config.head == "lm" and layout != "transformers":
        raise ConversionError(f"layout={layout}: is for reward models; this is a language model: allowed: transformers")


def parse_size(size: int | str) -> int:
    """Bytes of "5GB" (decimal), "200MiB" (binary) or a number.

    Raises:
        ConversionError: not a positive size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(size))
    factor = _UNITS.get(match[2].upper()) if match else None
    if not match or factor is None or float(match[1]) * factor < 1:
        raise ConversionError(
            f'max_shard_size={size!r}: a positive number of bytes is needed, as 5000000, "200MB", "5GB"'
        )
    return int(float(match[1]) * factor)


def _check_params(params: Params, config: ModelConfig) -> dict[tuple[str, ...], Any]:
    flat, specs = leaves(params), leaves(param_specs(config))
    if missing := sorted("/".join(path) for path in specs.keys() ^ flat.keys()):
        raise ConversionError(f"parameters do not fit the model config: {', '.join(missing)} missing or not expected")
    for path, leaf in flat.items():
        if leaf.shape != specs[path].shape:
            raise ConversionError(f"parameter {'/'.join(path)} has shape {leaf.shape}; needed: {specs[path].shape}")
    return flat


@dataclasses.dataclass(frozen=True)
class TensorFile:
    """A safetensors file of a model: its name, and the tensors in it in their order."""

    name: str
    entries: list[KeyEntry]


def plan_files(config: ModelConfig, dtype: np.dtype, limit: int, layout: Layout = "transformers") -> list[TensorFile]:
    """The tensors of the key table, in its order, in files of at most `limit` bytes (or one tensor)."""
    shards: list[list[KeyEntry]] = [[]]
    filled = 0
    for entry in key_table(config, layout):
        size = _count(entry) * dtype.itemsize
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(entry)
        filled += size
    if len(shards) == 1:
        return [TensorFile("model.safetensors", shards[0])]
    return [
        TensorFile(f"model-{i:05d}-of-{len(shards):05d}.safetensors", shard) for i, shard in enumerate(shards, start=1)
    ]


def _count(entry: KeyEntry) -> int:
    return int(np.prod(entry.shape, dtype=np.int64))


def write_tensors(
    directory: Path,
    config: ModelConfig,
    dtype: np.dtype,
    limit: int,
    blocks: Iterator[np.ndarray],
    layout: Layout = "transformers",
) -> None:
    """Writes the safetensors files of a model, and their index last if they are several.

    Args:
        dtype: of the stored tensors.
        limit: bytes in a file.
        blocks: each tensor of the key table in its order, in the layout of the parameter, of any dtype.
    Raises:
        ConversionError: a tensor holds NaN or infinity, or does once it is cast.
    """
    files = plan_files(config, dtype, limit, layout)
    for file in files:
        write_file(directory, file, dtype, blocks)
    write_index(directory, files, dtype)


def write_index(directory: Path, files: list[TensorFile], dtype: np.dtype) -> None:
    """Writes which tensor is in which file, where there are several files."""
    if len(files) == 1:
        return
    count = sum(_count(entry) for file in files for entry in file.entries)
    metadata = {"total_parameters": count, "total_size": count * dtype.itemsize}
    weight_map = {entry.key: file.name for file in files for entry in file.entries}
    _write_json(directory / "model.safetensors.index.json", {"metadata": metadata, "weight_map": weight_map})


def _as_stored(entry: KeyEntry, block: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):  # the writer names a tensor that overflows
        return entry.to_torch(block).astype(dtype, copy=False)


def write_file(directory: Path, file: TensorFile, dtype: np.dtype, blocks: Iterator[np.ndarray]) -> None:
    """Writes one file; it has its name when all of it is on the disk. Takes the file's tensors from `blocks`.

    The format: 8 bytes of header length, a JSON header padded to 8 bytes, the raw tensors. Holds one at a time.

    Raises:
        ConversionError: a tensor holds NaN or infinity, or does once it is cast.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in file.entries:
        end = offset + _count(entry) * dtype.itemsize
        header[entry.key] = {
            "dtype": _SAFETENSORS_NAMES[dtype.name],
            "shape": list(entry.torch_shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with whole_file(directory / file.name) as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for entry in file.entries:
            tensor = _as_stored(entry, next(blocks), dtype)
            if not np.isfinite(tensor).all():
                raise ConversionError(f"tensor {entry.key} holds NaN or infinite values in {dtype.name}: not exported")
            stream.write(tensor.reshape(-1).view(np.uint8).data)
            del tensor  # not in memory beside the next one


def write_companions(directory: Path, config: ModelConfig, dtype: np.dtype, companions: Companions) -> None:
    """Writes everything but the weights: config.json, generation_config.json, tokenizer files, model card."""
    tokenizer, facts = companions.tokenizer, companions.facts
    ids = {} if tokenizer is None else {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    ids |= facts.token_ids  # of a model that others made: it may have several ends, or pad with what it was trained on
    told = {key.removesuffix("_token_id") + "_id": value for key, value in ids.items()}
    model = hf_config(config, dtype, layout=companions.layout, reward=facts.reward, **told)
    if tokenizer is not None:
        from janus_jax.text.tokenizer import save_hf_tokenizer

        pad_id = model["pad_token_id"] if config.head == "value" else None
        save_hf_tokenizer(tokenizer, directory, chat_template=companions.chat_template, pad_id=pad_id)
    if companions.card is not None:
        (directory / CARD).write_text(companions.card, encoding="utf-8")
    if config.head == "lm":  # a reward model generates nothing
        _write_json(directory / "generation_config.json", _generation(model, facts.generation))
    _write_json(directory / "config.json", model)  # last: without it a directory is no model


def _generation(model: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """What the model's makers said, or else no more than the ids: how to sample is for the one who asks."""
    eos = model["eos_token_id"]
    ids = {name: model[name] for name in ("bos_token_id", "eos_token_id")}
    pad = model.get("pad_token_id", eos[0] if isinstance(eos, list) else eos)
    own = {name: value for name, value in told.items() if name != "transformers_version"}  # it did not write this file
    return {**ids, **({} if pad is None else {"pad_token_id": pad}), **own}


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def sync_tree(directory: Path) -> None:
    """Returns when everything below a directory is on the disk."""
    for path in (*directory.rglob("*"), directory):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
