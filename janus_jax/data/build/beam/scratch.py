"""Files that the steps of a Beam build leave for each other, below a directory that all workers reach.

SCRATCH/checked/00000.records      checked records of one source file
SCRATCH/encoded/train-0-0.records  texts and ids of one block of records
SCRATCH/out/                       finished files of the data set
SCRATCH/result.json                counts of the whole build

Elements of the pipeline hold places in these files, so a runner shuffles no texts. A worker
that is started again writes the same files with the same content.
"""

import contextlib
import functools
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from apache_beam.io.filesystem import CompressionTypes  # pyright: ignore[reportMissingImports]
from apache_beam.io.filesystems import FileSystems  # pyright: ignore[reportMissingImports]
from google.api_core.exceptions import GoogleAPIError
from google.auth.exceptions import GoogleAuthError

from janus_jax.data.build.derive import dump_record, load_record
from janus_jax.data.schema import Record
from janus_jax.errors import StorageError, first_line
from janus_jax.storage.bucket import Prefix, is_url

_OPEN_FILES = 8
_HEADER = struct.Struct("<4i")  # bytes of the record, then tokens of prompt, chosen, rejected


def checked(scratch: str, number: int) -> str:
    """The file of the checked records of a source file."""
    return f"{scratch}/checked/{number:05d}.records"


def encoded(scratch: str, split: str, file: int, block: int) -> str:
    """The file of a block of encoded records."""
    return f"{scratch}/encoded/{split}-{file}-{block}.records"


@contextlib.contextmanager
def _storage(path: str, failure: str) -> Iterator[None]:
    """Turns what file systems raise inside into a StorageError."""
    try:
        yield
    except (OSError, GoogleAPIError, GoogleAuthError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise StorageError(path, f"{failure}: {reason}") from error


@contextlib.contextmanager
def open_new(path: str) -> Iterator[Any]:
    """A file to write, in a directory that is made if needed.

    Raises:
        StorageError: it cannot be written.
    """
    with contextlib.suppress(OSError):  # another worker was first
        FileSystems.mkdirs(path.rpartition("/")[0])
    with _storage(path, "cannot be written"):
        with FileSystems.create(path, compression_type=CompressionTypes.UNCOMPRESSED) as stream:
            yield stream


@contextlib.contextmanager
def open_old(path: str) -> Iterator[Any]:
    """A file to read.

    Raises:
        StorageError: it cannot be read.
    """
    with _storage(path, "cannot be read"), _open(path) as stream:
        yield stream


def _open(path: str) -> Any:
    return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)


@contextlib.contextmanager
def made(path: str) -> Iterator[Path]:
    """Yields a local path, and copies the file that is written there to `path` at the end."""
    with tempfile.TemporaryDirectory() as directory:
        here = Path(directory) / "file"
        with _storage(directory, "cannot be written"):
            yield here
        with here.open("rb") as source, open_new(path) as target:
            shutil.copyfileobj(source, target, 1 << 20)


def pack(record: Record) -> bytes:
    """A record, compressed by itself."""
    return zlib.compress(dump_record(record), 1)


def unpack(stored: bytes) -> Record:
    """The record of `pack`."""
    return load_record(zlib.decompress(stored))


class Checked:
    """Reads checked records by their places."""

    def __init__(self, scratch: str):
        @functools.lru_cache(_OPEN_FILES)
        def opened(number: int) -> BinaryIO:
            return _open(checked(scratch, number))

        self._scratch, self._opened = scratch, opened

    def read(self, file: int, offset: int, size: int) -> Record:
        with _storage(checked(self._scratch, file), "cannot be read"):
            stream = self._opened(file)
            stream.seek(offset)
            return unpack(stream.read(size))


def write_encoded(stream: Any, record: Record, lengths: np.ndarray, ids: np.ndarray) -> None:
    """Appends one example.

    Args:
        lengths: [3] tokens of prompt, chosen, rejected.
        ids: [N] their ids, int32.
    """
    stored = pack(record)
    stream.write(_HEADER.pack(len(stored), *lengths.tolist()) + stored + ids.astype("<i4").tobytes())


def read_encoded(path: str, skip: int, take: int) -> Iterator[tuple[Record, np.ndarray, np.ndarray]]:
    """The examples of a file as `write_encoded` took them, from number `skip` on, `take` of them."""
    with open_old(path) as stream:
        for number in range(skip + take):
            size, *lengths = _HEADER.unpack(stream.read(_HEADER.size))
            stored, ids = stream.read(size), stream.read(4 * sum(lengths))
            if number >= skip:
                yield unpack(stored), np.asarray(lengths, np.int32), np.frombuffer(ids, "<i4")


@contextlib.contextmanager
def local_copy(path: str) -> Iterator[Path]:
    """A source file on this machine; one in a bucket is copied for the time of the block."""
    if "://" not in path:
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as directory:
        here = Path(directory) / path.rpartition("/")[2]
        _copy(path, here)
        yield here


def fetch(source: str, target: Path) -> None:
    """Puts a finished file at its place; a local one is moved."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if "://" not in source:
        shutil.move(source, target)  # it may lie on a mounted directory
        return
    _copy(source, target)


def _copy(source: str, target: Path) -> None:
    """Copies a file to this machine.

    Raises:
        StorageError: names the one that cannot be read, or written.
    """

    def chunks() -> Iterator[bytes]:
        with open_old(source) as stream:
            while chunk := stream.read(1 << 20):
                yield chunk

    with _storage(os.fspath(target), "cannot be written"), target.open("wb") as copy:
        for chunk in chunks():
            copy.write(chunk)


def remove(scratch: str) -> None:
    """Removes all of it, if it is there."""
    with contextlib.suppress(OSError, StorageError):
        if is_url(scratch):
            (prefix := Prefix(scratch)).delete(prefix.list())
        else:
            FileSystems.delete([scratch])
