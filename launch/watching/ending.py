"""What is left to do when watching ends: the run on its hosts, the machines, and what they cost."""

import itertools
from collections.abc import Callable
from typing import Any

from janus_jax.errors import JanusError, counted
from launch.context import Context
from launch.errors import CloudError, HostError
from launch.runs.stopping import count_machines
from launch.watching.journal import Journal
from launch.watching.lease import Lease
from launch.watching.seen import Seen
from launch.watching.steps import Steps

_DELETE_TRIES = 5


class Ending:
    """Of one watcher.

    Args:
        pause: waits, longer each time, before something is tried the Nth time more.
    """

    def __init__(self, context: Context, steps: Steps, lease: Lease, journal: Journal, pause: Callable[[int], None]):
        self._context, self._steps, self._lease, self._journal, self._pause = context, steps, lease, journal, pause

    def end_run(self, seen: Seen, machines: Any) -> int:
        """Ends a run that goes on although it was stopped, as when `stop` itself was cut off; the exit code."""
        alive = sum(host.beats or host.now in ("starting", "running", "unreachable", "unknown") for host in seen.hosts)
        if not (alive and seen.ready and seen.run_id):
            return 0
        self._journal.write(f"ends the run, which goes on on {alive} of {seen.workers} hosts")
        try:
            with self._steps.connect(machines) as group:
                errors = self._steps.end(group, seen.run_id)
        except JanusError as error:
            errors = [str(error)]
        if errors:
            self._journal.write(f"{counted(len(errors), 'host')} did not answer, so the run may go on: {errors[0]}")
        return HostError.exit_code if errors else 0

    def down(self, run_id: str, token: str | None, *, patient: bool) -> int:
        """Deletes the machines, or those with this token; while the network is away they cost money, so it does not
        give up then, if it is patient. The exit code."""
        for number in itertools.count(1):
            try:
                self._lease.renew()
                machines = self._steps.find()
                if machines is not None and not is_own(machines):
                    self._journal.write("others made the machines; to delete them: python -m launch down --adopt")
                    return 0
                if machines is not None and token in (None, machines.token):
                    self._steps.delete(machines)
                    count_machines(self._context, run_id, machines.created)
                    self._journal.write("deleted the machines")
                return 0
            except CloudError as error:
                self._journal.write(f"delete failed: {error}")
                goes_on = error.kind.may_be_network or (error.kind.passes and number < _DELETE_TRIES)
                if not patient or not goes_on:
                    break
                self._pause(number)
        self._journal.write("the machines may still be there and cost money: python -m launch down")
        return CloudError.exit_code

    def say_cost(self, seen: Seen | None) -> None:
        """Says that the machines stay, unless there are none."""
        if seen is not None and seen.machines is None:
            return
        command = f"python -m launch down --name {self._context.settings.name}"
        self._journal.write(f"the machines stay and cost money ({self._steps.type().price}); to delete them: {command}")


def is_own(machines: Any) -> bool:
    """Whether this launch made the machines; `down`, too, deletes adopted ones only when it is told to."""
    return machines.ours and not machines.adopted
