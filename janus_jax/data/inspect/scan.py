"""One pass over all ids of a built split: BOS and EOS of each example, and digests of its texts."""

import dataclasses
import hashlib
import itertools

import numpy as np

from janus_jax.data.dataset import TokenizedDataset

_BLOCK = 4096
"""Examples read at once: a few MB."""

_MIX = np.uint64(0x9E3779B97F4A7C15)
"""An odd 64-bit multiplier to combine two digests."""


@dataclasses.dataclass(frozen=True)
class Scan:
    """Facts of each stored example, [E]."""

    bos_missing: np.ndarray  # bool: the tokenizer has a BOS, and the prompt does not begin with it
    bos_again: np.ndarray  # bool: BOS occurs at another place in the example
    ends: np.ndarray  # [E, 2] bool: chosen, rejected end with EOS; True for an empty response
    eos_inside: np.ndarray  # bool: EOS occurs in a response before its end
    unknown: np.ndarray  # int: unknown tokens
    digests: np.ndarray  # [E, 3] uint64 of prompt, chosen, rejected

    @property
    def with_chosen(self) -> np.ndarray:
        """[E] uint64: digests of prompt with chosen (or response)."""
        return self.digests[:, 0] * _MIX + self.digests[:, 1]

    @property
    def with_both(self) -> np.ndarray:
        """[E] uint64: digests of prompt with chosen and rejected."""
        return self.with_chosen * _MIX + self.digests[:, 2]

    @property
    def with_both_swapped(self) -> np.ndarray:
        """[E] uint64: `with_both` with chosen and rejected swapped."""
        return (self.digests[:, 0] * _MIX + self.digests[:, 2]) * _MIX + self.digests[:, 1]

    @classmethod
    def join(cls, scans: "list[Scan]") -> "Scan":
        """Facts of several parts in one."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: np.concatenate([getattr(scan, name) for scan in scans]) for name in names})


def scan(dataset: TokenizedDataset, unknown: int | None = None) -> Scan:
    """Reads every example once.

    Args:
        unknown: the id of the unknown token, if the tokenizer has one.
    Raises:
        DataError: a record cannot be read.
    """
    bos, eos = dataset.manifest.tokenizer["bos"], dataset.manifest.tokenizer["eos"]
    if not dataset.manifest.bos:
        bos = None
    elif bos is not None and dataset.manifest.marks:
        bos = dataset.chat_format().bos_id  # None if it is a mark of the template, which occurs again
    blocks = [range(at, min(at + _BLOCK, len(dataset))) for at in range(0, len(dataset), _BLOCK)]
    return Scan.join([_scan_block(dataset, block, bos, eos, unknown) for block in blocks])


def _scan_block(dataset: TokenizedDataset, block: range, bos: int | None, eos: int, unknown: int | None) -> Scan:
    examples = dataset.read(block)
    nothing = np.zeros(0, np.int32)
    texts = [
        (example.prompt, example.chosen, nothing if example.rejected is None else example.rejected)
        for example in examples
    ]
    ids = np.concatenate([*itertools.chain.from_iterable(texts), nothing])
    lengths = dataset.lengths[block.start : block.stop].astype(np.int64)
    ends = np.cumsum(lengths.ravel()).reshape(-1, 3)
    starts = ends - lengths

    def count(hits: np.ndarray, column: int) -> np.ndarray:
        before = np.concatenate([[0], np.cumsum(hits)])
        return before[ends[:, column]] - before[starts[:, column]]

    last = np.ones((len(block), 2), bool)
    for branch in (1, 2):
        present = lengths[:, branch] > 0
        last[present, branch - 1] = ids[ends[present, branch] - 1] == eos
    ended = last & (lengths[:, 1:] > 0)
    eos_at = ids == eos
    inside = count(eos_at, 1) + count(eos_at, 2) > ended.sum(1)
    if bos is None:
        missing = again = np.zeros(len(block), bool)
    else:
        bos_at = ids == bos
        missing = np.ones(len(block), bool)
        has_prompt = lengths[:, 0] > 0
        missing[has_prompt] = ids[starts[has_prompt, 0]] != bos
        again = count(bos_at, 0) - ~missing > 0
        if bos != eos:  # otherwise it also ends responses
            again |= (count(bos_at, 1) + count(bos_at, 2)) > 0
    hits = np.zeros(len(ids), bool) if unknown in (None, bos, eos) else ids == unknown  # GPT-2 has one id for all three
    unknowns = count(hits, 0) + count(hits, 1) + count(hits, 2)
    digests = b"".join(hashlib.blake2b(text.tobytes(), digest_size=8).digest() for example in texts for text in example)
    return Scan(missing, again, last, inside, unknowns, np.frombuffer(digests, np.uint64).reshape(-1, 3))
