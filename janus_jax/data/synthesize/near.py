"""Near-duplicates among many texts, by datasketch's MinHash, and shared n-grams with a list of texts."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from janus_jax.errors import ConfigError

_WORD = re.compile(r"\w+")
_PERMUTATIONS = 128
_MISSES = 0.9
"""Weight of near-duplicates that are not seen against texts that are compared in vain, for the number of bands."""


def tokens(text: str) -> list[str]:
    """Words of any script, in lower case."""
    return _WORD.findall(text.casefold())


class NearDuplicates:
    """Tells whether a text is nearly one of those that were added (Broder, 1997).

    Two texts are near if the share of equal minima among 128 is at least `alike`. That share estimates the Jaccard
    similarity of their word 3-grams; its standard error is at most 0.044. Memory is about
    5.5 KB a text.

    Raises:
        ConfigError: datasketch is not installed.
    """

    def __init__(self, alike: float):
        try:
            from datasketch import MinHash, MinHashLSH  # pyright: ignore[reportMissingImports] (an extra)
        except ImportError as error:
            raise ConfigError(
                "instructions.alike: datasketch is not installed; pip install 'janus_jax[synthesize]'"
            ) from error
        self._alike, self._of_grams = alike, MinHash
        self._index = MinHashLSH(threshold=alike, num_perm=_PERMUTATIONS, weights=(1 - _MISSES, _MISSES))
        self._minima: list[np.ndarray] = []

    def add(self, text: str) -> int | None:
        """The number of the text added before that is nearly this one, which is not added then; None: it is new."""
        own = self._minhash(text)
        for number in sorted(self._index.query(own)):  # pyright: ignore[reportArgumentType] (keys are our numbers)
            if np.mean(own.hashvalues == self._minima[number]) >= self._alike:
                return number
        self._index.insert(len(self._minima), own)
        self._minima.append(own.hashvalues)
        return None

    def bands(self, text: str) -> Iterator[bytes]:
        """Keys of a text. `add` compares two texts only if they have one in common."""
        minima = self._minhash(text).hashvalues
        for number, (start, end) in enumerate(self._index.hashranges):
            yield hashlib.blake2b(bytes([number]) + minima[start:end].tobytes(), digest_size=8).digest()

    def _minhash(self, text: str) -> Any:
        words = tokens(text)
        own = self._of_grams(num_perm=_PERMUTATIONS)
        own.update_batch([" ".join(words[at : at + 3]).encode() for at in range(max(1, len(words) - 2))])
        return own


class Contamination:
    """Runs of words that a bench has. A prompt of fewer words than `ngram` counts as a whole; one of fewer than four
    words only where it is the whole text."""

    def __init__(self, prompts: Iterable[str], ngram: int):
        self._ngram = ngram
        self._runs: dict[int, set[bytes]] = {}
        self._wholes: set[tuple[str, ...]] = set()
        for prompt in prompts:
            words = tokens(prompt)
            size = min(ngram, len(words))
            if size < 4:
                self._wholes.add(tuple(words))
                continue
            self._runs.setdefault(size, set()).update(_runs(words, size))

    def shared(self, text: str) -> bool:
        """Whether the text has one of them."""
        words = tokens(text)
        if tuple(words) in self._wholes:
            return True
        return any(
            run in known for size, known in self._runs.items() if size <= len(words) for run in _runs(words, size)
        )


def _runs(words: list[str], size: int) -> list[bytes]:
    starts = range(len(words) - size + 1)
    return [hashlib.blake2b(" ".join(words[at : at + size]).encode(), digest_size=8).digest() for at in starts]
