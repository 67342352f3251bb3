"""Orbax and tensorstore without the tracebacks of their threads, whose errors also come as exceptions."""

import gc
import logging
import sys
import threading
import time
import traceback
from typing import Any

_THREADS, _SOURCE = "orbax.", "/orbax/checkpoint/"


def quiet_orbax() -> None:
    """Drops what Orbax's threads log, and what tensorstore prints, about an error that the caller gets as well.

    It stays in force to the end of the process: threads of a failed save end late.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_ours)  # which adds it once
    if not isinstance(sys.unraisablehook, _Hook):
        sys.unraisablehook = _Hook(sys.unraisablehook)


def end_threads(timeout_s: float) -> None:
    """Waits until no thread of Orbax writes any more, for `timeout_s` seconds at most, and drops what they left.

    Left to the end of the process, their coroutines would complain when no filter is in force any more.
    """
    deadline = time.monotonic() + timeout_s
    for thread in threading.enumerate():
        if type(thread).__module__.startswith(_THREADS):
            # Orbax's own `join` raises the thread's error.
            threading.Thread.join(thread, max(0.0, deadline - time.monotonic()))
    gc.collect()


def _is_ours(record: logging.LogRecord) -> bool:
    if record.levelno < logging.ERROR:
        return True
    frames = traceback.walk_tb(record.exc_info[2]) if record.exc_info else ()
    files = [record.pathname, record.getMessage(), *(frame.f_code.co_filename for frame, _ in frames)]
    return not any(_SOURCE in file for file in files)


class _Hook:
    """Leaves out tensorstore's threads that answer an event loop which a failed save has closed, and what it left."""

    def __init__(self, other: Any):
        self._other = other

    def __call__(self, unraisable: Any) -> None:
        code = getattr(unraisable.object, "cr_code", None)  # of a coroutine that a failed save did not finish
        closed = unraisable.exc_type is RuntimeError and str(unraisable.exc_value) == "Event loop is closed"
        if not closed and (code is None or _SOURCE not in code.co_filename):
            self._other(unraisable)
