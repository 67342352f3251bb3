"""`janus convert`: Hugging Face directories to Orbax and back, one tensor of a layer at a time, then verified."""

import dataclasses
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from janus_jax import __version__, staging
from janus_jax.checkpoint.card import model_card
from janus_jax.checkpoint.digest import Difference, Digests, compare, tensors
from janus_jax.checkpoint.hf_write import (
    Companions,
    check_layout,
    export_dtype,
    parse_size,
    sync_tree,
    write_companions,
    write_tensors,
)
from janus_jax.checkpoint.keys import KeyEntry, Layout, key_table
from janus_jax.checkpoint.source import Source, open_source
from janus_jax.checkpoint.stream import ItemWriter
from janus_jax.data.template import get_template
from janus_jax.errors import ConversionError

Verify = Literal["logits", "digest", "none"]
REPORT = "conversion_report.json"
_LAST_OF_HF, _LAST_OF_CONVERTED = "config.json", "meta/metadata"
"""Files without which nobody takes a directory for a model: an upload ends with them."""


@dataclasses.dataclass
class Report:
    """What a conversion did; conversion_report.json in the directory that it wrote."""

    source: str
    step: int | None
    model: dict[str, Any]
    stored_dtype: str  # of the source
    dtype: str  # of what was written
    verify: Verify
    layout: Layout | None = None  # of a Hugging Face directory that was written
    sha256: dict[str, str] = dataclasses.field(default_factory=dict)
    """Of every tensor that was written, by Hugging Face key (`digest.digest`); empty with verify none."""
    largest_logit_difference: float | None = None
    """Between source and result, with verify logits; 0 is expected where the dtype stays."""
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    janus_jax: str = __version__

    def __str__(self) -> str:
        verified = {"none": "not verified", "digest": "every tensor compared"}.get(self.verify)
        if verified is None:
            verified = f"every tensor compared, largest difference of logits {self.largest_logit_difference:.3g}"
        return f"written in {self.dtype}; {verified}"

    def save(self, directory: Path) -> None:
        (directory / REPORT).write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")


@staging.naming_urls()
def from_hf(src: str | os.PathLike[str], dst: str | os.PathLike[str], *, verify: Verify = "logits") -> Report:
    """Writes DST/{params, meta, tokenizer} from a Hugging Face directory or hub id, in the stored dtype.

    `params` is the Orbax item that checkpoints have too, so `init.from` takes DST; any Orbax reads it.

    Args:
        src, dst: on this machine or gs://.
        verify: `digest` reads the result once more and compares every tensor; `logits` also runs both models, layer by
            layer, and compares what they say.

    Raises:
        ConversionError: SRC is not such a directory, or is damaged; names file and tensor. Or the result is not SRC.
        StorageError: DST holds something or cannot be written, or gs:// refuses.
    """
    _check_verify(verify)
    staging.require_free(dst)  # before a download
    source = open_source(src)
    if not source.is_hf:
        raise ConversionError(f"{source.path}: not a Hugging Face directory: config.json is not there")
    tokenizer = None if source.tokenizer_directory is None else _open_tokenizer(source.tokenizer_directory)
    staging.require_room(dst, _size(source, source.stored_dtype))
    with staging.output(dst, _LAST_OF_CONVERTED) as directory:
        report = _report(source, source.stored_dtype, verify)
        if tokenizer is not None:
            tokenizer.save(directory / "tokenizer")
        with _Timer(report, "convert"):
            writer = ItemWriter(epath.Path(directory) / "params", source.config, source.stored_dtype)
            for entry, block in _noted(source, report):
                writer.write(entry.path, entry.layer, block)
            writer.close()
            meta = {
                "format_version": 1,
                "janus_jax": __version__,
                "model": dataclasses.asdict(source.config),
                "facts": source.facts.to_json(),
            }
            with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
                checkpointer.save(directory / "meta", args=ocp.args.JsonSave(meta))
            sync_tree(directory)
        _verify(source, directory, report)
        report.save(directory)
    return report


