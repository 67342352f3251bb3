"""One start of `janus train`, timed: the child process of `startup`. Prints seconds of each part as JSON.

    [START_IS_STOPPED=1] python -m tests.benchmarks.one_start SECONDS_SINCE_THE_EPOCH CONFIG [a.b=c ...]

It runs the command itself, with a clock around the functions below, and ends after the second step; with
START_IS_STOPPED by a notice, so that the run saves.
"""

import collections
import contextlib
import functools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

COMPILER = {
    "jaxpr_trace_duration": "trace",
    "jaxpr_to_mlir_module_duration": "lower",
    "backend_compile_duration": "compile, or read a compiled program",
}
"""JAX's events, which may lie inside each other: the outermost counts."""
STEP, SECOND = "the first step itself", "a later step"


class Parts:
    """Seconds by part of a start. Time inside a part that another part, or the compiler, takes is not its own."""

    def __init__(self) -> None:
        self.first: dict[str, float] = {}  # as they were after the first step
        self.seconds: collections.Counter[str] = collections.Counter()
        self._compiler: list[tuple[float, float, str]] = []  # outermost events of this thread: start, end, kind

    def compiled(self, event: str, seconds: float, **_: Any) -> None:
        """A listener for JAX's durations, which come when what they time ends."""
        import threading

        kind = COMPILER.get(event.rpartition("/")[2])
        if kind is None or threading.get_ident() != threading.main_thread().ident:
            return
        now = time.time()
        while self._compiler and self._compiler[-1][0] >= now - seconds:
            start, end, inner = self._compiler.pop()
            self.seconds[inner] -= end - start
        self._compiler.append((now - seconds, now, kind))
        self.seconds[kind] += seconds

    @contextlib.contextmanager
    def time(self, part: str) -> Iterator[None]:
        """Adds what happens inside, except other parts, to a part."""
        start, before = time.time(), self.seconds.total()
        try:
            yield
        finally:
            self.seconds[part] += time.time() - start - (self.seconds.total() - before)

    def around(self, holder: Any, name: str, part: str) -> None:
        """Replaces a function of a module or class by one that is timed."""
        plain = getattr(holder, name)

        @functools.wraps(plain)
        def timed(*args: Any, **options: Any) -> Any:
            with self.time(part):
                return plain(*args, **options)

        setattr(holder, name, timed)


class Batches:
    """Batches, whose arrival is timed."""

    def __init__(self, parts: Parts, plain: Any):
        self._parts, self._plain = parts, plain
        self.close = plain.close

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Any:
        with self._parts.time("wait for the first batch"):
            return next(self._plain)


def main() -> None:
    began, arguments_given = float(sys.argv[1]), sys.argv[2:]
    parts = Parts()
    parts.seconds["python"] = time.time() - began
    with parts.time("the command"):
        from janus_jax.cli import arguments
        from janus_jax.cli import main as command
        from janus_jax.parallel import processes
    parts.around(arguments, "load", "configuration")
    parts.around(command, "require_writable", "run directory")
    start = processes.start

    def started(*args: Any, **options: Any) -> None:
        with parts.time("jax"):
            import jax
            from jax import monitoring

            monitoring.register_event_duration_secs_listener(parts.compiled)
        with parts.time("devices"):
            start(*args, **options)
            jax.devices()
        with parts.time("modules of training"):
            from janus_jax.training import run
        processes.start = start
        _time_training(parts, run, began)

    processes.start = started
    sys.argv = ["janus", "train", *arguments_given]
    command.main()


def _time_training(parts: Parts, run: Any, began: float) -> None:
    import jax

    from janus_jax.data.loader import Loader
    from janus_jax.training import setup

    for name in ("open_training", "open_held_out", "_loaders"):
        parts.around(setup, name, "data")
    for name in ("newest_checkpoint", "held_run_dir"):
        parts.around(run, name, "run directory")
    for name in ("require_same_inputs", "opening", "data_notes", "notes", "unused_rows"):
        parts.around(run, name, "checks and notes")
    parts.around(run, "begin", "weights, new or restored")
    parts.around(run, "open_reference", "reference")
    parts.around(run, "_writers", "files: config, tokenizer, metrics")
    batches, prepare, calls = Loader.batches, run.prepare, 0
    Loader.batches = lambda self, *args, **options: Batches(parts, batches(self, *args, **options))

    def prepared(*args: Any, **options: Any) -> Any:
        with parts.time("checks and notes"):
            made = prepare(*args, **options)
        step: Callable[..., Any] = made.program.train

        def timed(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            with parts.time(STEP if calls == 1 else SECOND):
                out = jax.block_until_ready(step(*args))
            if calls == 1:
                whole = time.time() - began
                parts.first = {**parts.seconds, "the rest": whole - parts.seconds.total(), "whole": whole}
            elif calls == 2:
                print(json.dumps(parts.first | {SECOND: parts.seconds[SECOND]}), flush=True)
                if not os.environ.get("START_IS_STOPPED"):
                    os._exit(0)
                signal.raise_signal(signal.SIGTERM)  # a notice: the run saves this step and ends
            return out

        made.program.__dict__["train"] = timed
        return made

    run.prepare = prepared


if __name__ == "__main__":
    main()
