"""The small parent process of a process that trains with others. It owns the exit code and the last message.

C++ may abort the process that trains, with a stack and code 134, before Python can say why; this parent never does.
It is forked before JAX is imported, and imports nothing heavy.
"""

import contextlib
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Iterable
from typing import NoReturn

from janus_jax.parallel import watcher
from janus_jax.parallel.progress import Progress
from janus_jax.parallel.star import FINE, LOST, Star, Verdict
from janus_jax.parallel.watcher import POLL_S, Channel, Watcher

STOPPED_S = 20.0
"""A process that is stopped (SIGSTOP) for so long is lost to the others."""
_SETTLE_S = 5.0
"""How long a failure that may be another's consequence waits for the news of the other."""
_HOLD_S = 1.0
"""How long the child's C++ remarks wait for news that make them pointless."""
_GRACE_S = {LOST: 0.0, 1: 3.0, 10: 45.0, 0: 45.0}
"""How long a process may take to end by itself, by how all end."""
_USUAL_GRACE_S = 20.0
_STACKS_S = 1.5
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_ABORTED = 128 + signal.SIGABRT

_channel: Channel | None = None


def channel() -> Channel | None:
    """What leads to the watcher of this process, in a parent or in a thread; None without one."""
    return _channel


def is_parented() -> bool:
    """Whether a parent process prints the last message of this one."""
    return _channel is not None and _channel.in_parent


def start_thread() -> Channel:
    """The channel; its watcher is a thread of this process if it has no parent for that."""
    global _channel
    if _channel is None:
        _channel = watcher.in_thread()
    return _channel


def supervise() -> None:
    """Forks. Returns in the child only; the parent stays here until the child ends, and ends like it."""
    global _channel
    ours, theirs = socket.socketpair()
    progress, parent = Progress(), os.getpid()
    read, write = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)  # until both know where signals go
    child = os.fork()
    if child:
        theirs.close()
        os.close(write)
        _Parent(child, Watcher(ours, progress), _Remarks(read)).stay()
    ours.close()
    os.close(read)
    _say_through(write)
    os.setpgid(0, 0)  # a terminal's Ctrl-C comes from the parent, once
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # of that, the terminal is still ours to write to
    _die_with(parent)
    watcher.show_stacks_on_request()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
    _channel = Channel(theirs, progress, in_parent=True)


def heard(numbers: Iterable[int]) -> list[int]:
    """Those signals that this process does not ignore. Under nohup it ignores SIGHUP, and that stays so."""
    return [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]


def last_words(code: int, text: str, *, soft: bool = False) -> None:
    """Prints how this process ends to stderr; under a parent, that one does.

    Args:
        soft: this may be the consequence of another process's end. If it is, that is printed instead.
    """
    if _channel is not None and _channel.in_parent:
        _channel.end(code, text, soft=soft)
    elif text:
        print(text, file=sys.stderr, flush=True)


def settle(
    status: int, end: tuple[int, str, bool] | None, verdict: Verdict | None, *, by_us: bool
) -> tuple[int, str, bool]:
    """Exit code, last text, and whether both may be the consequence of another's end. The most specific code wins.

    Args:
        status: of the child, as `os.waitpid` gives it.
        end: the child's last words.
        verdict: how all processes end.
        by_us: the child was killed because of the verdict or after its last words.
    """
    ended = None if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)
    if end is not None and end[0] in FINE and ended is None:
        return end  # JAX's own end may crash when others are gone
    if end is not None and (by_us or ended is not None):
        code, text, soft = (ended if ended and not by_us else end[0]), *end[1:]
    elif ended is None:
        number = os.WTERMSIG(status)
        code, text, soft = 128 + number, f"error: {_signalled(number)}", number == signal.SIGABRT
    else:
        code, text, soft = ended, "", False
    mute = by_us and end is None
    if verdict is None or not (mute or soft or code in (LOST, _ABORTED)):
        return code, text, soft or code in (LOST, _ABORTED)
    return verdict.code, f"error: {verdict.line}", False


def _signalled(number: int) -> str:
    name = signal.Signals(number).name
    hint = ", by hand or by the machine's memory limit" if number == signal.SIGKILL else ""
    return f"the process that trains was ended by {name}{hint}"


def _die_with(parent: int) -> None:
    """Has the kernel kill this process when its parent dies."""
    with contextlib.suppress(OSError, AttributeError):  # not Linux
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


def _say_through(pipe: int) -> None:
    """Has C++ and subprocesses write to a pipe what they write to stderr. Python's own stderr goes on where it went."""
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding=sys.stderr.encoding, errors=sys.stderr.errors)
    os.dup2(pipe, 2)
    os.close(pipe)


class _Remarks:
    """What C++ says on stderr. It is shown a moment later, unless the loss of another process explains it."""

    def __init__(self, pipe: int):
        os.set_blocking(pipe, False)
        self.pipe, self.open = pipe, True
        self._held: list[tuple[float, bytes]] = []

    def read(self) -> None:
        """Takes what came; at the end of the pipe it is not `open` any more."""
        with contextlib.suppress(BlockingIOError):
            while self.open:
                if data := os.read(self.pipe, 65536):
                    self._held.append((time.monotonic(), data))
                else:
                    self.open = False

    def show(self, *, older_than_s: float = 0.0) -> None:
        until = time.monotonic() - older_than_s
        while self._held and self._held[0][0] <= until:
            with contextlib.suppress(OSError):
                os.write(2, self._held.pop(0)[1])


