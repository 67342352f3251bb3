"""The machines of a launch: looked at, created, waited for, adopted and deleted."""

import dataclasses

from launch.context import Context
from launch.gcloud import Say


@dataclasses.dataclass(frozen=True)
class Worker:
    """One host."""

    number: int
    """Slice-major over all slices: the process id of its process."""
    slice: int
    index: int
    """In its slice: gcloud's worker number."""
    node: str
    internal: str
    external: str | None


@dataclasses.dataclass(frozen=True)
class Machines:
    """A queued resource with its nodes, or a TPU VM that was made without one."""

    name: str
    state: str
    """Of the queued resource; while that is ACTIVE but a node is not READY, the node's (MISSING: it is not there).
    READY for a TPU VM without a queued resource."""
    health: str
    """HEALTHY, or what the worst node has."""
    workers: tuple[Worker, ...]
    nodes: tuple[str, ...]
    ours: bool
    """This launch made or adopted it: the label janus-launch has the launch's name."""
    token: str
    """Identifies this incarnation: label janus-token, random; of a resource of others, when it was created."""
    created: str
    error: str = ""
    """Why it failed, or what a node says about its health."""
    is_queued: bool = True
    adopted: bool = False
    """Others made it; it is `ours` since `up --adopt`."""
    type: str = ""
    """Accelerator type of a slice, as Google Cloud has it."""
    slices: int = 1

    @property
    def ready(self) -> bool:
        """All hosts can be reached."""
        raise NotImplementedError

    @property
    def gone(self) -> bool:
        """Preempted, failed or being deleted: it comes back only as a new one."""
        raise NotImplementedError


def find(context: Context) -> Machines | None:
    """The machines of the launch's name, whoever made them; None if there are none."""
    raise NotImplementedError


def create(context: Context, *, notify: Say, adopt: bool = False) -> Machines:
    """Creates the machines and waits until they are ready. Machines of this launch that exist are waited for; what is
    left of preempted or failed ones is deleted first. Undoes its own request on an error or a signal."""
    raise NotImplementedError


def wait(context: Context, machines: Machines, *, notify: Say) -> Machines:
    """Waits until the machines are ready."""
    raise NotImplementedError


def delete(context: Context, machines: Machines, *, notify: Say | None = None) -> None:
    """Deletes the machines and waits until they are gone."""
    raise NotImplementedError
