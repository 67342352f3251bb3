"""Watches a process that trains: its peers, through the star, and its progress. Runs in its parent, or in a thread.

The process talks with its watcher through a `Channel`. JAX is not imported here.
"""

import atexit
import contextlib
import dataclasses
import faulthandler
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from janus_jax.errors import ConfigError, JanusError, LostPeerError
from janus_jax.parallel.progress import Progress, State, overdue
from janus_jax.parallel.star import LOST, Place, Star, Verdict

POLL_S = 0.5


class Channel:
    """The trained process's end of what it says to its watcher.

    Attributes:
        progress: of this process; the watcher reads it.
        in_parent: the watcher is the parent process, which prints the last message and owns the exit code.
    """

    def __init__(self, connection: socket.socket, progress: Progress, *, in_parent: bool):
        self.progress, self.in_parent = progress, in_parent
        self._connection = connection

    def meet(self, place: Place, timeout_s: float) -> None:
        """Waits until all processes of the run are here.

        Raises:
            ConfigError: processes that do not fit together; a port that is taken.
            LostPeerError: some did not come in time.
        """
        self._send(meet=[*dataclasses.astuple(place), timeout_s])
        answer = self._connection.makefile("r").readline()
        verdict = json.loads(answer or "null")
        if verdict is not None:
            raise (ConfigError if verdict[0] == ConfigError.exit_code else LostPeerError)(verdict[1])

    @contextlib.contextmanager
    def bounded(self, bounds: Mapping[str, float]) -> Iterator[Progress]:
        """Inside, the process ends with exit code 13 if a phase makes no progress for longer than its bound (s)."""
        self._send(bounds=dict(bounds))
        self.progress.begin()
        try:
            yield self.progress
        finally:
            self._send(bounds={})

    def end(self, code: int, text: str, *, soft: bool) -> None:
        """The last words of this process. soft: they may be the consequence of another's end."""
        self._send(end=[code, text, soft])

    def _send(self, **message: Any) -> None:
        with contextlib.suppress(OSError):  # a parent that is gone takes this process with it
            self._connection.sendall(json.dumps(message).encode() + b"\n")


class Watcher:
    """The other end of a `Channel`. `poll` does what is due.

    Attributes:
        star: once the process wants to meet others.
        end: the last words of the process, (code, text, soft).
        connection: becomes readable when the process says something.
    """

    def __init__(self, connection: socket.socket, progress: Progress):
        self.star: Star | None = None
        self.end: tuple[int, str, bool] | None = None
        self.connection, self._progress = connection, progress
        connection.setblocking(False)
        self._rest, self._asked, self._stuck = b"", False, None
        self._bounds: dict[str, float] = {}

    @property
    def verdict(self) -> Verdict | None:
        """How all processes end, once that is known; not before they have met."""
        if self._stuck is not None:
            return self._stuck
        return None if self.star is None or self._asked else self.star.verdict

    def poll(self) -> None:
        """Reads what the process says, and looks at the others and at its progress."""
        self._read()
        if self.star is not None:
            self.star.tick()
            if self._asked and (self.star.met or self.star.verdict):
                self._answer()
        if self._bounds and self.verdict is None and self.end is None:
            self._look_at_progress()

    def _answer(self) -> None:
        assert self.star is not None
        verdict, self._asked = self.star.verdict, False
        if verdict is not None:
            self.star.close()
            self.star = None
        with contextlib.suppress(OSError):
            self.connection.send(json.dumps(verdict and [verdict.code, verdict.line]).encode() + b"\n")

    def _look_at_progress(self) -> None:
        star = self.star
        if star is None:
            states, names = {0: self._progress.read()}, ["this process"]
        elif star.place.process == 0:
            states = {process: State(*state) for process, state in star.states.items() if state is not None}
            names = [star.name(process) for process in range(star.place.processes)]
        else:
            return  # process 0 does it for all
        if text := overdue(states, self._bounds, names):
            self._stuck = Verdict(LOST, text, stacks=True)
            if star is not None:
                star.decide(self._stuck)

    def _state(self) -> Any:
        state = self._progress.read()
        return [state.phase, state.count, round(state.age_s, 1)]

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while data := self.connection.recv(65536):
                self._rest += data
        *lines, self._rest = self._rest.split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "meet" in message:
                *place, timeout_s = message["meet"]
                self.star, self._asked = Star(Place(*place), timeout_s, self._state), True
            if "bounds" in message:
                self._bounds = message["bounds"]
            if "end" in message:
                code, text, soft = message["end"]
                self.end = (code, text, soft)


def in_thread() -> Channel:
    """Has a thread of this process watch it. It ends the process, with a line on stderr, as the verdict says."""
    ours, theirs = socket.socketpair()
    progress = Progress()
    watcher, closed = Watcher(theirs, progress), threading.Event()
    thread = threading.Thread(target=_watch, args=(watcher, closed), name="watcher", daemon=True)

    def leave() -> None:
        closed.set()
        thread.join()
        if watcher.star is not None:
            error = getattr(sys, "last_value", None)  # what ends the interpreter
            code = 0 if error is None else error.exit_code if isinstance(error, JanusError) else 1
            watcher.star.end(code, str(error), fine=code == 0)
            watcher.star.close()

    atexit.register(leave)
    thread.start()
    return Channel(ours, progress, in_parent=False)


def _watch(watcher: Watcher, closed: threading.Event) -> None:
    while not closed.wait(POLL_S):
        watcher.poll()
        if (verdict := watcher.verdict) is not None:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
            if verdict.stacks:
                faulthandler.dump_traceback(all_threads=True)
            os.write(2, f"error: {verdict.line}\n".encode())
            if watcher.star is not None:
                watcher.star.close()
            os._exit(verdict.code)


def show_stacks_on_request() -> None:
    """Has SIGUSR2 write the stacks of all threads to stderr, even while C++ holds Python's lock."""
    faulthandler.register(signal.SIGUSR2, all_threads=True)
