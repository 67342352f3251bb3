"""Writes a Hugging Face directory: config, sharded safetensors, generation config and tokenizer, whole or absent."""

import dataclasses
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.checkpoint.facts import CARD, Facts
from janus_jax.checkpoint.hf_config import hf_config
from janus_jax.checkpoint.keys import LAYOUTS, KeyEntry, Layout, key_table, leaves
from janus_jax.errors import ConversionError, JanusError, StorageError
from janus_jax.model.config import ModelConfig
from janus_jax.model.mistral import Params, param_specs
from janus_jax.storage import atomic_directory

_SAFETENSORS_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


@dataclasses.dataclass(frozen=True)
class Companions:
    """What a directory holds beside its weights."""

    tokenizer: Any = None
    """A `janus_jax.data.tokenizer` tokenizer whose files go in; it gives the bos and eos ids that `facts` does not."""
    chat_template: str | None = None
    """Jinja text of the form that was trained; see `save_hf_tokenizer` for what None does."""
    facts: Facts = dataclasses.field(default_factory=Facts)
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
    generation_defaults: Mapping[str, Any] | None = None,
    facts: Facts | None = None,
    layout: Layout = "transformers",
    card: str | None = None,
) -> None:
    """Writes `params` as a directory that transformers, vllm and mistralrs load. Call it on every process.

    Args:
        params: numpy or jax arrays; sharded ones are gathered a tensor at a time, process 0 writes.
        out: must be absent or empty; it appears whole, or not at all.
        dtype: of the stored tensors (float32, bfloat16 or float16); None keeps that of the parameters.
        max_shard_size: bytes, or text as "5GB", "200MB"; a larger tensor gets a file of its own.
        tokenizer, chat_template, facts, layout, card: see `Companions`.
        generation_defaults: further keys of generation_config.json.

    Raises:
        ConversionError: parameters that are not those of `config`, or that are NaN or infinite (also by the cast), or
            another layout for a language model.
        StorageError: `out` holds something or cannot be written.
    """
    flat = _check_params(params, config)
    dtype = export_dtype(flat["embedding",].dtype if dtype is None else dtype)
    limit = parse_size(max_shard_size)
    check_layout(config, layout)
    facts = facts or Facts()
    facts = dataclasses.replace(facts, generation={**facts.generation, **(generation_defaults or {})})
    companions = Companions(tokenizer, chat_template, facts, layout, card)
    blocks = _gathered(key_table(config), flat)
    failure: Exception | None = None
    if jax.process_index() == 0:
        try:
            with atomic_directory(out) as directory:
                write_tensors(directory, config, dtype, limit, blocks, layout)
                write_companions(directory, config, dtype, companions)
                sync_tree(directory)
        except OSError as error:
            failure = StorageError(f"{os.fspath(out)}: cannot be written: {error.strerror or error}")
        except Exception as error:
            failure = error
    for _ in blocks:  # the gathers are collective: every process makes all of them, whatever befell the writer
        pass
    _agree(failure, os.fspath(out))


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


def _plan_shards(entries: list[KeyEntry], itemsize: int, limit: int) -> list[list[KeyEntry]]:
    shards: list[list[KeyEntry]] = [[]]
    filled = 0
    for entry in entries:
        size = _count(entry) * itemsize
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(entry)
        filled += size
    return shards


def _count(entry: KeyEntry) -> int:
    return int(np.prod(entry.shape, dtype=np.int64))


def _gathered(entries: list[KeyEntry], flat: dict[tuple[str, ...], Any]) -> Iterator[np.ndarray]:
    """The parameters, or their layers, in order, each on the host of every process, one at a time."""
    for entry in entries:
        leaf = flat[entry.path]
        part = leaf if entry.layer is None else leaf[entry.layer]
        if isinstance(part, jax.Array) and not part.is_fully_addressable:
            from jax.experimental import multihost_utils

            part = multihost_utils.process_allgather(part, tiled=True)
        yield np.asarray(part)


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
    shards = _plan_shards(key_table(config, layout), dtype.itemsize, limit)
    tensors = _cast((entry for shard in shards for entry in shard), blocks, dtype)
    if len(shards) == 1:
        _write_safetensors(directory / "model.safetensors", shards[0], dtype, tensors)
        return
    weight_map = {}
    for i, shard in enumerate(shards, start=1):
        name = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        _write_safetensors(directory / name, shard, dtype, tensors)
        weight_map |= {entry.key: name for entry in shard}
    count = sum(_count(entry) for shard in shards for entry in shard)
    metadata = {"total_parameters": count, "total_size": count * dtype.itemsize}
    _write_json(directory / "model.safetensors.index.json", {"metadata": metadata, "weight_map": weight_map})


def _cast(entries: Iterable[KeyEntry], blocks: Iterator[np.ndarray], dtype: np.dtype) -> Iterator[np.ndarray]:
    for entry, block in zip(entries, blocks, strict=False):  # not asked for more than there are entries
        with np.errstate(over="ignore"):  # the writer names a tensor that overflows
            yield entry.to_torch(block).astype(dtype, copy=False)


def _write_safetensors(file: Path, entries: list[KeyEntry], dtype: np.dtype, tensors: Iterator[np.ndarray]) -> None:
    """The format: 8 bytes of header length, a JSON header padded to 8 bytes, the raw tensors. Holds one at a time."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in entries:
        end = offset + _count(entry) * dtype.itemsize
        header[entry.key] = {
            "dtype": _SAFETENSORS_NAMES[dtype.name],
            "shape": list(entry.torch_shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for entry in entries:
            tensor = next(tensors)
            if not np.isfinite(tensor).all():
                raise ConversionError(f"tensor {entry.key} holds NaN or infinite values in {dtype.name}: not exported")
            stream.write(tensor.reshape(-1).view(np.uint8).data)


def write_companions(directory: Path, config: ModelConfig, dtype: np.dtype, companions: Companions) -> None:
    """Writes everything but the weights: config.json, generation_config.json, tokenizer files, model card."""
    tokenizer, facts = companions.tokenizer, companions.facts
    ids = {} if tokenizer is None else {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    ids |= facts.token_ids  # of a model that others made: it may have several ends, or pad with what it was trained on
    told = {key.removesuffix("_token_id") + "_id": value for key, value in ids.items()}
    model = hf_config(config, dtype, layout=companions.layout, reward=facts.reward, **told)
    if tokenizer is not None:
        from janus_jax.data.tokenizer import save_hf_tokenizer

        pad_id = model["pad_token_id"] if config.head == "value" else None
        save_hf_tokenizer(tokenizer, directory, chat_template=companions.chat_template, pad_id=pad_id)
    if companions.card is not None:
        (directory / CARD).write_text(companions.card, encoding="utf-8")
    _write_json(directory / "config.json", model)
    if config.head == "lm":  # a reward model generates nothing
        _write_json(directory / "generation_config.json", _generation(model, facts.generation))


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


def _agree(failure: Exception | None, out: str) -> None:
    """Raises on every process, with the same exit code, when process 0 failed."""
    kinds = (JanusError, StorageError, ConversionError)
    kind = -1 if failure is None else max(i for i, kind in enumerate(kinds) if i == 0 or isinstance(failure, kind))
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        kind = int(multihost_utils.broadcast_one_to_all(np.int32(kind)))
    if kind >= 0:
        raise failure or kinds[kind](f"{out}: process 0 could not write it; its log says why")
