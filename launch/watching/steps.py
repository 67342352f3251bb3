"""What `watch` does with the cloud and the hosts, behind one class that a test replaces."""

from collections.abc import Callable
from typing import Any

from launch.cloud.bucket import Stored
from launch.cloud.gcloud import Say
from launch.records import Run
from launch.runs.looks import Looks


class Steps(Looks):
    """The steps, each of which may raise a JanusError."""

    _none_left = False

    def create(self, notify: Say, *, patient: bool, before: Callable[[], None]) -> Any:
        """Creates the machines, or goes on with a request of ours; if `patient`, waits until they are ready. Calls
        `before` right before each request."""
        from launch.cloud import machines

        none_left, self._none_left = self._none_left, False
        return machines.create(self.context, notify=notify, patient=patient, none_left=none_left, before=before)

    def delete(self, seen: Any) -> None:
        """Deletes these machines, not others that were made since they were seen, and waits until they are gone."""
        from launch.cloud import machines

        left = machines.look(self.context, None)
        self._none_left = left is None
        if left is not None and left.token == seen.token:
            self._none_left = machines.delete(self.context, left)

    def setup(self, group: Any, run: Run, notify: Say) -> Any:
        """Brings all hosts to the state of the run's first start, whatever this checkout is now; warm in seconds."""
        from launch.remote import environment, ship

        return environment.bring(self.context, group, code=ship.kept(self.context, run.code), notify=notify)

    def end(self, group: Any, run_id: str) -> list[str]:
        """Ends what is left of the run on the hosts. Why hosts could not be asked."""
        from launch.runs import start

        return [state["error"] for state in start.end(self.context, group, run_id) if "error" in state]

    def start(self, group: Any, ready: Any, run: Run, before: Stored | None) -> None:
        """Starts the run on all hosts together, if nobody has changed its record since `before` was read."""
        from launch.runs import start

        start.start(self.context, group, ready, run, before=before)
