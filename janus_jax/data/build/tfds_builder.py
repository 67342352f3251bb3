"""Checked rows as a TFDS data set: ArrayRecord files in source order, written as the rows come.

TFDS's `GeneratorBasedBuilder` sorts what it writes, in 1 GB of memory; its `SequentialWriter` keeps the order and holds
a few rows. TensorFlow is imported inside functions alone: it takes seconds, and most commands do without.
"""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from janus_jax.data.schema import PREFERENCE_KEYS, Record
from janus_jax.data.tensorflow_quietly import import_tfds

NAME = "janus_rows"
VERSION = "1.0.0"

_DESCRIPTION = """System message, prompt and one or two responses per row.

`rejected` is empty where there is one response, `margin` is NaN where the row has none.
"""
_ROWS_PER_FILE = 1 << 16
_ROWS_AT_ONCE = 64
"""Between two writes of the metadata; a published row is about 6 kB, but one may be megabytes."""


def write_records(splits: Mapping[str, Callable[[], Iterator[Record]]], data_dir: Path) -> Any:
    """Writes the rows of each split below `data_dir` and returns the builder, ready to read.

    Nothing is written elsewhere, nothing is downloaded, and memory does not grow with the rows.

    Raises:
        DataError: what reading the rows raises.
    """
    tfds = import_tfds()
    directory = data_dir / NAME / VERSION
    directory.mkdir(parents=True)
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=NAME, version=tfds.core.Version(VERSION), data_dir=os.fspath(directory), module_name=__name__
    )
    info = tfds.core.DatasetInfo(
        builder=identity, description=_DESCRIPTION, features=_features(tfds), disable_shuffling=True
    )
    writer = tfds.core.SequentialWriter(info, _ROWS_PER_FILE, file_format="array_record")
    writer.initialize_splits(list(splits))
    for name, read in splits.items():
        for rows in _batched(read(), _ROWS_AT_ONCE):
            writer.add_examples({name: [_fields(row) for row in rows]})
        writer.close_splits([name])
    return read_builder(data_dir)


def read_builder(data_dir: Path) -> Any:
    """The builder of a data set written before, read from its own metadata."""
    return import_tfds().builder_from_directory(os.fspath(data_dir / NAME / VERSION))


def _features(tfds: Any) -> Any:
    text = tfds.features.Text()
    return tfds.features.FeaturesDict(
        {
            "system": text,
            "prompt": text,
            "chosen": text,
            "rejected": text,
            "main_source": text,
            "original_source": text,
            "preference_set": tfds.features.Sequence({key: tfds.features.Text() for key in PREFERENCE_KEYS}),
            "margin": np.float32,
        }
    )


def _fields(row: Record) -> dict[str, Any]:
    return {
        "system": row.system,
        "prompt": row.prompt,
        "chosen": row.chosen,
        "rejected": row.rejected or "",
        "main_source": row.main_source,
        "original_source": row.original_source,
        "preference_set": list(row.preference_set),
        "margin": np.nan if row.margin is None else row.margin,
    }


def _batched(rows: Iterable[Record], size: int) -> Iterator[list[Record]]:
    source = iter(rows)
    while batch := list(itertools.islice(source, size)):
        yield batch
