"""`down`: ends the run, deletes the machines, and has nobody make them again."""

import argparse
import dataclasses

from launch.cloud import machines
from launch.context import Context
from launch.errors import CloudError, HostError
from launch.records import Run
from launch.runs import start, stopping


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--adopt", action="store_true", help="delete machines of this name that others made, adopted ones included"
    )
    stopping.add_grace(parser)
    parser.add_argument("--now", action="store_true", help="delete at once: what a run did since its last save is lost")
    parser.add_argument("--force", action="store_true", help="even if somebody else's run goes on there")


def run(context: Context, arguments: argparse.Namespace) -> int | None:
    name = context.settings.name
    seen = _look(context, arguments.adopt)
    run = _forbid(context, arguments.now, arguments.force) if context.settings.bucket else None
    if run is not None and (seen is None or not seen.ready):
        seen = _look(context, arguments.adopt)  # a watcher may have made them before it could see the record
    if seen is not None:
        if run is not None and any(worker.internal for worker in seen.workers) and not arguments.now:
            _end(context, seen, run, arguments.grace)
        _delete(context, seen, run)
    late = _late(context, arguments.adopt) if run is not None and not context.dry_run else None
    if late is not None:
        _delete(context, late, run)
    if seen is None and late is None:
        context.say(f"{name}: nothing to delete")
    return None


def _delete(context: Context, seen: machines.Machines, run: Run | None) -> None:
    machines.delete(context, dataclasses.replace(seen, ours=True), notify=context.say)
    if not context.dry_run:
        context.say(f"{seen.name}: deleted")
        if context.settings.bucket:
            stopping.count_machines(context, "" if run is None else run.run_id, seen.created)


def _late(context: Context, adopt: bool) -> machines.Machines | None:
    """Machines that a watcher asked for just before it could see the stop record."""
    try:
        if not stopping.outlast(context):
            return None
    except CloudError as error:
        context.warn(f"a watcher may just be making machines; look again with `down`: {error}")
    return _look(context, adopt)


def _look(context: Context, adopt: bool) -> machines.Machines | None:
    seen = machines.look(context, context.say)
    if seen is not None and not adopt and (seen.adopted or not seen.ours):
        raise machines.not_ours(seen)
    return seen


def _forbid(context: Context, now: bool, force: bool) -> Run | None:
    """First of all: a watcher anywhere would make the machines again."""
    try:
        run = stopping.forbid(context, "down", down=True, force=force)
    except CloudError as error:
        if not now:
            raise CloudError(error.kind, f"{error}; --now deletes the machines all the same") from error
        context.warn(f"no stop record was written, so a watcher may make the machines again: {error}")
        return None
    if run is not None and not context.dry_run:
        context.say(f"run {run.run_id}: nobody starts it or makes its machines again, until `up` or `run`")
    return run


def _end(context: Context, seen: machines.Machines, run: Run, grace_s: float) -> None:
    from launch.remote.hosts import connect

    lost = "what the run did since its last save is lost"
    try:
        with connect(context, seen) as hosts:
            if context.dry_run:
                start.end(context, hosts, run.run_id, grace_s=grace_s)
                return
            states = start.states(context, hosts)
            ids = sorted({state["run_id"] for state in states if state.get("state") in start.ALIVE})
            for run_id in ids:
                context.say(f"run {run_id}: ending it first, so that it saves, within {grace_s:.0f} s")
                ended = start.end(context, hosts, run_id, grace_s=grace_s)
                stopping.report(context, dataclasses.replace(run, run_id=run_id), [h.name for h in hosts.hosts], ended)
            if not ids and (errors := [s["error"] for s in states if "error" in s]):
                context.warn(f"{len(errors)} hosts cannot be reached ({errors[0]}): {lost}")
    except (CloudError, HostError) as error:
        context.warn(f"the hosts cannot be reached ({error}): {lost}")
