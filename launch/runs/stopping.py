"""The stop record, and the end of a run on its hosts: for `stop` and `down`."""

import argparse
import contextlib
import time
from collections.abc import Sequence
from typing import Any

from janus_jax.errors import HeldError
from launch.cloud.bucket import Changed
from launch.context import Context
from launch.errors import CloudError, Kind
from launch.records import STALE_S, Run, Spent, Stop, Watcher, printable, seconds_of
from launch.runs import alive, start
from launch.runs.snapshot import SPENT

FILE = "stop.json"
_SHOWN = 5
_TRIES = 5
_LONGEST_GRACE_S = 3600
_OUTLAST_S = 300.0
_sleep, _clock = time.sleep, time.monotonic


def count_machines(context: Context, run_id: str, created: str) -> None:
    """Adds machines that were just deleted to what the run has cost. Failures do not matter: it is for people to read.

    Args:
        created: when they were made, as Google Cloud writes it.
    """
    records = context.records
    with contextlib.suppress(CloudError, Changed, ValueError):
        now_s, stored = records.clock(), records.read(SPENT)
        before = Spent("", 0.0) if stored is None else Spent.from_json(stored.value)
        seconds = max(0.0, now_s - seconds_of(created)) + (before.seconds if before.run_id == run_id else 0.0)
        generation = 0 if stored is None else stored.generation
        records.write(SPENT, Spent(run_id, seconds).to_json(), generation=generation)


def add_grace(parser: argparse.ArgumentParser) -> None:
    """Adds `--grace`."""
    parser.add_argument(
        "--grace",
        type=_grace,
        default=60,
        metavar="SECONDS",
        help="how long the run may save before it is killed (default 60)",
    )


def _grace(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= (seconds := float(text)) <= _LONGEST_GRACE_S:
            return seconds
    raise argparse.ArgumentTypeError(f"{text}: allowed: 0 to {_LONGEST_GRACE_S} seconds")


def forbid(context: Context, reason: str, *, down: bool = False, force: bool = True, again: bool = False) -> Run | None:
    """Writes the stop record of the newest run: nobody, on any workstation, starts it or makes its machines again.

    Args:
        down: the machines go too; `up` clears the record then, as `run` does. That of a person's `stop` stays.
        force: False refuses a run of somebody else that shows signs of life: both may use the same name by mistake.
        again: it was said already whose run it is.
    Returns:
        The run; None if none was started.
    Raises:
        HeldError: see `force`.
        CloudError: the bucket refused.
    """
    before = start.previous(context)
    if before is None:
        return None
    run = Run.from_json(before.value)
    if run.by != context.me and not again:
        if not force and (seen := alive.signs(context, before)):
            raise HeldError(
                f"run {run.run_id} of {run.by} is alive: {seen}; you are {context.me}; if nobody needs it any more, "
                f"add --force; if {context.settings.name} is their name, change `name` in launch/tpu.yaml"
            )
        context.say(f"run {run.run_id} is of {run.by}")
    record = Stop(run.run_id, context.me, time.time(), reason, down).to_json()
    if not down:
        context.records.write(FILE, record)
        return run
    for _ in range(_TRIES):
        stored = context.records.read(FILE)
        if stored is not None and stored.value.get("run_id") == run.run_id:
            return run
        with contextlib.suppress(Changed):  # a person's `stop` may come now
            context.records.write(FILE, record, generation=0 if stored is None else stored.generation)
            return run
    raise CloudError(Kind.CHANGED, f"{context.records.url}/{FILE}", "others write it all the time; try again")


def allow(context: Context) -> None:
    """Clears the stop record that `down` wrote, and says what that means.

    Raises:
        CloudError: the bucket refused.
    """
    stored = context.records.read(FILE)
    if stored is None or not stored.value.get("down"):
        return
    before, run_id = start.previous(context), stored.value.get("run_id")
    if before is None or before.value.get("run_id") != run_id:
        return  # of an earlier run
    with contextlib.suppress(Changed):  # by a `stop` that comes now, and holds
        context.records.write(FILE, Stop("", context.me, time.time()).to_json(), generation=stored.generation)
        context.say(f"run {run_id} was ended by `down` and may go on: `python -m launch watch` resumes it")


def outlast(context: Context) -> bool:
    """Waits until nobody watches any more: a watcher may have asked for machines before it could see the stop record.
    One that gives no sign of life has ended. For `down`: runs that begin meanwhile are forbidden, too.

    Returns:
        Whether somebody watched.
    Raises:
        CloudError: the bucket refused.
    """
    began, shown = _clock(), False
    while _clock() - began < _OUTLAST_S:
        stored = context.records.read("watch.json")
        watcher = None if stored is None else Watcher.from_json(stored.value)
        if stored is None or watcher is None or not watcher.token:
            return shown
        if context.records.clock() - stored.updated_s > STALE_S:
            return True
        forbid(
            context, "down", down=True, again=True
        )  # once more: a `run` that was on its way may have begun meanwhile
        if not shown:
            context.say(f"waiting for the watcher of {watcher.by}, which may just be making machines, to end")
        shown = True
        _sleep(5.0)
    return True


def report(context: Context, run: Run, names: Sequence[str], states: Sequence[dict[str, Any]]) -> int:
    """Says how the run ended; on how many hosts it may go on."""
    by_text: dict[str, list[str]] = {}
    failed = 0
    for name, state in zip(names, states, strict=True):
        if "error" in state:
            text, failed = f"cannot be reached, so the run may go on there: {state['error']}", failed + 1
        elif state["state"] == "none" or state["run_id"] != run.run_id:
            text = "nothing was running"
        elif state["state"] in start.ALIVE:
            text, failed = "still running", failed + 1
        elif state["state"] == "dead":
            text = "nothing was running: the supervisor was killed before"
        else:
            how = "killed after the grace, " if state.get("killed") else ""
            how = "had ended already, " if state.get("was") == "ended" else how
            text = f"{how}exit code {state['code']}" + (f": {state['message']}" if state["message"] else "")
        by_text.setdefault(printable(text, 600), []).append(name)
    for text, where in by_text.items():
        shown = ", ".join(where[:_SHOWN]) + (f" and {len(where) - _SHOWN} more" if len(where) > _SHOWN else "")
        context.say(f"{shown}: {text}")
    return failed
