"""One pass over all ids of a built split: what stands at the borders of each example, and digests of its texts."""

import dataclasses
import hashlib
import itertools

import numpy as np

from janus_jax.data.dataset import TokenizedDataset

_BLOCK = 4096
"""Examples read at once: a few MB."""

_MIX = np.uint64(0x9E3779B97F4A7C15)
"""An odd number that spreads digests over 64 bits when two are made one."""


@dataclasses.dataclass(frozen=True)
class Scan:
    """Facts of each stored example, [E]; `_ends` of a response that is not there are True."""

    bos_missing: np.ndarray  # bool: the tokenizer has a BOS, and the prompt does not begin with it
    bos_again: np.ndarray  # bool: it stands in the example a second time
    ends: np.ndarray  # [E, 2] bool: chosen, rejected end with EOS
    eos_inside: np.ndarray  # bool: EOS stands in a response before its end
    digests: np.ndarray  # [E, 3] uint64 of prompt, chosen, rejected

    @property
    def pairs(self) -> np.ndarray:
        """[E] uint64: digests of prompt with chosen (or response)."""
        return self.digests[:, 0] * _MIX + self.digests[:, 1]

    @property
    def wholes(self) -> np.ndarray:
        """[E] uint64: digests of prompt with chosen and rejected."""
        return self.pairs * _MIX + self.digests[:, 2]

    @property
    def reversed_wholes(self) -> np.ndarray:
        """[E] uint64: `wholes` with chosen and rejected exchanged."""
        return (self.digests[:, 0] * _MIX + self.digests[:, 2]) * _MIX + self.digests[:, 1]

    @classmethod
    def join(cls, scans: "list[Scan]") -> "Scan":
        """Those of several parts as one."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: np.concatenate([getattr(scan, name) for scan in scans]) for name in names})


def scan(dataset: TokenizedDataset) -> Scan:
    """Reads every example once.

    Raises:
        DataError: a record cannot be read.
    """
    bos, eos = dataset.manifest.tokenizer["bos"], dataset.manifest.tokenizer["eos"]
    blocks = [range(at, min(at + _BLOCK, len(dataset))) for at in range(0, len(dataset), _BLOCK)]
    return Scan.join([_scan_block(dataset, block, bos, eos) for block in blocks])


def _scan_block(dataset: TokenizedDataset, block: range, bos: int | None, eos: int) -> Scan:
    examples = dataset.read(block)
    nothing = np.zeros(0, np.int32)
    texts = [(one.prompt, one.chosen, nothing if one.rejected is None else one.rejected) for one in examples]
    ids = np.concatenate([*itertools.chain.from_iterable(texts), nothing])
    lengths = dataset.lengths[block.start : block.stop].astype(np.int64)
    ends = np.cumsum(lengths.ravel()).reshape(-1, 3)
    starts = ends - lengths

    def count(hits: np.ndarray, column: int) -> np.ndarray:
        before = np.concatenate([[0], np.cumsum(hits)])
        return before[ends[:, column]] - before[starts[:, column]]

    last = np.ones((len(block), 2), bool)
    for branch in (1, 2):
        there = lengths[:, branch] > 0
        last[there, branch - 1] = ids[ends[there, branch] - 1] == eos
    ended = last & (lengths[:, 1:] > 0)
    eos_at = ids == eos
    inside = count(eos_at, 1) + count(eos_at, 2) > ended.sum(1)
    if bos is None:
        missing = again = np.zeros(len(block), bool)
    else:
        bos_at = ids == bos
        missing = np.ones(len(block), bool)
        begun = lengths[:, 0] > 0
        missing[begun] = ids[starts[begun, 0]] != bos
        again = count(bos_at, 0) - ~missing > 0
        if bos != eos:  # else it ends responses
            again |= (count(bos_at, 1) + count(bos_at, 2)) > 0
    digests = b"".join(hashlib.blake2b(text.tobytes(), digest_size=8).digest() for one in texts for text in one)
    return Scan(missing, again, last, inside, np.frombuffer(digests, np.uint64).reshape(-1, 3))
