"""Checked rows as a TFDS data set: `GeneratorBasedBuilder`, ArrayRecord files, source order kept.

TensorFlow is imported inside functions alone: it takes ten seconds, and most commands do without.
"""

import functools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from janus_jax.data.quiet_imports import import_tfds
from janus_jax.data.schema import PREFERENCE_KEYS, Row
from janus_jax.errors import DataError

NAME = "janus_rows"
VERSION = "1.0.0"

_ROWS_AT_MOST = 1 << 24
_KEY_STEP = (1 << 128) // _ROWS_AT_MOST
"""TFDS sorts records by a 128-bit key, in 1000 buckets on disk once they pass 1 GB. Row numbers as keys would all fall
into the first bucket, which is sorted in memory; spread over the key range they keep their order and fill many."""


def write_rows(splits: Mapping[str, Callable[[], Iterator[Row]]], data_dir: Path) -> Any:
    """Writes the rows of each split below `data_dir` and returns the builder, ready to read.

    Nothing is written elsewhere, nothing is downloaded, and memory is bounded (TFDS holds up to 1 GB of records).

    Raises:
        DataError: what reading the rows raises.
    """
    tfds = import_tfds()
    builder = _builder_class()(data_dir=os.fspath(data_dir), file_format="array_record", sources=splits)
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        builder.download_and_prepare(download_dir=os.fspath(data_dir / "downloads"), download_config=config)
    except Exception as error:  # TFDS may wrap what a generator raises
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, DataError):
            cause = cause.__cause__ or cause.__context__
        raise cause or error from None
    shutil.rmtree(data_dir / "downloads", ignore_errors=True)  # TFDS makes it whether it downloads or not
    return builder


def read_builder(data_dir: Path) -> Any:
    """The builder of a data set written before, read from its own metadata."""
    return import_tfds().builder_from_directory(os.fspath(data_dir / NAME / VERSION))


@functools.cache
def _builder_class() -> type:
    tfds = import_tfds()
    text = tfds.features.Text()
    features = {
        "system": text,
        "prompt": text,
        "chosen": text,
        "rejected": text,
        "main_source": text,
        "original_source": text,
        "preference_set": tfds.features.Sequence({key: tfds.features.Text() for key in PREFERENCE_KEYS}),
        "margin": np.float32,
    }

    class JanusRows(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[reportGeneralTypeIssues, reportCallIssue]
        """System message, prompt and one or two responses per row.

        `rejected` is empty where there is one response, `margin` is NaN where the row has none.
        """

        name = NAME
        VERSION = tfds.core.Version(VERSION)
        RELEASE_NOTES = {"1.0.0": "First version."}  # noqa: RUF012

        # Where TFDS looks for checksums of downloads, of which there are none; its search needs importlib_resources,
        # which it does not install.
        code_path = None

        def __init__(self, *, sources: Mapping[str, Callable[[], Iterator[Row]]], **options: Any):
            self._sources = sources
            super().__init__(**options)

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                description=self.__doc__,
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        def _log_download_bytes(self) -> None:  # TFDS prints to stdout here and below
            pass

        def _log_download_done(self) -> None:
            pass

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {name: self._generate_examples(read) for name, read in self._sources.items()}

        def _generate_examples(self, read: Callable[[], Iterator[Row]]) -> Iterator[tuple[int, dict[str, Any]]]:
            for number, row in enumerate(read()):
                if number >= _ROWS_AT_MOST:
                    raise DataError(f"a split holds more than {_ROWS_AT_MOST} rows; divide it")
                yield (
                    number * _KEY_STEP,
                    {
                        "system": row.system,
                        "prompt": row.prompt,
                        "chosen": row.chosen,
                        "rejected": row.rejected or "",
                        "main_source": row.main_source,
                        "original_source": row.original_source,
                        "preference_set": list(row.preference_set),
                        "margin": np.nan if row.margin is None else row.margin,
                    },
                )

    return JanusRows
