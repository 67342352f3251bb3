"""Writes a Hugging Face directory: config, sharded safetensors, generation config, tokenizer and model card."""

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

from janus_jax.checkpoint.hf.blocks import all_finite
from janus_jax.checkpoint.hf.config import hf_config
from janus_jax.checkpoint.hf.facts import CARD, ModelFacts
from janus_jax.checkpoint.hf.files import TEMPLATES, write_texts
from janus_jax.checkpoint.hf.keys import LAYOUTS, KeyEntry, KeyPath, Layout, key_table, leaves
from janus_jax.checkpoint.hf.shared_directory import gather_on_process, shared_directory, writers
from janus_jax.config.sections import ExportSection
from janus_jax.errors import ConversionError
from janus_jax.model.config import ModelConfig
from janus_jax.model.mistral import Params, param_specs
from janus_jax.parallel import processes
from janus_jax.storage import staging
from janus_jax.storage.behind import write_behind
from janus_jax.storage.bucket import os_errors
from janus_jax.storage.local import sync, whole_file
from janus_jax.text.hf_files import SENTENCEPIECE_FILES, copy

_SAFETENSORS_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}

_SLOWEST = 5 * 10**6
"""Bytes per second at which process 0 must verify while the others wait. Two cores verify 7B at 60 MB/s from disk."""


@dataclasses.dataclass(frozen=True)
class Companions:
    """Everything in a directory beside its weights."""

    tokenizer: Any = None
    """A `janus_jax.text.tokenizer` tokenizer. Its BOS and EOS ids apply where `facts` has none."""
    chat_template: str | None = None
    """Jinja text of the template that the model was trained with; for None see `save_hf_tokenizer`."""
    facts: ModelFacts = dataclasses.field(default_factory=ModelFacts)
    layout: Layout = "transformers"
    card: str | None = None
    """README.md."""
    untouched: str | None = None
    """The directory of a tokenizer that has no equal tokenizer.json: its files are copied as they are."""


