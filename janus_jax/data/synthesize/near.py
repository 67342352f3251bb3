"""Near-duplicates among many texts: MinHash of word 3-grams, and shared n-grams with a list of texts."""

import hashlib
import re
from collections.abc import Iterable

import numpy as np

_WORD = re.compile(r"\w+")
_PERMUTATIONS, _BAND = 128, 8
_PRIME = np.uint64((1 << 61) - 1)


def tokens(text: str) -> list[str]:
    """Words of any script, in lower case."""
    return _WORD.findall(text.casefold())


def _hashes(parts: Iterable[str]) -> np.ndarray:
    joined = [hashlib.blake2b(part.encode(), digest_size=8).digest() for part in parts]
    return np.frombuffer(b"".join(joined), np.uint64)


class NearDuplicates:
    """Tells whether a text is nearly one of those that were added (Broder, 1997).

    Two texts are candidates if one of 16 bands of 8 minima is equal, and near if the share of 128 equal minima is at
    least `alike`. That share estimates the Jaccard similarity of their word 3-grams; its standard error is at most
    0.044. Memory is about 2.5 KB a text.
    """

    def __init__(self, alike: float):
        self._alike = alike
        draw = np.random.default_rng(20240527)
        self._factors = draw.integers(1, 1 << 32, _PERMUTATIONS, dtype=np.uint64) | np.uint64(1)
        self._shifts = draw.integers(0, 1 << 32, _PERMUTATIONS, dtype=np.uint64)
        self._bands: dict[bytes, int] = {}
        self._minima: list[np.ndarray] = []

    def add(self, text: str) -> int | None:
        """The number of the text added before that is nearly this one, which is not added then; None: it is new."""
        minima = self._signature(text)
        bands = [
            bytes([start // _BAND]) + minima[start : start + _BAND].tobytes()
            for start in range(0, _PERMUTATIONS, _BAND)
        ]
        candidates = {self._bands[band] for band in bands if band in self._bands}
        for number in sorted(candidates):
            if np.mean(self._minima[number] == minima) >= self._alike:
                return number
        for band in bands:
            self._bands.setdefault(band, len(self._minima))
        self._minima.append(minima)
        return None

    def _signature(self, text: str) -> np.ndarray:
        words = tokens(text)
        grams = {" ".join(words[at : at + 3]) for at in range(max(1, len(words) - 2))}
        low = _hashes(grams) >> np.uint64(32)  # 32 bits, so that products fit 64
        values = (self._factors[:, None] * low[None, :] + self._shifts[:, None]) % _PRIME
        return values.min(axis=1).astype(np.uint32)


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
