"""Machines as Google Cloud describes them: a queued resource and its nodes, judged together."""

import dataclasses
import re
from typing import Any

LAUNCH, TOKEN, ADOPTED = "janus-launch", "janus-token", "janus-adopted"
"""Labels of machines."""

LEAVING = ("SUSPENDING", "DELETING")
"""States in which hosts may still run, though gcloud reaches none."""
_GONE = ("SUSPENDED", "SUSPENDING", "FAILED", "PREEMPTED", "TERMINATED", "DELETING", "MISSING")
_CODES = {
    3: "INVALID_ARGUMENT",
    5: "NOT_FOUND",
    7: "PERMISSION_DENIED",
    8: "RESOURCE_EXHAUSTED",
    9: "FAILED_PRECONDITION",
    13: "INTERNAL",
    14: "UNAVAILABLE",
}
"""Of google.rpc.Status."""


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
        """All hosts of all nodes have an address."""
        has_all = all(worker.internal for worker in self.workers) and {w.node for w in self.workers} == set(self.nodes)
        return self.state in ("ACTIVE", "READY") and has_all

    @property
    def gone(self) -> bool:
        """Preempted, failed or being deleted: it comes back only as a new one."""
        return self.state in _GONE

    @property
    def words(self) -> str:
        """State, health and reason."""
        health = "" if self.health == "HEALTHY" else self.health
        return ": ".join(part for part in (self.state, health, self.error) if part)


def read(name: str, queued: dict[str, Any] | None, nodes: list[dict[str, Any]]) -> Machines:
    """From the answers of gcloud: a queued resource, if there is one, and the nodes that belong to it."""
    nodes = sorted(nodes, key=lambda node: _natural(base(node["name"])))
    by_name = {base(node["name"]): node for node in nodes}
    expected = node_names(queued, name)
    names = list(by_name) if len(by_name) >= len(expected) else expected  # Google may name slices otherwise
    spec = ((queued or {}).get("tpu", {}).get("nodeSpec") or [{}])[0].get("node", {})
    one = nodes[0] if nodes else spec
    state = "READY" if queued is None else state_of(queued)
    if state in ("ACTIVE", "READY"):
        states = [by_name[node].get("state", "UNKNOWN") if node in by_name else "MISSING" for node in names]
        state = next((one for one in sorted(states, key=lambda one: one not in _GONE) if one != "READY"), state)
    ill = [node for node in nodes if node.get("health", "HEALTHY") not in ("HEALTHY", "HEALTH_UNSPECIFIED")]
    ill.sort(key=lambda node: node["health"] == "UNHEALTHY_MAINTENANCE")  # which often passes
    failed = ((queued or {}).get("state") or {}).get("failedData", {}).get("error", {})
    error = f"{_CODES.get(failed.get('code'), 'UNKNOWN')}: {failed.get('message', '')}" if failed else ""
    labels = [{**spec.get("labels", {}), **node.get("labels", {})} for node in nodes or [{}]]
    endpoints = [
        (number, index, base(node["name"]), endpoint)
        for number, node in enumerate(nodes)
        for index, endpoint in enumerate(node.get("networkEndpoints", []))
    ]
    created = str((queued or one).get("createTime", ""))
    return Machines(
        name=name,
        state=state,
        health=ill[0]["health"] if ill else "HEALTHY",
        workers=tuple(
            Worker(
                number=number,
                slice=slice,
                index=index,
                node=node,
                internal=endpoint.get("ipAddress", ""),
                external=endpoint.get("accessConfig", {}).get("externalIp"),
            )
            for number, (slice, index, node, endpoint) in enumerate(endpoints)
        ),
        nodes=tuple(names),
        ours=all(of_node.get(LAUNCH) == name for of_node in labels),
        token=labels[0].get(TOKEN) or created,
        created=created,
        error=error or next((node["healthDescription"] for node in ill if "healthDescription" in node), ""),
        is_queued=queued is not None,
        adopted=ADOPTED in labels[0],
        type=one.get("acceleratorType", ""),
        slices=max(1, len(names)),
    )


def node_names(queued: dict[str, Any] | None, name: str) -> list[str]:
    """Nodes of a queued resource, slice by slice."""
    names = []
    for spec in (queued or {}).get("tpu", {}).get("nodeSpec", []):
        if many := spec.get("multisliceParams"):
            names += [f"{many.get('nodeIdPrefix') or name}-{number}" for number in range(int(many["nodeCount"]))]
        elif "nodeId" in spec:
            names.append(spec["nodeId"])
    return names


def state_of(queued: dict[str, Any]) -> str:
    """Of a queued resource; one that has just been asked for may have none yet."""
    return (queued.get("state") or {}).get("state", "ACCEPTED")


def base(path: str | None) -> str:
    """NAME of projects/PROJECT/locations/ZONE/nodes/NAME."""
    return (path or "").rpartition("/")[2]


def _natural(name: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
