"""Captures what XLA's compilers log. Some of their warnings appear nowhere else."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

_KNOWN = ("Involuntary full rematerialization", "exceeds the base limit")
"""Lines with one of these texts are not printed: the first become findings of the plan, the second is XLA's remark for
GPUs that donated arguments, counted twice, are more than it expects."""


@contextlib.contextmanager
def compiler_log(*, capture_stderr: bool = True) -> Iterator[Callable[[], str]]:
    """Yields a function that, after the block, returns what was logged in it. XLA for CPUs and GPUs logs to stderr,
    libtpu to a file.

    Args:
        capture_stderr: whether to capture stderr too. Whatever any thread writes there appears at the end of the block,
            and not at all if the compiler crashes the process.
    """
    captured: list[str] = []
    file = _libtpu_log()
    before = 0 if file is None else file.stat().st_size
    with _captured_stderr(captured) if capture_stderr else contextlib.nullcontext():
        yield lambda: "".join(captured)
    if (file := _libtpu_log()) is not None:
        with file.open(encoding="utf-8", errors="replace") as log:
            log.seek(before)
            captured.append(log.read())


@contextlib.contextmanager
def _captured_stderr(captured: list[str]) -> Iterator[None]:
    """Redirects the file descriptor to a temporary file, since C++ writes to it."""
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
            captured.append(file.read().decode(errors="replace"))
            lines = captured[-1].splitlines(keepends=True)
            os.write(2, "".join(line for line in lines if not any(text in line for text in _KNOWN)).encode())


def _flush() -> None:
    if sys.stderr is not None:
        sys.stderr.flush()


def _libtpu_log() -> Path | None:
    directory = os.environ.get("TPU_LOG_DIR") or os.path.join(tempfile.gettempdir(), "tpu_logs")  # libtpu's default
    if not os.path.isdir(directory):
        return None
    return next(Path(directory).glob(f"tpu_driver.*.WARNING.*.{os.getpid()}"), None)
