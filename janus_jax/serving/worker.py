"""One thread that owns the session: it takes work, and gives back what comes of it, call by call.

Waiting requests join the running texts at the next call. A cancelled request frees its rows there.
"""

import asyncio
import collections
import contextlib
import dataclasses
import itertools
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import NamedTuple

from janus_jax.generation.engine import Engine
from janus_jax.generation.requests import Event, LogProbs, Request
from janus_jax.generation.stopping import StoppingOptions
from janus_jax.serving.refusals import Refusal

_MOST_UNREAD = 1 << 16
"""Log-probs, or tokens without them, that wait for the reader of one stream."""


class Scored(NamedTuple):
    """The log-probs of a prompt's tokens, without the first."""

    place: int
    """Of the prompt in its job."""
    log_probs: LogProbs


class Job:
    """The work of one HTTP request. The event loop reads what the worker writes.

    Args:
        requests: texts to make, after all prompts are scored.
        prompts: ids to score, at least two for each.
    """

    def __init__(self, requests: Sequence[Request], prompts: Sequence[tuple[int, Sequence[int]]], top: int):
        self.requests, self.top = tuple(requests), top
        self.prompts = collections.deque(prompts)
        self.scores = len(prompts)
        """Prompts whose log-probs have not come."""
        self.texts = sum(request.samples for request in requests)
        """Texts that have not ended."""
        self.size = self.texts + len(prompts)
        self.refusal: Refusal | None = None
        """Why it ended early."""
        self.closed = False
        self._unread: collections.deque[Event | Scored] = collections.deque()
        self._weight = 0
        self._lock = threading.Lock()
        self._ready = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    @property
    def done(self) -> bool:
        return not self.texts and not self.scores

    def put(self, news: Sequence[Event | Scored]) -> bool:
        """Called by the worker; False if the reader is too far behind.

        News and the counts of what has not come change together, or a reader could see the end before the last news.
        """
        with self._lock:
            behind = self._weight > _MOST_UNREAD
            for one in news:
                self.scores -= isinstance(one, Scored)
                self.texts -= isinstance(one, Event) and one.reason is not None
            self._unread.extend(news)
            self._weight += sum(map(_weight, news))
        self.tell()
        return not behind

    def tell(self) -> None:
        """Wakes the reader."""
        try:
            self._loop.call_soon_threadsafe(self._ready.set)
        except RuntimeError:
            pass  # the server has ended

    async def read(self) -> list[Event | Scored]:
        """What is new; empty at the end.

        Raises:
            Refusal: the worker gave the job up.
        """
        while True:
            self._ready.clear()
            with self._lock:
                news, self._weight, done = list(self._unread), 0, self.done
                self._unread.clear()
            if news:
                return news
            if self.refusal is not None:
                raise self.refusal
            if done:
                return []
            await self._ready.wait()


def _weight(news: Event | Scored) -> int:
    if isinstance(news, Event):
        return len(news.ids) + sum(map(len, news.top))
    return len(news.log_probs.tokens) + sum(map(len, news.log_probs.top))


@dataclasses.dataclass(frozen=True)
class _Growing:
    job: Job
    place: int


