"""Which records a split keeps: a held-out share of the prompts, no repeats; what splits have in common.

All of it works on digests, so memory grows by some 10 to 100 bytes a record, not by its text.
"""

import array
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from janus_jax.data.columns import alike
from janus_jax.data.schema import Record
from janus_jax.data.tally import note
from janus_jax.errors import DataError


class HeldOut:
    """A share of the prompts, drawn from a seed. All records of a prompt are on one side, in whichever order they come.

    Args:
        records: all records of the source.
        fraction: share of the different prompts, rounded to a whole number of at least 1.

    Raises:
        DataError: there are fewer than two different prompts.
    """

    def __init__(self, records: Iterable[Record], fraction: float, seed: int):
        self._key = hashlib.sha256(f"held out {seed}".encode()).digest()
        ranks = np.unique(np.fromiter((self._rank(record) for record in records), np.uint64))
        if len(ranks) < 2:
            raise DataError(f"validation_fraction={fraction:g}: the records have one prompt only; two are needed")
        self._last = int(ranks[min(max(round(fraction * len(ranks)), 1), len(ranks) - 1) - 1])

    def __contains__(self, record: Record) -> bool:
        return self._rank(record) <= self._last

    def _rank(self, record: Record) -> int:
        return int.from_bytes(_digest(prompt_of(record), self._key))


def prompt_of(record: Record) -> str:
    """The prompt without its system message, in a form that is equal for texts that differ in blanks alone."""
    return " ".join(alike(record.prompt).split())


def without_repeats(records: Iterable[Record], dropped: Counter[str]) -> Iterator[Record]:
    """Records that do not look equal to one before, margin included; counts the others as `repeated_record`."""
    seen: set[bytes] = set()
    for record in records:
        digest = _digest(_whole(record), size=16)
        if digest in seen:
            note(dropped, "repeated_record", record.place)
            continue
        seen.add(digest)
        yield record


class Contents:
    """Digests of a split's records, to compare splits."""

    def __init__(self) -> None:
        self._prompts, self._wholes = array.array("Q"), array.array("Q")
        self._places: list[str] = []

    def add(self, record: Record, *, named: bool = False) -> None:
        """Args: named: keep the record's place for `prompts_in`, which takes as much memory as its text."""
        if named:
            self._places.append(record.place)
        self._prompts.append(int.from_bytes(_digest(prompt_of(record))))
        self._wholes.append(int.from_bytes(_digest(_whole(record))))

    def prompts_in(self, other: "Contents") -> list[str]:
        """The places of the records whose prompt the other split has too, all of them added with `named`."""
        shared = np.isin(np.asarray(self._prompts), np.asarray(other._prompts))
        return [self._places[number] for number in np.flatnonzero(shared)]

    def same(self, other: "Contents") -> bool:
        """Whether both splits hold the same records, in any order."""
        return np.array_equal(np.unique(np.asarray(self._wholes)), np.unique(np.asarray(other._wholes)))


def _whole(record: Record) -> str:
    texts = (record.system, record.prompt, record.chosen, record.rejected or "")
    return json.dumps([*map(alike, texts), record.margin])


def _digest(text: str, key: bytes = b"", size: int = 8) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=size, key=key).digest()
