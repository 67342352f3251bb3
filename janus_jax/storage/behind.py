"""A file that is written by a thread, while the caller prepares what comes next."""

import concurrent.futures
import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Any, BinaryIO


class WriteBehind:
    """Writes blocks to a file, one at a time, in the order in which they come."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._pool = concurrent.futures.ThreadPoolExecutor(2, thread_name_prefix="behind")
        self._writing = self._syncing = _done()

    def write(self, block: Any) -> None:
        """Starts to write a block (bytes or a buffer), when the block before it is written. Do not change it later.

        Raises:
            OSError: that block could not be written.
        """
        self._writing.result()
        if self._syncing.done():
            self._syncing.result()
            # The disk begins now: left to the end, everything would wait for it then.
            self._syncing = self._pool.submit(self._sync)
        self._writing = self._pool.submit(self._write, block)

    def finish(self) -> None:
        """Returns when all blocks are written."""
        self._writing.result()
        self._syncing.result()  # the system names an error of the disk once, perhaps to this thread

    def shutdown(self) -> None:
        """Leaves the file to the caller, after an error too."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _write(self, block: Any) -> None:
        rest = memoryview(block).cast("B")
        while rest:
            written = self._file.write(rest)  # an unbuffered file may take a part
            if not written:
                raise OSError(errno.EIO, "the file takes no more bytes")
            rest = rest[written:]

    def _sync(self) -> None:
        os.fsync(self._file.fileno())


@contextlib.contextmanager
def write_behind(file: BinaryIO) -> Iterator[WriteBehind]:
    """Yields a `WriteBehind` whose blocks are written when the context ends without an error.

    Raises:
        OSError: a block could not be written.
    """
    behind = WriteBehind(file)
    try:
        yield behind
        behind.finish()
    finally:
        behind.shutdown()


def _done() -> Any:
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()
    future.set_result(None)
    return future
