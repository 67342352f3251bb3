"""The pipeline of a Beam build. A record's number in its file says where it comes in the data set, so order is kept."""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam  # pyright: ignore[reportMissingImports]
from apache_beam.pvalue import AsList, AsSingleton  # pyright: ignore[reportMissingImports]
from apache_beam.transforms.window import GlobalWindows  # pyright: ignore[reportMissingImports]

from janus_jax.data.build.beam import scratch
from janus_jax.data.build.beam.counts import Counts, Merge
from janus_jax.data.build.beam.steps import (
    CHOOSING,
    CONTENTS,
    COUNTS,
    DRAWING,
    FAILURES,
    READING,
    Encode,
    Plan,
    ReadFile,
    WriteFile,
    WriteResult,
    failure,
)
from janus_jax.data.build.derive import draw, split_digest
from janus_jax.data.build.selection import held_out_of
from janus_jax.data.tally import Tally
from janus_jax.errors import DataError

_BLOCK = 1024
"""Records of a source file that one worker tokenizes together."""

_TOGETHER = 50_000
"""Items that a worker holds before it hands them on."""

_BUCKET_BYTES = 2
"""Leading bytes of a prompt's number. Prompts are counted by them, so that no worker holds all numbers."""


def run(plan: Plan, files: Sequence[tuple[str, int, str]], runner: Any, options: Any) -> dict[str, Any]:
    """Runs the pipeline, and returns what `WriteResult` wrote.

    Args:
        files: (split, number, path or URL) of every source file.
    """
    path = f"{plan.scratch}/result.json"
    with beam.Pipeline(runner=runner, options=options) as pipeline:
        _build(pipeline, plan, files, path)
    with scratch.open_old(path) as stream:
        return json.loads(stream.read())


def _build(pipeline: Any, plan: Plan, files: Sequence[tuple[str, int, str]], path: str) -> None:
    outputs = (COUNTS, FAILURES)
    read = (
        pipeline
        | "files" >> beam.Create(list(files), reshuffle=True)
        | "read" >> beam.ParDo(ReadFile(plan)).with_outputs(*outputs, main="records")
    )
    records, counts, failures = read["records"], [read[COUNTS]], [read[FAILURES]]
    if plan.choice.validation_fraction is not None:
        last, refused = _held_out(pipeline, records, plan)
        records = records | "hold out" >> beam.Map(_assign, AsSingleton(last))
        failures.append(refused)
    if plan.choice.dedupe:
        first = (
            records
            | "by content" >> beam.Map(lambda one: ((one[0], one[3]), one))
            | "equal" >> beam.GroupByKey()
            | "first" >> beam.FlatMap(_first).with_outputs(COUNTS, main="records")
        )
        records = first["records"]
        counts.append(first[COUNTS])
    if plan.derive is not None:
        drawn = (
            records
            | "by instruction" >> beam.Map(lambda one: ((one[0], one[4][0]), one))
            | "instructions" >> beam.GroupByKey()
            | "draw" >> beam.ParDo(_Draw(plan)).with_outputs(COUNTS, main="items")
        )
        items = drawn["items"]
        counts.append(drawn[COUNTS])
    else:
        items = records | "items" >> beam.Map(lambda one: (_block(one[0], one[1]), (one[1][1], 0, (one[1][:4],))))
    early = failures | "early failures" >> beam.Flatten()
    encoded = (
        items
        | "together" >> beam.ParDo(_Together())
        | "blocks" >> beam.GroupByKey()
        | "tokenize" >> beam.ParDo(Encode(plan), AsList(early)).with_outputs(*outputs, CONTENTS, main="blocks")
    )
    failures.append(encoded[FAILURES])
    counts.append(encoded[COUNTS])
    if plan.compares:
        same = encoded[CONTENTS] | "by digest" >> beam.GroupByKey() | "compare" >> beam.FlatMap(_compare, plan.splits)
        counts.append(same)
    late = failures | "failures" >> beam.Flatten()
    written = (
        encoded["blocks"]
        | "all blocks" >> beam.combiners.ToList()
        | "plan files" >> beam.FlatMap(_files, AsList(late), plan.per_file)
        | "spread files" >> beam.Reshuffle()
        | "write" >> beam.ParDo(WriteFile(plan))
    )
    merged = counts | "counts" >> beam.Flatten() | "merge" >> beam.CombinePerKey(Merge())
    sides = [AsList(one) for one in (merged, late, written)]
    _ = pipeline | "end" >> beam.Create([None]) | "result" >> beam.ParDo(WriteResult(path), *sides)


def _block(split: str, place: Sequence[Any]) -> tuple[str, int, int]:
    return split, place[0], place[1] // _BLOCK


class _Together(beam.DoFn):
    """Puts items of a block into one element, as far as one worker has them: a runner keeps some 200 bytes for each
    element."""

    def start_bundle(self) -> None:
        self._blocks: dict[Any, list[Any]] = {}
        self._count = 0

    def process(self, element: Any) -> Iterator[Any]:
        block, item = element
        self._blocks.setdefault(block, []).append(item)
        self._count += 1
        if self._count == _TOGETHER:
            yield from self._blocks.items()
            self.start_bundle()

    def finish_bundle(self) -> Iterator[Any]:
        yield from map(GlobalWindows.windowed_value, self._blocks.items())


# The held-out share of the prompts: the N lowest of their numbers.


