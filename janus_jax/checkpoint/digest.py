"""Digests of tensors, and comparison of two stored models."""

import concurrent.futures
import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import xxhash

from janus_jax.checkpoint.hf.blocks import recycled
from janus_jax.checkpoint.hf.keys import KeyEntry, key_table
from janus_jax.checkpoint.stored_model import StoredModel
from janus_jax.errors import ConversionError


def digest(block: np.ndarray) -> str:
    """XXH3 (128 bits) over dtype, shape and C-order bytes of a tensor in the layout of the parameter.

    It finds damage, as sha256 would, at the speed of memory. It does not protect against somebody who forges a tensor.
    """
    xxh3 = xxhash.xxh3_128(f"{block.dtype.name}{block.shape}".encode())
    xxh3.update(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
    return xxh3.hexdigest()


def tensors(model: StoredModel) -> Iterator[tuple[KeyEntry, np.ndarray]]:
    """Every tensor of a model in the order of the key table, in the stored dtype. A thread reads one tensor ahead.

    The disk is asked for the tensor after that one, so that it is never idle.
    """
    entries = key_table(model.config)
    pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="tensors")

    def read(place: int) -> np.ndarray:
        for entry in entries[place + 1 : place + 2]:
            model.read_ahead(entry)
        return model.read(entries[place])

    try:
        with recycled():
            ahead = pool.submit(read, 0)
            for place, entry in enumerate(entries):
                block = ahead.result()
                if place + 1 < len(entries):
                    ahead = pool.submit(read, place + 1)
                yield entry, block
                del block  # free it before the next one is awaited
    finally:
        # If the caller stops early, the garbage collector runs this line, perhaps in a thread that is just starting and
        # holds the lock that waiting for a thread needs. So do not wait.
        pool.shutdown(wait=False)


@dataclasses.dataclass(frozen=True)
class TensorDifference:
    """How two tensors of one name differ."""

    key: str
    largest: float  # absolute difference of values; 0 if only dtypes or signs of zeros differ
    relative: float  # `largest` divided by the tensor's largest absolute value
    dtypes: tuple[str, str] = ("", "")
    steps: float = math.inf  # largest difference in steps of bfloat16, each at the larger of the two values

    def __str__(self) -> str:
        dtypes = "" if len({*self.dtypes}) == 1 else f"{' and '.join(self.dtypes)}, "
        return f"{self.key}: {dtypes}largest difference {self.largest:.3g}, {self.relative:.2g} of the largest value"


def require_one_config(ours: StoredModel, theirs: StoredModel) -> None:
    """Raises ConversionError if the configs of two models differ; names the keys."""
    a, b = dataclasses.asdict(ours.config), dataclasses.asdict(theirs.config)
    if different := "; ".join(f"{key} {a[key]!r} and {b[key]!r}" for key in a if a[key] != b[key]):
        raise ConversionError(ours.path, theirs.path, f"models of different shape: {different}")


def compare(ours: StoredModel, theirs: StoredModel) -> list[TensorDifference]:
    """Tensors that differ between two models of one shape, in values or dtype.

    Raises:
        ConversionError: the models have different shapes, or a tensor cannot be read.
    """
    require_one_config(ours, theirs)
    differences = [*_reward_statistics(ours, theirs)] if ours.config.head == "value" else []
    for (entry, one), (_, other) in zip(tensors(ours), tensors(theirs), strict=True):
        if one.dtype == other.dtype and np.array_equal(_bits(one), _bits(other)):
            continue
        a, b = one.astype(np.float32), other.astype(np.float32)
        apart = np.abs(a - b)
        largest = float(apart.max())
        relative = largest / max(float(np.abs(a, out=a).max()), 1e-30)
        apart /= np.spacing(np.maximum(a, np.abs(b, out=b), out=a), out=b)
        steps = float(apart.max()) / 2**16  # bfloat16 has 16 bits less of a fraction than float32
        differences.append(TensorDifference(entry.key, largest, relative, (one.dtype.name, other.dtype.name), steps))
    return differences


def _bits(block: np.ndarray) -> np.ndarray:
    return block.view(f"u{block.dtype.itemsize}")


def _reward_statistics(ours: StoredModel, theirs: StoredModel) -> Iterator[TensorDifference]:
    """Differences of mean and std, which change the normalised reward (r - mean) / std."""
    a, b = ours.facts.reward, theirs.facts.reward
    for key in ("mean", "std"):
        one, other = a.get(key), b.get(key)
        if one != other:
            largest = abs(one - other) if one is not None and other is not None else math.inf
            yield TensorDifference(f"config.json's {key} ({one} and {other})", largest, math.inf)
