"""The files of a built split beside its texts: token ids, lengths and margins, as `dataset.py` reads them."""

from pathlib import Path
from typing import Any

import numpy as np

from janus_jax.data.build.tfds_builder import RECORDS_PER_FILE
from janus_jax.data.dataset import Split, histogram

EXAMPLES_PER_FILE = RECORDS_PER_FILE


def file_name(number: int, files: int) -> str:
    """The name of one of so many files of token ids."""
    return f"tokens-{number:05d}-of-{files:05d}.array_record"


def open_file(path: Path) -> Any:
    """A writer of a file of token ids."""
    from array_record.python.array_record_module import ArrayRecordWriter

    # groups of one for random access; uncompressed, because ids hardly shrink and readers must be fast
    return ArrayRecordWriter(str(path), "group_size:1,uncompressed")


def add_to(digest: Any, lengths: np.ndarray, ids: np.ndarray) -> None:
    """Adds an example to the fingerprint of its split (a hash of hashlib).

    Args:
        lengths: [3] tokens of prompt, chosen, rejected.
        ids: [N] their ids, one after another.
    """
    digest.update(lengths.astype("<i4").tobytes() + ids.astype("<i4").tobytes())


def finish_split(folder: Path, lengths: np.ndarray, margins: np.ndarray, digest: Any) -> Split:
    """Writes lengths and, if any example has one, margins beside the files of ids.

    Args:
        lengths: [E, 3] int32 tokens of prompt, chosen, rejected.
        margins: [E] float32, NaN for an example without.
        digest: holds all examples in order (`add_to`).
    """
    np.save(folder / "lengths.npy", lengths)
    with_margin = int(np.isfinite(margins).sum())
    if with_margin:
        margins = np.nan_to_num(margins)  # 0 for records without one
        np.save(folder / "margins.npy", margins)
        digest.update(margins.astype("<f4").tobytes())
    return Split(
        len(lengths),
        int(lengths.sum()),
        dropped={},
        margins=with_margin,
        lengths=histogram(lengths),
        files={path.name: path.stat().st_size for path in sorted(folder.iterdir())},
        fingerprint=digest.hexdigest(),
    )
