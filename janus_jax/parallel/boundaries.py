"""Points that all processes of a run pass in the same order, and the agreement on one that none has passed yet."""

import contextlib
import json
import math
import threading
from collections.abc import Iterator
from typing import Any

from janus_jax.errors import LostPeerError

_POLL_S = 0.5
"""How often a process looks for wishes of others."""
_POLL_AGREEING_S = 0.02
"""How often it looks for their numbers, while its main thread waits."""
_TIMEOUT_S = 600


class Boundaries:
    """Counts the boundaries that a main thread passes: before a step, before a held-out batch, and so on.

    Any thread may make a wish. The wish is granted at one boundary, the same on every process:

    1. A process with a wish publishes the number of the boundary that its main thread is heading for.
    2. A process that sees the number of another one publishes its own. A thread does this, whatever the main thread
       waits for.
    3. A main thread whose number is published waits at that boundary until all numbers are known.
    4. The largest number is where the wish is granted: no main thread has passed it, and each can reach it.

    Args:
        client: of the coordinator's key-value store; None if this is the only process.
        name: a name for the keys that no other `Boundaries` has. It is the same on all processes.
    """

    def __init__(self, client: Any = None, *, process: int = 0, processes: int = 1, name: str = "boundaries"):
        self._client: Any = client if processes > 1 else None
        self._process, self._processes, self._name = process, processes, name
        self._changed = threading.Condition()
        self._woken, self._closed = threading.Event(), False
        self._passed = self._round = 0
        self._wishes: set[str] = set()
        self._number: int | None = None  # published in this round
        self._point: float | None = None  # agreed in this round; infinite if a process has passed its last boundary
        self._granted: frozenset[str] = frozenset()
        self._thread = None
        if self._client is not None:
            self._thread = threading.Thread(target=self._agree, name="boundaries", daemon=True)
            self._thread.start()

    def wish(self, wish: str) -> None:
        """Asks for something that all processes are to do at the same boundary. Any thread may call it."""
        with self._changed:
            self._wishes.add(wish)
        self._woken.set()

    def due(self) -> frozenset[str]:
        """What is granted at the boundary that the main thread is heading for, as far as it is known by now."""
        with self._changed:
            if self._client is None:
                return frozenset(self._wishes)
            return self._granted if self._point == self._passed + 1 else frozenset()

    def cross(self) -> frozenset[str]:
        """Passes a boundary; returns the wishes of all processes that are granted here. Only the main thread calls it.

        Raises:
            LostPeerError: another process did not say in time which boundary it is heading for.
        """
        with self._changed:
            if self._client is None:
                self._passed, granted = self._passed + 1, frozenset(self._wishes)
                self._wishes -= granted
                return granted
            if self._number is not None and not self._changed.wait_for(lambda: self._point is not None, _TIMEOUT_S):
                raise LostPeerError(f"another process did not agree on a boundary within {_TIMEOUT_S} s; it is lost")
            self._passed += 1
            if self._passed != self._point:
                return frozenset()
            granted, self._number, self._point = self._granted, None, None
            self._round += 1
        self._woken.set()
        return granted

    def close(self) -> None:
        """Passes no boundary any more: the others do not wait for this process. Safe to call twice."""
        if self._client is None or self._closed:
            return
        with self._changed, contextlib.suppress(Exception):  # the coordinator may be gone
            self._closed = True
            if self._number is None:
                self._publish(math.inf, set())
        self._woken.set()
        assert self._thread is not None
        self._thread.join(timeout=5)

    def _agree(self) -> None:
        while not self._closed:
            self._woken.wait(_POLL_S if self._number is None else _POLL_AGREEING_S)
            self._woken.clear()
            with contextlib.suppress(Exception):  # the coordinator is gone: others notice that, and end the run
                self._step()

    def _step(self) -> None:
        if self._point is not None or self._closed:
            return
        published = dict(self._numbers())
        if self._number is None:
            if not published and not self._wishes:
                return
            with self._changed:
                if self._closed:
                    return
                self._number = self._passed + 1
                wishes, self._wishes = self._wishes, set()
            self._publish(self._number, wishes)
        elif len(published) == self._processes:
            with self._changed:
                self._granted = frozenset(wish for _, wishes in published.values() for wish in wishes)
                self._point = max(number for number, _ in published.values())
                self._changed.notify_all()

    def _publish(self, number: float, wishes: set[str]) -> None:
        self._client.key_value_set(f"{self._keys}{self._process}", json.dumps([number, sorted(wishes)]))

    def _numbers(self) -> Iterator[tuple[str, tuple[float, list[str]]]]:
        for key, value in self._client.key_value_dir_get(self._keys):
            number, wishes = json.loads(value)
            yield key.rpartition("/")[2], (number, wishes)

    @property
    def _keys(self) -> str:
        return f"{self._name}/{self._round}/"
