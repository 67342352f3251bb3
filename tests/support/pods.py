"""A slice of hosts for tests: directories behind the ssh shim, and a gcloud that only says how ssh reaches them."""

import json
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from launch.cloud.gcloud import Result
from launch.cloud.nodes import Machines, Worker
from launch.context import Context
from launch.remote.hosts import Hosts, connect
from launch.settings import Settings
from tests.support.repository import ROOT


def machines(hosts: int = 2, slices: int = 1, token: str = "t1") -> Machines:
    """Machines of so many hosts a slice."""
    nodes = tuple("pod" if slices == 1 else f"pod-{number}" for number in range(slices))
    workers = tuple(
        Worker(number, number // hosts, number % hosts, nodes[number // hosts], f"10.0.0.{number}", f"127.9.0.{number}")
        for number in range(hosts * slices)
    )
    created = "2026-11-27T00:00:00Z"
    return Machines("pod", "ACTIVE", "HEALTHY", workers, nodes, True, token, created)


class Pod:
    """Hosts in a scratch folder, and what was asked of gcloud.

    Args:
        settings: more keys of the settings.
    """

    def __init__(self, scratch: Path, monkeypatch, hosts: int = 2, slices: int = 1, **settings):
        self.scratch, self.asked = scratch, []
        self._short = tempfile.TemporaryDirectory(prefix="pod")  # names of sockets have a bound
        self.refusals: list[str] = []
        """What gcloud prints and fails with at the next calls that push the key."""
        self.machines = machines(hosts, slices)
        self.printed: list[str] = []
        key = scratch / "key"
        key.touch()
        values = {"name": "pod", "project": "p", "zone": "us-central2-b", "type": "v4-16", "ssh_key": str(key)}
        self.settings = Settings.model_validate({"python": sys.executable, **values, **settings})
        (scratch / "cache").mkdir()
        shims, path = ROOT / "tests/support/shims", os.environ["PATH"]
        environment = {"SHIM_ROOT": scratch / "hosts", "SHIM_LOG": scratch / "ssh.jsonl", "SHIM_PASS": "JAX_PLATFORMS"}
        environment |= {"PATH": f"{shims}:{path}", "XDG_RUNTIME_DIR": self._short.name, "HOME": scratch}
        environment |= {"XDG_CACHE_HOME": scratch / "cache"}
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setattr("launch.remote.hosts.PAUSE_S", 0.0)
        monkeypatch.setattr("launch.remote.lines.PAUSE_S", 0.0)
        monkeypatch.setattr("launch.remote.environment._chips_per_host", lambda context: 4)

    def context(self, **more) -> Context:
        """For a command."""
        return Context(self.settings, say=self.printed.append, runner=self.gcloud, **more)

    def connect(self, **more) -> Hosts:
        """The hosts, as a command gets them."""
        return connect(self.context(**more), self.machines)  # pyright: ignore[reportArgumentType]

    def home(self, number: int) -> Path:
        """The home directory of a host."""
        home = self.scratch / f"hosts/127.9.0.{number}"
        home.mkdir(parents=True, exist_ok=True)
        return home

    def fail(self, number: int, how: str, text: str = "") -> None:
        """`down`, or `drop` after so many seconds, for a host."""
        Path(f"{self.home(number)}.{how}").write_text(text)

    def log(self) -> list[dict]:
        """What the ssh shim noted."""
        path = self.scratch / "ssh.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def calls(self) -> list[list[str]]:
        """Words of each call of ssh."""
        return [event["words"] for event in self.log() if "words" in event]

    def gcloud(self, words: Sequence[str], stdin: str | None, timeout_s: float | None) -> Result:
        """Answers `tpu-vm ssh` as the real one does; `--dry-run` in another order than that of the workers."""
        self.asked.append(list(words))
        node = words[words.index("ssh") + 1]
        if "--dry-run" not in words:
            return Result(1, "", self.refusals.pop(0)) if self.refusals else Result(0, "", "")
        lines = [
            f"/usr/bin/ssh -T -i {shlex.quote(self.settings.ssh_key)} -o CheckHostIP=no -o HashKnownHosts=no "
            f"-o HostKeyAlias=tpu.7-{worker.index}-00 -o IdentitiesOnly=yes -o StrictHostKeyChecking=no "
            f"-o UserKnownHostsFile={self.scratch}/known me@{worker.external} -- true"
            for worker in self.machines.workers
            if worker.node == node
        ]
        shim = str(ROOT / "tests/support/shims/ssh")
        return Result(0, "\n".join(reversed(lines)).replace("/usr/bin/ssh", shim) + "\n", "Using ssh batch size of 1.")
