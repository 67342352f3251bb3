"""What every stage's process does around its measurements."""

import gc
import importlib.util
import json
import os
import statistics
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Any

from tests.benchmarks.gpu.supervise import MARK


class NotHere(Exception):
    """The stage cannot be on this machine; the message says why."""


def measured(what: str, **values: Any) -> None:
    """Hands a measurement to the process that keeps them."""
    print(f"{MARK}{json.dumps({'what': what, **values})}", flush=True)


def run(stage: Callable[[], None], *, needs: Iterable[str] = (), simulate: str | None = None) -> None:
    """Runs a stage: a mistake in it is a measurement too, and the process ends well.

    Args:
        needs: modules without which the stage is skipped.
        simulate: fail on purpose: `raise`, `crash` or `hang`.
    """
    try:
        if missing := [name for name in needs if importlib.util.find_spec(name) is None]:
            raise NotHere(f"{', '.join(missing)} not installed")
        _fail(simulate)
        stage()
    except NotHere as reason:
        measured("skipped", reason=str(reason))
    except Exception as error:
        measured("failed", reason=f"{type(error).__name__}: {first_line(error)}", traceback=traceback.format_exc())


def first_line(error: BaseException) -> str:
    """An error's text without what follows its first line, at most 300 characters."""
    return (str(error).strip().splitlines() or [""])[0][:300]


def _fail(simulate: str | None) -> None:
    if simulate == "raise":
        raise RuntimeError("a failure on purpose")
    if simulate == "crash":
        os.abort()
    if simulate == "hang":
        time.sleep(3600)


def seconds_of(start: Callable[[], Any], finish: Callable[[Any], Any], *, calls: int, repeats: int) -> list[float]:
    """Seconds of one call, once for each repeat: `calls` calls are started one behind the other and waited for
    together, so that the time to start a call counts only where it is longer than the call.

    Args:
        finish: waits for what a call returned, and for all calls before it.
    """
    finish(start())
    finish(start())
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        for _ in range(calls - 1):
            start()
        finish(start())
        times.append((time.perf_counter() - begun) / calls)
    return times


def median_ms(times: list[float]) -> float:
    return 1e3 * statistics.median(times)


def free() -> None:
    """Lets go of what no name holds."""
    gc.collect()
