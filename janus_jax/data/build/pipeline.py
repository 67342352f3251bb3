"""From published records to a data set of token ids: check, write TFDS, run the seqio Task once, store the ids."""

import contextlib
import dataclasses
import functools
import hashlib
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from janus_jax.data.boundary import Boundary, check_boundary
from janus_jax.data.build import token_files
from janus_jax.data.build.beam.runner import Runner
from janus_jax.data.build.derive import Derivation
from janus_jax.data.build.encode import UNUSABLE, Encoded, Encoder, Texts, encoding
from janus_jax.data.build.ratings import Ratings
from janus_jax.data.build.reading import Choice, Reading
from janus_jax.data.build.sources import OVERRULE, file_sets, find_splits, refuse_shared_files
from janus_jax.data.dataset import MANIFEST, SPLIT_NAME, Manifest, Split, fingerprint_of, id_dtype
from janus_jax.data.example import TOKEN_FEATURES
from janus_jax.data.schema import Record, RecordError, check_kind
from janus_jax.data.served import check_stored
from janus_jax.data.tally import Tally, note, places_of, summary
from janus_jax.errors import DataError, JanusError, first_line
from janus_jax.storage import staging
from janus_jax.text.served import control_pattern, require_servable
from janus_jax.text.template import get_template
from janus_jax.text.tokenizer import Tokenizer, load_tokenizer, save_hf_tokenizer

Source = str | os.PathLike[str]
Progress = Callable[[str, str, int, int | None], None]
"""Called with split, phase ("read" or "tokenize"), records done, total records (None while reading, which does not know
it yet). An upload at the end calls it with "files", "upload", files done, total files."""

_PROGRESS_EVERY = 256
_MANY_RECORDS = 5000  # from here on, tokenizing in one process takes longer than starting several
_RESERVED = ("all", "tfds", "tokenizer")  # TFDS's name for the union, and folders of a data set


