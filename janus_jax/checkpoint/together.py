"""A save that fails on one process fails on all of them, and one of a start that lost the run commits nothing.

In Orbax a process whose write failed does not come to the barrier before the commit. So the others wait for it for 20
minutes, and it waits for them. Nor does process 0 come to the barrier after the commit, which it makes for all, if that
failed.
"""

import itertools
import json
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import orbax.checkpoint as ocp

from janus_jax.errors import LostLockError, StorageError
from janus_jax.parallel import processes
from janus_jax.storage.local import Place, refusal

_BEFORE_COMMIT, _AFTER_COMMIT = "async_write_complete", "async_commit_complete"
_POLL_S = 0.1

_saves = itertools.count()
"""Of this process and, since all make the same saves, of all. Orbax's keys repeat: a second run saves that step too."""


class Together:
    """What becomes of the save under way, on this process and on all.

    Args:
        guard: called before process 0 commits; raises if it must not.

    Attributes:
        step: the directory that is being saved.
    """

    def __init__(self, step: Place, guard: Callable[[], None]):
        self.step, self.guard = step, guard
        self._failure: Exception | None = None
        self._save: str | None = None  # a name for the save that is being committed, the same on all processes

    def watched(self, handler: Any) -> Any:
        """A handler of Orbax whose writes are `_Write`s."""
        save = handler.async_save

        async def watched_save(*args: Any, **kwargs: Any) -> list[Any]:
            return [_Write(write, self) for write in jax.tree.leaves(await save(*args, **kwargs)) if write]

        handler.async_save = watched_save
        return handler

    def options(self) -> ocp.options.AsyncOptions:
        """Orbax's options, with this barrier where there are several processes."""
        if jax.process_count() == 1:
            return ocp.options.AsyncOptions(post_finalization_callback=self.guard)
        return ocp.options.AsyncOptions(barrier_sync_fn=self._barrier, post_finalization_callback=self.guard)

    def failed(self, error: Exception) -> None:
        """Notes the first failure."""
        self._failure = self._failure or error

    def _barrier(self, *, key: str, timeout_ms: int) -> None:
        wait = ocp.multihost.get_barrier_sync_fn()
        if self._save is not None:
            save, self._save = self._save, None
            self._agree_on_commit(save, key, time.monotonic() + timeout_ms / 1000)
        if _BEFORE_COMMIT not in key:
            wait(key=key, timeout_ms=timeout_ms)
            return
        save = self._save = f"{key}/{next(_saves)}"
        failure, self._failure = self._failure, None
        if failure is not None:
            processes.publish(f"{save}/failed/{jax.process_index()}", _message(failure))
        wait(key=key, timeout_ms=timeout_ms)
        if failure is not None:
            raise failure
        for process, text in processes.published(f"{save}/failed").items():
            self._fail(process, text)
        self.guard()

    def _agree_on_commit(self, save: str, key: str, deadline: float) -> None:
        """Process 0 says how its commit went; the others wait for that, until the barrier would time out."""
        if processes.is_main():
            failure = None if _AFTER_COMMIT in key else sys.exc_info()[1]  # on its way to Orbax's next barrier
            failed = isinstance(failure, Exception)
            processes.publish(f"{save}/commit/{'failed' if failed else 'done'}", _message(failure) if failed else "")
        elif _AFTER_COMMIT in key:
            while not (outcome := processes.published(f"{save}/commit")) and time.monotonic() < deadline:
                time.sleep(_POLL_S)
            if "failed" in outcome:
                self._fail("0", outcome["failed"])

    def _fail(self, process: str, text: str) -> NoReturn:
        lost, reason = json.loads(text)
        if lost:
            raise LostLockError(f"process {process}: {reason}")
        raise StorageError(self.step, f"cannot be written: process {process}: {reason}")


def _message(failure: Exception) -> str:
    """What other processes have to know of a failure."""
    return json.dumps([isinstance(failure, LostLockError), refusal(failure)])


class _Write:
    """One write of a save; a future as Orbax defines it. With several processes it fails at the barrier, not before."""

    def __init__(self, write: Any, together: Together):
        self._write = write
        self._together = together

    def result(self, timeout: float | None = None) -> Any:
        if jax.process_count() == 1:  # there is no barrier
            written = self._write.result(timeout=timeout)
            self._together.guard()
            return written
        try:
            return self._write.result(timeout=timeout)
        except (OSError, ValueError, StorageError) as error:
            self._together.failed(error)
            return None

    def cancel(self) -> Any:
        return self._write.cancel()
