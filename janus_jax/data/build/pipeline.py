"""From published rows to a data set of token ids: check, write TFDS, run the seqio Task once, store the ids."""

import contextlib
import dataclasses
import functools
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from janus_jax.data.boundary import Boundary, check_boundary
from janus_jax.data.build.derive import Derivation, read_kind
from janus_jax.data.build.encode import Encoded, Encoder, Texts, encoding
from janus_jax.data.build.readers import find_splits
from janus_jax.data.dataset import SPLIT_NAME, Manifest, Split, fingerprint_of, histogram, id_dtype
from janus_jax.data.fetch import MANIFEST
from janus_jax.data.schema import Record, check_kind
from janus_jax.errors import DataError, JanusError, first_line
from janus_jax.storage import staging
from janus_jax.text.template import get_template
from janus_jax.text.tokenizer import Tokenizer, load_tokenizer

Source = str | os.PathLike[str]
Progress = Callable[[str, str, int, int | None], None]
"""Called with split, phase ("read" or "tokenize"), rows done, rows in all (None while reading: nobody knows yet). An
upload at the end calls it with "files", "upload", files done, files in all."""

_EXAMPLES_PER_FILE = 1 << 16
_PROGRESS_EVERY = 256
_MANY_ROWS = 5000
"""That take longer to tokenize than processes to start."""
_RESERVED = ("all", "tfds", "tokenizer")  # TFDS's name for the union, and our own folders


@staging.naming_urls()
def build(
    source: Source | Mapping[str, Source],
    out: Source,
    *,
    kind: str,
    tokenizer: Source | Tokenizer | None = None,
    template: str = "mistral-inst",
    boundary: Boundary = "separate",
    skip_bad: bool = False,
    derive: Derivation | None = None,
    splits: Sequence[str] | None = None,
    processes: int | None = 1,
    progress: Progress | None = None,
) -> Manifest:
    """Writes a data set that `TokenizedDataset` reads, whole or not at all, with memory bounded.

    Args:
        source: A JSONL, JSON or Parquet file (split "train"), a directory of them, a Hugging Face id, or one of
            these per split name; files and directories may lie on gs://.
        out: Directory or gs:// URL to make; it must be absent or empty.
        kind: sft, dpo, orpo or rm: which columns are read (schema.py).
        tokenizer: A directory or a Tokenizer; None is the embedded Mistral one.
        template: A name in template.TEMPLATES.
        boundary: Whether prompt and response are tokenized apart or as one text (template.py).
        skip_bad: Drop bad rows and count them instead of stopping.
        derive: Read rows of kind sft and draw pairs of `kind` from them (derive.py).
        splits: Which splits of the source to build; None means all.
        processes: That tokenize; None: one, or one a core where there are many rows. More than one import the caller's
            main module, which must then call this below `if __name__ == "__main__":`.
        progress: Told about rows read and tokenized.

    Raises:
        DataError: an argument that is not allowed, or rows that cannot be used (FILE:ROW); nothing is left behind.
        StorageError: `out` holds something or cannot be written.
    """
    check_kind(kind)
    form = get_template(template)
    check_boundary(boundary)
    if tokenizer is None or isinstance(tokenizer, str | os.PathLike):
        tokenizer = load_tokenizer(tokenizer)  # type: ignore[reportArgumentType]
    files = _files_of_splits(source, splits)
    dropped: dict[str, Counter[str]] = {name: Counter() for name in files}

    with staging.output(out, MANIFEST, progress) as directory:
        from janus_jax.data.build.tfds_builder import write_records

        readers = {
            name: functools.partial(_rows, name, paths, kind, skip_bad, dropped[name], progress, derive, directory)
            for name, paths in files.items()
        }
        builder = write_records(readers, directory / "tfds")
        tokenizer.save(directory / "tokenizer")
        encoder = Encoder(kind, form, boundary, tokenizer)
        written = _tokenize(builder, encoder, directory, processes, progress)
        written = {name: dataclasses.replace(split, dropped=dict(dropped[name])) for name, split in written.items()}
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
            ids=id_dtype(tokenizer.vocab_size).str,
            derived=None if derive is None else dataclasses.asdict(derive),
            fingerprint=fingerprint_of(written),
        )
        manifest.save(directory)
    return manifest


def _files_of_splits(source: Source | Mapping[str, Source], only: Sequence[str] | None) -> dict[str, list[Path]]:
    if isinstance(source, Mapping):
        files = {name: _files_of_one(name, one) for name, one in source.items()}
    else:
        files = find_splits(source)
    for name in files:
        if not re.fullmatch(SPLIT_NAME, name) or name in _RESERVED:
            raise DataError(f"split name {name!r}: allowed: lower case letters, digits and _, except {_RESERVED}")
    if not files:
        raise DataError("no source was given for any split")
    for name in only or ():
        if name not in files:
            raise DataError(f"split {name!r}: {_source_name(source)} has {', '.join(files)}")
    return {name: paths for name, paths in files.items() if only is None or name in only}


