"""A stand-in for Google's TPU API (v2, v2alpha1), with as much of Compute and OS Login as `gcloud compute tpus` asks.

`python -m tests.support.google_servers` serves it. A queued resource moves only when an operator says so, or, with a
path, at each GET of it. What answers look like was read from recordings of gcloud and from Google's reference; nothing
here was compared with the real service. An operator has methods of `Tpu`, or these calls:

    POST /_admin/state     {"queued": NAME, "state": "SUSPENDED", "why": "..."}   ACTIVE makes nodes, others end them
    POST /_admin/node      {"node": NAME, "patch": {"health": "UNHEALTHY_MAINTENANCE"}}
    POST /_admin/fault     {"match": REGEX on "METHOD path", "status": 429, "message": "...", "times": 1, ...}
    POST /_admin/operation {"polls": 2, "error": {"code": 8, "message": "..."}}   polls of all from now; one's end
    POST /_admin/project   {"enable-oslogin": "TRUE"}    metadata of the project
    GET  /_admin/dump                                    everything, for assertions
"""

import dataclasses
import math
import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

BY_HAND = ("ACCEPTED",)
AT_ONCE = ("ACCEPTED", "ACTIVE")
STEP_BY_STEP = ("ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "CREATING", "ACTIVE")

ZONES = ("us-central2-b", "us-central1-a", "europe-west4-b")
TYPES = (
    *("v4-8", "v4-16", "v4-32", "v4-256", "v5litepod-4", "v5litepod-8", "v5litepod-16"),
    *("v5p-8", "v5p-16", "v6e-4", "v6e-8", "v6e-16", "v6e-256"),
)
VERSIONS = ("tpu-ubuntu2204-base", "v2-alpha-tpuv5-lite", "v2-alpha-tpuv5", "v2-alpha-tpuv6e")

_STATUS = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND"}
_STATUS |= {409: "ALREADY_EXISTS", 429: "RESOURCE_EXHAUSTED", 500: "INTERNAL", 503: "UNAVAILABLE"}
_GONE = ("SUSPENDED", "FAILED")

Json = dict[str, Any]


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str, reason: str | None = None, details: Any = None, headers: Any = None):
        error = {"code": status, "message": message, "status": reason or _STATUS.get(status, "UNKNOWN")}
        self.status, self.headers = status, headers or {}
        self.body = {"error": error | ({"details": details} if details else {})}


@dataclasses.dataclass
class Fault:
    """The next `times` requests whose "METHOD path" matches are refused."""

    match: str
    status: int
    message: str = "refused by the test"
    reason: str | None = None
    times: float = 1
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    details: Any = None


