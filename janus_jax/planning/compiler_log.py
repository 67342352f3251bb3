"""What XLA's compilers write beside a program: some of their warnings stand nowhere else."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

_KNOWN = "Involuntary full rematerialization"
"""Becomes a finding of the plan, and is not printed besides."""


@contextlib.contextmanager
def compiler_log(*, aside: bool = True) -> Iterator[Callable[[], str]]:
    """Yields what gives, afterwards, all that was logged meanwhile: on stderr by XLA for CPUs and GPUs, in a file by
    libtpu.

    Args:
        aside: look at stderr too. What else is written there meanwhile, by whatever thread, appears at the end, and not
            at all if the compiler takes the process with it.
    """
    told: list[str] = []
    file = _libtpu_log()
    before = 0 if file is None else file.stat().st_size
    with _stderr_aside(told) if aside else contextlib.nullcontext():
        yield lambda: "".join(told)
    if (file := _libtpu_log()) is not None:
        with file.open(encoding="utf-8", errors="replace") as log:
            log.seek(before)
            told.append(log.read())


@contextlib.contextmanager
def _stderr_aside(told: list[str]) -> Iterator[None]:
    """The file descriptor goes to a temporary file meanwhile, since C++ writes there."""
    try:
        kept = os.dup(2)
    except OSError:  # closed
        yield
        return
    with tempfile.TemporaryFile() as file:
        _flush()
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            _flush()
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            told.append(file.read().decode(errors="replace"))
            lines = told[-1].splitlines(keepends=True)
            os.write(2, "".join(line for line in lines if _KNOWN not in line).encode())


def _flush() -> None:
    if sys.stderr is not None:
        sys.stderr.flush()


def _libtpu_log() -> Path | None:
    directory = os.environ.get("TPU_LOG_DIR") or os.path.join(tempfile.gettempdir(), "tpu_logs")  # libtpu's own default
    if not os.path.isdir(directory):
        return None
    return next(Path(directory).glob(f"tpu_driver.*.WARNING.*.{os.getpid()}"), None)