@staging.naming_urls()
def build(
    source: Source | Mapping[str, Source],
    out: Source,
    *,
    kind: str,
    tokenizer: Source | Tokenizer | None = None,
    template: str = "mistral-inst",
    boundary: Boundary = "separate",
    bos: bool = True,
    skip_bad: bool = False,
    derive: Derivation | None = None,
    ratings: Ratings | None = None,
    dedupe: bool = False,
    validation_fraction: float | None = None,
    validation_seed: int = 0,
    splits: Sequence[str] | None = None,
    processes: int | None = 1,
    runner: Runner | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Writes a data set for `TokenizedDataset`, in bounded memory. If it fails, it leaves nothing behind.

    Args:
        source: A JSONL, JSON or Parquet file, a directory of them, a Hugging Face id, or a mapping from split names to
            these; files and directories may be on gs://. Without a mapping, names say the splits (`find_splits`).
        out: Directory or gs:// URL to write; new or empty.
        kind: sft, dpo, orpo or rm: which columns are read (schema.py).
        tokenizer: A directory or a Tokenizer; None: the embedded Mistral tokenizer.
        template: A name in template.TEMPLATES.
        boundary: Tokenize prompt and response separately or as one text (boundary.py).
        bos: Whether prompts begin with the tokenizer's BOS, if it has one.
        skip_bad: Drop and count bad records instead of stopping.
        derive: Read records of kind sft and draw pairs of `kind` from them (derive.py).
        ratings: Keep pairs by their ratings, or take margins from them (ratings.py); None: ratings are not read.
        dedupe: Drop and count records that repeat another of their split in all texts and the margin.
        validation_fraction: Share of the prompts of split train, above 0 and below 1, whose records become split
            validation; None: none. The draw depends on `validation_seed` and the prompts, not on their order.
        splits: Splits of the source to build; None: all.
        processes: Tokenizing processes; None: 1, or one per core for large sources. With more than 1, each imports the
            caller's main module, which must then call this below `if __name__ == "__main__":`.
        runner: Build on Apache Beam, with the same result; None: in this process.
        progress: Receives the progress of reading, tokenizing and uploading.

    Raises:
        DataError: an argument is not allowed, or a record (FILE:RECORD) cannot be used.
        StorageError: `out` is not empty or cannot be written.
    """
    check_kind(kind)
    check_boundary(boundary)
    prompt_template = get_template(template)
    if tokenizer is None or isinstance(tokenizer, str | os.PathLike):
        tokenizer = load_tokenizer(tokenizer)  # type: ignore[reportArgumentType]
    if ratings and (kind == "sft" or derive is not None):
        raise DataError("min_margin, margin_from_ratings: allowed for pairs that are read, not drawn")
    if runner is not None:
        runner.check(list(source.values()) if isinstance(source, Mapping) else [source])
    choice = Choice(dedupe, validation_fraction, validation_seed)
    unread: Counter[str] = Counter()
    files = _files_of_splits(source, splits, unread)
    refuse_shared_files(files)

    with staging.output(out, MANIFEST, progress) as directory:
        encoder = Encoder(kind, prompt_template, boundary, tokenizer, bos)
        require_servable(encoder.chat)  # now, and not when the weights are trained
        save_hf_tokenizer(tokenizer, directory / "tokenizer")

        def reading() -> Reading:
            return Reading(files, kind, choice, derive=derive, ratings=ratings, skip_bad=skip_bad, scratch=directory)

        if runner is not None:
            from janus_jax.data.build.beam.launch import write

            options = {"source": _source_name(source), "processes": processes or 1}
            written, control = write(runner, reading(), encoder, files, directory, **options)
        else:
            writer = _Writer(directory, _source_name(source), reading, encoder, skip_bad, processes, progress)
            written, control = writer.write(), writer.control
        manifest = Manifest(
            kind=kind,
            template=template,
            source=_source_name(source),
            tokenizer={
                "fingerprint": tokenizer.fingerprint,
                "vocab_size": tokenizer.vocab_size,
                "bos": tokenizer.bos_id,
                "eos": tokenizer.eos_id,
            },
            splits=written,
            boundary=boundary,
            bos=bos,
            ids=id_dtype(tokenizer.vocab_size).str,
            derived=None if derive is None else dataclasses.asdict(derive),
            ratings=dataclasses.asdict(ratings) if ratings else None,
            fingerprint=fingerprint_of(written),
            marks=list(encoder.chat.marks),
            unread_files=dict(sorted(unread.items())),
            file_sets={name: sets for name, paths in files.items() if len(sets := file_sets(paths)) > 1},
            **dataclasses.asdict(choice),
        )
        manifest.save(directory)
        served = check_stored(directory, manifest, encoder.chat)
        control_places = places_of(control).get("control_text", [])
        served |= {"control_text": control.total(), "control_places": control_places}
        manifest = dataclasses.replace(manifest, served=served)
        manifest.save(directory)
    return manifest


class _Writer:
    """Writes the records of a source and their token ids into a directory."""

    def __init__(
        self,
        directory: Path,
        source: str,
        reading: Callable[[], Reading],
        encoder: Encoder,
        skip_bad: bool,
        processes: int | None,
        progress: Progress | None,
    ):
        self._directory, self._source, self._reading, self._encoder = directory, source, reading, encoder
        self._skip_bad, self._processes, self._progress = skip_bad, processes, progress
        self._control = control_pattern({*encoder.tokenizer.control_tokens(), *encoder.chat.marks})
        self.control = Tally()
        """Records that were written and have a text that spells a control token (`control_text`)."""

    def write(self) -> dict[str, Split]:
        """Reads the source once, or twice if the tokenizer shows that some records cannot be used (`UNUSABLE`)."""
        splits, unusable = self._pass({})
        if any(unusable.values()):  # rare, so all is written again without these records
            for name in ("tfds", *splits):
                shutil.rmtree(self._directory / name)
            splits, _ = self._pass(unusable)
        return splits

    def _pass(self, leave_out: dict[str, dict[int, int]]) -> tuple[dict[str, Split], dict[str, dict[int, int]]]:
        from janus_jax.data.build.tfds_builder import write_records

        reading, self.control = self._reading(), Tally()
        records = {
            name: functools.partial(self._records, reading, name, leave_out.get(name, {})) for name in reading.splits
        }
        builder = write_records(records, self._directory / "tfds")
        reading.compare()
        splits, unusable = _tokenize(builder, self._encoder, self._directory, self._processes, self._progress)
        return {name: dataclasses.replace(split, **reading.facts(name)) for name, split in splits.items()}, unusable

    def _records(self, reading: Reading, split: str, leave_out: Mapping[int, int]) -> Iterator[Record]:
        done = 0
        for number, record in enumerate(reading.records(split)):
            if number in leave_out:
                reason, explanation = UNUSABLE[leave_out[number]]
                if not self._skip_bad and reason != "equal_tokens":
                    raise RecordError(reason, record.place or f"split {split}, record {number}", explanation)
                note(reading.dropped[split], reason, record.place)
                continue
            texts = (record.system, record.prompt, record.chosen, record.rejected or "")
            if self._control is not None and any(map(self._control.search, texts)):
                note(self.control, "control_text", record.place)
            done += 1
            yield record
            if self._progress and done % _PROGRESS_EVERY == 0:
                self._progress(split, "read", done, None)
        if not done:
            dropped = summary(reading.dropped[split]) or "none left"
            raise DataError(self._source, f"split {split}: no usable record ({dropped})")
        if self._progress:
            self._progress(split, "read", done, done)


def _files_of_splits(
    source: Source | Mapping[str, Source], only: Sequence[str] | None, unread: Counter[str]
) -> dict[str, list[Path]]:
    if isinstance(source, Mapping):
        files = {name: _files_of_one(name, one, unread) for name, one in source.items()}
    else:
        files = find_splits(source, unread)
    for name in files:
        if not re.fullmatch(SPLIT_NAME, name) or name in _RESERVED:
            raise DataError(f"split name {name!r}: allowed: lower case letters, digits and _, except {_RESERVED}")
    if not files:
        raise DataError("no source was given; at least one split needs a source")
    for name in only or ():
        if name not in files:
            raise DataError(f"split {name!r}: not in {_source_name(source)}, which has {', '.join(files)}")
    return {name: paths for name, paths in files.items() if only is None or name in only}


def _files_of_one(split: str, source: Source, unread: Counter[str]) -> list[Path]:
    """The files of a source that was given for one split: those of that split, or all if the source has only one.

    Held-out files are not trained on, even if they are all that the source has.
    """
    files = find_splits(source, unread, split=split)
    if len(files) == 1 and (split != "train" or "train" in files):
        return next(iter(files.values()))
    if split not in files:
        hint = f"; to train on a file of it, {OVERRULE}" if split == "train" else ""
        raise DataError(f"split {split!r}: not in {os.fspath(source)}, which has {', '.join(files)}{hint}")
    for name, paths in files.items():
        if name != split:
            unread[f"of split {name} in the source of split {split}"] += len(paths)
    return files[split]


def _source_name(source: Source | Mapping[str, Source]) -> str:
    if isinstance(source, Mapping):
        return ", ".join(f"{name}={os.fspath(one)}" for name, one in source.items())
    return os.fspath(source)


def _tokenize(
    builder: Any, encoder: Encoder, directory: Path, processes: int | None, progress: Progress | None
) -> tuple[dict[str, Split], dict[str, dict[int, int]]]:
    """Runs the seqio Task over every split and writes the token ids.

    Returns:
        The splits, and of each the records that cannot be used: their numbers and reasons (`UNUSABLE`).
    """
    from janus_jax.data.build.task import make_task

    if processes is None:
        records = sum(info.num_examples for info in builder.info.splits.values())
        processes = len(os.sched_getaffinity(0)) if records >= _MANY_RECORDS else 1
    failures: list[JanusError] = []
    with encoding(encoder, directory / "tokenizer", processes) as encode:

        def noting(texts: Texts) -> Encoded:
            try:
                return encode(texts)
            except JanusError as error:  # kept, because TensorFlow replaces it by its own error
                failures.append(error)
                raise
            except Exception as error:
                failures.append(DataError(f"the tokenizer fails on a text: {first_line(error)}"))
                raise

        task = make_task(builder, kind=encoder.kind, tokenizer=encoder.tokenizer, encode=noting, parallel=2 * processes)
        dtype = id_dtype(encoder.tokenizer.vocab_size)
        try:
            written = {
                name: _write_split(directory / name, name, task, info.num_examples, dtype, progress)
                for name, info in builder.info.splits.items()
            }
            return {name: one for name, (one, _) in written.items()}, {name: bad for name, (_, bad) in written.items()}
        except Exception as error:
            raise (failures or [error])[0] from None


def _write_split(
    folder: Path, split: str, task: Any, examples: int, dtype: np.dtype, progress: Progress | None
) -> tuple[Split, dict[int, int]]:
    """Writes token files, lengths and, if any record has one, margins of a split; returns also unusable records."""
    folder.mkdir()
    lengths = np.zeros((examples, 3), np.int32)
    margins = np.full(examples, np.nan, np.float32)
    digest = hashlib.sha256()
    files = -(-examples // token_files.EXAMPLES_PER_FILE)
    dataset = task.get_dataset(sequence_length=None, split=split, shuffle=False, num_epochs=1)
    done = 0
    unusable: dict[int, int] = {}
    with contextlib.ExitStack() as stack:
        for parts, batch_margins in _batches(dataset):
            for example in zip(*parts, strict=True):
                if done % token_files.EXAMPLES_PER_FILE == 0:
                    stack.close()  # closes the previous file
                    number = done // token_files.EXAMPLES_PER_FILE
                    writer = token_files.open_file(folder / token_files.file_name(number, files))
                    stack.callback(writer.close)
                if not len(example[0]):
                    unusable[done] = int(example[1][0])
                lengths[done, : len(example)] = [len(part) for part in example]
                ids = np.concatenate(example)
                token_files.add_to(digest, lengths[done], ids)
                writer.write(ids.astype(dtype).tobytes())
                done += 1
            if batch_margins is not None:
                margins[done - len(batch_margins) : done] = batch_margins
            if progress:
                progress(split, "tokenize", done, examples)
    if done != examples:
        raise RuntimeError(f"split {split}: the task returned {done} of {examples} examples")
    return token_files.finish_split(folder, lengths, margins, digest), unusable


def _batches(dataset: Any) -> Iterator[tuple[list[list[np.ndarray]], np.ndarray | None]]:
    """Yields batches of the task's examples: ids of each token feature, and margins of pairs."""
    for batch in dataset.ragged_batch(_PROGRESS_EVERY):
        ragged = [batch[name] for name in TOKEN_FEATURES if name in batch]
        parts = [np.split(part.flat_values.numpy(), part.row_splits.numpy()[1:-1]) for part in ragged]
        yield parts, batch["margin"].numpy() if "margin" in batch else None
