"""Hosts of a launch as scratch home directories, with a small program in place of `janus`; a bucket in memory."""

import contextlib
import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launch.cloud.bucket import Changed, Stored
from launch.errors import HostError
from launch.records import Run, Spec
from launch.remote.hosts import Answer
from tests.support.repository import ROOT

STAND_IN = """
import json, os, signal, subprocess, sys, time
print("argv " + json.dumps(sys.argv[1:]), flush=True)
print("env " + json.dumps({k: os.environ.get(k) for k in ("JANUS_RUN_OWNER", "JANUS_RUN_ATTEMPT", "MORE")}), flush=True)
mode = os.environ.get("MODE", "quick")
print("train  1,234/5,000  loss 1.5", flush=True)
if mode == "quick":
    for word in sys.argv[1:]:
        if word.endswith(".yaml"):
            print("file " + json.dumps(open(word).read()), flush=True)
elif mode == "fails":
    print("error: loss is not finite at step 7", file=sys.stderr)
    print("a remark after it", file=sys.stderr)
    sys.exit(12)
elif mode == "child":
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    time.sleep(60)
elif mode == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)
elif mode == "saves":  # as `janus train`: a second signal ends it at once
    def heard(number, frame):
        signal.signal(number, lambda number, frame: os._exit(128 + number))
        print("SIGTERM: the run will save and stop; a second one ends it at once", file=sys.stderr, flush=True)
        time.sleep(3)
        print("stopped: runs/x: step 1234 is saved; SIGTERM ended the run", file=sys.stderr)
        os._exit(10)
    signal.signal(signal.SIGTERM, heard)
    print("ready", flush=True)
    time.sleep(60)
else:
    def save(number, frame):
        time.sleep(0.5)
        print("stopped: runs/x: step 1234 is saved; SIGTERM ended the run", file=sys.stderr)
        sys.exit(10)
    signal.signal(signal.SIGTERM, save)
    print("ready", flush=True)
    time.sleep(60)
"""


class ScratchHost:
    """A home directory whose agent runs as over ssh."""

    def __init__(self, home: Path, number: int = 0, node: str = "node", **env: str):
        self.home, self.number, self.index, self.slice, self.node = home, number, number, 0, node
        self.name = f"worker {number} ({node})"
        self.env = {
            "HOME": str(home),
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "NO_GCE_CHECK": "true",
            **env,
        }
        home.mkdir(parents=True, exist_ok=True)
        (home / "stand_in.py").write_text(STAND_IN)
        self.python = home / "python"
        stand_in = shlex.join([sys.executable, str(home / "stand_in.py")])
        janus = f'if [ "$2" = janus_jax.cli ]; then shift 2; exec {stand_in} "$@"; fi'
        text = f'#!/bin/sh\n{janus}\nexec {sys.executable} "$@"\n'
        self.python.write_text(text)
        self.python.chmod(0o755)

    def agent(self, name: str, message: dict[str, Any] | None = None) -> dict[str, Any]:
        """The answer of the host's agent."""
        done = subprocess.run(
            [sys.executable, "-m", "launch.host.agent", name],
            input=json.dumps(message or {}),
            env=self.env,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def spec(self, run: Run, **changes: Any) -> dict[str, Any]:
        """A message that starts a run here."""
        given = Spec(run.to_json(), self.number, 1, None, 1, None, "~/python", str(ROOT))
        return dataclasses.replace(given, **changes).to_json()

    def wait(self, *states: str, seconds: float = 20) -> dict[str, Any]:
        """The state, as soon as it is one of these."""
        return until(lambda: (now := self.agent("state"))["state"] in states and now, seconds)

    def pids(self) -> dict[str, Any]:
        """What the supervisor wrote of processes."""
        return json.loads((self.home / "janus/run/supervisor.pid").read_text())

    def close(self) -> None:
        """Ends what runs here."""
        with contextlib.suppress(OSError, ValueError):
            pids = self.pids()
            for pid in (pids["pid"], pids["child"]):
                with contextlib.suppress(ProcessLookupError, TypeError):
                    os.kill(pid, signal.SIGKILL)


def until(look: Callable[[], Any], seconds: float = 20) -> Any:
    """What `look` returns, once that is true."""
    deadline = time.monotonic() + seconds
    while not (value := look()):
        assert time.monotonic() < deadline, "it did not come in time"
        time.sleep(0.05)
    return value


def a_run(mode: str = "quick", **changes: Any) -> Run:
    """A run of the stand-in."""
    given = Run("demo-1", "owner", ["train", "c.yaml"], {"c.yaml": "a: 1\n"}, "gs://b/r", "code", "env", 0.0, "me")
    return dataclasses.replace(given, **{"env": {"MODE": mode}, **changes})


class ScratchHosts:
    """What `launch.remote.hosts.Hosts` offers, over scratch hosts. Numbers in `down` cannot be reached."""

    def __init__(self, hosts: list[ScratchHost]):
        self.hosts, self.down, self.calls = hosts, set[int](), list[str]()

    def __enter__(self) -> "ScratchHosts":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def agent(
        self, name: str, message: Any = None, *, only: Any = None, timeout_s: float = 120
    ) -> list[dict[str, Any]]:
        """Answers of all hosts; HostError names those that refuse."""
        self.calls.append(name)
        answers = [json.loads(a.out or '{"error": "lost"}') for a in self._ask(name, message, only)]
        bad = [f"{h.name}: {a['error']}" for h, a in zip(only or self.hosts, answers, strict=True) if "error" in a]
        if bad:
            raise HostError("; ".join(bad))
        return answers

    def each(self, command: str, *, stdin: Any = None, timeout_s: float = 120, tries: int = 1) -> list[Answer]:
        """Answers of the agent's command in a shell command."""
        self.calls.append(command.split()[-1])
        return self._ask(command.split()[-1], json.loads(stdin))

    def _ask(self, name: str, message: Any, only: Any = None) -> list[Answer]:
        answers = []
        for host in only or self.hosts:
            if host.number in self.down:
                answers.append(Answer(host, 255, "", "Connection timed out", 0.0))
                continue
            value = host.agent(name, message(host) if callable(message) else message)
            answers.append(Answer(host, 0, json.dumps(value), "", 0.0))
        return answers


class Records:
    """A folder of a bucket, in memory."""

    def __init__(self, url: str = "gs://bucket/launch/demo", objects: dict[str, Stored] | None = None):
        self.url, self.objects = url, {} if objects is None else objects
        self.uploaded: list[tuple[str, str]] = []

    def at(self, *names: str) -> "Records":
        """A folder below."""
        below = Records("/".join([self.url, *names]), self.objects)
        below.uploaded = self.uploaded
        return below

    def read(self, name: str) -> Stored | None:
        """An object."""
        return self.objects.get(f"{self.url}/{name}")

    def write(self, name: str, value: Any, *, generation: int | None = None) -> None:
        """Writes an object, if it has this generation."""
        old = self.read(name)
        now = 0 if old is None else old.generation
        if generation is not None and generation != now:
            raise Changed(name)
        self.objects[f"{self.url}/{name}"] = Stored(json.loads(json.dumps(value)), now + 1, time.time())

    def names(self, pattern: str) -> list[str]:
        """A run directory without checkpoints."""
        return []

    def upload(self, source: str, name: str, *, once: bool = False) -> None:
        """Notes an upload."""
        self.uploaded.append((source, f"{self.url}/{name}"))
