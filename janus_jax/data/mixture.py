"""Several built splits read as one, in given shares.

A mixture has no random state. Each part is an endless stream: the part's fitting examples over and over, shuffled anew
each time (`stream`). Epoch e reads the places e * n to (e + 1) * n of the stream, where n is the part's share of an
epoch, the same in every epoch. So shares are exact, no example of a part repeats before all others were read, and what
an epoch reads is a pure function of seed and epoch.
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from janus_jax.data.dataset import TokenizedDataset
from janus_jax.data.example import Example
from janus_jax.errors import ConfigError, DataError
from janus_jax.text.chat_format import ChatFormat
from janus_jax.text.compare import difference, other_prompt
from janus_jax.text.served import Conversation
from janus_jax.text.tokenizer import Tokenizer


def _require_alike(first: TokenizedDataset, part: TokenizedDataset) -> None:
    """Raises DataError if ids of the two do not mean the same, or if one spells marks that are tokens in the other."""
    ours, theirs = first.manifest, part.manifest
    if ours.template == theirs.template and (marks := set(ours.marks) ^ set(theirs.marks)):
        spelling, other = (first, part) if marks <= set(theirs.marks) else (part, first)
        raise DataError(
            part.name,
            f"cannot be mixed with {first.name}: {', '.join(sorted(marks))} of template {ours.template} are text in "
            f"{spelling.name} and control tokens in {other.name}; build both again with one tokenizer",
        )
    if reason := _other_tokenizer(first, part):
        raise DataError(
            part.name, f"was built with another tokenizer than {first.name}: {reason}; all parts need the same"
        )


def _other_tokenizer(first: TokenizedDataset, part: TokenizedDataset) -> str:
    """How the tokenizers differ; empty if their ids mean the same."""
    if part.tokenizer_fingerprint == first.tokenizer_fingerprint:
        return ""
    ends = [first.manifest.tokenizer[name] for name in ("bos", "eos")]
    if ends != [part.manifest.tokenizer[name] for name in ("bos", "eos")]:
        return "BOS and EOS differ"
    chats = first.chat_format(), part.chat_format()
    marks = [chat.tokenizer.control_id(mark) for chat in chats for mark in chat.marks]
    used = [number for number in (*ends, *marks) if number is not None]
    if reason := difference(chats[0].tokenizer, chats[1].tokenizer, used, (first.name, part.name)):
        return reason
    return other_prompt(*chats) if first.manifest.template == part.manifest.template else ""


class Mixture:
    """Concatenated built splits; an epoch reads a share of each. Implements `dataset.Dataset`.

    Args:
        parts: at least one; example numbers continue from part to part.
        weights: a positive number per part; None: every epoch reads every example once.
        examples: number of examples in an epoch; None: as many as the weights allow without repeats.
    Raises:
        DataError: parts have different tokenizers or marks, or some hold pairs and others single responses.
    """

    def __init__(
        self, parts: Sequence[TokenizedDataset], weights: Sequence[float] | None = None, examples: int | None = None
    ):
        self.parts: Sequence[TokenizedDataset] = tuple(parts)
        first = self.parts[0]
        for part in self.parts[1:]:
            _require_alike(first, part)
            if (part.kind == "sft") != (first.kind == "sft"):
                raise DataError(
                    part.name,
                    f"holds kind {part.kind}, {first.name} kind {first.kind}; a mixture holds pairs or "
                    "single responses, not both",
                )
        self._weights = None if weights is None else np.asarray(weights, np.float64) / np.sum(weights)
        self._examples = examples
        self.name = ", ".join(part.name for part in self.parts)
        self.split, self.kind, self.tokenizer_fingerprint = first.split, first.kind, first.tokenizer_fingerprint
        self.fingerprint = hashlib.sha256(",".join(part.fingerprint for part in self.parts).encode()).hexdigest()
        """sha256 over the fingerprints of the parts. Shares are left out: they do not change the examples."""
        self.lengths = np.concatenate([part.lengths for part in self.parts])
        self.margins = np.concatenate([part.margins for part in self.parts])
        self.starts = np.cumsum([0] + [len(part) for part in self.parts])

    def __len__(self) -> int:
        return len(self.lengths)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the ids of all parts."""
        return self.parts[0].tokenizer()

    def chat_format(self) -> ChatFormat:
        """That of the first part, which exported models use."""
        return self.parts[0].chat_format()

    def conversations(self) -> Iterator[Conversation]:
        """Those of the parts that were written and tokenized as the first was."""

        def facts(part: TokenizedDataset) -> tuple[Any, ...]:
            return part.manifest.template, part.manifest.boundary, part.manifest.bos, part.manifest.marks

        alike = (part for part in self.parts if facts(part) == facts(self.parts[0]))
        return itertools.chain.from_iterable(part.conversations() for part in alike)

    def read(self, indices: Iterable[int]) -> list[Example]:
        """The examples with these numbers, in this order.

        Raises:
            IndexError: a number is not in [0, E).
            DataError: stored ids cannot be read.
        """
        numbers = np.asarray(list(indices), np.int64)
        if ((numbers < 0) | (numbers >= len(self))).any():
            raise IndexError(f"examples {numbers.tolist()} of {len(self)} in {self.name}")
        examples: dict[int, Example] = {}
        part_numbers = self.part_of(numbers)
        for number, part in enumerate(self.parts):
            places = np.flatnonzero(part_numbers == number)
            start = int(self.starts[number])
            for place, example in zip(places.tolist(), part.read(numbers[places] - start), strict=True):
                examples[place] = example.numbered(start + example.example_id)
        return [examples[place] for place in range(len(numbers))]

    def draw(self, index: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """[N] int64 indices into `index` that an epoch reads, part after part."""
        if self._weights is None:
            return np.arange(len(index))
        sizes = np.bincount(self.part_of(index), minlength=len(self.parts))
        starts = np.concatenate([[0], np.cumsum(sizes)])
        counts = self.counts(sizes)
        drawn = [
            starts[part] + stream(int(size), epoch * count, count, seed=seed, part=part)
            for part, (size, count) in enumerate(zip(sizes, counts, strict=True))
        ]
        return np.concatenate(drawn)

    def counts(self, sizes: np.ndarray) -> list[int]:
        """Examples per epoch of each part, by largest remainder; `sizes` are the parts' fitting examples.

        Raises:
            DataError: no example of a part fits.
            ConfigError: an epoch reads no example of a part.
        """
        assert self._weights is not None
        for part, size in zip(self.parts, sizes, strict=True):
            if not size:
                raise DataError(part.name, f"none of its {len(part)} examples fits (batch.max_sequence_length)")
        if self._examples is None:
            total = int(np.min(np.floor(sizes / self._weights + 1e-9)))
            exact = np.minimum(self._weights * total, sizes)
            counts = np.floor(exact + 1e-9).astype(np.int64)
        else:
            exact = self._weights * self._examples
            counts = np.floor(exact + 1e-9).astype(np.int64)
            rest = self._examples - int(counts.sum())
            counts[np.argsort(counts - exact, kind="stable")[:rest]] += 1
        for part, count in zip(self.parts, counts, strict=True):
            if not count:
                raise ConfigError(
                    f"data.mixture: an epoch of {int(counts.sum())} examples reads none of {part.name}; raise its "
                    "weight or data.examples"
                )
        return counts.tolist()

    def part_of(self, index: np.ndarray) -> np.ndarray:
        """The part's number for each example number."""
        return np.searchsorted(self.starts, index, side="right") - 1


def stream(size: int, start: int, count: int, *, seed: int, part: int) -> np.ndarray:
    """[count] int64: places `start` to `start + count` of an endless stream of shuffled passes over range(size).

    Place p is element p mod size of the permutation of (seed, part, p // size).
    """
    passes = range(start // size, -(-(start + count) // size))
    drawn = [np.random.default_rng((seed, part, number)).permutation(size) for number in passes]
    whole = np.concatenate(drawn) if drawn else np.zeros(0, np.int64)
    skipped = start - passes.start * size
    return whole[skipped : skipped + count]
