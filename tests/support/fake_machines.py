"""A stand-in for `gcloud compute tpus` in this process: a `runner` with states that a test sets, and its own time."""

import dataclasses
import json
import re
import signal
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from launch.cloud import machines
from launch.cloud.gcloud import Result
from launch.context import Context
from launch.settings import Settings

PARENT = "projects/p/locations/us-central2-b"
NOT_FOUND = f"ERROR: (gcloud.compute.tpus.x) NOT_FOUND: Resource '{PARENT}/x' was not found"


def settings(**changes: Any) -> Settings:
    values = {"name": "janus", "project": "p", "zone": "us-central2-b", "type": "v4-16", **changes}
    return Settings.model_validate(values)


@dataclasses.dataclass
class Fault:
    """What happens to the commands that match, `times` times."""

    match: str
    error: str
    times: int = 1
    lands: bool = False
    """Whether the command does its work nevertheless."""


class FakeMachines:
    """Queued resources and TPU VMs of one zone.

    Attributes:
        states: those that the next looks at a queued resource find, one each; the last one stays.
        on: called by the name of a stage (create, describe, list, delete, sleep) when it is reached.
    """

    def __init__(self, states: Sequence[str] = ("ACCEPTED", "PROVISIONING", "ACTIVE")):
        self.queued: dict[str, dict[str, Any]] = {}
        self.nodes: dict[str, dict[str, Any]] = {}
        self.states, self.faults, self.commands = list(states), [], []
        self.on: dict[str, Callable[[], None]] = {}
        self.failed: dict[str, Any] | None = None
        self.now_s = 0.0
        self.lines: list[str] = []

    def context(self, **changes: Any) -> Context:
        dry_run = changes.pop("dry_run", False)
        return Context(settings(**changes), dry_run=dry_run, say=self.lines.append, runner=self.run)

    def keep_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Lets the launch sleep in this stand-in's time."""
        monkeypatch.setattr(machines, "_sleep", self.sleep)
        monkeypatch.setattr(machines, "_clock", lambda: self.now_s)

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self._reach("sleep")

    def run(self, words: Sequence[str], stdin: str | None = None, timeout_s: float | None = None) -> Result:
        line = " ".join(words)
        self.commands.append(line)
        self.now_s += 2
        fault = next((fault for fault in self.faults if fault.times > 0 and re.search(fault.match, line)), None)
        if fault is not None:
            fault.times -= 1
            if not fault.lands:
                return Result(1, "", fault.error)
        flags = dict(re.findall(r"--([\w-]+)=(\S+)", line))
        what, verb, *names = [word for word in words[3:] if not word.startswith("--")]
        answer = getattr(self, f"_{what}_{verb}".replace("-", "_"))(*names, flags)
        self._reach(verb)
        if fault is not None:
            return Result(1, "", fault.error)
        return Result(1, "", NOT_FOUND) if answer is None else Result(0, json.dumps(answer), "")

    def add_node(self, name: str, *, labels: dict[str, str] | None = None, **fields: Any) -> None:
        number = len(self.nodes)
        self.nodes[name] = {
            "name": f"{PARENT}/nodes/{name}",
            "state": "READY",
            "health": "HEALTHY",
            "acceleratorType": "v4-16",
            "createTime": f"2026-01-01T00:00:0{number}Z",
            "labels": labels or {},
            "networkEndpoints": [
                {"ipAddress": f"10.0.{number}.{index}", "accessConfig": {"externalIp": f"127.1.{number}.{index}"}}
                for index in range(2)
            ],
            **fields,
        }

    def interrupt(self) -> None:
        """Ctrl-C, once."""
        self.on.clear()
        raise KeyboardInterrupt(signal.SIGINT)

    def _reach(self, stage: str) -> None:
        if act := self.on.get(stage):
            act()

    def _queued_resources_create(self, name: str, flags: dict[str, str]) -> dict[str, Any]:
        count = int(flags.get("node-count", 1))
        slices = {"multisliceParams": {"nodeCount": count, "nodeIdPrefix": flags.get("node-prefix")}}
        node = {
            "acceleratorType": flags["accelerator-type"],
            "labels": dict(label.split("=") for label in flags["labels"].split(",")),
        }
        spec = {"parent": PARENT, "node": node, **({"nodeId": flags["node-id"]} if count == 1 else slices)}
        self.queued[name] = {
            "name": f"{PARENT}/queuedResources/{name}",
            "createTime": f"2026-01-01T00:{len(self.commands):02}:00Z",
            "state": {"state": "ACCEPTED"},
            "tpu": {"nodeSpec": [spec]},
        }
        return {}

    def _queued_resources_describe(self, name: str, flags: dict[str, str]) -> dict[str, Any] | None:
        if name not in self.queued:
            return None
        queued, state = self.queued[name], self.states.pop(0) if len(self.states) > 1 else self.states[0]
        queued["state"] = {"state": state}
        if state == "FAILED":
            queued["state"]["failedData"] = {"error": self.failed}
        (spec,) = queued["tpu"]["nodeSpec"]
        many = spec.get("multisliceParams")
        names = [spec["nodeId"]] if many is None else [f"{many['nodeIdPrefix']}-{n}" for n in range(many["nodeCount"])]
        for node in names if state == "ACTIVE" else ():
            if node not in self.nodes:
                self.add_node(node, queuedResource=queued["name"], **spec["node"])
        return queued

    def _queued_resources_delete(self, name: str, flags: dict[str, str]) -> dict[str, Any] | None:
        for node in [node for node, has in self.nodes.items() if has.get("queuedResource", "").endswith(f"/{name}")]:
            del self.nodes[node]
        return self.queued.pop(name, None)

    def _tpu_vm_list(self, flags: dict[str, str]) -> list[dict[str, Any]]:
        return list(self.nodes.values())

    def _tpu_vm_describe(self, name: str, flags: dict[str, str]) -> dict[str, Any] | None:
        return self.nodes.get(name)

    def _tpu_vm_delete(self, name: str, flags: dict[str, str]) -> dict[str, Any] | None:
        return self.nodes.pop(name, None)

    def _tpu_vm_update(self, name: str, flags: dict[str, str]) -> dict[str, Any]:
        self.nodes[name]["labels"] |= dict(label.split("=") for label in flags["update-labels"].split(","))
        return {}
