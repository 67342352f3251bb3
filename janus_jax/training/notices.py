"""Notices that a run is to end: SIGTERM, Ctrl-C, SIGHUP (a lost terminal), and the machine's metadata server.

A handler only records. The run ends at the next boundary, which all processes agree on.
"""

import concurrent.futures
import contextlib
import itertools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from janus_jax.parallel import gce, processes, supervisor
from janus_jax.parallel.boundaries import Boundaries
from janus_jax.parallel.progress import Progress

NOTICE_S = 30
"""Seconds that a preempted machine of Google Cloud has left."""

_SAVE = "save"
_SIGNALS = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C", signal.SIGHUP: "SIGHUP"}
_ECHO_S = 0.2
"""`timeout` and process groups deliver one signal twice; a second signal comes later than this."""

_names = itertools.count()


class Stop(BaseException):
    """Unwinds a run to where it can be saved. No `except Exception` of a library stops it."""

    def __init__(self, notices: frozenset[str]):
        super().__init__(*sorted(notices))
        self.notices = tuple(sorted(notices))

    @property
    def by_user(self) -> bool:
        """Only Ctrl-C came: nothing is in a hurry."""
        return self.notices == (_SIGNALS[signal.SIGINT],)


class Notices:
    """Hears notices while it is open, and decides with all other processes where they take effect.

    A second signal ends the process at once, whatever its main thread does: a thread reads signals too.

    Args:
        listen: False hears nothing; handlers of signals stay as they are.
        save_every_s: seconds after which `save_due` is set, at the same boundary on all processes.
        guard: called at each boundary, and by whoever is about to write; raises if the run may write nothing more.
        progress: learns of every boundary.
    """

    def __init__(
        self,
        *,
        listen: bool = True,
        save_every_s: float | None = None,
        guard: Callable[[], None] = lambda: None,
        progress: Progress | None = None,
    ):
        self.save_due, self.guard = False, guard
        self._progress = Progress() if progress is None else progress
        self._save_every_s = save_every_s if processes.is_main() else None
        self._listen, self._cut = listen, False
        self._heard = threading.Event()
        self._boundaries = Boundaries(**processes.peers(), name=f"notices/{next(_names)}")
        self._stack = contextlib.ExitStack()
        self.saved()

    def __enter__(self) -> "Notices":
        self._stack.callback(self._boundaries.close)
        if self._listen:
            self._stack.callback(gce.watch(self._record))
            if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
                self._take_signals()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def boundary(self) -> None:
        """A point that all processes pass in the same order. Costs nothing unless there is a notice.

        Raises:
            Stop: a notice takes effect here.
            JanusError: as `guard`.
        """
        self.guard()
        if time.monotonic() >= self._save_at:
            self._save_at = float("inf")
            self._boundaries.wish(_SAVE)
        wishes = self._boundaries.cross()
        self._progress.moved()
        self.save_due = self.save_due or _SAVE in wishes
        if notices := wishes - {_SAVE}:
            raise Stop(notices)

    def wait(self, future: concurrent.futures.Future[Any]) -> None:
        """Waits for `future`, but not if a notice takes effect at the boundary that comes next.

        Raises:
            Stop: as `boundary`.
        """
        while not future.done():
            concurrent.futures.wait([future], timeout=0.1)
            if self._boundaries.due() - {_SAVE}:
                self.boundary()

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """A boundary as long as what happens inside, which may be broken off anywhere.

        A single process takes a signal at once. Several processes take notices before it; what comes inside is for
        whoever ends them to break off.
        """
        self.boundary()
        if processes.peers():
            yield
            return
        self._cut = True
        try:
            yield
        finally:
            self._cut = False
        self.boundary()

    def saved(self) -> None:
        """A checkpoint was saved: the next one is due `save_every_s` from now."""
        self.save_due = False
        self._save_at = float("inf") if self._save_every_s is None else time.monotonic() + self._save_every_s

    def _record(self, notice: str) -> None:
        self._boundaries.wish(notice)
        self._heard.set()

    def _take_signals(self) -> None:
        """Hears signals in a thread, and in the main thread when that comes back from C++."""
        read, write = socket.socketpair()
        write.setblocking(False)
        previous_fd = signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
        previous = {number: signal.signal(number, self._handle) for number in supervisor.heard(_SIGNALS)}
        thread = threading.Thread(target=self._read_signals, args=(read,), name="signals", daemon=True)
        thread.start()

        def restore() -> None:
            signal.set_wakeup_fd(previous_fd)
            for number, handler in previous.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
            write.close()  # ends the thread
            thread.join()
            read.close()

        self._stack.callback(restore)

    def _handle(self, number: int, frame: Any) -> None:
        self._heard.wait(0.1)  # so that the next boundary knows
        if self._cut:
            self._cut = False  # the same signal once more would break the cleaning up
            raise Stop(frozenset({_SIGNALS[signal.Signals(number)]}))

    def _read_signals(self, read: socket.socket) -> None:
        first: float | None = None
        while numbers := read.recv(64):
            for number in numbers:
                if number not in _SIGNALS:
                    continue
                name, now = _SIGNALS[signal.Signals(number)], time.monotonic()
                if first is not None and now - first > _ECHO_S:
                    os._exit(128 + number)
                if first is None:
                    first = now
                    self._record(name)
                    with contextlib.suppress(OSError, ValueError):  # the terminal may be gone
                        print(f"{name}: the run will save and stop; a second one ends it at once", file=sys.stderr)
