"""Where the seconds of a run go, over all its starts."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from janus_jax.checkpoint.run_dir import RunDir
from janus_jax.errors import LostLockError, StorageError
from janus_jax.storage.bucket import RETRY_S, briefly, is_url
from janus_jax.storage.local import write_json

PHASES = {
    "step": "training: the host or its devices work on steps",
    "data_wait": "waiting for batches, and placing them on the devices",
    "compile": "compiling the training step and the evaluation",
    "evaluation": "held-out examples",
    "samples": "answers to the prompts of `samples`",
    "reference": "log-probs of the reference before the first step",
    "checkpoint": "saving, as far as the run waits for it",
    "export": "the Hugging Face directory",
    "setup": "from the start of the process's run to its first step: data, weights, the lock of the run directory",
    "restore": "reading a checkpoint",
    "restart": "from the last sign of life of a start that did not finish to the next start",
    "lost_work": "steps that were made again, because no checkpoint had them",
    "other": "the rest",
}
"""What a moment may belong to. `lost_work` was `step` until a later start had to go back."""

_STEP, _LOST = "step", "lost_work"
_EVERY_S, _EVERY_S_IN_BUCKET = 2.0, 15.0
"""Between two writes; a killed start loses as much from its account, to `restart`."""
_BRIEF_S = 5.0
"""How long a bucket that refuses the file may hold the run up."""
_LONGEST_S = 960.0
"""Between two attempts at log points while a bucket does not answer."""
_STARTS = 20
"""Starts of which the file has an account each; earlier ones are summed."""
_MARKS = 50
"""Saves of a start that the file remembers."""


class Goodput:
    """Attributes each moment to one phase: to the innermost `with goodput.phase(...)`, outside of all to `rest`.

    It reads clocks only; devices go on working. Process 0 keeps the account of all starts in a file of the run
    directory, which it writes as a whole. A file that cannot be written is tried again later.
    """

    def __init__(self, *, clock: Callable[[], float] = time.perf_counter, now: Callable[[], float] = time.time):
        self.rest = "setup"
        self._clock, self._now, self._since = clock, now, clock()
        self._inside: list[str] = []
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._start: dict[str, Any] = {"began": now(), "saved": {}, "finished": False}
        self._earlier: list[dict[str, Any]] = []
        self._path: Any = None  # None: this process, or a start that has nothing to do, writes nothing
        self._written, self._pause_s = -float("inf"), 0.0
        self._idle = False

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What happens inside belongs to this phase."""
        self._settle()
        self._inside.append(name)
        try:
            yield
        finally:
            self._settle()
            self._inside.pop()

    def last(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """The last account of this start, if the directory is still its own; an exit callback."""
        if not isinstance(error, LostLockError):
            self.write()

    def open(self, run_dir: RunDir[Any], step: int, *, main: bool, idle: bool) -> None:
        """Goes on with the account of earlier starts, whose steps after `step` are lost work.

        Args:
            step: where this start begins.
            main: this process writes the file.
            idle: the run is finished, and this start does not train.
        """
        if not main:
            return
        self._earlier = _read(run_dir.goodput)
        if self._earlier:
            last = self._earlier[-1]
            if not last["finished"]:
                self._seconds["restart"] += max(0.0, self._start["began"] - last["ended"])
            elif idle:
                self._idle = True  # its time, and that between, belongs to nobody
                return
            _lose(self._earlier, step)
        self._path = run_dir.goodput
        self.write()

    def saving(self, step: int) -> None:
        """A save of `step` begins: all steps so far will not be lost."""
        self._settle()
        self._start["saved"][str(step)] = self._seconds[_STEP]
        for old in list(self._start["saved"])[:-_MARKS]:
            del self._start["saved"][old]

    def write(self, *, finished: bool = False, at_once: bool = True) -> None:
        """Writes the file; unless `at_once`, only if the last write is some time ago."""
        if self._path is None:
            return
        every = _EVERY_S_IN_BUCKET if is_url(self._path) else _EVERY_S
        if not at_once and self._clock() - self._written < max(every, self._pause_s):
            return
        self._settle()
        self._start["finished"] |= finished
        try:
            with briefly(_BRIEF_S):
                write_json(self._path, {"starts": [*self._earlier, self._record()]})
            self._pause_s = 0.0
        except StorageError:  # the next save says so in any case
            self._pause_s = min(max(2 * self._pause_s, RETRY_S), _LONGEST_S)
        self._written = self._clock()

    def totals(self) -> dict[str, float]:
        """Seconds of each phase over all starts so far; `total`, their sum; and `starts`, their number."""
        self._settle()
        records = [*self._earlier, *([] if self._idle else [self._record()])]
        sums = {name: sum(record["seconds"].get(name, 0.0) for record in records) for name in PHASES}
        return {**sums, "total": sum(sums.values()), "starts": sum(record.get("starts", 1) for record in records)}

    def _record(self) -> dict[str, Any]:
        return {**self._start, "ended": self._now(), "seconds": self._seconds}

    def _settle(self) -> None:
        """Gives the time since the last call to the phase of now."""
        now = self._clock()
        self._seconds[self._inside[-1] if self._inside else self.rest] += now - self._since
        self._since = now


def duration(seconds: float) -> str:
    """Hours and minutes, minutes and seconds, or seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _read(path: Any) -> list[dict[str, Any]]:
    """The starts in a file; none if there is no file, or one that nothing here has written."""
    try:
        starts = json.loads(path.read_text())["starts"] if path.exists() else []
        for start in starts:
            _ = start["seconds"][_STEP], start["ended"], start["finished"], start["saved"]
    except (ValueError, KeyError, TypeError, OSError):
        return []
    if len(starts) <= _STARTS:
        return starts
    first, *rest = starts[: -_STARTS + 1], *starts[-_STARTS + 1 :]
    seconds = {name: sum(start["seconds"].get(name, 0.0) for start in first) for name in PHASES}
    return [{**first[-1], "seconds": seconds, "starts": sum(start.get("starts", 1) for start in first)}, *rest]


def _lose(starts: list[dict[str, Any]], step: int) -> None:
    """Makes lost work of the steps after `step`: the newest start that saved it keeps those up to there, later ones
    keep none. If nobody is known to have saved it (and it is not the beginning), nothing is known to be lost."""
    saved_by = [number for number, start in enumerate(starts) if str(step) in start["saved"]]
    if not saved_by and step:
        return
    newest = saved_by[-1] if saved_by else -1
    for number, start in enumerate(starts[max(newest, 0) :], max(newest, 0)):
        kept = start["saved"][str(step)] if number == newest else 0.0
        if (lost := start["seconds"][_STEP] - kept) > 0:
            start["seconds"][_STEP] -= lost
            start["seconds"][_LOST] = start["seconds"].get(_LOST, 0.0) + lost
