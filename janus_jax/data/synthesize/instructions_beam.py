"""Records of instructions looked at on Apache Beam, for corpora that are too large for one machine.

Workers read, filter, and write what they see to scratch, in order. Two records can only be equal or near if they share
a key; such records are found by grouping, and compared by the machine that launched the pipeline, in order.
"""

import contextlib
import itertools
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam  # pyright: ignore[reportMissingImports]
import numpy as np

from janus_jax.data.build.beam import scratch
from janus_jax.data.build.beam.runner import Runner
from janus_jax.data.build.readers import raw_records
from janus_jax.data.synthesize.instructions import Instruction, Look, Looked, files_of
from janus_jax.data.synthesize.near import NearDuplicates
from janus_jax.errors import JanusError
from janus_jax.storage.staging import original

_Unit = tuple[int, int, list[tuple[str, str]]]
"""Its number, that of its source, and its files: how they are called, and where workers find them. One file, or all
files of a source of which only the first records are taken."""


@contextlib.contextmanager
def looked_at(
    runner: Runner, processes: int, directory: Path, look: Look
) -> Iterator[Iterator[Iterator[tuple[Looked, bool]]]]:
    """Yields for each source its records, and whether no other record can be equal or near.

    Args:
        processes: worker processes of the direct runner.
        directory: where the direct runner may write.

    Raises:
        DataError, StorageError: as a step without Beam.
        JanusError: the runner failed.
    """
    place, units = runner.scratch(directory), _units(runner, look)
    scratch.remove(place)  # of a killed process
    try:
        with runner.errors():
            with beam.Pipeline(runner=runner.beam_runner(), options=runner.pipeline_options(processes)) as pipeline:
                _build(pipeline, place, look, units)
        of_sources = itertools.groupby(units, key=lambda unit: unit[1])
        yield (_read(place, [unit[0] for unit in group]) for _, group in of_sources)
    finally:
        scratch.remove(place)


def _units(runner: Runner, look: Look) -> list[_Unit]:
    def named(path: Path) -> tuple[str, str]:
        # workers on other machines read a source on gs:// there, not its copy on this machine
        return os.fspath(path), os.fspath(path) if runner.is_direct else original(os.fspath(path))

    units: list[tuple[int, list[tuple[str, str]]]] = []
    for number, source in enumerate(look.section.sources):
        files = [named(path) for path in files_of(source)]
        units += [(number, [file]) for file in files] if source.first is None else [(number, files)]
    return [(number, *unit) for number, unit in enumerate(units)]


def _build(pipeline: Any, place: str, look: Look, units: Sequence[_Unit]) -> None:
    shared = (
        pipeline
        | "units" >> beam.Create(units, reshuffle=True)
        | "look" >> beam.ParDo(_LookAt(place, look))
        | "by key" >> beam.GroupByKey()
        | "shared" >> beam.FlatMap(_shared)
        | "once" >> beam.Distinct()
    )
    every = pipeline | "every unit" >> beam.Create([(unit[0], -1) for unit in units])
    _ = (shared, every) | "all" >> beam.Flatten() | "by unit" >> beam.GroupByKey() | "write" >> beam.Map(_write, place)


class _LookAt(beam.DoFn):
    """A unit -> its keys with (unit, record); what was seen goes to scratch."""

    def __init__(self, place: str, look: Look):
        self._place, self._look = place, look

    def setup(self) -> None:
        alike = self._look.section.alike
        self._near = None if alike is None else NearDuplicates(alike)

    def process(self, element: _Unit) -> Iterator[tuple[bytes, tuple[int, int]]]:
        unit, number, files = element
        source = self._look.section.sources[number]
        named = itertools.islice(_records(files), source.first)
        with scratch.open_new(_looked(self._place, unit)) as out:
            for record, one in enumerate(self._look(source, named)):
                out.write(json.dumps(one).encode() + b"\n")
                if one.instruction is None:
                    continue
                yield b"own" + one.own.encode(), (unit, record)
                for key in self._near.bands(one.instruction.text) if self._near else ():
                    yield key, (unit, record)


def _records(files: Iterable[tuple[str, str]]) -> Iterator[tuple[str, Any]]:
    for shown, path in files:
        with scratch.local_copy(path) as here:
            try:
                yield from ((f"{shown}:{number}", raw) for number, raw in raw_records(here))
            except JanusError as error:
                error.rename(here, shown)
                raise


def _shared(group: tuple[bytes, Iterable[tuple[int, int]]]) -> Iterator[tuple[int, int]]:
    """The records of a key, if they are several."""
    records = iter(group[1])
    first, second = next(records), next(records, None)
    if second is not None:
        yield first
        yield second
        yield from records


def _write(group: tuple[int, Iterable[int]], place: str) -> None:
    unit, numbers = group
    with scratch.open_new(_numbers(place, unit)) as out:
        np.save(out, np.unique(np.fromiter(numbers, np.int64)))


def _read(place: str, units: Iterable[int]) -> Iterator[tuple[Looked, bool]]:
    for unit in units:
        with scratch.open_old(_numbers(place, unit)) as stream:
            shared = iter(np.load(stream).tolist())
        following = next(shared)  # -1, which every unit has
        with scratch.open_old(_looked(place, unit)) as stream:
            for number, line in enumerate(stream):
                while following < number:
                    following = next(shared, math.inf)
                name, one, *rest = json.loads(line)
                yield Looked(name, None if one is None else Instruction(*one), *rest), following != number


def _looked(place: str, unit: int) -> str:
    return f"{place}/looked/{unit:05d}.jsonl"


def _numbers(place: str, unit: int) -> str:
    return f"{place}/shared/{unit:05d}.npy"
