"""A launch in its own time: workstations, machines, hosts, a training with its lock, and a bucket. The code of launch
runs in threads of which one at a time goes on; each call of the cloud, and each sleep, is where another may go on."""

import contextlib
import datetime
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from launch.cloud.bucket import Changed, Entry
from launch.cloud.gcloud import Result
from launch.context import Context
from launch.errors import CloudError, HostError, Kind
from launch.records import Heartbeat
from launch.remote.hosts import Answer
from launch.settings import Settings
from tests.support.fake_machines import NOT_FOUND, PARENT
from tests.support.launches import SETTINGS, FakeBucket, Store
from tests.support.simulated_time import Event, Mutex, Serial, Thread, Time

STEPS, STEP_S, SAVE = 20, 30.0, 4
LOCK_STALE_S = 60.0
LOST = "ERROR: (gcloud.x) Network is unreachable"


class Ticking(Store):
    """A store whose clock is that of the world."""

    def __init__(self, world: Time):
        self._world = world
        super().__init__()

    @property
    def now(self) -> float:
        return 1_000_000.0 + self._world.now

    @now.setter
    def now(self, value: float) -> None: ...


class World(Time):
    """Everything, and its time. `trouble` has what must never be."""

    def __init__(self, *, capacity: bool = True) -> None:
        super().__init__()
        self.store, self.capacity, self.bucket_up = Ticking(self), capacity, True
        self.queued: dict[str, dict[str, Any]] = {}
        self.hosts: dict[tuple[str, int], Host] = {}
        self.creations, self.printed = 0, list[str]()
        self.lock: dict[str, Any] | None = None
        self.step = self.saved = 0
        self.places: list[tuple[int, int]] = []
        self.advanced: list[tuple[str, int, int]] = []
        self.begun: list[tuple[float, str]] = []
        self.trouble: list[str] = []

    def context(self, station: int) -> Context:
        def say(line: str) -> None:
            self.printed.append(f"{self.now:8.0f} {self.stations[station].name}: {line}")

        made = Context(Settings.model_validate(SETTINGS), say=say, runner=self.run)
        made.__dict__["bucket"] = Remote(self, "gs://bkt")
        made.__dict__["folder"] = lambda url: Remote(self, url)
        return made

    def run(self, words: Any, stdin: str | None = None, timeout_s: float | None = None) -> Result:
        line = " ".join(words)
        what, verb, *names = [word for word in words[3:] if not word.startswith("--")]
        act = getattr(self, f"_{what}_{verb}".replace("-", "_"))
        try:
            answer = self.call(line, lambda: act(line, *names), lost=lambda: CloudError(Kind.UNAVAILABLE, LOST))
        except CloudError:
            return Result(1, "", LOST)
        if verb == "delete" and isinstance(answer, str):
            while answer in self.queued.values():
                self.pause(5.0)
            return Result(0, "{}", "")
        if isinstance(answer, Result):
            return answer
        return Result(1, "", NOT_FOUND) if answer is None else Result(0, json.dumps(answer), "")

    # Machines

    def _queued_resources_create(self, line: str, name: str) -> Any:
        if name in self.queued:
            return Result(1, "", "ERROR: (gcloud.x) ALREADY_EXISTS: Resource exists")
        labels = line.partition("--labels=")[2].split()[0]
        self.creations += 1
        self.make(name, dict(label.split("=") for label in labels.split(",")))
        return {}

    def make(self, name: str, labels: dict[str, str], *, ready: bool = False) -> dict[str, Any]:
        node = {"acceleratorType": "v4-16", "labels": labels}
        created = datetime.datetime.fromtimestamp(self.store.now, datetime.UTC).isoformat()
        queued = {
            "name": f"{PARENT}/queuedResources/{name}",
            "createTime": created,
            "state": {"state": "WAITING_FOR_RESOURCES"},
            "tpu": {"nodeSpec": [{"parent": PARENT, "node": node, "nodeId": name}]},
        }
        self.queued[name] = queued
        self._serve(queued) if ready else self.at(40.0, lambda: self._serve(queued))
        return queued

    def _serve(self, queued: dict[str, Any]) -> None:
        if queued not in self.queued.values() or queued["state"]["state"] != "WAITING_FOR_RESOURCES":
            return
        if not self.capacity:
            self.at(60.0, lambda: self._serve(queued))
            return
        queued["state"] = {"state": "ACTIVE"}
        token = token_of(queued)
        for number in range(2):
            self.hosts[token, number] = Host(self, token, number)

    def preempt(self, *, softly: bool = False) -> None:
        for queued in list(self.queued.values()):
            if queued["state"]["state"] == "ACTIVE":
                token = token_of(queued)
                if softly:
                    queued["state"] = {"state": "SUSPENDING"}
                    [host.end(10) for key, host in self.hosts.items() if key[0] == token]
                    self.at(30.0, lambda queued=queued: self._off(queued, "SUSPENDED"))
                else:
                    self._off(queued, "SUSPENDED")

    def _off(self, queued: dict[str, Any], state: str) -> None:
        queued["state"] = {"state": state}
        for key in [key for key in self.hosts if key[0] == token_of(queued)]:
            self.hosts.pop(key).alive = False

    def _queued_resources_describe(self, line: str, name: str) -> Any:
        return self.queued.get(name)

    def _queued_resources_delete(self, line: str, name: str) -> Any:
        queued = self.queued.get(name)
        if queued is None:
            return None
        if "janus-launch" not in queued["tpu"]["nodeSpec"][0]["node"]["labels"]:
            self.trouble.append(f"what others made is deleted: {name}")
        self._off(queued, "DELETING")
        self.at(30.0, lambda: self.queued.pop(name) if self.queued.get(name) is queued else None)
        return {}

    def _tpu_vm_list(self, line: str) -> list[dict[str, Any]]:
        nodes = []
        for name, queued in self.queued.items():
            if queued["state"]["state"] == "ACTIVE":
                ends = [{"ipAddress": f"10.0.0.{number}"} for number in range(2)]
                node = {**queued["tpu"]["nodeSpec"][0]["node"], "name": f"{PARENT}/nodes/{name}", "state": "READY"}
                nodes.append({**node, "queuedResource": queued["name"], "networkEndpoints": ends})
        return nodes

    def _tpu_vm_describe(self, line: str, name: str) -> Any:
        return None

    # Training

    def alive(self) -> "list[Host]":
        return [host for host in self.hosts.values() if host.state == "running"]


