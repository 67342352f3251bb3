"""Lines of progress, now and then."""

import time
from collections.abc import Callable

EVERY_S = 10.0
"""Between two lines."""


class Progress:
    """How far a command is.

    Args:
        total: items that are to be finished.
        items, units: their name, such as `prompts`, and that of what is counted meanwhile, such as `tokens`.
        tell: gets the lines.
    """

    def __init__(self, total: int, items: str, units: str, tell: Callable[[str], None]):
        self._total, self._items, self._units, self._tell = total, items, units, tell
        self._began = self._told = time.monotonic()

    def __call__(self, finished: int, done: int) -> None:
        """Tells of `finished` items and `done` units so far, if it is time to, or all are finished."""
        now, left = time.monotonic(), self._total - finished
        if now - self._told <= EVERY_S and left:
            return
        self._told, spent = now, now - self._began
        rate = done / spent
        rest = f", {_minutes(spent / finished * left)} left" if finished and left else ""
        speed = f"{rate:,.0f}" if rate >= 100 else f"{rate:,.1f}"
        self._tell(f"{finished:,} of {self._total:,} {self._items}, {speed} {self._units}/s{rest}")


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
