"""How fast an endpoint may be asked: limits of a minute, and pauses that it asks for."""

import collections
import email.utils
import math
import random
import threading
import time
from collections.abc import Callable

_MINUTE_S = 60.0
_LONGEST_PAUSE_S = 60.0
_LONGEST_ASKED_S = 900.0


class Pace:
    """Lets callers wait until the next request may go out. Threads share it.

    In no 60 seconds more requests or tokens go out than allowed. A request that alone has more tokens goes out alone.

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
        self._not_before = 0.0
        self._lock = threading.Lock()

    def pass_(self, tokens: int) -> bool:
        """Waits; false if the caller should give up."""
        while delay := self._delay(tokens):
            if self._wait(delay):
                return False
        return True

    def pause(self, seconds: float) -> None:
        """Nobody asks for so long: the endpoint has said that it is too much."""
        with self._lock:
            self._not_before = max(self._not_before, self._clock() + seconds)

    def _delay(self, tokens: int) -> float:
        """Seconds to wait; 0: the request goes out now, and is counted."""
        with self._lock:
            now = self._clock()
            while self._gone and self._gone[0][0] <= now - self._window_s:
                self._gone.popleft()
            if now < self._not_before:
                return self._not_before - now
            used = sum(count for _, count in self._gone)
            full = self._requests is not None and len(self._gone) >= self._requests
            full |= self._tokens is not None and bool(self._gone) and used + tokens > self._tokens
            if full:
                return max(self._gone[0][0] + self._window_s - now, 1e-3)
            self._gone.append((now, tokens))
            return 0.0


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
