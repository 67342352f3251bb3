"""Which records a split keeps: a held-out share of the prompts, no repeats; what splits have in common.

All of it works on digests, so memory grows by some 10 to 100 bytes a record, not by its text.
"""

import array
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

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
        self._rank = rank_of(seed)
        ranks = np.unique(np.fromiter(map(self._rank, records), np.uint64))
        self._last = int(ranks[held_out_of(len(ranks), fraction) - 1])

    def __contains__(self, record: Record) -> bool:
        return self._rank(record) <= self._last


def rank_of(seed: int) -> Callable[[Record], int]:
    """Gives a record the number of its prompt, of 64 bits: prompts with the lowest numbers are held out."""
    key = hashlib.sha256(f"held out {seed}".encode()).digest()
    return lambda record: int.from_bytes(_digest(prompt_of(record), key))


def held_out_of(prompts: int, fraction: float) -> int:
    """How many of so many different prompts are held out. Raises DataError if there are fewer than two."""
    if prompts < 2:
        raise DataError(f"validation_fraction={fraction:g}: the records have one prompt only; two are needed")
    return min(max(round(fraction * prompts), 1), prompts - 1)


def prompt_of(record: Record) -> str:
    """The prompt without its system message, in a form that is equal for texts that differ in blanks alone."""
    return " ".join(alike(record.prompt).split())


def without_repeats(records: Iterable[Record], dropped: Counter[str]) -> Iterator[Record]:
    """Records that do not look equal to one before, margin included; counts the others as `repeated_record`."""
    seen: set[bytes] = set()
    for record in records:
        digest = digest_of(record)
        if digest in seen:
            note(dropped, "repeated_record", record.place)
            continue
        seen.add(digest)
        yield record


def digest_of(record: Record, size: int = 16) -> bytes:
    """Equal for records that look equal, margin included."""
    return _digest(_whole(record), size=size)


def prompt_digest(record: Record) -> bytes:
    """Equal for records with the same prompt."""
    return _digest(prompt_of(record))


class Contents:
    """Digests of a split's records, to compare splits."""

    def __init__(self) -> None:
        self._prompts, self._wholes = array.array("Q"), array.array("Q")
        self._places: list[str] = []

    def add(self, record: Record, *, named: bool = False) -> None:
        """Args: named: keep the record's place for `prompts_in`, which takes as much memory as its text."""
        if named:
            self._places.append(record.place)
        self._prompts.append(int.from_bytes(prompt_digest(record)))
        self._wholes.append(int.from_bytes(digest_of(record, 8)))

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
