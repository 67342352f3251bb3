"""A save that fails on one process fails on all of them, before it is committed.

In Orbax a process whose write failed does not come to the barrier before the commit. So the others wait for it for 20
minutes, and it waits for them. The same holds for the commit, which process 0 makes alone.
"""

import threading
import time
from typing import Any

import jax
import orbax.checkpoint as ocp

from janus_jax.errors import StorageError
from janus_jax.parallel import processes
from janus_jax.storage.local import Place, refusal

_BEFORE_COMMIT, _AFTER_COMMIT = "async_write_complete", "async_commit_complete"
_POLL_S = 0.2


class Together:
    """What becomes of the save under way, on this process and on all.

    Attributes:
        step: the directory that is being saved.
    """

    def __init__(self, step: Place):
        self.step = step
        self._failure: Exception | None = None
        self._saves = 0
        self._committing = ""  # a key of the save under way, the same on all processes

    def watched(self, handler: Any) -> Any:
        """A handler of Orbax whose writes fail at the barrier, not before. With one process, the handler itself."""
        if jax.process_count() > 1:
            save = handler.async_save

            async def watched_save(*args: Any, **kwargs: Any) -> list[Any]:
                return [_Write(write, self) for write in jax.tree.leaves(await save(*args, **kwargs)) if write]

            handler.async_save = watched_save
        return handler

    def options(self) -> ocp.options.AsyncOptions:
        """Orbax's options, with this barrier where there are several processes."""
        if jax.process_count() == 1:
            return ocp.options.AsyncOptions()
        return ocp.options.AsyncOptions(barrier_sync_fn=self._barrier)

    def failed(self, error: Exception) -> None:
        """Notes the first failure."""
        self._failure = self._failure or error

    def _barrier(self, *, key: str, timeout_ms: int) -> None:
        wait = ocp.multihost.get_barrier_sync_fn()
        if _AFTER_COMMIT in key:
            self._committed(timeout_ms)
            return
        if _BEFORE_COMMIT not in key:
            wait(key=key, timeout_ms=timeout_ms)
            return
        failure, self._failure = self._failure, None
        if failure is not None:
            processes.publish(f"{key}/failed/{jax.process_index()}", refusal(failure))
        wait(key=key, timeout_ms=timeout_ms)
        if failure is not None:
            raise failure
        for process, reason in processes.published(f"{key}/failed").items():
            raise StorageError(self.step, f"cannot be written: process {process}: {reason}")
        self._committing = f"{key}/{self._saves}/committed"
        self._saves += 1
        if jax.process_index() == 0:
            ending = threading.current_thread()
            threading.Thread(target=self._release, args=(self._committing, ending), daemon=True).start()

    def _committed(self, timeout_ms: int) -> None:
        """Process 0 tells that it has committed; the others wait until it has, or could not: then it says why."""
        if jax.process_index() == 0:
            processes.publish(f"{self._committing}/0", "")
            self._committing = ""
            return
        until = time.monotonic() + timeout_ms / 1000
        while not processes.published(self._committing):
            if time.monotonic() > until:
                raise StorageError(self.step, "cannot be written: process 0 has not committed it")
            time.sleep(_POLL_S)

    def _release(self, key: str, ending: threading.Thread) -> None:
        """Ends the others' wait if the thread of the save has ended without a commit."""
        ending.join()
        if self._committing == key:
            processes.publish(f"{key}/0", "failed")


class _Write:
    """One write of a save; a future as Orbax defines it."""

    def __init__(self, write: Any, together: Together):
        self._write = write
        self._together = together

    def result(self, timeout: float | None = None) -> Any:
        try:
            return self._write.result(timeout=timeout)
        except (OSError, ValueError, StorageError) as error:
            self._together.failed(error)
            return None

    def cancel(self) -> Any:
        return self._write.cancel()
