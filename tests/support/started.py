"""A workstation from which runs are started: a context with a bucket in memory, a configuration with data, and what
stands for machines and hosts."""

import argparse
import contextlib
import dataclasses
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launch.cloud.gcloud import Result
from launch.context import Context
from launch.remote import ship
from launch.settings import load
from tests.support.launch_hosts import Records, ScratchHost, ScratchHosts
from tests.support.repository import ROOT

CONFIG = """
run: {dir: runs/mine}
model: {preset: tiny}
data: {dir: %s}
batch: {rows: 4, row_length: 256, max_sequence_length: 256}
objective: {name: sft}
schedule: {name: cosine, learning_rate: 1.0e-4, steps: 5}
"""
SETTINGS = {"name": "demo", "project": "p", "zone": "us-central2-b", "type": "v4-16", "bucket": "gs://bucket"}


@dataclasses.dataclass
class Ready:
    """Hosts that were set up."""

    code: str = "c1"
    environment: str = "e1"
    python: str = ""
    cwd: str = str(ROOT)
    source: ship.Code = dataclasses.field(default_factory=lambda: ship.Code({"a": (b"", False)}))


def workstation(directory: Path, monkeypatch: Any) -> Context:
    """A context in a directory. `printed` and `calls` have what it shows, and what it asks gcloud."""
    monkeypatch.chdir(directory)
    made = Context(load("/dev/null", SETTINGS), say=(printed := []).append)
    calls: list[list[str]] = []

    def gcloud(words, stdin, timeout_s):
        calls.append(list(words))
        return Result(0, "", "")

    made.runner = gcloud
    bucket = Records("gs://bucket")
    made.__dict__ |= {"bucket": bucket, "records": bucket.at("launch", "demo"), "printed": printed, "calls": calls}
    made.__dict__["folder"] = lambda url: Records(url, bucket.objects)
    monkeypatch.setattr(made, "warn", printed.append)
    return made


def write_config(directory: Path) -> str:
    """Writes a configuration and the data that it names; its name."""
    (directory / "data/train").mkdir(parents=True)
    (directory / "data/manifest.json").write_text("{}")
    (directory / "data/train/part").write_bytes(b"abc")
    (directory / "mine.yaml").write_text(CONFIG % "data")
    return "mine.yaml"


@contextlib.contextmanager
def two_hosts(directory: Path) -> Iterator[ScratchHosts]:
    """Two hosts; ends what runs there."""
    made = ScratchHosts([ScratchHost(directory / f"host{number}", number) for number in range(2)])
    yield made
    for host in made.hosts:
        host.close()


@dataclasses.dataclass
class Worker:
    """Of `Machines`."""

    number: int
    internal: str = "10.0.0.2"


@dataclasses.dataclass
class Machines:
    """What `machines.find` sees."""

    workers: tuple[Worker, ...]
    ours: bool = True
    ready: bool = True
    state: str = "ACTIVE"
    gone: bool = False
    nodes: tuple[str, ...] = ("demo",)


def stand_for_cloud(monkeypatch: Any, hosts: ScratchHosts) -> Any:
    """Stands for the modules of machines, hosts and environment; `now` is what the first of them sees."""
    from launch import cloud, remote

    def bring(*_: Any, **more: Any) -> Ready:
        vars(machines).update(more)
        return Ready(python="~/python")

    machines = types.SimpleNamespace(find=lambda context: machines.now, now=Machines((Worker(0), Worker(1))))
    stands = {
        (cloud, "machines"): machines,
        (remote, "environment"): types.SimpleNamespace(
            bring=lambda *_, **more: vars(machines).update(more) or Ready(python="~/python")
        ),
        (remote, "hosts"): types.SimpleNamespace(connect=lambda context, machines: hosts),
    }
    for (package, name), module in stands.items():
        monkeypatch.setitem(sys.modules, f"{package.__name__}.{name}", module)
        monkeypatch.setattr(package, name, module, raising=False)
    return machines


def arguments(command: Any, *words: str) -> argparse.Namespace:
    """The arguments of a command."""
    parser = argparse.ArgumentParser()
    command.add(parser)
    return parser.parse_args(words)