class Worker:
    """Runs jobs on an engine.

    Args:
        most_texts: texts that may grow and wait at the same time.
    """

    def __init__(self, engine: Engine, most_texts: int):
        self._engine, self._session, self._most = engine, engine.session(), most_texts
        self._changed = threading.Condition()
        self._fresh: list[Job] = []
        self._left: list[Job] = []
        self._open: set[Job] = set()
        self._scoring: collections.deque[Job] = collections.deque()
        self._growing: dict[int, _Growing] = {}
        self._numbers = itertools.count()
        self._window = 0
        self._ends = self._died = False
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)

    def reserve(self, window: int) -> None:
        """Before `start`: compiles for short and long texts, and takes the memory of texts of `window` tokens."""
        self._window = window
        self._session = self._engine.session(length=window)
        for prompt, most in ((1, window - 1), (window - 1, 1)):
            number = next(self._numbers)
            self._session.submit(number, Request([0] * prompt, stopping=StoppingOptions(most)))
            self._session.step()
            self._session.cancel(number)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def texts(self) -> int:
        """Texts that grow or wait, and prompts to score."""
        with self._changed:
            return self._taken()

    def _taken(self) -> int:
        """Of jobs that have not ended: a client that has its whole answer must not meet itself in the queue."""
        return sum(job.size for job in self._open if not job.done)

    def submit(self, job: Job) -> None:
        """Raises Refusal: too many texts wait already (429), the server ends (503), or its thread died (500)."""
        with self._changed:
            if self._died:
                raise _failed()
            if self._ends:
                raise ending()
            if self._taken() + job.size > self._most:
                what = f"too many texts wait already; allowed: {self._most:,} at the same time; try again later"
                raise Refusal(what, 429, code="rate_limit_exceeded", headers={"Retry-After": "1"})
            self._open.add(job)
            self._fresh.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """The client has left, or does not wait any longer."""
        with self._changed:
            if job in self._open:
                self._left.append(job)
                self._changed.notify()

    def end(self, timeout: float) -> bool:
        """Gives up what is open and ends the thread; returns whether it has ended."""
        with self._changed:
            self._ends = True
            self._changed.notify()
        self._give_up(ending())
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not self._ends:
                self._next_turn()
        finally:  # whatever ended the loop: nobody waits for a thread that is gone
            with self._changed:
                self._died = not self._ends
            self._give_up(_failed() if self._died else ending())

    def _next_turn(self) -> None:
        with self._changed:
            while not (self._fresh or self._left or self._scoring or self._session.busy or self._ends):
                self._changed.wait()
            fresh, self._fresh = self._fresh, []
            left, self._left = self._left, []
        try:
            self._turn(fresh, left)
        except Exception:
            self._give_up(_failed())
            self._growing.clear()
            self._scoring.clear()
            # The cache of the other one was given to the call that failed.
            self._session = self._engine.session(length=self._window)
            log_failure()

    def _turn(self, fresh: Sequence[Job], left: Sequence[Job]) -> None:
        for job in left:
            self._drop(job, None)
        for job in fresh:
            if job in self._open:
                if job.prompts:
                    self._scoring.append(job)
                else:
                    self._grow(job)
        if self._scoring:
            self._score()
        if self._session.busy:
            self._deliver(self._session.step())

    def _grow(self, job: Job) -> None:
        for place, request in enumerate(job.requests):
            number = next(self._numbers)
            self._growing[number] = _Growing(job, place)
            self._session.submit(number, request)

    def _score(self) -> None:
        """Scores as many prompts as the engine has rows, of jobs in the order in which they came."""
        chosen: list[tuple[Job, int, Sequence[int]]] = []
        for job in self._scoring:
            while job.prompts and len(chosen) < self._engine.rows:
                chosen.append((job, *job.prompts.popleft()))
        pairs = [(ids[:1], ids[1:]) for _, _, ids in chosen]
        results = self._engine.log_probs(pairs, top=max(job.top for job, _, _ in chosen))
        news: dict[Job, list[Event | Scored]] = {}
        for (job, place, _), result in zip(chosen, results, strict=True):
            top = tuple(one[: job.top] for one in result.top) if job.top else ()
            news.setdefault(job, []).append(Scored(place, result._replace(top=top)))
        while self._scoring and not self._scoring[0].prompts:
            self._scoring.popleft()
        for job, scored in news.items():
            self._hand_over(job, scored)
            if not job.scores and job in self._open:
                self._grow(job)

    def _deliver(self, events: Sequence[Event]) -> None:
        news: dict[Job, list[Event | Scored]] = {}
        for event in events:
            growing = self._growing[event.request]
            news.setdefault(growing.job, []).append(event._replace(request=growing.place))
        for job, some in news.items():
            self._hand_over(job, some)

    def _hand_over(self, job: Job, news: Sequence[Event | Scored]) -> None:
        keeps_up = job.put(news)
        if job.done:
            self._close(job)
        elif not keeps_up:
            self._drop(job, Refusal("the answer is read too slowly", 408, code="slow_reader"))

    def _drop(self, job: Job, refusal: Refusal | None) -> None:
        """Ends a job early."""
        if job not in self._open:
            return
        for number in [number for number, growing in self._growing.items() if growing.job is job]:
            self._session.cancel(number)
        if job in self._scoring:
            self._scoring.remove(job)
        job.refusal = refusal or Refusal("was cancelled", 499)
        self._close(job)
        job.tell()

    def _close(self, job: Job) -> None:
        self._growing = {number: one for number, one in self._growing.items() if one.job is not job}
        with self._changed:
            self._open.discard(job)

    def _give_up(self, refusal: Refusal) -> None:
        with self._changed:
            jobs, self._open, self._fresh = list(self._open), set(), []
        for job in jobs:
            job.refusal = refusal
            job.tell()


def log_failure() -> None:
    """Writes the error that is handled to the log, if anybody can still read it (`janus serve 2>&1 | head`)."""
    with contextlib.suppress(OSError, ValueError):
        traceback.print_exc(file=sys.stderr)


def _failed() -> Refusal:
    return Refusal("the model failed; the log of the server says why", 500, code="model_failed")


def ending() -> Refusal:
    return Refusal("the server is shutting down", 503, code="shutting_down", headers={"Retry-After": "10"})
