"""How far a process has come: its phase, a counter that grows at every movement, and when it last moved.

The numbers lie in a page of memory that a parent process sees too. Writing them costs about a microsecond.
"""

import contextlib
import dataclasses
import mmap
import struct
import time
from collections.abc import Iterator, Mapping, Sequence

BASE = "setup"
_PAGE = struct.Struct("qd32s")
_COMPILING = ("step", "evaluation_batch", "reference_batch")
"""Phases whose first round compiles."""


@dataclasses.dataclass(frozen=True)
class State:
    """Where a process stands. All processes of a run go through the same phases and count the same movements."""

    phase: str
    count: int
    age_s: float  # since its last movement


class Progress:
    """Notes the progress of this process. Only its main thread writes."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE)  # shared with processes that are forked
        self._count, self._phases = 0, [BASE]
        self._rounds: dict[str, int] = {}
        self._write()

    def begin(self) -> None:
        """A run begins, which compiles anew."""
        self._rounds.clear()

    def moved(self) -> None:
        """Notes a movement within the phase."""
        phase = self._phases[-1]
        self._rounds[phase] = self._rounds.get(phase, 0) + 1
        self._write()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Names what happens inside; the beginning and the end are movements."""
        self._phases.append(name)
        self._write()
        try:
            yield
        finally:
            self._phases.pop()
            self._write()

    def read(self) -> State:
        """The newest state; any thread or a parent process may ask."""
        count, at, phase = _PAGE.unpack_from(self._page)
        return State(phase.rstrip(b"\0").decode(), count, max(0.0, time.monotonic() - at))

    def _write(self) -> None:
        phase = self._phases[-1]
        if phase in _COMPILING and self._rounds.get(phase, 0) < 2:  # before the first boundary, and before the second
            phase = "compile"
        self._count += 1
        _PAGE.pack_into(self._page, 0, self._count, time.monotonic(), phase.encode())


def overdue(states: Mapping[int, State], bounds: Mapping[str, float], names: Sequence[str]) -> str | None:
    """Says which process stands still for longer than its phase allows; None if none does.

    Only the processes that are furthest behind count: the others wait for them.

    Args:
        states: by process.
        bounds: phase -> seconds.
        names: of the processes.
    """
    if not states:
        return None
    behind = min(state.count for state in states.values())
    last = {process: state for process, state in states.items() if state.count == behind}
    late = {process: state for process, state in last.items() if state.age_s > bounds.get(state.phase, float("inf"))}
    if not late:
        return None
    process, state = max(late.items(), key=lambda item: item[1].age_s)
    text = (
        f"has made no progress in phase {state.phase} for {state.age_s:.0f} s; timeouts.{state.phase} allows "
        f"{bounds[state.phase]:g} s"
    )
    if len(states) == 1:
        return f"this process {text}"
    if len(last) == len(states):
        return f"{names[process]} {text}; all others stand at the same point"
    also = [names[other] for other in last if other != process]
    return f"{names[process]} {text}; " + (f"nor have {', '.join(also)}; " if also else "") + "the others wait for it"