def host_count(node: Json) -> int:
    """Virtual machines of a slice."""
    if config := node.get("acceleratorConfig"):
        return max(1, math.prod(int(side) for side in config["topology"].split("x")) // 4)
    family, _, size = node["acceleratorType"].rpartition("-")
    counts_chips = family in ("v5litepod", "v6e")
    chips = int(size) // (1 if counts_chips else 2)
    return 1 if counts_chips and chips <= 8 else max(1, chips // 4)


def address(number: int, *, external: bool = False) -> str:
    """Loopback address of the host that was made as `number`, from 1."""
    return f"127.{2 if external else 1}.{number // 250}.{number % 250 + 1}"


class Tpu:
    """The service.

    Args:
        path: states of a queued resource; each GET of it takes it to the next.
        ended: called with the internal addresses of hosts that have been preempted or deleted.
    """

    def __init__(self, path: Sequence[str] = BY_HAND, ended: Callable[[list[str]], None] = lambda addresses: None):
        self.lock = threading.RLock()
        self.path, self.ended = tuple(path), ended
        self.queued: dict[str, Json] = {}
        self.nodes: dict[str, Json] = {}
        self.operations: dict[str, Json] = {}
        self.faults: list[Fault] = []
        self.log: list[Json] = []
        """Method, path, query and body of every request."""
        self.project_metadata: dict[str, str] = {}
        self.polls, self.next_error, self.hosts = 1, None, 0
        self.keys: list[str] = []
        """Of OS Login."""

    # --- What an operator does

    def fault(self, match: str, status: int, message: str = "refused by the test", **more: Any) -> None:
        """Has requests refused: see `Fault`."""
        with self.lock:
            self.faults.append(Fault(match, status, message, **more))

    def set_state(self, queued: str, state: str, why: str = "no more capacity") -> None:
        """Takes a queued resource to a state. ACTIVE makes its nodes, SUSPENDED and FAILED end their hosts."""
        with self.lock:
            resource = self.queued[self._full(self.queued, queued)]
            word, *rest = state.lower().split("_")
            data = {"error": {"code": 8, "message": why}} if state == "FAILED" else {}
            key = word + "".join(part.title() for part in rest) + "Data"
            resource["state"] = {"state": state, "stateInitiator": "SERVICE", key: data}
            for name, node in self._planned(resource):
                if state == "ACTIVE" and name not in self.nodes:
                    self._make_node(name, node, resource["name"])
                elif state in _GONE and name in self.nodes:
                    self.nodes[name]["state"] = "PREEMPTED"
                    self.ended(self.addresses(name))

    def patch_node(self, node: str, **fields: Any) -> None:
        """Overwrites fields of a node, such as state and health."""
        with self.lock:
            self.nodes[self._full(self.nodes, node)].update(fields)

    def addresses(self, node: str) -> list[str]:
        """Internal addresses of a node's hosts, by worker number."""
        return [point["ipAddress"] for point in self.nodes[self._full(self.nodes, node)]["networkEndpoints"]]

    def nodes_of(self, queued: str) -> list[str]:
        """Full names of the nodes that a queued resource has, in the order of their making."""
        full = self._full(self.queued, queued)
        return [name for name, node in self.nodes.items() if node.get("queuedResource") == full]

    def host(self, internal: str) -> tuple[str, int]:
        """Node and worker number of the host with this address.

        Raises:
            KeyError: there is none, or none any more.
        """
        with self.lock:
            for name, node in self.nodes.items():
                for number, point in enumerate(node["networkEndpoints"]):
                    if point["ipAddress"] == internal:
                        return name, number
        raise KeyError(internal)

    def dump(self) -> Json:
        """Everything."""
        faults = [dataclasses.asdict(fault) for fault in self.faults]
        return {"queued": self.queued, "nodes": self.nodes, "operations": self.operations, "log": self.log} | {
            "faults": [{**fault, "times": str(fault["times"])} for fault in faults],
            "keys": self.keys,
        }

    def admin(self, what: str, body: Json) -> Json:
        """The calls of the module's docstring."""
        if what == "state":
            self.set_state(body["queued"], body["state"], body.get("why", "no more capacity"))
        elif what == "node":
            self.patch_node(body["node"], **body["patch"])
        elif what == "fault":
            self.fault(**body)
        elif what == "operation":
            self.polls, self.next_error = body.get("polls", self.polls), body.get("error", self.next_error)
        elif what == "project":
            self.project_metadata |= body
        return self.dump()

    # --- What clients ask

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> Json:
        """The answer to a request.

        Raises:
            Refused: it is no 200.
        """
        with self.lock:
            if path.startswith("/_admin/"):
                return self.admin(path.removeprefix("/_admin/"), body or {})
            self.log.append({"method": method, "path": path, "query": query, "body": body})
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.match, f"{method} {path}"):
                    fault.times -= 1
                    raise Refused(fault.status, fault.message, fault.reason, fault.details, fault.headers)
            for verb, pattern, handler in _ROUTES:
                if verb == method and (match := re.fullmatch(pattern, path)):
                    at = match.groupdict()
                    if at.get("zone") not in (None, "-", *ZONES):
                        raise Refused(403, f"Permission denied on 'locations/{at['zone']}' (or it may not exist).")
                    return handler(self, at, query, body)
            raise Refused(404, f"The requested URL {path} was not found on this server.")

    def _full(self, where: dict[str, Json], name: str) -> str:
        return next(full for full in where if full == name or full.endswith(f"/{name}"))

    def _named(self, where: dict[str, Json], at: Json, kind: str) -> str:
        name = f"{_parent(at)}/{kind}/{at['id']}"
        if name not in where:
            raise Refused(404, f"Resource '{name}' was not found")
        return name

    def _operation(self, at: Json, target: str, verb: str, response: Json | None = None, kind: str = "") -> Json:
        name = f"{_parent(at)}/operations/operation-{len(self.operations) + 1}"
        metadata = {"@type": f"{_TYPE}.OperationMetadata", "createTime": _now(), "target": target, "verb": verb}
        metadata |= {"cancelRequested": False, "apiVersion": "v2"}
        end = {"response": {"@type": f"{_TYPE}.{kind}", **response} if response else {"@type": _EMPTY}}
        if self.next_error:
            end, self.next_error = {"error": self.next_error}, None
        self.operations[name] = {"name": name, "metadata": metadata, "end": end, "polls": self.polls}
        return {"name": name, "metadata": metadata, "done": False}

    def _get_operation(self, at: Json, query: Json, body: Any) -> Json:
        operation = self.operations[self._named(self.operations, at, "operations")]
        answer = {"name": operation["name"], "metadata": operation["metadata"]}
        operation["polls"] -= 1
        return answer | ({"done": False} if operation["polls"] >= 0 else {"done": True, **operation["end"]})

    def _planned(self, resource: Json) -> list[tuple[str, Json]]:
        """Full name and body of every node that a queued resource asks for."""
        planned = []
        for spec in resource["tpu"]["nodeSpec"]:
            many = spec.get("multisliceParams") or spec.get("multiNodeParams")
            prefix = many and many.get("nodeIdPrefix", resource["name"].rpartition("/")[2])
            names = [f"{prefix}-{number}" for number in range(many["nodeCount"])] if many else [spec["nodeId"]]
            planned += [(f"{spec['parent']}/nodes/{name}", spec["node"]) for name in names]
        return planned

    def _make_node(self, name: str, body: Json, queued: str | None = None) -> None:
        points = []
        for _ in range(host_count(body)):
            self.hosts += 1
            opens = body.get("networkConfig", {}).get("enableExternalIps")
            access = {"externalIp": address(self.hosts, external=True)} if opens else {}
            points.append({"ipAddress": address(self.hosts), "port": 8470, "accessConfig": access})
        several = bool(queued) and len(self._planned(self.queued[queued])) > 1
        node = {**body, "name": name, "id": str(7000 + self.hosts), "state": "READY", "health": "HEALTHY"}
        node |= {"apiVersion": "V2", "createTime": _now(), "networkEndpoints": points, "multisliceNode": several}
        self.nodes[name] = node | ({"queuedResource": queued} if queued else {})

    def _remove_node(self, name: str) -> None:
        hosts = self.addresses(name)
        del self.nodes[name]
        self.ended(hosts)

    def _create_queued(self, at: Json, query: Json, body: Any) -> Json:
        name = f"{_parent(at)}/queuedResources/{query['queuedResourceId']}"
        if name in self.queued:
            raise Refused(409, f"Resource '{name}' already exists")
        for spec in body["tpu"]["nodeSpec"]:
            if (wanted := spec["node"].get("acceleratorType")) and wanted not in TYPES:
                raise Refused(400, f'Accelerator type "{wanted}" is not found in zone "{at["zone"]}".')
        self.queued[name] = {**body, "name": name, "createTime": _now()}
        self.set_state(name, self.path[0])
        return self._operation(at, name, "create", self.queued[name], "QueuedResource")

    def _get_queued(self, at: Json, query: Json, body: Any) -> Json:
        name = self._named(self.queued, at, "queuedResources")
        state = self.queued[name]["state"]["state"]
        if state in self.path[:-1]:
            self.set_state(name, self.path[self.path.index(state) + 1])
        return self.queued[name]

    def _delete_queued(self, at: Json, query: Json, body: Any) -> Json:
        name = self._named(self.queued, at, "queuedResources")
        nodes = self.nodes_of(name)
        if nodes and query.get("force", "").lower() != "true":
            message = f"Queued resource {name} has nodes: {', '.join(nodes)}; set force to delete them too"
            raise Refused(400, message, "FAILED_PRECONDITION")
        for node in nodes:
            self._remove_node(node)
        del self.queued[name]
        return self._operation(at, name, "delete")

    def _reset_queued(self, at: Json, query: Json, body: Any) -> Json:
        name = self._named(self.queued, at, "queuedResources")
        self.set_state(name, "WAITING_FOR_RESOURCES")
        return self._operation(at, name, "reset")

    def _create_node(self, at: Json, query: Json, body: Any) -> Json:
        name = f"{_parent(at)}/nodes/{query['nodeId']}"
        if name in self.nodes:
            raise Refused(409, f"Resource '{name}' already exists")
        self._make_node(name, body)
        return self._operation(at, name, "create", self.nodes[name], "Node")

    def _delete_node(self, at: Json, query: Json, body: Any) -> Json:
        name = self._named(self.nodes, at, "nodes")
        if self.nodes[name].get("queuedResource"):
            raise Refused(400, f"Node {name} belongs to a queued resource", "FAILED_PRECONDITION")
        self._remove_node(name)
        return self._operation(at, name, "delete")

    def _patch_node(self, at: Json, query: Json, body: Any) -> Json:
        name = self._named(self.nodes, at, "nodes")
        self.nodes[name] |= {field: body.get(field, {}) for field in query["updateMask"].split(",")}
        return self._operation(at, name, "update", self.nodes[name], "Node")

    def _node_verb(self, at: Json, query: Json, body: Any) -> Json:
        name = self._named(self.nodes, at, "nodes")
        if at["verb"] == "getGuestAttributes":
            wanted = [int(word) for word in (body or {}).get("workerIds", []) if word != ""]
            wanted = wanted or [*range(len(self.nodes[name]["networkEndpoints"]))]
            return {"guestAttributes": [_guest_attributes(self.nodes[name], number) for number in wanted]}
        self.nodes[name]["state"] = {"start": "READY", "stop": "STOPPED"}.get(at["verb"], "READY")
        return self._operation(at, name, at["verb"], self.nodes[name], "Node")

    def _login(self, at: Json, query: Json, body: Any) -> Json:
        if body:
            self.keys.append(body["key"])
        account = {"primary": True, "username": "ada_example_com", "uid": "1234", "gid": "1234", "accountId": "p"}
        keys = {str(number): {"key": key} for number, key in enumerate(self.keys)}
        profile = {"name": at["user"], "posixAccounts": [account], "sshPublicKeys": keys}
        return {"loginProfile": profile} if body else profile

    def _project(self, at: Json, query: Json, body: Any) -> Json:
        items = [{"key": key, "value": value} for key, value in self.project_metadata.items()]
        metadata = {"kind": "compute#metadata", "items": items}
        return {"kind": "compute#project", "name": at["project"], "id": "1", "commonInstanceMetadata": metadata}


_TYPE, _EMPTY = "type.googleapis.com/google.cloud.tpu.v2", "type.googleapis.com/google.protobuf.Empty"


def _guest_attributes(node: Json, number: int) -> Json:
    key = f"AAAAC3NzaC1lZDI1NTE5AAAAfake{node['id']}{number:04d}"  # another one for every machine that is made
    items = [
        {"namespace": "hostkeys", "key": "ssh-ed25519", "value": key},
        {"namespace": "guestInventory", "key": "hostname", "value": f"t1v-n-{node['id']}-w-{number}"},
    ]
    return {"queryPath": "", "queryValue": {"items": items}}


def _parent(at: Json) -> str:
    return f"projects/{at['project']}/locations/{at['zone']}"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _list(where: str, kind: str) -> Callable[..., Json]:
    def answer(tpu: Tpu, at: Json, query: Json, body: Any) -> Json:
        prefix = f"{_parent(at)}/{kind}/"
        return {kind: [value for name, value in getattr(tpu, where).items() if name.startswith(prefix)]}

    return answer


def _catalogue(kind: str, field: str, known: Sequence[str]) -> Callable[..., Json]:
    def answer(tpu: Tpu, at: Json, query: Json, body: Any) -> Json:
        entries = {value: {"name": f"{_parent(at)}/{kind}/{value}", field: value} for value in known}
        if "id" not in at:
            return {kind: [*entries.values()]}
        if at["id"] not in entries:
            raise Refused(404, f"Resource '{_parent(at)}/{kind}/{at['id']}' was not found")
        return entries[at["id"]]

    return answer


_IN = r"/v2(?:alpha1)?/projects/(?P<project>[^/]+)/locations/(?P<zone>[^/]+)"
_ID = r"/(?P<id>[^/:]+)"
_TYPES, _VERSIONS = _catalogue("acceleratorTypes", "type", TYPES), _catalogue("runtimeVersions", "version", VERSIONS)
_ROUTES: tuple[tuple[str, str, Callable[..., Json]], ...] = (
    ("POST", f"{_IN}/queuedResources", Tpu._create_queued),
    ("GET", f"{_IN}/queuedResources", _list("queued", "queuedResources")),
    ("GET", f"{_IN}/queuedResources{_ID}", Tpu._get_queued),
    ("DELETE", f"{_IN}/queuedResources{_ID}", Tpu._delete_queued),
    ("POST", f"{_IN}/queuedResources{_ID}:reset", Tpu._reset_queued),
    ("POST", f"{_IN}/nodes", Tpu._create_node),
    ("GET", f"{_IN}/nodes", _list("nodes", "nodes")),
    ("GET", f"{_IN}/nodes{_ID}", lambda tpu, at, query, body: tpu.nodes[tpu._named(tpu.nodes, at, "nodes")]),
    ("DELETE", f"{_IN}/nodes{_ID}", Tpu._delete_node),
    ("PATCH", f"{_IN}/nodes{_ID}", Tpu._patch_node),
    ("POST", f"{_IN}/nodes{_ID}:(?P<verb>[A-Za-z]+)", Tpu._node_verb),
    ("GET", f"{_IN}/operations{_ID}", Tpu._get_operation),
    ("GET", f"{_IN}/acceleratorTypes", _TYPES),
    ("GET", f"{_IN}/acceleratorTypes{_ID}", _TYPES),
    ("GET", f"{_IN}/runtimeVersions", _VERSIONS),
    ("GET", f"{_IN}/runtimeVersions{_ID}", _VERSIONS),
    ("GET", "/compute/(?:v1|alpha|beta)/projects/(?P<project>[^/]+)", Tpu._project),
    ("GET", "/v1(?:alpha|beta)?/users/(?P<user>[^/]+)/loginProfile", Tpu._login),
    ("POST", "/v1(?:alpha|beta)?/users/(?P<user>[^/]+):importSshPublicKey", Tpu._login),
)