@staging.naming_urls()
def to_hf(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    dtype: Any = None,
    max_shard_size: int | str = "5GB",
    step: int | None = None,
    verify: Verify = "logits",
    layout: Layout = "transformers",
) -> Report:
    """Writes a Hugging Face directory from a run (its newest step, or `step`), a step, a converted one or a hub id.

    Args:
        src, dst: on this machine or gs://.
        dtype: of the tensors: float32, bfloat16 or float16; None keeps the stored one.
        max_shard_size: bytes, or text as "5GB".
        verify: as `from_hf`; after a cast, digests are of the cast tensors.
        layout: of a reward model, who shall read it: `transformers` (`MistralForSequenceClassification`) or `openrlhf`.

    Raises:
        ConversionError: SRC holds no model, or an argument is wrong, or the result is not SRC.
        StorageError: DST holds something or cannot be written, or gs:// refuses.
    """
    _check_verify(verify)
    staging.require_free(dst)
    limit = parse_size(max_shard_size)
    source = open_source(src, step)
    check_layout(source.config, layout)
    target = export_dtype(source.stored_dtype if dtype is None else dtype)
    tokenizer = None if source.tokenizer_directory is None else _open_tokenizer(source.tokenizer_directory)
    chat_template = None if source.template is None else get_template(source.template).chat_template
    card = model_card(source.config, target, facts=source.facts, meta=source.meta, step=source.step, layout=layout)
    report = dataclasses.replace(_report(source, target, verify), layout=layout)
    staging.require_room(dst, _size(source, target))
    with staging.output(dst, _LAST_OF_HF) as directory:
        with _Timer(report, "convert"):
            blocks = (block for _, block in _noted(source, report))
            write_tensors(directory, source.config, target, limit, blocks, layout)
            companions = Companions(tokenizer, chat_template, source.facts, layout, card)
            write_companions(directory, source.config, target, companions)
            sync_tree(directory)
        _verify(source, directory, report)
        names = (entry.key for entry in key_table(source.config, layout))
        report.sha256 = dict(zip(names, report.sha256.values(), strict=False))  # as the files call them; or all empty
        report.save(directory)
    return report


@staging.naming_urls()
def check(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> list[Difference]:
    """Tensors in which two models differ; empty where they are bit for bit the same.

    Args:
        a, b: anything that holds a model (`open_source`).
    Raises:
        ConversionError: one holds no model, or they have different shapes.
    """
    return compare(open_source(a), open_source(b))


def _check_verify(verify: str) -> None:
    if verify not in get_args(Verify):
        raise ConversionError(f"verify={verify}: allowed: {', '.join(get_args(Verify))}")


def _size(source: Source, dtype: np.dtype) -> int:
    return sum(math.prod(entry.shape) for entry in key_table(source.config)) * dtype.itemsize


def _report(source: Source, dtype: np.dtype, verify: Verify) -> Report:
    model = dataclasses.asdict(source.config)
    return Report(source.path, source.step, model, source.stored_dtype.name, np.dtype(dtype).name, verify)


def _noted(source: Source, report: Report) -> Iterator[tuple[KeyEntry, np.ndarray]]:
    """The tensors of the source; their digests, as they will be stored, go into the report."""
    digests = Digests(report.sha256)
    for entry, block in tensors(source):
        if report.verify != "none":
            digests.note(entry, block, np.dtype(report.dtype))
        yield entry, block


def _verify(source: Source, directory: Path, report: Report) -> None:
    if report.verify == "none":
        return
    written = open_source(directory)
    with _Timer(report, "digests"):
        Digests(report.sha256).require(written)
    if report.verify == "logits":
        from janus_jax.checkpoint.verify import largest_logit_difference

        with _Timer(report, "logits"):
            report.largest_logit_difference = largest_logit_difference(source, written)


class _Timer:
    """Adds the seconds of a block to a report."""

    def __init__(self, report: Report, name: str):
        self._report, self._name = report, name

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._report.seconds[self._name] = round(time.perf_counter() - self._began, 3)


def _open_tokenizer(directory: str) -> Any:
    """With a tokenizer.json there, all its files go along; from a sentencepiece model alone the rest is made."""
    from janus_jax.data.tokenizer import HFTokenizer, load_tokenizer

    return HFTokenizer(directory) if (Path(directory) / "tokenizer.json").is_file() else load_tokenizer(directory)
