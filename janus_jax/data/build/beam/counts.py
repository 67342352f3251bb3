"""Counts of many workers, as one process that read everything in order would have made them."""

import heapq
from collections.abc import Iterable

import apache_beam as beam  # pyright: ignore[reportMissingImports]

from janus_jax.data.tally import NAMED, Tally

Order = tuple[int, int, int, int]
"""Phase (reading, choosing, drawing, tokenizing), file, record in the file, and what comes next at the same record."""

Key = tuple[str, str, str]
"""Split, what is counted (a counter of `reading.Reading`, or what only Beam counts), reason."""

Value = tuple[int, list[tuple[Order, str]]]
"""A count, and the first places."""


class Merge(beam.CombineFn):
    """Adds counts and keeps the first places in the order of the source."""

    def create_accumulator(self) -> Value:
        return 0, []

    def add_input(self, mutable_accumulator: Value, element: Value) -> Value:
        return self.merge_accumulators([mutable_accumulator, element])

    def merge_accumulators(self, accumulators: Iterable[Value]) -> Value:
        count, places = 0, []
        for one, more in accumulators:
            count += one
            places.extend(more)
        return count, heapq.nsmallest(NAMED, places)

    def extract_output(self, accumulator: Value) -> Value:
        return accumulator


class Counts:
    """The counts of one worker, ready for `Merge`."""

    def __init__(self) -> None:
        self._values: dict[Key, Value] = {}

    def note(self, key: Key, order: Order, place: str) -> None:
        count, places = self._values.setdefault(key, (0, []))
        self._values[key] = count + 1, [*places, (order, place)] if len(places) < NAMED else places

    def add(self, split: str, counter: str, tally: Tally, order: tuple[int, int, int]) -> None:
        """Adds a tally that was made at one place of the source."""
        for reason, count in tally.items():
            places = [((*order, number), place) for number, place in enumerate(tally.places.get(reason, []))]
            known, before = self._values.get((split, counter, reason), (0, []))
            self._values[split, counter, reason] = known + count, [*before, *places][:NAMED]

    def items(self) -> list[tuple[Key, Value]]:
        return list(self._values.items())


def tallies(merged: Iterable[tuple[Key, Value]], counter: str, splits: Iterable[str]) -> dict[str, Tally]:
    """One tally for each split, its reasons in the order in which they first occurred."""
    result = {split: Tally() for split in splits}
    of_counter = [(split, reason, *value) for (split, name, reason), value in merged if name == counter]
    for split, reason, count, places in sorted(of_counter, key=lambda one: [order for order, _ in one[3]]):
        result[split][reason] = count
        if places:
            result[split].places[reason] = [place for _, place in places]
    return result