def save_hf(
    params: Params,
    config: ModelConfig,
    out: str | os.PathLike[str],
    *,
    dtype: Any = None,
    max_shard_size: int | str = ExportSection().max_shard_size,
    tokenizer: Any = None,
    chat_template: str | None = None,
    facts: ModelFacts | None = None,
    layout: Layout = "transformers",
    card: str | None = None,
    verify: Callable[[Path], None] | None = None,
) -> None:
    """Writes `params` as a directory that transformers, vllm and mistralrs load. Call it on every process.

    Args:
        params: numpy or jax arrays. The processes take turns in writing files. Each holds one tensor of its own file
            and a slice of a tensor for another process.
        out: absent or empty, on a file system that all processes share, or a gs:// URL. It appears complete, or not at
            all.
        dtype: of the stored tensors (float32, bfloat16 or float16); None keeps the parameters' dtype.
        max_shard_size: bytes, or text like "5GB" or "200MB". A larger tensor gets a file of its own.
        tokenizer, chat_template, facts, layout, card: see `Companions`.
        verify: called on process 0 with the complete directory before it appears. If it raises, nothing remains.

    Raises:
        ConversionError: parameters do not fit `config`, are NaN or infinite (perhaps only after the cast), or `layout`
            is not allowed for this model.
        StorageError: `out` is not empty or cannot be written.
        JanusError: the error of another process.
    """
    flat = _check_params(params, config)
    dtype = export_dtype(flat["embedding",].dtype if dtype is None else dtype)
    limit = parse_size(max_shard_size)
    check_layout(config, layout)
    companions = Companions(tokenizer, chat_template, facts or ModelFacts(), layout, card)
    files = plan_files(config, dtype, limit, layout)
    size = sum(_count(entry) for file in files for entry in file.entries) * dtype.itemsize
    with processes.agreement("export/room"):
        if processes.is_main():
            staging.require_room(out, size)
    with shared_directory(out, processes.BARRIER_TIMEOUT_S + size // _SLOWEST) as directory:
        with processes.agreement("export/tensors"), os_errors(out):
            _write_own_files(directory, files, dtype, flat, writers(out))
        if processes.is_main():
            with os_errors(out):
                write_index(directory, files, dtype)
                write_companions(directory, config, dtype, companions)
            if verify is not None:
                verify(directory)
            with os_errors(out):
                sync_tree(directory)


def _write_own_files(
    directory: Path, files: "list[TensorFile]", dtype: np.dtype, flat: dict[KeyPath, Any], count: int
) -> None:
    """Writes this process's files. The first `count` processes take turns file by file, so that all write at once."""
    arriving, this = _arriving(files, flat, count), jax.process_index()
    try:
        for file in files[this::count] if this < count else ():
            write_file(directory, file, dtype, arriving)
    finally:
        if jax.process_count() > 1:  # even after an error: the others' files need this process's parts
            for _ in arriving:
                pass


def _arriving(files: "list[TensorFile]", flat: dict[KeyPath, Any], count: int) -> Iterator[np.ndarray]:
    """The tensors of this process's files, one at a time. All processes take part in every transfer."""
    this = jax.process_index()
    for first in range(0, len(files), count):
        for turn in itertools.zip_longest(*(file.entries for file in files[first : first + count])):
            mine = block = None  # free the previous tensor
            for owner, entry in enumerate(turn):
                if entry is not None:
                    block = gather_on_process(flat[entry.path], entry.layer, owner)
                    mine = block if owner == this else mine
            if mine is not None:
                yield mine


def export_dtype(dtype: Any) -> np.dtype:
    """The numpy dtype of a name or dtype-like.

    Raises:
        ConversionError: it is not a dtype for export.
    """
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in _SAFETENSORS_NAMES:
        raise ConversionError(f"dtype={name}: cannot be exported; allowed: {', '.join(_SAFETENSORS_NAMES)}")
    return jnp.dtype(name)


def check_layout(config: ModelConfig, layout: str) -> None:
    """Raises ConversionError for an unknown layout, or for OpenRLHF's layout of a language model."""
    if layout not in LAYOUTS:
        raise ConversionError(f"layout={layout}: allowed: {', '.join(LAYOUTS)}")
    if config.head == "lm" and layout != "transformers":
        raise ConversionError(f"layout={layout}: is for reward models; allowed for a language model: transformers")


def parse_size(size: int | str) -> int:
    """Bytes of "5GB" (decimal), "200MiB" (binary) or a number.

    Raises:
        ConversionError: not a positive size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(size))
    factor = _UNITS.get(match[2].upper()) if match else None
    if not match or factor is None or float(match[1]) * factor < 1:
        raise ConversionError(
            f'max_shard_size={size!r}: allowed: a positive number of bytes, like 5000000, "200MB" or "5GB"'
        )
    return int(float(match[1]) * factor)


def _check_params(params: Params, config: ModelConfig) -> dict[tuple[str, ...], Any]:
    flat, specs = leaves(params), leaves(param_specs(config))
    if unmatched := sorted("/".join(path) for path in specs.keys() ^ flat.keys()):
        raise ConversionError(f"parameters do not fit the model config: {', '.join(unmatched)} missing or unexpected")
    for path, leaf in flat.items():
        if leaf.shape != specs[path].shape:
            raise ConversionError(f"parameter {'/'.join(path)} has shape {leaf.shape}; needed: {specs[path].shape}")
    return flat


@dataclasses.dataclass(frozen=True)
class TensorFile:
    """A safetensors file of a model: its name, and its tensors in order."""

    name: str
    entries: list[KeyEntry]


def plan_files(config: ModelConfig, dtype: np.dtype, limit: int, layout: Layout = "transformers") -> list[TensorFile]:
    """Distributes the key table's tensors, in order, over files of at most `limit` bytes (or one larger tensor)."""
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
    """Writes the safetensors files of a model and, if there are several, their index last.

    Args:
        dtype: of the stored tensors.
        limit: bytes per file.
        blocks: the tensors in the order of the key table, in the layout of the parameter, of any dtype.

    Raises:
        ConversionError: a tensor holds NaN or infinity, perhaps only after the cast.
    """
    files = plan_files(config, dtype, limit, layout)
    for file in files:
        write_file(directory, file, dtype, blocks)
    write_index(directory, files, dtype)


def write_index(directory: Path, files: list[TensorFile], dtype: np.dtype) -> None:
    """Writes the index of tensors and files, if there are several files."""
    if len(files) == 1:
        return
    count = sum(_count(entry) for file in files for entry in file.entries)
    metadata = {"total_parameters": count, "total_size": count * dtype.itemsize}
    weight_map = {entry.key: file.name for file in files for entry in file.entries}
    _write_json(directory / "model.safetensors.index.json", {"metadata": metadata, "weight_map": weight_map})


def _as_stored(entry: KeyEntry, block: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):  # the writer raises an error that names a tensor that overflows
        return entry.to_torch(block).astype(dtype, copy=False)


def write_file(directory: Path, file: TensorFile, dtype: np.dtype, blocks: Iterator[np.ndarray]) -> None:
    """Writes one file with the next tensors of `blocks`, one at a time. It gets its name when all of it is on disk.

    The format: 8 bytes of header length, a JSON header padded to 8 bytes, the raw tensors.

    Raises:
        ConversionError: a tensor holds NaN or infinity, perhaps only after the cast.
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
    with whole_file(directory / file.name) as whole, write_behind(whole) as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for entry in file.entries:
            tensor = _as_stored(entry, next(blocks), dtype)
            if not all_finite(tensor):
                raise ConversionError(f"tensor {entry.key} holds NaN or infinite values in {dtype.name}: not exported")
            stream.write(tensor.reshape(-1).view(np.uint8).data)  # goes on while the next one is prepared
            del tensor  # free it before the next one is read


def write_companions(directory: Path, config: ModelConfig, dtype: np.dtype, companions: Companions) -> None:
    """Writes everything but the weights: config.json, generation_config.json, tokenizer files, model card, licences.

    Additional chat templates go with the default one: a template of training replaces all of them.
    """
    tokenizer, facts = companions.tokenizer, companions.facts
    ids = {} if tokenizer is None else {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    ids |= facts.token_ids  # a model from elsewhere may have several EOS ids, or a padding id it was trained with
    arguments = {key.removesuffix("_token_id") + "_id": value for key, value in ids.items()}
    model = hf_config(config, dtype, layout=companions.layout, reward=facts.reward, **arguments)
    if companions.untouched is not None:
        copy({Path(companions.untouched, name): name for name in SENTENCEPIECE_FILES}, directory)
    elif tokenizer is not None:
        from janus_jax.text.tokenizer import save_hf_tokenizer

        pad_id = model["pad_token_id"] if config.head == "value" else None
        template = companions.chat_template
        save_hf_tokenizer(
            tokenizer, directory, chat_template=template, pad_id=pad_id, keep_class=template is None
        )  # a model that was not trained here keeps the files that it came with
    if companions.card is not None:
        (directory / CARD).write_text(companions.card, encoding="utf-8")
    replaced = companions.chat_template is not None
    write_texts(directory, {k: v for k, v in facts.texts.items() if not (replaced and k.startswith(f"{TEMPLATES}/"))})
    if config.head == "lm":  # a reward model generates nothing
        _write_json(directory / "generation_config.json", _generation(model, facts.generation))
    _write_json(directory / "config.json", model)  # last: without it, no reader takes the directory for a model


def _generation(model: Mapping[str, Any], original: Mapping[str, Any]) -> dict[str, Any]:
    """generation_config.json: the original's settings and the ids. Without an original, how to sample is left open."""
    eos = model["eos_token_id"]
    ids = {name: model[name] for name in ("bos_token_id", "eos_token_id")}
    pad = model.get("pad_token_id", eos[0] if isinstance(eos, list) else eos)
    settings = {name: value for name, value in original.items() if name != "transformers_version"}  # not its writer
    return {**ids, **({} if pad is None else {"pad_token_id": pad}), **settings}


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def sync_tree(directory: Path) -> None:
    """Returns when everything below a directory is on disk."""
    for path in (*directory.rglob("*"), directory):
        sync(path)