def token_of(queued: dict[str, Any]) -> str:
    return queued["tpu"]["nodeSpec"][0]["node"]["labels"].get("janus-token", queued["createTime"])


class Host:
    """A machine with agent, supervisor and one process of the training."""

    def __init__(self, world: World, token: str, number: int):
        self.world, self.token, self.number, self.alive, self.reached = world, token, number, True, True
        self.index, self.slice, self.node, self.name = number, 0, "demo", f"worker {number} (demo)"
        self.run: dict[str, Any] | None = None
        self.state, self.code, self.step, self.began_s, self.stopped = "none", None, None, 0.0, ""
        self.holds = False
        world.at(10.0, self._tick)

    @property
    def place(self) -> tuple[int, int]:
        assert self.run is not None
        return self.run["attempt"], self.run["start"]

    def answer(self, name: str, message: dict[str, Any]) -> dict[str, Any]:
        """As `launch.host.agent`."""
        if name in ("prepare", "start"):
            run = message["run"]
            same = self.run is not None and all(self.run[k] == run[k] for k in ("run_id", "attempt", "start"))
            if self.state == "running" and not same:
                return {"error": f"run {self.run['run_id']} is running here", "held": self.run["run_id"]}
            if run["run_id"] == self.stopped:
                return {"error": f"run {run['run_id']} was stopped"}
            if name == "start" and not same:
                self.run, self.state, self.code, self.step = run, "running", None, None
                self.began_s, self.holds = self.world.now, False
                if self.number == 0:
                    self.world.places.append(self.place)
                    self.world.begun.append((self.world.now, run["run_id"]))
                self._beat()
            return {"ended": [], **self.now()}
        if name == "stop":
            was = self.state
            if message.get("final"):
                self.stopped = message["run_id"]
            if self.run is not None and self.run["run_id"] == message["run_id"] and was == "running":
                self.end(10)
            return {**self.now(), "was": was}
        return self.now()

    def now(self) -> dict[str, Any]:
        run = self.run or {"run_id": None, "attempt": 0, "start": 0}
        facts = {name: run[name] for name in ("run_id", "attempt", "start")}
        return {**facts, "state": self.state, "code": self.code, "message": "", "step": self.step}

    def end(self, code: int) -> None:
        """How the command ends: 10 after SIGTERM; dead if the supervisor goes too."""
        if self.state != "running":
            return
        world, mine = self.world, self.world.lock
        self.state, self.code = ("dead", None) if code < 0 else ("ended", code)
        if self.holds and mine is not None and mine["by"] == self.place and world.bucket_up and code >= 0:
            world.saved = max(world.saved, world.step) if code == 10 else world.saved
            world.lock = None
        self.holds = False
        if code >= 0:
            self._beat()

    def _beat(self) -> None:
        if not self.world.bucket_up or self.run is None:
            if self.alive and self.state == "ended":
                self.world.at(20.0, self._beat)
            return
        run = self.run
        beat = Heartbeat(run["run_id"], *self.place, self.number, self.name, self.state, 0.0, self.code, "", self.step)
        url = f"gs://bkt/launch/demo/{run['run_id']}/heartbeats/{run['attempt']}/{self.number:02d}"
        self.world.store.put(url, beat.dumps().encode())

    def _tick(self) -> None:
        if not self.alive:
            return
        self.world.at(10.0, self._tick)
        if self.state != "running":
            return
        self._beat()
        group = [h for h in self.world.hosts.values() if h.token == self.token and h.run and h.place == self.place]
        if any(host.state in ("ended", "dead") for host in group):
            self.end(0 if all(h.code == 0 for h in group if h.state != "running") else 143)
        elif len(group) < 2 or self.number:
            self.end(1) if len(group) < 2 and self.world.now - self.began_s > 120 else None
        elif self.world.bucket_up:
            self._train()

    def _train(self) -> None:
        """As `janus_jax.storage.lock`: one holder, later attempts of the same owner win."""
        world, run, other = self.world, self.run, self.world.lock
        if self.holds and (other is None or other["by"] != self.place):
            self.end(15)
            return
        if not self.holds:
            if other is not None and world.now - other["at"] <= LOCK_STALE_S:
                same = other["owner"] == run["owner"]
                if not same or other["by"][0] > run["attempt"]:
                    self.end(15)
                    return
                if other["by"][0] == run["attempt"]:
                    return
            world.step, self.holds = min(world.saved, STEPS - 1), True
        world.lock = {"by": self.place, "owner": run["owner"], "at": world.now}
        if (world.now - self.began_s) % STEP_S < 10:
            world.step += 1
            world.advanced.append((run["run_id"], *self.place))
            for host in world.hosts.values():
                host.step = world.step if host.run and host.token == self.token else host.step
            world.saved = world.step if world.step % SAVE == 0 else world.saved
            if world.step >= STEPS:
                world.saved = world.step
                self.end(0)


