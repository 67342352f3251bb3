"""The steps of a Beam build that read and write texts."""

import dataclasses
import itertools
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam  # pyright: ignore[reportMissingImports]
import numpy as np

from janus_jax import errors
from janus_jax.data.boundary import Boundary
from janus_jax.data.build import token_files
from janus_jax.data.build.beam import scratch
from janus_jax.data.build.beam.counts import Counts
from janus_jax.data.build.derive import Derivation, digests_of, for_pairs, pair_of
from janus_jax.data.build.encode import UNUSABLE, Encoder
from janus_jax.data.build.ratings import Ratings
from janus_jax.data.build.readers import read_file
from janus_jax.data.build.reading import Choice
from janus_jax.data.build.selection import digest_of, prompt_digest, rank_of
from janus_jax.data.build.tfds_builder import file_name, write_file
from janus_jax.data.columns import RecordError
from janus_jax.data.notes import notes_of
from janus_jax.data.schema import Record
from janus_jax.data.tally import Tally
from janus_jax.errors import DataError, JanusError, first_line
from janus_jax.text.served import control_pattern
from janus_jax.text.template import Template
from janus_jax.text.tokenizer import load_tokenizer

READING, CHOOSING, DRAWING, TOKENIZING = range(4)
"""Phases, in the order in which a local build goes through them."""

COUNTS, FAILURES, CONTENTS = "counts", "failures", "contents"
"""Outputs of steps beside their main one."""

_RECORDS_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class Plan:
    """What every worker knows about the build."""

    scratch: str
    kind: str
    splits: tuple[str, ...]
    choice: Choice
    derive: Derivation | None
    ratings: Ratings | None
    skip_bad: bool
    template: Template
    boundary: Boundary
    bos: bool
    tokenizer: tuple[tuple[str, bytes], ...]
    """Names and contents of its files."""
    ids: str
    """The type of stored ids."""
    per_file: int
    """Examples in a file of the data set."""

    @property
    def compares(self) -> bool:
        """Whether there is a split to compare with train."""
        return len(self.splits) > 1 and "train" in self.splits


Place = tuple[int, int, int, int, str]
"""Number of a source file, of a record in it, offset and size of the record in scratch, and FILE:RECORD."""

Item = tuple[int, int, tuple[tuple[int, int, int, int], ...]]
"""Record in its file, number among the pairs of its instruction, places of one record or of chosen and rejected (file,
number, offset, size)."""


def failure(plan: Plan, phase: int, split: str, place: tuple[int, int], error: JanusError) -> Any:
    """An error as an element, for a runner would lose its type; they sort as a local build meets them."""
    reason = error.reason if isinstance(error, RecordError) else ""
    return phase, plan.splits.index(split), *place, reason, type(error).__name__, [str(part) for part in error.args]


def to_error(element: Sequence[Any]) -> JanusError:
    """The error of a `failure`."""
    *_, reason, name, parts = element
    return RecordError(reason, *parts) if reason else getattr(errors, name, JanusError)(*parts)


class ReadFile(beam.DoFn):
    """(split, number, path) of a file -> its checked records: (split, place, rank, digest, digests for drawing)."""

    def __init__(self, plan: Plan):
        self._plan = plan

    def process(self, element: Any) -> Iterator[Any]:
        plan = self._plan
        split, file, path = element
        held_out = plan.choice.validation_fraction is not None and split == "train"
        rank = rank_of(plan.choice.validation_seed)
        dropped, unread, counts = Tally(), Tally(), Counts()
        number, offset, here = 0, 0, Path(path)
        try:
            with scratch.local_copy(path) as here, scratch.open_new(scratch.checked(plan.scratch, file)) as out:
                for record in self._records(here, path, dropped, unread):
                    stored = scratch.pack(record)
                    out.write(stored)
                    yield (
                        split,
                        (file, number, offset, len(stored), record.place),
                        rank(record).to_bytes(8) if held_out else None,
                        digest_of(record) if plan.choice.dedupe else None,
                        digests_of(record) if plan.derive else None,
                    )
                    number, offset = number + 1, offset + len(stored)
        except JanusError as error:
            error.rename(here, path)
            yield beam.pvalue.TaggedOutput(FAILURES, failure(plan, READING, split, (file, number), error))
        counts.add(split, "dropped", dropped, (READING, file, 0))
        counts.add(split, "unread", unread, (READING, file, 0))
        if number:
            counts.note((split, "usable", "files"), (READING, file, 0, 0), path)
        yield from (beam.pvalue.TaggedOutput(COUNTS, item) for item in counts.items())

    def _records(self, here: Path, path: str, dropped: Tally, unread: Tally) -> Iterator[Record]:
        plan = self._plan
        kind = plan.kind if plan.derive is None else "sft"
        options = {"skip_bad": plan.skip_bad, "ratings": plan.ratings, "dropped": dropped, "unread": unread}
        records = read_file(here, kind, name=path, **options)
        return records if plan.derive is None else for_pairs(records)


