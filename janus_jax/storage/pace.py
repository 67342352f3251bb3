"""How fast an endpoint may be asked: limits of a minute, and pauses that it asks for."""

import collections
import dataclasses
import email.utils
import math
import random
import threading
import time
from collections.abc import Callable, Iterator

_MINUTE_S = 60.0
_SECOND_S = 1.0
_FEW = 10  # requests in a second
_LONGEST_PAUSE_S = 60.0
_LONGEST_ASKED_S = 900.0


class Pace:
    """Lets callers wait until their request may go out, in the order in which they come. Threads share it.

    In no 60 seconds more requests or tokens go out than allowed. Of more than 10 requests a second no more go out in
    any second, because servers count in parts of a minute. A request that alone has more tokens goes out alone.

    Args:
        window_s: seconds that take the place of a minute.
        clock: seconds.
        wait: sleeps so many seconds; true if the caller should give up.
    """

    def __init__(
        self,
        requests_a_minute: int | None,
        tokens_a_minute: int | None,
        *,
        window_s: float = _MINUTE_S,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], bool],
    ):
        self._requests, self._tokens = requests_a_minute, tokens_a_minute
        self._window_s, self._clock, self._wait = window_s, clock, wait
        self._gone: collections.deque[tuple[float, int]] = collections.deque()
        self._used = 0  # tokens of those that are gone
        a_second = 0 if requests_a_minute is None else math.ceil(requests_a_minute / window_s)
        self._a_second = a_second if a_second > _FEW else None
        self._not_before = 0.0
        self._lock = threading.Lock()

    def pass_(self, tokens: int) -> bool:
        """Waits; false if the caller should give up."""
        while delay := self._delay(tokens):
            if self._wait(delay):
                return False
            with self._lock:
                if self._clock() >= self._not_before:  # otherwise there was a pause, and all line up again
                    return True
        return True

    def pause(self, seconds: float) -> None:
        """Nobody asks for so long: the endpoint has said that it is too much."""
        with self._lock:
            self._not_before = max(self._not_before, self._clock() + seconds)

    def _delay(self, tokens: int) -> float:
        """Seconds until the request may go out, which is counted for then."""
        gone = self._gone
        with self._lock:
            now = self._clock()
            at = max(now, self._not_before, gone[-1][0] if gone else now)
            for count, seconds in ((self._requests, self._window_s), (self._a_second, _SECOND_S)):
                if count is not None and len(gone) >= count:
                    at = max(at, gone[-count][0] + seconds)
            while gone and gone[0][0] <= at - self._window_s:
                self._used -= gone.popleft()[1]
            while self._tokens is not None and gone and self._used + tokens > self._tokens:
                first, count = gone.popleft()
                at, self._used = max(at, first + self._window_s), self._used - count
            gone.append((at, tokens))
            self._used += tokens
            return at - now


class GaveUpError(Exception):
    """The caller should give up: `wait` was true."""


class Tries:
    """Tries of requests to one server, until it answers or has failed often enough. Threads share it.

    Args:
        pace: what all requests keep to.
        most: tries of one request. One that is too much (429) counts only if no other request was answered meanwhile.
        wait: as of `Pace`.
    """

    def __init__(self, pace: Pace, most: int, *, wait: Callable[[float], bool]):
        self._pace, self.most, self._wait = pace, most, wait
        self.answered, self._answered_at = 0, -math.inf
        self._lock = threading.Lock()

    def note_answer(self) -> None:
        """Counts an answer of the server to any request."""
        with self._lock:
            self.answered, self._answered_at = self.answered + 1, time.monotonic()

    def of(self, tokens: int) -> Iterator["Try"]:
        """The tries of one request, with growing pauses between them; the caller leaves off at an answer.

        Raises:
            GaveUpError: the caller should give up.
        """
        failures = 0
        while failures < self.most:
            answered = self.answered
            if not self._pace.pass_(tokens):
                raise GaveUpError
            yield (one := Try(failures))
            if one.status != 429 or self.answered == answered:  # while others are answered, it is only a matter of time
                failures += 1
            pause = pause_after(max(failures, 1), one.retry_after)
            if one.status == 429 and time.monotonic() - self._answered_at > pause:
                self._pace.pause(pause)  # of everybody, if nobody is answered
            elif failures < self.most and self._wait(pause):
                raise GaveUpError


@dataclasses.dataclass
class Try:
    """One try. The caller says how it failed."""

    failures: int
    """Of the tries before."""
    status: int | None = None
    """Of HTTP; None: there was none."""
    retry_after: str | None = None
    """The header of that name."""


def pause_after(failures: int, retry_after: str | None) -> float:
    """Seconds before the next try: what the endpoint asks for, otherwise twice as long after each failure."""
    if retry_after is not None and (asked := _seconds(retry_after)) is not None:
        return min(max(asked, 0.0), _LONGEST_ASKED_S)
    return min(2.0 ** (failures - 1), _LONGEST_PAUSE_S) * random.uniform(0.75, 1.25)


def _seconds(retry_after: str) -> float | None:
    """A header Retry-After: seconds or a date."""
    try:
        return seconds if math.isfinite(seconds := float(retry_after)) else None
    except ValueError:
        pass
    try:
        return email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
    except (TypeError, ValueError, OverflowError):
        return None
