"""A bucket in memory with a clock of its own, and machines and hosts that do what a test says."""

import base64
import contextlib
import dataclasses
import fnmatch
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from launch.cloud.bucket import Changed, Entry, Stored
from launch.cloud.capacity import Type
from launch.context import Context
from launch.errors import CloudError, Kind
from launch.records import Heartbeat, Run
from launch.settings import Settings


class Store:
    """Objects of all buckets: URL -> content, generation, time. `now` is the store's clock."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, int, float]] = {}
        self.now = 1_000_000.0
        self.calls: list[str] = []
        self.refusal: Callable[[str, str], CloudError | None] = lambda call, url: None
        """Asked at every call: (name of the call, URL) -> the error to raise."""

    def put(self, url: str, content: bytes) -> None:
        generation = self.objects.get(url, (b"", 0, 0.0))[1] + 1
        self.objects[url] = (content, generation, self.now)


class FakeBucket:
    """`launch.cloud.bucket.Bucket`, in memory."""

    def __init__(self, url: str, store: Store):
        self.url, self.store = url.rstrip("/"), store

    def at(self, *names: str) -> "FakeBucket":
        return FakeBucket("/".join([self.url, *names]), self.store)

    def read(self, name: str) -> Stored | None:
        self._call("read", name)
        stored = self.store.objects.get(f"{self.url}/{name}")
        return None if stored is None else Stored(json.loads(stored[0]), stored[1], stored[2])

    def write(self, name: str, value: Any, *, generation: int | None = None) -> Entry:
        self._call("write", name)
        url = f"{self.url}/{name}"
        if generation is not None and self.store.objects.get(url, (b"", 0, 0.0))[1] != generation:
            raise Changed(url)
        self.store.put(url, (json.dumps(value) + "\n").encode())
        content, generation, at_s = self.store.objects[url]
        return Entry(name, len(content), generation, at_s, None, _md5(content))

    def names(self, pattern: str = "**") -> list[str]:
        return [entry.name for entry in self.entries(pattern)]

    def entries(self, *patterns: str) -> list[Entry]:
        self._call("entries", " ".join(patterns))
        matchers = [re.compile(_regex(f"{self.url}/{pattern}")) for pattern in patterns]
        return sorted(
            (
                Entry(url.removeprefix(f"{self.url}/"), len(content), generation, at_s, None, _md5(content))
                for url, (content, generation, at_s) in self.store.objects.items()
                if any(matcher.fullmatch(url) for matcher in matchers)
            ),
            key=lambda entry: entry.name,
        )

    def text(self, names: Iterable[str]) -> str:
        names = list(names)
        if names:
            self._call("text", " ".join(names))
        return "".join(self._content(name).decode(errors="replace") for name in names)

    def fetch(self, names: Iterable[str], directory: str | os.PathLike[str]) -> None:
        self._call("fetch", "")
        for name in names:
            (Path(directory) / name.rpartition("/")[2]).write_bytes(self._content(name))

    def upload(self, source: str | os.PathLike[str], name: str, *, once: bool = False) -> None:
        self._call("upload", name)
        if once and f"{self.url}/{name}" in self.store.objects:
            return
        self.store.put(f"{self.url}/{name}", Path(source).read_bytes())

    def download(self, name: str, target: str | os.PathLike[str]) -> None:
        self._call("download", name)
        if not name.endswith("/"):
            self._content(name)
        for url, (content, _, _) in self.store.objects.items():
            if url.startswith(f"{self.url}/{name}"):
                path = Path(target) / url.removeprefix(f"{self.url}/{name}") if name.endswith("/") else Path(target)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)

    def clock(self) -> float:
        self._call("clock", "clock.json")
        return self.store.now

    def _content(self, name: str) -> bytes:
        if f"{self.url}/{name}" not in self.store.objects:
            raise CloudError(Kind.NOT_FOUND, f"{self.url}/{name}", "not found")
        return self.store.objects[f"{self.url}/{name}"][0]

    def _call(self, call: str, name: str) -> None:
        self.store.calls.append(f"{call} {name}")
        if error := self.store.refusal(call, f"{self.url}/{name}"):
            raise error


def _md5(content: bytes) -> str:
    return base64.b64encode(hashlib.md5(content).digest()).decode()


def _regex(pattern: str) -> str:
    parts = (".*".join(fnmatch.translate(p)[4:-3].replace(".*", "[^/]*") for p in pattern.split("**")),)
    return parts[0]


SETTINGS = {"name": "demo", "project": "p", "zone": "us-central2-b", "type": "v4-16", "bucket": "gs://bkt"}


def context(store: Store, **settings: Any) -> Context:
    """A context whose bucket is in memory; `context.lines` has what it said."""
    lines: list[str] = []
    made = Context(Settings.model_validate({**SETTINGS, **settings}), say=lines.append)
    made.__dict__["bucket"] = FakeBucket(made.settings.bucket or "gs://none", store)
    made.__dict__["folder"] = lambda url: FakeBucket(url, store)
    made.__dict__["lines"] = lines
    return made


def run_record(**values: Any) -> Run:
    """A run of two workers."""
    base = Run("demo-1", "owner", ["train", "c.yaml"], {}, "gs://bkt/runs/demo", "code", "env", 0.0, "ann@here")
    return dataclasses.replace(base, **values)


def beat(store: Store, run: Run, worker: int, state: str = "running", **values: Any) -> None:
    """Writes a heartbeat as the host's supervisor does."""
    heartbeat = Heartbeat(run.run_id, run.attempt, run.start, worker, f"h{worker}", state, 0.0, **values)  # type: ignore[arg-type]
    url = f"gs://bkt/launch/demo/{run.run_id}/heartbeats/{run.attempt}/{worker:02d}"
    store.put(url, heartbeat.dumps().encode())