class Encode(beam.DoFn):
    """((split, file, block), lists of items) -> (split, file, block, examples), and the examples in scratch."""

    def __init__(self, plan: Plan):
        self._plan = plan

    def setup(self) -> None:
        plan = self._plan
        self._directory = tempfile.TemporaryDirectory()
        for name, content in plan.tokenizer:
            (Path(self._directory.name) / name).write_bytes(content)
        tokenizer = load_tokenizer(self._directory.name)
        self._encoder = Encoder(plan.kind, plan.template, plan.boundary, tokenizer, plan.bos)
        self._control = control_pattern({*tokenizer.control_tokens(), *self._encoder.chat.marks})

    def teardown(self) -> None:
        self._directory.cleanup()

    def process(self, element: Any, failures: Sequence[Any]) -> Iterator[Any]:
        if failures:  # the build stops: nothing is worth tokenizing
            return
        plan = self._plan
        (split, file, block), items = element
        records = self._records(itertools.chain.from_iterable(items))
        counts, examples = Counts(), 0
        with scratch.open_new(scratch.encoded(plan.scratch, split, file, block)) as out:
            while chunk := list(itertools.islice(records, _RECORDS_AT_ONCE)):
                for order, record in chunk:
                    yield from self._seen(split, (file, *order), record, counts)
                texts = [(one.system, one.prompt, one.chosen, one.rejected or "") for _, one in chunk]
                try:
                    lengths, ids = self._encoder(texts)
                except Exception as cause:
                    what = DataError(f"the tokenizer fails on a text: {first_line(cause)}")
                    error = cause if isinstance(cause, JanusError) else what
                    place = (file, chunk[0][0][0])
                    yield beam.pvalue.TaggedOutput(FAILURES, failure(plan, TOKENIZING, split, place, error))
                    break
                lengths = np.pad(lengths, ((0, 0), (0, 3 - lengths.shape[1])))
                of_records = np.split(ids, np.cumsum(lengths.sum(1))[:-1])
                for (order, record), length, one in zip(chunk, lengths, of_records, strict=True):
                    if not length[0]:
                        yield from self._unusable(split, (file, *order), record, int(one[0]), counts)
                        continue
                    if self._control is not None and any(map(self._control.search, _texts(record))):
                        counts.note((split, "control", "control_text"), (TOKENIZING, file, *order), record.place)
                    scratch.write_encoded(out, record, length, one)
                    examples += 1
        yield split, file, block, examples
        yield from (beam.pvalue.TaggedOutput(COUNTS, item) for item in counts.items())

    def _records(self, items: Iterable[Item]) -> Iterator[tuple[tuple[int, int], Record]]:
        checked = scratch.Checked(self._plan.scratch)
        for number, pair, places in sorted(items):
            records = [checked.read(file, offset, size) for file, _, offset, size in places]
            yield (number, pair), pair_of(records[0], records[1], self._plan.kind) if len(records) == 2 else records[0]

    def _seen(self, split: str, order: tuple[int, int, int], record: Record, counts: Counts) -> Iterator[Any]:
        """Counts notes about a record that was read, whether or not it can be used."""
        for one in notes_of(record):
            counts.note((split, "notes", one), (READING, *order), record.place)
        counts.note(
            (split, "margin", "no_margin" if record.margin is None else "margin"), (READING, *order), record.place
        )
        if self._plan.compares:
            what = (split, order, record.place) if split != "train" else (split, order, "")
            yield beam.pvalue.TaggedOutput(CONTENTS, (b"prompt" + prompt_digest(record), what))
            yield beam.pvalue.TaggedOutput(CONTENTS, (b"record" + digest_of(record, 8), what))

    def _unusable(
        self, split: str, order: tuple[int, int, int], record: Record, number: int, counts: Counts
    ) -> Iterator[Any]:
        reason, explanation = UNUSABLE[number]
        if self._plan.skip_bad or reason == "equal_tokens":
            counts.note((split, "dropped", reason), (TOKENIZING, *order), record.place)
        else:
            error = RecordError(reason, record.place, explanation)
            yield beam.pvalue.TaggedOutput(FAILURES, failure(self._plan, TOKENIZING, split, order[:2], error))


class WriteFile(beam.DoFn):
    """(split, number, files, parts) of a file of the data set -> (split, number, examples, bytes of its texts).

    `parts` are the blocks that it is made of: (file, block, examples to pass over, examples to take).
    """

    def __init__(self, plan: Plan):
        self._plan = plan

    def process(self, element: Any) -> Iterator[Any]:
        plan = self._plan
        split, number, files, parts = element
        lengths, margins = [], []
        tokens, texts, arrays = outputs(plan.scratch, split, number, files)
        with scratch.made(tokens) as path, tempfile.TemporaryDirectory() as directory:
            writer = token_files.open_file(path)

            def records() -> Iterator[Record]:
                for file, block, skip, take in parts:
                    source = scratch.encoded(plan.scratch, split, file, block)
                    for record, length, ids in scratch.read_encoded(source, skip, take):
                        lengths.append(length)
                        margins.append(np.nan if record.margin is None else record.margin)
                        writer.write(ids.astype(plan.ids).tobytes())
                        yield record

            written, size = write_file(records(), split, Path(directory))
            writer.close()
            with scratch.made(texts) as target:
                target.write_bytes(written.read_bytes())
        with scratch.open_new(arrays) as stream:
            np.savez(stream, lengths=np.stack(lengths), margins=np.asarray(margins, np.float32))
        yield split, number, len(lengths), size


def outputs(directory: str, split: str, number: int, files: int) -> tuple[str, str, str]:
    """Paths in scratch of token ids, texts, and lengths with margins."""
    out = f"{directory}/out/{split}"
    return (
        f"{out}/{token_files.file_name(number, files)}",
        f"{out}/{file_name(split, number)}",
        f"{out}/{number:05d}.npz",
    )


class WriteResult(beam.DoFn):
    """Writes all counts of the build for the process that launched it."""

    def __init__(self, path: str):
        self._path = path

    def process(self, element: Any, counts: Any, failures: Any, files: Any) -> Iterator[Any]:
        del element
        result = {"counts": list(counts), "failures": sorted(failures), "files": sorted(files)}
        with scratch.open_new(self._path) as stream:
            stream.write(json.dumps(result).encode())
        yield from ()


def _texts(record: Record) -> tuple[str, str, str, str]:
    return record.system, record.prompt, record.chosen, record.rejected or ""