def _held_out(pipeline: Any, records: Any, plan: Plan) -> tuple[Any, Any]:
    """The highest number of a prompt that is held out, and failures."""
    prompts = records | "numbers" >> beam.FlatMap(lambda one: [one[2]] if one[2] is not None else []) | beam.Distinct()
    buckets = prompts | "buckets" >> beam.Map(lambda number: number[:_BUCKET_BYTES]) | beam.combiners.Count.PerElement()
    one = pipeline | "held out" >> beam.Create([None])
    boundary = one | "bucket" >> beam.ParDo(_Bucket(plan), AsList(buckets)).with_outputs(FAILURES, main="bucket")
    last = (
        prompts
        | "of bucket" >> beam.Filter(_in_bucket, AsSingleton(boundary["bucket"]))
        | "numbers of bucket" >> beam.combiners.ToList()
        | "last" >> beam.Map(_last, AsSingleton(boundary["bucket"]))
    )
    return last, boundary[FAILURES]


class _Bucket(beam.DoFn):
    """Counts of prompts by bucket -> the bucket of the last prompt that is held out, and its number in that bucket."""

    def __init__(self, plan: Plan):
        self._plan = plan

    def process(self, element: Any, buckets: Sequence[tuple[bytes, int]]) -> Iterator[Any]:
        del element
        fraction = self._plan.choice.validation_fraction
        assert fraction is not None  # otherwise the pipeline lacks this step
        try:
            left = held_out_of(sum(count for _, count in buckets), fraction)
        except DataError as error:
            yield beam.pvalue.TaggedOutput(FAILURES, failure(self._plan, CHOOSING, "train", (0, 0), error))
            yield b"", 0
            return
        for bucket, count in sorted(buckets):
            if left <= count:
                yield bucket, left - 1
                return
            left -= count


def _in_bucket(number: bytes, bucket: tuple[bytes, int]) -> bool:
    return number[:_BUCKET_BYTES] == bucket[0]


def _last(numbers: list[bytes], bucket: tuple[bytes, int]) -> bytes:
    return sorted(numbers)[bucket[1]] if numbers else b""


def _assign(one: Any, last: bytes) -> Any:
    split, place, number, *rest = one
    return ("validation" if number is not None and number <= last else split, place, number, *rest)


# Repeats and drawn pairs


def _first(group: tuple[Any, Iterable[Any]]) -> Iterator[Any]:
    """The first of records that look equal; the others are counted."""
    (split, _), records = group
    first, *others = sorted(records, key=lambda one: one[1])
    counts = Counts()
    for one in others:
        file, number, *_, place = one[1]
        counts.note((split, "dropped", "repeated_record"), (CHOOSING, file, number, 0), place)
    yield first
    yield from (beam.pvalue.TaggedOutput(COUNTS, item) for item in counts.items())


class _Draw(beam.DoFn):
    """The records of an instruction -> its pairs, as items of the block of its first record."""

    def __init__(self, plan: Plan):
        self._derivation = plan.derive

    def process(self, element: Any) -> Iterator[Any]:
        assert self._derivation is not None  # otherwise the pipeline lacks this step
        (split, instruction), group = element
        records = sorted(group, key=lambda one: one[1])
        first = records[0][1]
        digests = [split_digest(one[4][1], number) for number, one in enumerate(records)]
        dropped, counts = Tally(), Counts()
        pairs = draw(instruction, digests, self._derivation, dropped, lambda number: records[number][1][4])
        for number, (chosen, rejected) in enumerate(pairs):
            yield _block(split, first), (first[1], number, (records[chosen][1][:4], records[rejected][1][:4]))
        counts.add(split, "dropped", dropped, (DRAWING, *first[:2]))
        yield from (beam.pvalue.TaggedOutput(COUNTS, item) for item in counts.items())


# What splits have in common


def _compare(group: tuple[bytes, Iterable[Any]], splits: Sequence[str]) -> Iterator[Any]:
    """Counts prompts that train has too, and records that only one of train and another split has."""
    digest, seen = group
    others: list[Any] = []
    in_train = False
    for one in seen:
        in_train = in_train or one[0] == "train"
        others += [one] if one[0] != "train" else []
    counts = Counts()
    if digest.startswith(b"prompt"):
        for split, order, place in sorted(others) if in_train else ():
            counts.note((split, "notes", "prompt_in_train"), (READING, *order), place)
    else:
        have = {split for split, *_ in others}
        for split in splits:
            if split != "train" and (split in have) != in_train:
                counts.note((split, "contents", "different"), (READING, 0, 0, 0), "")
    yield from counts.items()


# Files of the data set


def _files(blocks: list[tuple[str, int, int, int]], failures: Sequence[Any], per_file: int) -> Iterator[Any]:
    """What goes into each file: (split, number, files of the split, parts as `WriteFile` takes them)."""
    if failures:
        return
    for split, of_split in itertools.groupby(sorted(blocks), key=lambda one: one[0]):
        parts: list[list[tuple[int, int, int, int]]] = []
        room = 0
        for _, file, block, count in of_split:
            skip = 0
            while skip < count:
                if not room:
                    parts.append([])
                    room = per_file
                take = min(room, count - skip)
                parts[-1].append((file, block, skip, take))
                skip, room = skip + take, room - take
        for number, of_file in enumerate(parts):
            yield split, number, len(parts), of_file
