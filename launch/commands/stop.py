"""`stop`: ends the run, and has nobody start it again. The machines stay."""

import argparse
import time
from typing import Any

from launch.context import Context
from launch.errors import HostError
from launch.records import Run, Stop, printable
from launch.runs import start
from launch.runs.progress import settled

_SHOWN = 5


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the command's own arguments."""
    parser.add_argument("--reason", default="", metavar="TEXT", help="for the record that watchers read")
    parser.add_argument(
        "--grace", type=float, default=60, metavar="SECONDS", help="how long the run may save before it is killed"
    )


def run(context: Context, arguments: argparse.Namespace) -> int | None:
    """Stops the run."""
    before = start.previous(context)
    if before is None:
        context.say(f"{context.settings.name}: nothing to stop, no run was started")
        return 0
    stopped = Run.from_json(before.value)
    record = Stop(stopped.run_id, context.me, time.time(), arguments.reason)
    context.records.write("stop.json", record.to_json())  # first: a watcher must not start it again meanwhile
    context = settled(context, stopped)  # its machines may be in another zone than the settings here say
    from launch.cloud import machines as cloud
    from launch.remote.hosts import connect

    machines = cloud.find(context)
    if machines is None or not machines.ready:
        state = "gone" if machines is None else machines.state
        context.say(f"run {stopped.run_id}: its machines are {state}; nobody starts it again")
        return 0
    try:
        with connect(context, machines) as hosts:
            states = start.end(context, hosts, stopped.run_id, grace_s=arguments.grace)
            names = [host.name for host in hosts.hosts]
    except HostError as error:
        raise HostError(
            f"run {stopped.run_id}: nobody starts it again, but it may go on: the hosts cannot be reached: {error}"
        ) from error
    return 0 if context.dry_run else _report(context, stopped, names, states)


def _report(context: Context, run: Run, names: list[str], states: list[dict[str, Any]]) -> int:
    """Says how the run ended; the exit code of `stop`."""
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
    if failed:
        context.say(f"run {run.run_id}: nobody starts it again, but {failed} of {len(names)} hosts did not end it")
        return 17
    context.say(f"run {run.run_id}: stopped; nobody starts it again")
    return 0
