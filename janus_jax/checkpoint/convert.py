"""`janus convert`: Hugging Face directories to Orbax and back."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from janus_jax import __version__
from janus_jax.checkpoint.hf_write import export_dtype, parse_size, save_hf
from janus_jax.checkpoint.source import open_source
from janus_jax.checkpoint.state import save_args
from janus_jax.data.template import get_template
from janus_jax.errors import ConversionError
from janus_jax.storage import atomic_directory, require_free


def from_hf(src: str | os.PathLike[str], dst: str | os.PathLike[str]) -> None:
    """Writes DST/{params, meta, tokenizer} from a Hugging Face directory or hub id, in the stored dtype.

    `params` is the Orbax item that checkpoints have too, so `init.from` takes DST; any Orbax reads it.

    Raises:
        ConversionError: SRC is not such a directory, or is damaged; names file and tensor.
        StorageError: DST holds something or cannot be written.
    """
    with atomic_directory(dst) as directory:  # refuses DST before a download
        source = open_source(src)
        if not (Path(source.path) / "config.json").is_file():
            raise ConversionError(f"{source.path}: not a Hugging Face directory: config.json is not there")
        if source.tokenizer_directory is not None:
            _copy_tokenizer(source.tokenizer_directory, directory / "tokenizer")
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            checkpointer.save(directory / "params", args=save_args(source.load_host()))
        meta = {"format_version": 1, "janus_jax": __version__, "model": dataclasses.asdict(source.config)}
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
            checkpointer.save(directory / "meta", args=ocp.args.JsonSave(meta))


def to_hf(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    dtype: Any = None,
    max_shard_size: int | str = "5GB",
    step: int | None = None,
) -> None:
    """Writes a Hugging Face directory from a run (its newest step, or `step`), a step, a converted one or a hub id.

    Args:
        dtype: of the tensors: float32, bfloat16 or float16; None keeps the stored one.
        max_shard_size: bytes, or text as "5GB".

    Raises:
        ConversionError: SRC holds no model, or an argument is wrong.
        StorageError: DST holds something or cannot be written.
    """
    require_free(dst)
    parse_size(max_shard_size)
    source = open_source(src, step)
    dtype = export_dtype(source.stored_dtype if dtype is None else dtype)
    tokenizer = None if source.tokenizer_directory is None else _open_tokenizer(source.tokenizer_directory)
    save_hf(
        source.load_host(),
        source.config,
        dst,
        dtype=dtype,
        max_shard_size=max_shard_size,
        tokenizer=tokenizer,
        chat_template=None if source.template is None else get_template(source.template).chat_template,
    )


def _open_tokenizer(directory: str) -> Any:
    """With a tokenizer.json there, all its files go along; from a sentencepiece model alone the rest is made."""
    from janus_jax.data.tokenizer import HFTokenizer, load_tokenizer

    return HFTokenizer(directory) if (Path(directory) / "tokenizer.json").is_file() else load_tokenizer(directory)


def _copy_tokenizer(source: str, target: Path) -> None:
    _open_tokenizer(source).save(target)
