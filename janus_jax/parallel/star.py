"""One connection from each process to process 0: there they meet, show that they live, and share how all of them end.

The connections go through the coordinator's port before JAX listens there, and stay open beside it: firewalls need to
let no other port through. A process that dies closes its connection at once. Standard library only.
"""

import contextlib
import dataclasses
import errno
import json
import os
import re
import selectors
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any

from janus_jax.parallel.preflight import bound

BEAT_S = 1.0
DEAD_S = 30.0
"""A process that is silent for so long is lost. JAX's own time-out must be longer."""
TAKEN_S = 90.0
"""How long something else may answer at the coordinator's port: an earlier run that is about to end, for instance."""
_PORT_WAIT_S = 5.0
_RETRY_S = 0.3
_FAREWELL_S = 1.0
_MAGIC = "janus_jax star 1"

LOST = 13
FINE = (0, 10, 130)
"""Exit codes of a process that ends in good order: the others do so too, or need it no more."""
SHARED = (1, 2, 3, 11, 12, 14, 15)
"""Exit codes that say why a run cannot go on. All processes take them over from the one that knows."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a process stands among those of its run."""

    coordinator: str  # HOST:PORT of process 0
    processes: int
    process: int
    run: str = ""  # as messages call it
    launch: str = ""  # a token that starts of other launches do not have; empty: unknown


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How all processes end."""

    code: int
    line: str
    stacks: bool = False  # each shows what its threads do


class _Line:
    """A connection that carries JSON values, one a line. Never blocks."""

    def __init__(self, connection: socket.socket):
        connection.setblocking(False)
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection, self.heard, self.open = connection, time.monotonic(), True
        self.hello: dict[str, Any] = {}
        self._rest = b""

    def send(self, **message: Any) -> None:
        with contextlib.suppress(OSError):  # reading tells why
            self.connection.send(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]]:
        """The messages since the last call. Closed, or something else than a line of ours: not `open` any more."""
        received = [self._rest]
        try:
            while data := self.connection.recv(65536):
                received.append(data)
            self.open = False
        except BlockingIOError:
            pass
        except OSError:
            self.open = False
        *lines, self._rest = b"".join(received).split(b"\n")
        if len(received) > 1:
            self.heard = time.monotonic()
        try:
            messages: list[Any] = [json.loads(line) for line in lines]
        except ValueError:
            messages = [None]
        if not all(isinstance(message, dict) for message in messages) or len(self._rest) > 1 << 20:
            self.open = False
            return []
        return messages

    @property
    def silent_s(self) -> float:
        return time.monotonic() - self.heard


class Star:
    """This process's part of the star. `tick` does what is due; it is called at least every second.

    Attributes:
        selector: wakes whoever waits for it when `tick` has something to do. Its data are functions to call.
        verdict: how all processes end, once that is known.
        met: all processes are here.
        states: process -> what it last published with `state`; all of them in process 0.

    Args:
        timeout_s: how long processes wait for each other at the start.
        state: what this process publishes, a JSON value.
    """

    def __init__(self, place: Place, timeout_s: float, state: Callable[[], Any] = lambda: None):
        self.place, self.timeout_s, self._state = place, timeout_s, state
        self.selector = selectors.DefaultSelector()
        self.verdict: Verdict | None = None
        self.met = False
        self.states: dict[int, Any] = {}
        self.hosts = {place.process: socket.gethostname()}
        self._began, self._next_beat, self._next_try = time.monotonic(), 0.0, 0.0
        self._lines: dict[int, _Line] = {}  # by the process at the other end
        self._strangers: list[_Line] = []  # that have not introduced themselves
        self._ended: set[int] = set()
        self._listener: socket.socket | None = None
        self._checked_itself = place.processes == 1
        self._refused: dict[int, str] = {}
        self._trouble, self._foreign_since = "nothing listens there", None
        self._hello = {
            "magic": _MAGIC,
            "process": place.process,
            "processes": place.processes,
            "run": place.run,
            "launch": place.launch,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "nonce": os.urandom(8).hex(),
        }

    @property
    def _is_hub(self) -> bool:
        return self.place.process == 0

    def name(self, process: int) -> str:
        """`process 1 (host b)`."""
        host = self.hosts.get(process)
        return f"process {process}" + ("" if host is None else f" (host {host})")

    def tick(self) -> None:
        """Reads, answers, shows that this process lives, and looks whether the others do."""
        if self.verdict is None and not self.met:
            self._meet()
        for line in list(self._strangers):
            self._receive(line)
        for line in list(self._lines.values()):
            self._receive(line)
        now = time.monotonic()
        if now >= self._next_beat:
            self._next_beat = now + BEAT_S
            self.states[self.place.process] = self._state()
            for line in self._lines.values():
                line.send(state=self.states[self.place.process])
        if self.verdict is None and self.met:
            self._look_for_the_dead()

    def decide(self, verdict: Verdict) -> None:
        """Ends all processes so; the first verdict counts."""
        if self.verdict is None:
            self.verdict = verdict
            for line in self._lines.values():
                line.send(verdict=dataclasses.astuple(verdict))

    def end(self, code: int, line: str, *, fine: bool = False) -> None:
        """Lets the others know how this process ends. They end too, unless it is in good order (`fine`)."""
        if not self.met and code not in SHARED:
            return  # it is missing, and may come again
        if fine:
            for other in self._lines.values():
                other.send(end=code)
        else:
            self.decide(self._verdict_of(self.place.process, code, line))

    def close(self) -> None:
        """Leaves. What was sent arrives: a connection that is closed with something unread would drop it."""
        if self._listener is not None:
            self._listener.close()
        lines = [*self._lines.values(), *self._strangers]
        for line in lines:
            with contextlib.suppress(OSError):
                line.connection.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + _FAREWELL_S
        while any(line.open for line in lines) and time.monotonic() < deadline:
            for line in lines:
                line.receive()
            time.sleep(0.01)
        for line in lines:
            line.connection.close()
        self._lines, self._strangers = {}, []

    def _verdict_of(self, process: int, code: int, line: str) -> Verdict:
        named = line if re.match(r"process(es)? \d", line) else f"{self.name(process)}: {line}"
        if code in SHARED:
            return Verdict(code, named)
        return Verdict(LOST, line if named == line else f"{self.name(process)} is lost: {line}; start the run again")

    def _look_for_the_dead(self) -> None:
        for process, line in self._lines.items():
            if process in self._ended:
                continue
            if not line.open:
                self.decide(self._verdict_of(process, LOST, "it ended without a word"))
            elif line.silent_s > DEAD_S:
                reason = f"no sign of life for {line.silent_s:.0f} s: it stands still, or its machine or network does"
                self.decide(self._verdict_of(process, LOST, reason))

    # How they meet

    def _meet(self) -> None:
        if self._is_hub:
            self._listen()
            missing = self._missing()
            if self.verdict is None and not missing and self._checked_itself and self._listener is not None:
                self._begin()
            elif self.verdict is None and self._waited_s > self.timeout_s:
                self._give_up(missing)
        elif not self._lines:
            self._connect()

    @property
    def _waited_s(self) -> float:
        return time.monotonic() - self._began

    def _missing(self) -> list[int]:
        return [process for process in range(1, self.place.processes) if process not in self._lines]

    def _listen(self) -> None:
        port = int(self.place.coordinator.rpartition(":")[2])
        if self._listener is None:
            listener = bound(self.place.coordinator)
            if isinstance(listener, socket.socket):
                listener.listen(self.place.processes + 8)
                listener.setblocking(False)
                self._listener = listener
                self.selector.register(listener, selectors.EVENT_READ, lambda: None)
            elif self._waited_s > _PORT_WAIT_S or listener.errno != errno.EADDRINUSE:
                code, why = LOST, "is taken, by an earlier run perhaps; end it, or choose another port"
                if listener.errno != errno.EADDRINUSE:
                    code, why = 2, f"cannot be opened: {listener.strerror}"
                where = f"--coordinator {self.place.coordinator}: port {port} of this machine"
                self.decide(Verdict(code, f"{where} {why}"))
            return
        with contextlib.suppress(BlockingIOError):
            while True:
                self._strangers.append(self._watched(self._listener.accept()[0]))
        if not self._checked_itself and time.monotonic() >= self._next_try:
            self._next_try = time.monotonic() + 5
            self._check_itself()

    def _check_itself(self) -> None:
        """Says hello to itself: at the coordinator's address there may be another process 0."""
        self._checked_itself = True
        with contextlib.suppress(OSError, UnicodeError):
            stranger = self._watched(socket.create_connection(_address(self.place.coordinator), timeout=1))
            stranger.send(**self._hello)
            self._strangers.append(stranger)

    def _begin(self) -> None:
        assert self._listener is not None
        self.selector.unregister(self._listener)
        self._listener.close()
        for stranger in self._strangers:
            self._drop(stranger)
        self._strangers, self.met = [], True
        for line in self._lines.values():
            line.send(met={str(process): host for process, host in self.hosts.items()})

    def _give_up(self, missing: Iterable[int]) -> None:
        many = self.place.processes
        names = ", ".join(map(str, missing))
        text = f"of {many} processes, {names} did not come to {self.place.coordinator} within {self.timeout_s:g} s"
        refused = [self._refused[process] for process in missing if process in self._refused]
        self.decide(Verdict(2 if refused else LOST, "; ".join([text, *refused])))

    def _connect(self) -> None:
        now = time.monotonic()
        where, foreign = self.place.coordinator, self._foreign_since
        if self._waited_s > self.timeout_s or (foreign is not None and now - foreign > TAKEN_S):
            text = f"process 0 did not answer at {where} within {self._waited_s:.0f} s: {self._trouble}"
            self.decide(Verdict(LOST, text))
        elif now >= self._next_try:
            self._next_try = now + (_RETRY_S if foreign is None else 10 * _RETRY_S)
            try:
                line = self._watched(socket.create_connection(_address(where), timeout=2))
            except (OSError, UnicodeError) as error:
                self._trouble, self._foreign_since = getattr(error, "strerror", None) or str(error), None
            else:
                line.send(**self._hello)
                self._lines[0] = line

    def _watched(self, connection: socket.socket) -> _Line:
        self.selector.register(connection, selectors.EVENT_READ, lambda: None)
        return _Line(connection)

    def _drop(self, line: _Line) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self.selector.unregister(line.connection)
        line.connection.close()

    # What they say

    def _receive(self, line: _Line) -> None:
        for message in line.receive():
            if "magic" in message:
                self._introduced(line, message)
            elif "verdict" in message:
                self.decide(Verdict(*message["verdict"]))
            elif line in self._lines.values():
                self._heard(line, message)
        if not line.open:
            self._closed(line)
        elif line in self._strangers and line.silent_s > 10:
            self._strangers.remove(line)
            self._drop(line)

    def _heard(self, line: _Line, message: dict[str, Any]) -> None:
        process = line.hello.get("process", 0)
        line.hello = line.hello or {"process": 0}  # process 0 has answered
        if "met" in message:
            self.hosts |= {int(number): host for number, host in message["met"].items()}
            self.met = True
        if "state" in message:
            self.states[process] = message["state"]
        if "end" in message:
            self._ended.add(process)

    def _closed(self, line: _Line) -> None:
        """While they meet, whoever goes may come again. Afterwards it is dead."""
        with contextlib.suppress(KeyError, ValueError):
            self.selector.unregister(line.connection)
        if line in self._strangers:
            self._strangers.remove(line)
        elif not self.met:
            self._lines = {process: other for process, other in self._lines.items() if other is not line}
            if not self._is_hub and not line.hello and self._foreign_since is None:
                self._foreign_since = time.monotonic()
                self._trouble = "something else answers there: a run that has begun already, or another program"
        else:
            return
        line.connection.close()

    def _introduced(self, line: _Line, hello: dict[str, Any]) -> None:
        if not self._is_hub or line not in self._strangers:
            return
        if hello["magic"] != _MAGIC:
            self._end_start(line, f"another process has another version of janus_jax ({hello['magic']!r})")
            return
        process, host, me = hello["process"], hello["host"], self._hello
        if hello["nonce"] == me["nonce"]:  # this very process
            return
        here = f"process 0 (host {me['host']})"
        self._strangers.remove(line)
        if "" != hello["launch"] != self.place.launch != "":
            reason = f"process {process} of host {host} belongs to another launch (run {hello['run']!r})"
            self._refused[process] = f"{reason} than {here} of run {self.place.run!r}"
            line.send(verdict=(2, f"--coordinator {self.place.coordinator}: {self._refused[process]}", False))
            self._drop(line)
            return
        if hello["processes"] != self.place.processes:
            text = f"process {process} (host {host}) is one of {hello['processes']} processes, and {here} one of "
            self._end_start(line, f"{text}{self.place.processes}; allowed: the same --num-processes everywhere")
            return
        other = me if process == 0 else self._lines[process].hello if process in self._lines else None
        if other is not None and (process == 0 or self._lines[process].silent_s < 5 * BEAT_S):
            both = " and ".join(f"host {one['host']} (pid {one['pid']}, run {one['run']!r})" for one in (other, hello))
            self._end_start(line, f"two processes have the number {process}: on {both}; allowed: one --process-id each")
            return
        if other is not None:
            self._drop(self._lines[process])
        line.hello = hello
        self._lines[process], self.hosts[process] = line, host

    def _end_start(self, line: _Line, reason: str) -> None:
        verdict = Verdict(2, reason)
        line.send(verdict=dataclasses.astuple(verdict))
        if line not in self._strangers:
            self._strangers.append(line)  # closed with the others, when it has read this
        self.decide(verdict)


def _address(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(":")
    return host.strip("[]"), int(port)
