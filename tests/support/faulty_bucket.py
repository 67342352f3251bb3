"""A bucket that refuses or is slow, by rule: set one as `refusal` of the fixture `proxy`."""

import re
import time

from tests.support.buckets import Refusal


def refusing(status: int, pattern: str = "", *, writes: bool = True, times: int | None = None) -> Refusal:
    """Answers requests about what `pattern` matches with `status`, the first `times` of them, and changes nothing.

    Args:
        writes: only those that write, which by the path alone cannot be told apart from others.
    """
    left = [10**9 if times is None else times]

    def refuse(method: str, what: str) -> int | None:
        if (writes and method not in ("POST", "PUT")) or not re.search(pattern, what) or not left[0]:
            return None
        left[0] -= 1
        return status

    return refuse


def slow(seconds: float, pattern: str = "") -> Refusal:
    """Lets every request about what `pattern` matches wait."""

    def delay(method: str, what: str) -> int | None:
        if re.search(pattern, what):
            time.sleep(seconds)
        return None

    return delay