@dataclasses.dataclass
class FakeSteps:
    """`launch.watching.steps.Steps`: a slice of two hosts, whose states a test sets."""

    store: Store
    count: int = 2
    existing: Any = None
    answers: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)
    done: list[str] = dataclasses.field(default_factory=list)
    """What was done, in order."""
    errors: dict[str, list[Exception]] = dataclasses.field(default_factory=dict)
    """Step -> errors of its next calls."""
    ended: list[str] = dataclasses.field(default_factory=list)
    made: int = 0
    texts: dict[int, str] = dataclasses.field(default_factory=dict)
    """What the hosts printed, by worker."""
    state: str = "running"
    served: str = "ACTIVE"
    """State of machines that were just asked for."""
    prices: tuple[float | None, float | None] = (12.5, 12.5)

    def machines(self, state: str = "ACTIVE", **values: Any) -> Any:
        """Puts machines there."""
        self.made += 1
        workers = tuple(SimpleNamespace(number=number) for number in range(self.count))
        self.existing = SimpleNamespace(
            **{
                "state": state,
                "ready": state in ("ACTIVE", "READY"),
                "gone": state in ("SUSPENDED", "SUSPENDING", "FAILED", "PREEMPTED"),
                "health": "HEALTHY",
                "ours": True,
                "adopted": False,
                "error": "",
                "words": values.get("error") or state,
                "token": f"t{self.made}",
                "created": "2026-01-01T00:00:00Z",
                "workers": workers,
                "nodes": ("demo-0",),
                **values,
            }
        )
        return self.existing

    def type(self) -> Any:
        return Type("v4-16", "v4", 4 * self.count, self.count, 1, "runtime", *self.prices, "2026-01", ())

    def find(self) -> Any:
        self._step("find", record=False)
        return self.existing

    def create(
        self, notify: Callable[[str], None], *, patient: bool = True, before: Callable[[], None] = lambda: None
    ) -> Any:
        before()
        self._step("create")
        notify("WAITING_FOR_RESOURCES")
        return self.machines("ACTIVE" if patient else self.served)

    def delete(self, machines: Any) -> None:
        self._step("delete")
        self.existing = None

    @contextlib.contextmanager
    def connect(self, machines: Any) -> Iterator[str]:
        self._step("connect", record=False)
        yield "hosts"

    def setup(self, group: Any, run: Run, notify: Callable[[str], None]) -> Any:
        self._step("setup")
        return SimpleNamespace(code="code", environment="env", python="python", cwd=".")

    def end(self, group: Any, run_id: str) -> list[str]:
        self._step("end", record=False)
        self.ended.append(run_id)
        return []

    def start(self, group: Any, ready: Any, run: Run, before: Stored | None) -> None:
        self._step("start", f"{run.attempt}.{run.start}")
        assert before is not None and before.generation == self.store.objects["gs://bkt/launch/demo/run.json"][1]
        self.store.put("gs://bkt/launch/demo/run.json", run.dumps().encode())
        for worker in range(self.count):
            beat(self.store, run, worker, "starting")

    def states(self, machines: Any) -> dict[int, dict[str, Any]]:
        self._step("states", record=False)
        return self.answers

    def tails(self, machines: Any, positions: dict[int, int], lines: int) -> dict[int, dict[str, Any]]:
        self._step("tails", record=False)
        return {
            worker: {"text": text[positions.get(worker, 0) :], "position": len(text), "state": self.state}
            for worker, text in self.texts.items()
        }

    def _step(self, name: str, more: str = "", *, record: bool = True) -> None:
        if record:
            self.done.append(f"{name} {more}".strip())
        if self.errors.get(name):
            raise self.errors[name].pop(0)
