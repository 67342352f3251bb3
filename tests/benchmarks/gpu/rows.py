"""Packed rows of random ids that have the lengths of real examples; made by the trainer's own packer."""

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from janus_jax.batch import Batch
from janus_jax.data.epoch import START, BatchSettings, PackedEpochs
from janus_jax.data.example import Example

_LENGTHS = Path(__file__).with_name("lengths.txt")


@functools.cache
def real_lengths() -> np.ndarray:
    """[E, 3] tokens of prompt, chosen and rejected; the head of lengths.txt says what they were counted in."""
    return np.loadtxt(_LENGTHS, dtype=np.int32, comments="#")


class RandomExamples:
    """Examples of given lengths whose ids say nothing, where the packer expects a built data set.

    Args:
        lengths: [E, 3]; a rejected length of 0 leaves the response out.
    """

    name = "random ids"

    def __init__(self, lengths: np.ndarray, vocab_size: int):
        self.lengths, self.vocab_size = lengths, vocab_size
        self.kind = "dpo" if lengths[:, 2].any() else "sft"

    def __len__(self) -> int:
        return len(self.lengths)

    def read(self, indices: Iterable[int]) -> list[Example]:
        """The same ids for a number at every call."""
        return [self._example(int(index)) for index in indices]

    def draw(self, index: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """All, once."""
        return np.arange(len(index))

    def _example(self, number: int) -> Example:
        rng = np.random.default_rng(number)
        prompt, chosen, rejected = (
            rng.integers(3, self.vocab_size, length).astype(np.int32) for length in self.lengths[number]
        )
        return Example(prompt, chosen, rejected if len(rejected) else None, example_id=number)


def packed_epochs(
    *, branches: int, rows: int, row_length: int, longest: int, vocab_size: int, shrink: int = 1
) -> PackedEpochs:
    """The rows of an epoch of the real lengths.

    Args:
        longest: as `batch.max_sequence_length`; longer examples are left out.
        shrink: what the lengths are divided by.
    """
    lengths = np.maximum(real_lengths() // shrink, 1)
    if branches == 1:
        lengths[:, 2] = 0
    settings = BatchSettings(row_length=row_length, max_sequence_length=longest, rows=rows)
    dataset: Any = RandomExamples(lengths, vocab_size)
    return PackedEpochs(dataset, settings, branches=branches)


def batches(epochs: PackedEpochs, count: int) -> list[Batch]:
    """The first batches, fewer if the epoch has no more that are full. Each [rows, row_length] in numpy."""
    return [epochs.read(members) for members in _members(epochs, count)]


def examples_of(epochs: PackedEpochs, count: int) -> list[list[list[Example]]]:
    """The examples of the same batches, as lists of rows."""
    return [[epochs.dataset.read(epochs.fitted.index[row]) for row in members] for members in _members(epochs, count)]


def _members(epochs: PackedEpochs, count: int) -> list[list[np.ndarray]]:
    full = max(1, epochs.steps(0) - 1)  # the last one may hold rows of padding
    return [
        epochs.members(position) for position, _ in zip(epochs.positions(START), range(min(count, full)), strict=False)
    ]


def score_pairs(batch: Batch) -> int:
    """Pairs of query and key that the attention rule leaves, of one head: a token sees itself and what its own
    sequence has before it."""
    return int((batch.position + 1)[batch.segment > 0].sum())
