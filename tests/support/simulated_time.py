"""Time of a simulation: processes on workstations, of which one at a time goes on, and what stands in for threads."""

import dataclasses
import heapq
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


class Killed(BaseException):
    """SIGKILL: nothing that this process does afterwards has an effect."""


@dataclasses.dataclass
class Workstation:
    name: str
    online: bool = True
    asleep_until: float = 0.0
    loses: int = 0
    """Answers of so many calls are lost, though the calls land."""


class Actor:
    """A process on a workstation."""

    def __init__(self, world: "Time", at: Workstation, what: str, work: Callable[[], Any], parent: "Actor | None"):
        self.world, self.at, self.what, self.parent = world, at, what, parent
        self.gate, self.killed, self.interrupted = threading.Semaphore(0), False, False
        self.ended_s: float | None = None
        self.result: Any = None
        self._work = work
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self.gate.acquire()
        try:
            self.result = Killed() if self.dead else self._work()
        except BaseException as error:
            self.result = error
        self.ended_s = self.world.now
        self.world.gate.release()

    @property
    def dead(self) -> bool:
        return self.killed or (self.parent is not None and (self.parent.dead or self.parent.ended_s is not None))


class Time:
    """Time passes from one event to the next; `now` is in seconds."""

    def __init__(self) -> None:
        self.now, self.gate, self.current = 0.0, threading.Semaphore(0), None
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self.actors: list[Actor] = []
        self.stations = [Workstation("ann@one"), Workstation("bob@two")]
        self.on: dict[str, Callable[[], None]] = {}
        """Called once: `before` a call with these words is sent, or `after` it has landed."""

    def at(self, delay_s: float, act: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._queue, (self.now + delay_s, self._count, act))

    def spawn(self, station: int, what: str, work: Callable[[], Any], parent: Actor | None = None) -> Actor:
        actor = Actor(self, self.stations[station], what, work, parent)
        self.actors.append(actor)
        self.at(0.0, lambda: self._resume(actor))
        return actor

    def _resume(self, actor: Actor) -> None:
        if actor.ended_s is not None:
            return
        if actor.at.asleep_until > self.now and not actor.dead:
            self.at(actor.at.asleep_until - self.now, lambda: self._resume(actor))
            return
        self.current = actor
        actor.gate.release()
        self.gate.acquire()
        self.current = None

    def pause(self, seconds: float) -> None:
        """The process that calls waits; others go on."""
        actor = self.current
        assert actor is not None
        if actor.dead:
            raise Killed
        self.at(seconds, lambda: self._resume(actor))
        self.gate.release()
        actor.gate.acquire()
        if actor.dead:
            raise Killed
        if actor.interrupted:
            actor.interrupted = False
            raise KeyboardInterrupt(2)

    def go(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Lets time pass; whether `until` came true."""
        end = self.now + seconds
        while self._queue and self._queue[0][0] <= end:
            if until():
                return True
            self.now, _, act = heapq.heappop(self._queue)
            act()
        self.now = end
        return until()

    def close(self) -> None:
        for actor in self.actors:
            actor.killed = True
            while actor.ended_s is None:
                self._resume(actor)

    # Calls of a workstation

    def call(self, words: str, work: Callable[[], Any], *, lost: Callable[[], Exception], seconds: float = 1.0) -> Any:
        """A request: sent, done, answered. Each of the three may be the last."""
        actor = self.current
        assert actor is not None
        self._reach(f"before {words}")
        self.pause(seconds / 2)
        if not actor.at.online:
            raise lost()
        try:
            answer = work()
        finally:
            self._reach(f"after {words}")
        self.pause(seconds / 2)
        if actor.at.loses > 0 or not actor.at.online:
            actor.at.loses -= 1
            raise lost()
        return answer

    def _reach(self, moment: str) -> None:
        for key in [key for key in self.on if key in moment]:
            self.on.pop(key)()


class Serial:
    """`ThreadPoolExecutor`, one after the other."""

    def __init__(self, workers: int): ...
    def __enter__(self) -> "Serial":
        return self

    def __exit__(self, *_: object) -> None: ...
    def submit(self, work: Callable[[], Any]) -> Any:
        try:
            value = work()
        except Exception as error:
            return SimpleNamespace(result=lambda error=error: _raise(error))
        return SimpleNamespace(result=lambda: value)


def _raise(error: Exception) -> None:
    raise error


@dataclasses.dataclass
class Mutex:
    world: Time
    held: bool = False

    def __enter__(self) -> None:
        while self.held:
            self.world.pause(0.5)
        self.held = True

    def __exit__(self, *_: object) -> None:
        self.held = False


@dataclasses.dataclass
class Event:
    world: Time
    is_set: bool = False

    def set(self) -> None:
        self.is_set = True

    def wait(self, seconds: float) -> bool:
        if not self.is_set:
            self.world.pause(seconds)
        return self.is_set


class Thread:
    def __init__(self, world: Time, target: Any, **options: Any):
        self._world, self._target = world, target

    def start(self) -> None:
        parent = self._world.current
        assert parent is not None
        self._world.spawn(self._world.stations.index(parent.at), "thread", self._target, parent)
