"""A cloud on this machine: TPU API, bucket server, metadata server, and hosts that are directories behind `ssh`.

    with cloud(tmp_path) as rehearsal:
        rehearsal.launch("up")
        rehearsal.preempt("janus")

`gcloud` is the real one; skip a test with `needs_gcloud`. Everything that commands write lies in the scratch directory.
At the end `require_clean` fails if a resource, a process of a host, or a private key elsewhere is left.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import buckets
from tests.support.fake_tpu import AT_ONCE, Tpu
from tests.support.google_servers import Metadata, api, running
from tests.support.repository import ROOT

needs_gcloud = pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not installed here")

Done = subprocess.CompletedProcess[str]

DEVICES = 4
"""Of a host: CPU devices take the place of chips."""
PROJECT, ZONE, BUCKET = "rehearsal-project", "us-central2-b", "gs://rehearsal-bucket"

_PASSED = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL", "GOOGLE_AUTH_TOKEN_FOR_TESTING", "JAX_PLATFORMS")
_PASSED += ("XLA_FLAGS", "OMP_NUM_THREADS", "HF_HUB_OFFLINE", "TF_CPP_MIN_LOG_LEVEL", "JAX_COMPILATION_CACHE_DIR")
_PASSED += ("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",)
"""Variables of the rehearsal that hosts have too."""


@dataclasses.dataclass
class Cloud:
    """A running cloud. `tpu` has what an operator does: states, faults, operations."""

    scratch: Path
    tpu: Tpu
    metadata: Metadata
    env: dict[str, str]
    """For every command: contains gcloud, and puts the shims first in PATH."""
    storage: str
    """URL of the bucket server."""

    @property
    def buckets(self) -> Path:
        """What the bucket server holds: BUCKET/OBJECT are files."""
        return self.scratch / "buckets"

    def run(
        self, *words: object, check: bool = True, timeout_s: float = 300, **more: Any
    ) -> subprocess.CompletedProcess:
        """Runs a command in the rehearsal's environment; with `check`, it has to succeed."""
        done = subprocess.run(
            [*map(str, words)], env=self.env, capture_output=True, text=True, timeout=timeout_s, **{"cwd": ROOT, **more}
        )
        assert not check or done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def gcloud(self, *words: str, **more: Any) -> Done:
        """`gcloud compute tpus WORDS` for the rehearsal's project and zone."""
        return self.run("gcloud", "compute", "tpus", *words, f"--zone={ZONE}", f"--project={PROJECT}", **more)

    def settings(self, **changes: Any) -> Path:
        """Writes settings of a launch of two workers of four devices; returns the file."""
        values = {"name": "janus", "project": PROJECT, "zone": ZONE, "type": "v4-16", "bucket": BUCKET}
        values |= {"provisioning": "spot", "python": sys.executable, **changes}
        path = self.scratch / "tpu.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    def command(self, *words: object) -> list[str]:
        """Words of `python -m launch WORDS` with the settings that were written last."""
        name, *rest = map(str, words)
        return [sys.executable, "-m", "launch", name, "--settings", str(self.scratch / "tpu.yaml"), *rest]

    def launch(self, *words: object, **more: Any) -> Done:
        """Runs `python -m launch WORDS`."""
        return self.run(*self.command(*words), **more)

    @contextlib.contextmanager
    def launching(self, *words: object, log: Path) -> Iterator[subprocess.Popen]:
        """Runs `python -m launch WORDS` beside what is inside; what it prints goes to `log`. Ends it with SIGTERM."""
        with log.open("a") as out:
            process = subprocess.Popen(
                self.command(*words), env=self.env, cwd=ROOT, stdout=out, stderr=out, start_new_session=True
            )
        try:
            yield process
        finally:
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(20)

    # --- Hosts

    def hosts(self, queued: str) -> list[str]:
        """Internal addresses of all hosts that a queued resource has, slice-major by worker number."""
        return [address for node in self.tpu.nodes_of(queued) for address in self.tpu.addresses(node)]

    def home(self, internal: str) -> Path:
        """Home directory of a host."""
        return self.scratch / "hosts" / internal

    def processes(self, internal: str) -> dict[int, str]:
        """{pid: command line} of what runs on a host."""
        return _processes(self.home(internal))

    def kill(self, internal: str, number: int = signal.SIGKILL, matching: str = "") -> list[int]:
        """Sends a signal to processes of a host whose command line holds a text; returns their ids."""
        sent = []
        for pid, line in self.processes(internal).items():
            if matching in line:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
                    sent.append(pid)
        return sent

    def unplug(self, internal: str) -> None:
        """The host cannot be reached any more; its processes go on."""
        _mark(self.home(internal), "down").touch()

    def plug(self, internal: str) -> None:
        """The host can be reached again."""
        _mark(self.home(internal), "down").unlink(missing_ok=True)

    def drop(self, internal: str, after_s: float) -> None:
        """The next connection to the host is lost after some seconds; the command goes on."""
        _mark(self.home(internal), "drop").write_text(str(after_s))

    def preempt(self, queued: str, *, notice_s: float = 0, state: str = "SUSPENDED") -> None:
        """Takes the machines away: their processes are killed, the hosts cannot be reached, the state says why.

        Args:
            notice_s: seconds before, at which the metadata server of each host announces it.
        """
        for address in self.hosts(queued) if notice_s else ():
            self.metadata.announce(address)
        time.sleep(notice_s)
        self.tpu.set_state(queued, state)

    def connections(self) -> list[dict[str, Any]]:
        """What the shims noted: words, begin, end."""
        path = self.scratch / "ssh.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def most_at_once(self) -> int:
        """The largest number of ssh connections that were open together."""
        change = [(event["at"], 1 if event.get("tool") == "ssh" else -1) for event in self.connections()]
        open_now = most = 0
        for _, step in sorted(change):
            open_now += step
            most = max(most, open_now)
        return most

    # --- The end

    def require_clean(self) -> None:
        """Fails if anything is left: a resource, a process of a host, a command's own, a key outside the scratch."""
        left = [*self.tpu.queued, *self.tpu.nodes]
        assert not left, f"left on the server: {left}"
        deadline = time.monotonic() + 5  # of a process that is about to end
        while (alive := _processes(self.scratch)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not alive, f"left running: {alive}"


def _mark(home: Path, what: str) -> Path:
    home.parent.mkdir(parents=True, exist_ok=True)
    return home.with_name(f"{home.name}.{what}")


def _processes(place: Path) -> dict[int, str]:
    """{pid: command line} of processes whose home, or rehearsal, is at or below a directory."""
    marks = [f"{name}={place}/".encode() for name in ("SHIM_HOST", "REHEARSAL")]
    running = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                variables = [variable + b"/" for variable in (entry / "environ").read_bytes().split(b"\0")]
                if any(variable.startswith(mark) for variable in variables for mark in marks):
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                    if line:  # one that has ended and waits for its parent has none
                        running[int(entry.name)] = line
    return running


def _end(place: Path) -> None:
    """Kills all processes of a host, or of all hosts, and those that they start meanwhile."""
    while alive := _processes(place):
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _keys(places: Sequence[Path]) -> set[Path]:
    """Private keys in directories, by their names."""
    return {path for place in places if place.is_dir() for path in place.glob("*") if _is_key(path)}


def _is_key(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return path.is_file() and b"PRIVATE KEY-" in path.open("rb").read(100)
    return False


def environment(scratch: Path, api_port: int, metadata_port: int, storage: str) -> dict[str, str]:
    """The environment of commands: gcloud, ssh and Google's clients reach this machine alone."""
    for name in ("home", "config", "tmp", "hosts"):
        (scratch / name).mkdir(parents=True, exist_ok=True)
    (scratch / "token").write_text("a-token-of-the-rehearsal")
    url, shims = f"http://127.0.0.1:{api_port}", ROOT / "tests/support/shims"
    inherited = {name: os.environ[name] for name in (*_PASSED, "LANG") if name in os.environ}
    flags = [flag for flag in inherited.pop("XLA_FLAGS", "").split() if "device_count" not in flag]
    gcloud = {
        "CLOUDSDK_CONFIG": scratch / "config",
        "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
        "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE": scratch / "token",
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_TPU": f"{url}/",
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE": f"{url}/compute/v1/",
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_OSLOGIN": f"{url}/",
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE": f"{storage}/storage/v1/",
        "CLOUDSDK_CORE_PROJECT": PROJECT,
        "CLOUDSDK_CORE_ACCOUNT": "ada@example.com",
        "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "1",
        "CLOUDSDK_CORE_DISABLE_FILE_LOGGING": "1",
        "CLOUDSDK_CORE_CHECK_GCE_METADATA": "False",
        "CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK": "1",
        "CLOUDSDK_SURVEY_DISABLE_PROMPTS": "1",
        "CLOUDSDK_STORAGE_PROCESS_COUNT": "1",  # copies are small: more processes only take time to start
    }
    storage_clients = {"STORAGE_EMULATOR_HOST": storage, "TENSORSTORE_GCS_HTTP_URL": storage}
    storage_clients |= {"GOOGLE_AUTH_TOKEN_FOR_TESTING": "any"}
    shim = {"SHIM_ROOT": scratch / "hosts", "SHIM_LOG": scratch / "ssh.jsonl", "SHIM_METADATA": metadata_port}
    shim |= {"SHIM_PASS": ",".join([*_PASSED, "REHEARSAL"])}
    own = {"HOME": scratch / "home", "TMPDIR": scratch / "tmp", "PATH": f"{shims}:{os.environ['PATH']}"}
    flags.append(f"--xla_force_host_platform_device_count={DEVICES}")
    own |= {"PYTHONPATH": ROOT, "USER": "ada", "LOGNAME": "ada", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags)}
    own |= {"REHEARSAL": scratch, "NO_GCE_CHECK": "true"}
    return {name: str(value) for name, value in (inherited | gcloud | storage_clients | shim | own).items()}


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Waits until no other rehearsal trains on this machine: JAX's coordinator takes its port on all addresses."""
    with open("/tmp/janus_jax_rehearsal.lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def cloud(scratch: Path, path: Sequence[str] = AT_ONCE) -> Iterator[Cloud]:
    """Runs the servers; yields the cloud. Ends everything, and checks that nothing is left.

    Args:
        scratch: an empty directory, for everything that is written.
        path: states of a queued resource; each time it is asked for, it goes on to the next.
    """
    scratch = scratch.resolve()
    hosts = scratch / "hosts"
    outside = [Path.home(), Path.home() / ".ssh"]
    before = _keys(outside)

    def ended(addresses: list[str]) -> None:
        for address in addresses:
            _mark(hosts / address, "down").touch()
            _end(hosts / address)

    tpu = Tpu(path, ended)
    metadata = Metadata(tpu)
    (scratch / "buckets" / BUCKET.removeprefix("gs://")).mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        storage = stack.enter_context(buckets.server(scratch / "buckets"))
        api_port = stack.enter_context(running(api(tpu, log=scratch / "requests.jsonl")))
        metadata_port = stack.enter_context(running(metadata.server()))
        stack.callback(_end, scratch)
        running_cloud = Cloud(scratch, tpu, metadata, environment(scratch, api_port, metadata_port, storage), storage)
        yield running_cloud
        running_cloud.require_clean()
        assert _keys(outside) == before, f"keys outside the scratch directory: {_keys(outside) - before}"
