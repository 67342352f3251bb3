"""Checked records as a TFDS data set: ArrayRecord files in source order, written as the records arrive.

TFDS's `GeneratorBasedBuilder` sorts what it writes, in 1 GB of memory; its `SequentialWriter` keeps the order and holds
a few records. Functions import TensorFlow, not the module: that import takes seconds, and most commands do not need it.
"""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from janus_jax.data.schema import PREFERENCE_KEYS, Record
from janus_jax.data.tensorflow_quietly import import_tfds

NAME = "janus_rows"
VERSION = "1.0.0"

TEXTS = ("system", "prompt", "chosen", "rejected")
"""Fields of a stored record that are tokenized."""

_SOURCES = ("main_source", "original_source")
_DESCRIPTION = """System message, prompt and one or two responses per record.

`rejected` is empty where there is one response, `margin` is NaN where the record has none.
"""
RECORDS_PER_FILE = 1 << 16
_RECORDS_AT_ONCE = 64
"""Records between two writes of the metadata; a published record is about 6 kB, but one may be megabytes."""


def write_records(splits: Mapping[str, Callable[[], Iterator[Record]]], data_dir: Path) -> Any:
    """Writes the records of each split below `data_dir` and returns the builder, ready to read.

    It writes nowhere else, downloads nothing, and its memory does not grow with the number of records.

    Raises:
        DataError: raised while reading the records.
    """
    _write(_info(data_dir), splits)
    return read_builder(data_dir)


def _write(info: Any, splits: Mapping[str, Callable[[], Iterator[Record]]]) -> None:
    writer = import_tfds().core.SequentialWriter(info, RECORDS_PER_FILE, file_format="array_record")
    writer.initialize_splits(list(splits))
    serializer: Any = writer._serializer
    # the fields of a tf.Example are a map, whose order would differ from process to process
    serializer.serialize_example = lambda one: serializer.get_tf_example(one).SerializeToString(deterministic=True)
    for name, read in splits.items():
        source = iter(read())
        while records := list(itertools.islice(source, _RECORDS_AT_ONCE)):
            writer.add_examples({name: [_fields(record) for record in records]})
        writer.close_splits([name])


def _info(data_dir: Path) -> Any:
    tfds = import_tfds()
    directory = data_dir / NAME / VERSION
    directory.mkdir(parents=True, exist_ok=True)
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=NAME, version=tfds.core.Version(VERSION), data_dir=os.fspath(directory), module_name=__name__
    )
    preferences = tfds.features.Sequence({key: tfds.features.Text() for key in PREFERENCE_KEYS})
    features = dict.fromkeys((*TEXTS, *_SOURCES), tfds.features.Text())
    features = tfds.features.FeaturesDict(features | {"preference_set": preferences, "margin": np.float32})
    return tfds.core.DatasetInfo(builder=identity, description=_DESCRIPTION, features=features, disable_shuffling=True)


def write_file(records: Iterable[Record], split: str, data_dir: Path) -> tuple[Path, int]:
    """Writes one file of a split, of at most `RECORDS_PER_FILE`; `describe` makes the data set of all files.

    Args:
        data_dir: an own directory of this file.

    Returns:
        Its path, and the bytes of its records.
    """
    info = _info(data_dir)
    _write(info, {split: lambda: iter(records)})
    return data_dir / NAME / VERSION / file_name(split, 0), info.splits[split].num_bytes


def file_name(split: str, number: int) -> str:
    """The name of a split's file below DIR/NAME/VERSION."""
    return f"{NAME}-{split}.array_record-{number:05d}"


def describe(splits: Mapping[str, tuple[Sequence[int], int]], data_dir: Path) -> Any:
    """Writes the metadata of files that are in `data_dir` already, and returns the builder.

    Args:
        splits: split -> records of each file, and bytes of all records.
    """
    tfds = import_tfds()
    info = _info(data_dir)
    writer = tfds.core.SequentialWriter(info, RECORDS_PER_FILE, file_format="array_record")
    writer.initialize_splits(list(splits))
    infos = [
        tfds.core.SplitInfo(
            name=name,
            shard_lengths=list(lengths),
            num_bytes=size,
            filename_template=info.splits[name].filename_template,
        )
        for name, (lengths, size) in splits.items()
    ]
    info.set_splits(tfds.core.splits.SplitDict(infos))
    info.write_to_directory(os.fspath(data_dir / NAME / VERSION))
    return read_builder(data_dir)


def read_builder(data_dir: Path) -> Any:
    """The builder of a data set on disk, read from its own metadata."""
    return import_tfds().builder_from_directory(os.fspath(data_dir / NAME / VERSION))


def _fields(record: Record) -> dict[str, Any]:
    return {name: getattr(record, name) or "" for name in (*TEXTS, *_SOURCES)} | {
        "preference_set": list(record.preference_set),
        "margin": np.nan if record.margin is None else record.margin,
    }
