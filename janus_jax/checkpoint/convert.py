"""`janus convert`: Hugging Face directories to Orbax and back, one tensor at a time, then verified."""

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from janus_jax import __version__
from janus_jax.checkpoint.conversion_report import Report, Verify, check_verify
from janus_jax.checkpoint.digest import TensorDifference, compare
from janus_jax.checkpoint.hf import write
from janus_jax.checkpoint.hf.card import model_card
from janus_jax.checkpoint.hf.keys import Layout, key_table
from janus_jax.checkpoint.hf.shared_directory import LAST
from janus_jax.checkpoint.item import ItemWriter
from janus_jax.checkpoint.stored_model import StoredModel, open_model
from janus_jax.config.sections import ExportSection
from janus_jax.errors import ConversionError
from janus_jax.storage import staging
from janus_jax.storage.local import absolute
from janus_jax.text.tokenizer import HFTokenizer, UnusableTokenizer, load_tokenizer, why_no_tokenizer_json

_DEFAULTS = ExportSection()
_LAST_OF_HF, _LAST_OF_CONVERTED = LAST, "meta/metadata"
"""An upload writes these files last: without them, no reader takes the directory for a model."""


@staging.naming_urls()
def from_hf(src: str | os.PathLike[str], dst: str | os.PathLike[str], *, verify: Verify = _DEFAULTS.verify) -> Report:
    """Writes DST/{params, meta, tokenizer} from a Hugging Face directory or hub id, in the stored dtype.

    `params` is an Orbax item like that of a checkpoint, so `init.from` accepts DST. Stock Orbax reads it.

    Args:
        src, dst: local or on gs://.
        verify: `digest` reads the result again and compares every tensor. So does `logits`: the dtype stays, so equal
            tensors mean equal logits. That shows that the result is the model that was read, not that another library
            computes the same.

    Raises:
        ConversionError: SRC is not a Hugging Face directory, or is damaged (names file and tensor), or the result
            differs from SRC.
        StorageError: DST is not empty or cannot be written, or gs:// refuses access.
    """
    check_verify(verify)
    staging.require_free(dst)  # before a download
    source = open_model(src)
    if source.layout is None:
        raise ConversionError(source.path, "not a Hugging Face directory: it has no config.json")
    tokenizer = None if source.tokenizer_directory is None else _open_tokenizer(source.tokenizer_directory)
    staging.require_room(dst, _size(source, source.stored_dtype))
    with staging.output(dst, _LAST_OF_CONVERTED) as directory:
        report = Report.of(source, source.stored_dtype, verify)
        report.notes += _ids_without_a_row(source, tokenizer)
        if tokenizer is not None:
            tokenizer.save(directory / "tokenizer")
        with report.timed("convert"):
            writer = ItemWriter(absolute(directory) / "params", source.config, source.stored_dtype)
            for entry, block in report.tensors(source):
                writer.write(entry.path, entry.layer, block)
            writer.close()
            meta = {
                "format_version": 1,
                "janus_jax": __version__,
                "model": dataclasses.asdict(source.config),
                "facts": dataclasses.asdict(source.facts),
            }
            with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
                checkpointer.save(directory / "meta", args=ocp.args.JsonSave(meta))
        report.finish(source, directory)
        write.sync_tree(directory)
    return report


@staging.naming_urls()
def to_hf(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    dtype: Any = None,
    max_shard_size: int | str = _DEFAULTS.max_shard_size,
    step: int | None = None,
    verify: Verify = _DEFAULTS.verify,
    layout: Layout = _DEFAULTS.layout,
) -> Report:
    """Writes a Hugging Face directory from any stored model (`open_model`).

    Args:
        src, dst: local or on gs://.
        dtype: of the tensors: float32, bfloat16 or float16; None keeps the stored dtype.
        max_shard_size: bytes, or text like "5GB".
        step: which step of a run; None: the newest.
        verify: as in `from_hf`. After a cast, digests are those of the cast tensors, and `logits` also runs both
            models, layer by layer, with this package, and compares their outputs.
        layout: which library reads a reward model: `transformers` (`MistralForSequenceClassification`) or `openrlhf`.

    Raises:
        ConversionError: SRC holds no model, or an argument is wrong, or the result differs from SRC.
        StorageError: DST is not empty or cannot be written, or gs:// refuses access.
    """
    check_verify(verify)
    staging.require_free(dst)
    limit = write.parse_size(max_shard_size)
    source = open_model(src, step)
    write.check_layout(source.config, layout)
    target = write.export_dtype(source.stored_dtype if dtype is None else dtype)
    tokenizer, unmade = _tokenizer_to_export(source)
    chat = source.chat_format()
    template = None if source.template is None else "" if chat is None else chat.chat_template
    card = model_card(
        source.config, target, facts=source.facts, meta=source.meta, step=source.step, layout=layout, chat=chat
    )
    report = Report.of(source, target, verify, layout)
    report.notes += _ids_without_a_row(source, tokenizer)
    if unmade:
        report.notes.append(f"the tokenizer's files are copied as they are, and no tokenizer.json was made: {unmade}")
    staging.require_room(dst, _size(source, target))
    with staging.output(dst, _LAST_OF_HF) as directory:
        with report.timed("convert"):
            blocks = (block for _, block in report.tensors(source))
            write.write_tensors(directory, source.config, target, limit, blocks, layout)
            untouched = source.tokenizer_directory if unmade else None
            companions = write.Companions(tokenizer, template, source.facts, layout, card, untouched)
            write.write_companions(directory, source.config, target, companions)
        report.finish(source, directory)
        write.sync_tree(directory)
    return report


@staging.naming_urls()
def check(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> list[TensorDifference]:
    """Tensors in which two models differ; empty if the models are bit for bit the same.

    Args:
        a, b: any stored models (`open_model`).

    Raises:
        ConversionError: one path holds no model, or the models have different shapes.
    """
    return compare(open_model(a), open_model(b))


def _size(source: StoredModel, dtype: np.dtype) -> int:
    return sum(math.prod(entry.shape) for entry in key_table(source.config)) * dtype.itemsize


def _ids_without_a_row(source: StoredModel, tokenizer: Any) -> list[str]:
    """A note if the tokenizer has more ids than the embedding rows, as an added pad token makes it."""
    rows = source.config.vocab_size
    if tokenizer is None or tokenizer.vocab_size <= rows:
        return []
    return [
        f"the tokenizer has {tokenizer.vocab_size} ids, the embedding {rows} rows: tokens from id {rows} on cannot be "
        "used; remove them from the tokenizer, or add rows with transformers' resize_token_embeddings"
    ]


def _tokenizer_to_export(source: StoredModel) -> tuple[Any, str]:
    """The tokenizer, and why no tokenizer.json can be made of it, so that its files must travel as they are.

    Only a tokenizer without our template may travel so: one that was trained with it must say so to servers.
    """
    if source.tokenizer_directory is None:
        return None, ""
    try:
        tokenizer = _open_tokenizer(source.tokenizer_directory)
    except UnusableTokenizer as error:
        if source.template is not None:
            raise
        return None, str(error.args[-1])
    return tokenizer, "" if source.template is not None else why_no_tokenizer_json(tokenizer)


def _open_tokenizer(directory: str) -> Any:
    """If tokenizer.json exists, `save` copies all files; from a sentencepiece model alone it creates the others."""
    return HFTokenizer(directory) if (Path(directory) / "tokenizer.json").is_file() else load_tokenizer(directory)
