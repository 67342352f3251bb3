"""What `status`, `logs` and `watch` see of machines and hosts, behind one class that a test replaces."""

import contextlib
from collections.abc import Iterator
from typing import Any

from launch.context import Context
from launch.errors import CloudError, HostError
from launch.records import printable


class Looks:
    """Looks at machines and hosts; changes nothing. The modules are imported late: `--help` needs none of them."""

    def __init__(self, context: Context):
        self.context = context

    def type(self) -> Any:
        """`capacity.Type` of the settings."""
        from launch.cloud import capacity

        return capacity.of(self.context.settings)

    def find(self) -> Any:
        """The machines; None if they are not there."""
        from launch.cloud import machines

        return machines.find(self.context)

    @contextlib.contextmanager
    def connect(self, machines: Any) -> Iterator[Any]:
        """Ways to the hosts."""
        from launch.remote import hosts

        with hosts.connect(self.context, machines) as group:
            yield group

    def states(self, machines: Any) -> dict[int, dict[str, Any]]:
        """What each host says of its run, by worker. "unreachable" is one that does not answer, in whatever way ssh or
        gcloud fail; "none" one that was never set up."""
        lost = {"state": "unreachable"}
        try:
            with self.connect(machines) as group:
                answers = group.each("janus/agent state", stdin=b"{}\n", timeout_s=60)
        except (CloudError, HostError):
            return {worker.number: lost for worker in machines.workers}
        states = {}
        for answer in answers:
            value = answer.value
            if value is None or "error" in value:
                value = {} if answer.is_not_set_up else lost
            message = printable(str(value.get("message", "")))
            states[answer.host.number] = {"state": "none", **value, "message": message}
        return states

    def tails(self, machines: Any, positions: dict[int, int], lines: int) -> dict[int, dict[str, Any]]:
        """What each host's command printed: {"text", "position", "state"} by worker.

        Args:
            positions: by worker, where to go on; hosts without one give their last `lines`.
        Raises:
            HostError: a host cannot be reached.
        """

        def message(host: Any) -> dict[str, Any]:
            number = host.number
            return {"position": positions[number]} if number in positions else {"lines": lines}

        with self.connect(machines) as group:
            answers = group.agent("tail", message, timeout_s=60)
            return {host.number: answer for host, answer in zip(group.hosts, answers, strict=True)}
