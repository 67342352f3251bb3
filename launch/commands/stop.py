"""`stop`: ends the run, and has nobody start it again. The machines stay."""

import argparse

from launch.cloud.nodes import LEAVING
from launch.context import Context
from launch.errors import CloudError, HostError
from launch.records import Run
from launch.runs import start, stopping
from launch.runs.snapshot import settled


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the command's own arguments."""
    parser.add_argument("--reason", default="", metavar="TEXT", help="for the record that watchers read")
    stopping.add_grace(parser)


def run(context: Context, arguments: argparse.Namespace) -> int | None:
    """Stops the run."""
    stopped = stopping.forbid(context, arguments.reason)  # first: a watcher must not start it again meanwhile
    if stopped is None:
        context.say(f"{context.settings.name}: nothing to stop, no run was started")
        return 0
    context = settled(context, stopped)  # its machines may be in another zone than the settings here say
    from launch.cloud import machines as cloud
    from launch.remote.hosts import connect

    machines = cloud.find(context)
    if machines is None or not any(worker.internal for worker in machines.workers):
        return _without_hosts(context, stopped, None if machines is None else machines.state)
    if not machines.ready:
        context.say(f"run {stopped.run_id}: the machines are {machines.state}: ending it on the hosts that are left")
    leaves = machines.gone and len(machines.nodes) == 1  # gcloud reaches no machine that is being taken away
    try:
        with connect(context, machines) as hosts:
            states = start.end(context, hosts, stopped.run_id, grace_s=arguments.grace, final=True)
            names = [host.name for host in hosts.hosts]
    except (CloudError, HostError) as error:
        if leaves:
            return _without_hosts(context, stopped, machines.state)
        text = f"run {stopped.run_id}: nobody starts it again, but it may go on: the hosts cannot be reached: {error}"
        raise CloudError(error.kind, text) if isinstance(error, CloudError) else HostError(text) from error
    if context.dry_run:
        return 0
    if leaves and all("error" in state for state in states):
        return _without_hosts(context, stopped, machines.state)
    if failed := stopping.report(context, stopped, names, states):
        context.say(f"run {stopped.run_id}: nobody starts it again, but {failed} of {len(names)} hosts did not end it")
        return HostError.exit_code
    context.say(f"run {stopped.run_id}: stopped; nobody starts it again")
    return 0


def _without_hosts(context: Context, run: Run, state: str | None) -> int:
    """The stop record is all that is needed: the run ends with its machines."""
    text = "its machines are gone" if state is None else f"its machines are {state}, so no host is reached"
    if state in LEAVING:
        text += "; a training that goes on there saves when its notice comes, and ends with them"
    context.say(f"run {run.run_id}: {text}; nobody starts it again")
    return 0