def _files_of_one(split: str, source: Source) -> list[Path]:
    """A source named for one split: its files of that split, or all if it has only one."""
    found = find_splits(source)
    if len(found) == 1:
        return next(iter(found.values()))
    if split not in found:
        raise DataError(f"split {split!r}: {os.fspath(source)} holds the splits {', '.join(found)} and not this one")
    return found[split]


def _source_name(source: Source | Mapping[str, Source]) -> str:
    if isinstance(source, Mapping):
        return ", ".join(f"{name}={os.fspath(one)}" for name, one in source.items())
    return os.fspath(source)


def _rows(
    split: str,
    paths: list[Path],
    kind: str,
    skip_bad: bool,
    dropped: Counter[str],
    progress: Progress | None,
    derive: Derivation | None,
    scratch: Path,
) -> Iterator[Record]:
    done = 0
    for row in read_kind(paths, kind, derive=derive, scratch=scratch, skip_bad=skip_bad, dropped=dropped):
        yield row
        done += 1
        if progress and done % _PROGRESS_EVERY == 0:
            progress(split, "read", done, None)
    if progress:
        progress(split, "read", done, done)


def _tokenize(
    builder: Any, encoder: Encoder, directory: Path, processes: int | None, progress: Progress | None
) -> dict[str, Split]:
    """Runs the seqio Task over every split and writes what comes out."""
    from janus_jax.data.build.task import make_task

    if processes is None:
        rows = sum(info.num_examples for info in builder.info.splits.values())
        processes = len(os.sched_getaffinity(0)) if rows >= _MANY_ROWS else 1
    failures: list[JanusError] = []
    with encoding(encoder, directory / "tokenizer", processes) as encode:

        def noting(texts: Texts) -> Encoded:
            try:
                return encode(texts)
            except JanusError as error:  # TensorFlow makes an error of its own of it
                failures.append(error)
                raise
            except Exception as error:
                failures.append(DataError(f"the tokenizer fails on a text: {first_line(error)}"))
                raise

        task = make_task(builder, kind=encoder.kind, tokenizer=encoder.tokenizer, encode=noting, parallel=2 * processes)
        dtype = id_dtype(encoder.tokenizer.vocab_size)
        try:
            return {
                name: _write_split(directory / name, name, task, info.num_examples, dtype, progress)
                for name, info in builder.info.splits.items()
            }
        except Exception as error:
            raise (failures or [error])[0] from None


def _write_split(
    folder: Path, split: str, task: Any, examples: int, dtype: np.dtype, progress: Progress | None
) -> Split:
    """Writes token files, lengths and, if any row has one, margins of a split."""
    from array_record.python.array_record_module import ArrayRecordWriter

    folder.mkdir()
    lengths = np.zeros((examples, 3), np.int32)
    margins = np.full(examples, np.nan, np.float32)
    digest = hashlib.sha256()
    files = -(-examples // _EXAMPLES_PER_FILE)
    dataset = task.get_dataset(sequence_length=None, split=split, shuffle=False, num_epochs=1)
    done = 0
    with contextlib.ExitStack() as stack:
        for parts, batch_margins in _batches(dataset):
            for example in zip(*parts, strict=True):
                if done % _EXAMPLES_PER_FILE == 0:
                    stack.close()  # the file before
                    name = f"tokens-{done // _EXAMPLES_PER_FILE:05d}-of-{files:05d}.array_record"
                    # one record a group: random access; ids hardly shrink further, and readers should not wait
                    writer = ArrayRecordWriter(str(folder / name), "group_size:1,uncompressed")
                    stack.callback(writer.close)
                lengths[done, : len(example)] = [len(part) for part in example]
                ids = np.concatenate(example)
                digest.update(lengths[done].astype("<i4").tobytes() + ids.astype("<i4").tobytes())
                writer.write(ids.astype(dtype).tobytes())
                done += 1
            if batch_margins is not None:
                margins[done - len(batch_margins) : done] = batch_margins
            if progress:
                progress(split, "tokenize", done, examples)
    if done != examples:
        raise RuntimeError(f"split {split}: the task gave {done} examples of {examples}")
    np.save(folder / "lengths.npy", lengths)
    with_margin = int(np.isfinite(margins).sum())
    if with_margin:
        margins = np.nan_to_num(margins)  # 0 for rows without one
        np.save(folder / "margins.npy", margins)
        digest.update(margins.astype("<f4").tobytes())
    return Split(
        examples,
        int(lengths.sum()),
        dropped={},
        margins=with_margin,
        lengths=histogram(lengths),
        files={path.name: path.stat().st_size for path in sorted(folder.iterdir())},
        fingerprint=digest.hexdigest(),
    )


def _batches(dataset: Any) -> Iterator[tuple[list[list[np.ndarray]], np.ndarray | None]]:
    """Examples of the task, some at a time: of each part (prompt, chosen, rejected) the ids, and margins of pairs."""
    for batch in dataset.ragged_batch(_PROGRESS_EVERY):
        ragged = [batch[name] for name in ("prompt", "chosen", "rejected") if name in batch]
        parts = [np.split(part.flat_values.numpy(), part.row_splits.numpy()[1:-1]) for part in ragged]
        yield parts, batch["margin"].numpy() if "margin" in batch else None