class _Parent:
    """What the parent process does."""

    def __init__(self, child: int, watched: Watcher, remarks: _Remarks):
        self._child, self._watcher, self._remarks = child, watched, remarks
        self._status: int | None = None
        self._shown = False
        self._stopped_at = self._killed = None
        self._registered = None
        self._selector = selectors.DefaultSelector()
        read, write = socket.socketpair()
        for end in (read, write):
            end.setblocking(False)
        self._wake = read, write
        self._selector.register(read, selectors.EVENT_READ)
        self._selector.register(watched.connection, selectors.EVENT_READ)
        self._selector.register(remarks.pipe, selectors.EVENT_READ)
        signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.signal(signal.SIGTSTP, self._pause)
        for number in heard(_FORWARDED):
            signal.signal(number, lambda number, frame: self._send(number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)

    def stay(self) -> NoReturn:
        """Watches the child until it has ended, and ends alike."""
        leave_at: float | None = None
        while self._status is None:
            self._wait()
            self._watcher.poll()
            self._reap()
            if self._watcher.verdict is None:
                self._remarks.show(older_than_s=_HOLD_S)
            if leave_at is None and (code := self._decided()) is not None:
                leave_at = time.monotonic() + _GRACE_S.get(code, _USUAL_GRACE_S)
            if leave_at is not None and time.monotonic() >= leave_at and self._status is None:
                self._kill()
        self._watcher.poll()  # its last words
        code, text, soft = self._settled()
        deadline = time.monotonic() + (_SETTLE_S if soft else 0)
        while self._star is not None and self._watcher.verdict is None and time.monotonic() < deadline:
            self._wait(0.05)
            self._watcher.poll()
        code, text, _ = self._settled()
        if code != LOST:
            self._remarks.show()
        if self._star is not None:
            fine = code in FINE and (code == 0 or self._watcher.end is not None)  # not at a second signal
            self._star.end(code, _plain(text) or f"it ended with exit code {code}", fine=fine)
            self._star.close()
        self._show(text)
        os._exit(code)

    def _show(self, text: str) -> None:
        if text and not self._shown:
            self._shown = True
            with contextlib.suppress(OSError):
                os.write(2, f"{text.rstrip()}\n".encode(errors="replace"))

    @property
    def _star(self) -> Star | None:
        return self._watcher.star

    def _settled(self) -> tuple[int, str, bool]:
        assert self._status is not None
        return settle(self._status, self._watcher.end, self._watcher.verdict, by_us=self._killed is not None)

    def _decided(self) -> int | None:
        """The exit code, as soon as it is clear that the child ends."""
        if self._watcher.end is not None:
            code, text, soft = self._watcher.end
            if code in FINE:
                self._show(text)  # a machine that is preempted does not wait
            if self._star is not None and not soft and code not in (*FINE, LOST):
                self._star.end(code, _plain(text))  # at once: the child may wait for the others
            return 0 if code in FINE else code
        verdict = self._watcher.verdict
        return None if verdict is None else verdict.code

    def _wait(self, at_most_s: float = POLL_S) -> None:
        star = self._star
        if star is not None and self._registered is not star.selector:
            self._registered = star.selector
            self._selector.register(star.selector, selectors.EVENT_READ)
        self._selector.select(at_most_s)
        with contextlib.suppress(OSError):
            while self._wake[0].recv(64):
                pass
        if self._remarks.open:
            self._remarks.read()
            if not self._remarks.open:  # it would wake this process all the time
                self._selector.unregister(self._remarks.pipe)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while self._status is None:
                child, status = os.waitpid(self._child, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
                if child == 0:
                    break
                if os.WIFSTOPPED(status):
                    self._stopped_at = time.monotonic()
                elif os.WIFCONTINUED(status):
                    self._stopped_at = None
                else:
                    self._status = status
        stopped_s = 0 if self._stopped_at is None else time.monotonic() - self._stopped_at
        star = self._star
        if stopped_s > STOPPED_S and star is not None and star.met and star.place.processes > 1:
            star.end(LOST, f"it is stopped (SIGSTOP) for {stopped_s:.0f} s")

    def _kill(self) -> None:
        if self._killed is None:
            self._killed = True
            verdict = self._watcher.verdict
            if verdict is not None and verdict.stacks:
                self._send(signal.SIGUSR2)
                time.sleep(_STACKS_S)
            self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        if self._status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, number)

    def _pause(self, number: int, frame: object) -> None:
        """Ctrl-Z stops the child too."""
        self._send(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        self._send(signal.SIGCONT)


def _plain(text: str) -> str:
    """The line of a last text that says what is wrong: without `error:`, and of a traceback the last."""
    lines = text.strip().splitlines()
    return lines[-1 if text.startswith("Traceback") else 0].removeprefix("error: ") if lines else ""