class Remote(FakeBucket):
    """A bucket over the network."""

    def __init__(self, world: World, url: str):
        super().__init__(url, world.store)
        self._world = world

    def at(self, *names: str) -> "Remote":
        return Remote(self._world, "/".join([self.url, *names]))

    def _call(self, call: str, name: str) -> None:
        if call != "write":
            self._world.call(f"{call} {name}", self._up, lost=self._lost, seconds=0.5)

    def write(self, name: str, value: Any, *, generation: int | None = None) -> Entry:
        def work() -> Entry:
            self._up()
            return super(Remote, self).write(name, value, generation=generation)

        lost = self._lost if generation is None else lambda: Changed(name)  # it is sent once more
        actor = self._world.current
        return self._world.call(
            f"write {name}", work, lost=lost if actor and actor.at.online else self._lost, seconds=0.5
        )

    def _up(self) -> None:
        if not self._world.bucket_up:
            raise self._lost()

    def _lost(self) -> CloudError:
        return CloudError(Kind.UNAVAILABLE, LOST)


class Group:
    """`launch.remote.hosts.Hosts`."""

    def __init__(self, world: World, token: str):
        self._world, self._token = world, token
        self.hosts = [SimpleNamespace(number=n, index=n, slice=0, name=f"worker {n} (demo)") for n in range(2)]

    def each(self, command: str, *, stdin: Any = b"{}", timeout_s: float = 0, tries: int = 1) -> list[Answer]:
        name = command.split()[-1]
        answers = []
        for one in self.hosts:
            text = stdin(one) if callable(stdin) else stdin
            try:
                out = self._world.call(f"agent {name}", lambda: self._ask(one, name, json.loads(text)), lost=HostError)  # noqa: B023
                answers.append(Answer(one, 0, json.dumps(out), "", 1.0))  # type: ignore[arg-type]
            except HostError:
                answers.append(Answer(one, 255, "", "Connection timed out", 1.0))  # type: ignore[arg-type]
        return answers

    def agent(self, name: str, message: Any = None, **options: Any) -> list[dict[str, Any]]:
        def body(host: Any) -> bytes:
            return json.dumps(message(host) if callable(message) else message or {}).encode()

        answers = [json.loads(a.out or '{"error": "lost"}') for a in self.each(name, stdin=body)]
        if bad := [answer["error"] for answer in answers if "error" in answer]:
            raise HostError("; ".join(bad))
        return answers

    def _ask(self, one: Any, name: str, message: dict[str, Any]) -> dict[str, Any]:
        host = self._world.hosts.get((self._token, one.number))
        if host is None or not host.reached:
            raise HostError("lost")
        return host.answer(name, message)


def install(world: World, monkeypatch: Any) -> None:
    """Has launch's own clocks, threads and ways to the hosts be those of the world."""
    from launch.cloud import machines
    from launch.remote import environment, hosts, ship
    from launch.runs import stopping
    from launch.watching import lease, watch

    @contextlib.contextmanager
    def connect(context: Context, remote: Any) -> Iterator[Group]:
        world.pause(1.0)
        yield Group(world, remote.token)

    def bring(*args: Any, **options: Any) -> Any:
        world.pause(5.0)
        return SimpleNamespace(code="code", environment="env", python="python", cwd=".", source=None)

    for module in (machines, stopping):
        monkeypatch.setattr(module, "_sleep", world.pause)
        monkeypatch.setattr(module, "_clock", lambda: world.now)
    monkeypatch.setattr(hosts, "connect", connect)
    monkeypatch.setattr(environment, "bring", bring)
    monkeypatch.setattr(ship, "kept", lambda *_: None)
    monkeypatch.setattr(watch, "time", SimpleNamespace(monotonic=lambda: world.now))
    monkeypatch.setattr(watch, "ThreadPoolExecutor", Serial)
    threads = SimpleNamespace(
        Lock=lambda: Mutex(world), Event=lambda: Event(world), Thread=lambda **o: Thread(world, **o)
    )
    monkeypatch.setattr(lease, "threading", threads)
