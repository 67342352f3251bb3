"""A Beam build from the machine that launches it: it runs the pipeline, then puts the files of all workers together."""

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from janus_jax.data.build import token_files
from janus_jax.data.build.beam import scratch
from janus_jax.data.build.beam.counts import tallies
from janus_jax.data.build.beam.graph import run
from janus_jax.data.build.beam.runner import Runner
from janus_jax.data.build.beam.steps import Plan, outputs, to_error
from janus_jax.data.build.derive import no_pair
from janus_jax.data.build.encode import Encoder
from janus_jax.data.build.readers import nothing_usable
from janus_jax.data.build.reading import Reading, facts_of
from janus_jax.data.build.tfds_builder import NAME, VERSION, describe
from janus_jax.data.dataset import Split, id_dtype
from janus_jax.data.tally import NAMED, Tally, summary
from janus_jax.errors import DataError
from janus_jax.storage.staging import original

_EXAMPLES_AT_ONCE = 1024


def write(
    runner: Runner,
    reading: Reading,
    encoder: Encoder,
    files: Mapping[str, Sequence[Path]],
    directory: Path,
    *,
    source: str,
    processes: int,
) -> tuple[dict[str, Split], Tally]:
    """Writes all splits below `directory`, as the local build does.

    Args:
        reading: the options of the build; its records are not read here.
        directory: the incomplete output, with the tokenizer in it.
        source: for messages.
        processes: worker processes of the direct runner.

    Returns:
        The splits, and records with a text that spells a control token.

    Raises:
        DataError, StorageError: as the local build.
        JanusError: the runner failed.
    """
    folder = directory / "tokenizer"
    plan = Plan(
        scratch=runner.scratch(directory),
        kind=reading.kind,
        splits=tuple(reading.splits),
        choice=reading.choice,
        derive=reading.derive,
        ratings=reading.ratings,
        skip_bad=reading.skip_bad,
        template=encoder.template,
        boundary=encoder.boundary,
        bos=encoder.bos,
        tokenizer=tuple((path.name, path.read_bytes()) for path in sorted(folder.iterdir())),
        ids=id_dtype(encoder.tokenizer.vocab_size).str,
        per_file=token_files.EXAMPLES_PER_FILE,
    )
    numbered = [(split, path) for split, paths in files.items() for path in paths]
    # workers on other machines read a source on gs:// there, not its copy on this machine
    named = os.fspath if runner.is_direct else lambda path: original(os.fspath(path))
    elements = [(split, number, named(path)) for number, (split, path) in enumerate(numbered)]
    try:
        with runner.errors():
            result = run(plan, elements, runner.beam_runner(), runner.pipeline_options(processes))
        splits = _assembled(plan, result, files, directory, source)
        control = tallies(result["counts"], "control", plan.splits)
        return splits, _joined([control[split] for split in plan.splits])
    finally:
        scratch.remove(plan.scratch)


def _assembled(
    plan: Plan, result: dict[str, Any], files: Mapping[str, Sequence[Path]], directory: Path, source: str
) -> dict[str, Split]:
    dropped, notes, unread, margin, usable, contents = (
        tallies(result["counts"], counter, plan.splits)
        for counter in ("dropped", "notes", "unread", "margin", "usable", "contents")
    )
    failures = result["failures"]
    for split in plan.splits:
        for one in failures[:1]:
            if one[0] == 0 and plan.splits[one[1]] == split:
                raise to_error(one)
        if split in files and not usable[split]:
            raise nothing_usable(files[split], dropped[split])
    if failures:
        raise to_error(failures[0])
    written: dict[str, list[tuple[int, int, int]]] = {}
    for split, number, examples, size in result["files"]:
        written.setdefault(split, []).append((number, examples, size))
    splits = {}
    for split in plan.splits:
        if plan.derive is not None and not margin[split]:
            raise no_pair(dropped[split])
        if split not in written:
            raise DataError(source, f"split {split}: no usable record ({summary(dropped[split]) or 'none left'})")
        if margin[split]["margin"] and margin[split]["no_margin"]:
            notes[split]["no_margin"] = margin[split]["no_margin"]
            notes[split].places["no_margin"] = margin[split].places["no_margin"]
        if plan.compares and split != "train" and not contents[split]:
            raise DataError(f"split {split}: holds the same records as split train; give it records of its own")
    for split in plan.splits:
        one = _split(plan, split, len(written[split]), directory)
        splits[split] = dataclasses.replace(one, **facts_of(dropped[split], notes[split], unread[split]))
    sizes = {split: ([count for _, count, _ in of], sum(size for *_, size in of)) for split, of in written.items()}
    describe({split: sizes[split] for split in plan.splits}, directory / "tfds")
    return splits


def _split(plan: Plan, split: str, files: int, directory: Path) -> Split:
    """Fetches the files of a split, and reads its ids once for the fingerprint."""
    from array_record.python.array_record_module import ArrayRecordReader

    lengths, margins, digest = [], [], hashlib.sha256()
    for number in range(files):
        tokens, texts, arrays = outputs(plan.scratch, split, number, files)
        path = directory / split / Path(tokens).name
        scratch.fetch(tokens, path)
        scratch.fetch(texts, directory / "tfds" / NAME / VERSION / Path(texts).name)
        with scratch.open_old(arrays) as stream, np.load(stream) as stored:
            lengths.append(stored["lengths"])
            margins.append(stored["margins"])
        reader = ArrayRecordReader(str(path))
        for start in range(0, len(lengths[-1]), _EXAMPLES_AT_ONCE):
            some = lengths[-1][start : start + _EXAMPLES_AT_ONCE]
            for length, ids in zip(some, reader.read(start, start + len(some)), strict=True):
                token_files.add_to(digest, length, np.frombuffer(ids, plan.ids))
        reader.close()
    return token_files.finish_split(directory / split, np.concatenate(lengths), np.concatenate(margins), digest)


def _joined(parts: Sequence[Tally]) -> Tally:
    """One tally of several that come one after another."""
    joined = Tally()
    for part in parts:
        joined.update(part)
        for reason, places in part.places.items():
            joined.places[reason] = [*joined.places.get(reason, []), *places][:NAMED]
    return joined
