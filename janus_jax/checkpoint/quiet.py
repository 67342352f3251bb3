"""Orbax and tensorstore without the tracebacks of their threads, whose errors also come as exceptions."""

import logging
import sys
import threading
import time
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


def await_threads(timeout_s: float) -> None:
    """Waits until no thread of Orbax writes any more, for `timeout_s` seconds at most."""
    deadline = time.monotonic() + timeout_s
    for thread in threading.enumerate():
        if type(thread).__module__.startswith(_THREADS):
            thread.join(max(0.0, deadline - time.monotonic()))


def _is_ours(record: logging.LogRecord) -> bool:
    return record.levelno < logging.ERROR or _SOURCE not in f"{record.pathname} {record.getMessage()}"


class _Hook:
    """Leaves out the errors of tensorstore's threads that answer an event loop which a failed save has closed."""

    def __init__(self, other: Any):
        self._other = other

    def __call__(self, unraisable: Any) -> None:
        if not (unraisable.exc_type is RuntimeError and str(unraisable.exc_value) == "Event loop is closed"):
            self._other(unraisable)
