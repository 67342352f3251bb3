"""Several transfers at once."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

_AT_ONCE = 8

_T = TypeVar("_T")


def in_threads(
    work: Callable[[_T], None], items: Iterable[_T], done: Callable[[int], None] = lambda count: None
) -> None:
    """Does `work` on all items in a few threads; the first error ends it.

    The client's transfer_manager would start all other items after an error, and reports no progress.
    """
    pool, finished = ThreadPoolExecutor(_AT_ONCE), False
    try:
        for count, future in enumerate(as_completed([pool.submit(work, item) for item in items]), 1):
            future.result()
            done(count)
        finished = True
    except Exception:
        finished = True
        raise
    finally:  # an interrupt (not an Exception) does not wait for files in transfer
        pool.shutdown(wait=finished, cancel_futures=True)
