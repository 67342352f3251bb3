"""What `status` shows: machines, run, hosts, progress and cost, from few calls made at once."""

import dataclasses
import math
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from janus_jax.errors import GIVE_UP, counted
from launch.context import Context
from launch.errors import CloudError, HostError, cause, policy
from launch.records import STALE_S, duration, printable, seconds_of
from launch.runs.looks import Looks
from launch.runs.run_directory import RunDirectory, look
from launch.runs.snapshot import ENDED, RUNNING, Host, Reader, Snapshot, asked, exit_code, settled

_ODD = 8
"""At most so many hosts are named."""


@dataclasses.dataclass
class Overview:
    """Everything that `status` shows. Times are seconds; None: unknown, or not there."""

    name: str
    bucket: str | None
    machines: dict[str, Any] | None = None
    machines_error: str | None = None
    bucket_error: str | None = None
    run: dict[str, Any] | None = None
    stopped: str | None = None
    watcher: dict[str, Any] | None = None
    gave_up: str | None = None
    workers: int = 0
    hosts: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    heartbeat_age_s: float | None = None
    """Of the oldest heartbeat of a host that should beat."""
    step: int | None = None
    total: int | None = None
    line: str = ""
    run_directory: dict[str, Any] | None = None
    checkpoint_age_s: float | None = None
    usd_per_hour: float | None = None
    """At most."""
    price: str = ""
    hours: float | None = None
    """Of machines, over all creations that are known."""
    usd: float | None = None
    next: list[str] = dataclasses.field(default_factory=list)

    @property
    def errors(self) -> list[str]:
        """What could not be looked at."""
        return [text for text in (self.machines_error, self.bucket_error) if text]


def gather(context: Context, looks: Looks | None = None) -> Overview:
    """Looks at everything that is there. What cannot be reached is said in the result, not raised."""
    made = looks or Looks(context)
    settings = context.settings
    view = Overview(settings.name, settings.bucket)
    with ThreadPoolExecutor(2) as pool:
        finding = pool.submit(made.find)
        reading = pool.submit(_records, context) if settings.bucket else None
        machines = None
        try:
            machines = finding.result()
        except CloudError as error:
            view.machines_error = str(error)
        snapshot, directory = Snapshot(), None
        try:
            snapshot, directory = reading.result() if reading else (snapshot, None)
        except CloudError as error:
            view.bucket_error = str(error)
    now_s = time.time() if snapshot.clock_s is None else snapshot.clock_s
    if looks is None and snapshot.run is not None:
        made = Looks(settled(context, snapshot.run))
    price = made.type()
    view.workers = len(machines.workers) if machines is not None and machines.ready else price.workers
    if machines is not None:
        created_s = seconds_of(machines.created, math.nan)
        view.machines = {
            "state": machines.state,
            "health": machines.health,
            "error": machines.error,
            "ready": machines.ready,
            "ours": machines.ours,
            "type": price.name,
            "hosts": view.workers,
            "age_s": None if math.isnan(created_s) else now_s - created_s,
        }
    _show_run(view, snapshot, now_s)
    _show_hosts(view, made, snapshot, machines, now_s)
    if directory is not None:
        _show_directory(view, directory, now_s)
    _show_cost(view, snapshot, price, now_s)
    view.next = _next(view)
    return view


def _records(context: Context) -> tuple[Snapshot, RunDirectory | None]:
    snapshot = Reader(context.records).read(clock=True)
    run_dir = snapshot.run.run_dir if snapshot.run else None
    if run_dir is None or not run_dir.startswith("gs://"):
        return snapshot, None
    return snapshot, look(context.folder(run_dir))


def _show_run(view: Overview, snapshot: Snapshot, now_s: float) -> None:
    if snapshot.run is not None:
        run = snapshot.run
        keys = ("run_id", "command", "run_dir", "attempt", "start", "by", "code")
        view.run = {key: getattr(run, key) for key in keys}
        view.stopped = snapshot.stopped
    if snapshot.watcher is not None:
        view.gave_up = snapshot.gave_up or None
        if snapshot.watcher.token:
            age_s = now_s - snapshot.watched_s
            view.watcher = {"by": snapshot.watcher.by, "age_s": age_s, "alive": age_s <= STALE_S}


def _show_hosts(view: Overview, looks: Looks, snapshot: Snapshot, machines: Any, now_s: float) -> None:
    hosts = snapshot.hosts(now_s)
    if view.run is not None and machines is not None and machines.ready:
        if sum(host.beats or host.state == ENDED for host in hosts) < view.workers:
            assert snapshot.run is not None
            hosts = asked(snapshot.run, view.workers, hosts, _states(looks, machines))
    elif view.bucket is None and machines is not None and machines.ready:
        hosts = tuple(_answered(worker, answer) for worker, answer in sorted(_states(looks, machines).items()))
    view.hosts = [
        {
            "worker": host.worker,
            "state": host.now if host.now != "beats" else host.state,
            "code": exit_code(host) if host.now == ENDED else None,
            "message": printable(host.message),
            "step": host.step,
            "heartbeat_age_s": None if math.isinf(host.age_s) else host.age_s,
        }
        for host in hosts
    ]
    view.heartbeat_age_s = max((host.age_s for host in hosts if host.now != ENDED), default=None)
    if view.heartbeat_age_s is not None and math.isinf(view.heartbeat_age_s):
        view.heartbeat_age_s = None
    view.step = max((host.step for host in hosts if host.step is not None), default=None)
    lines = [printable(beat.line) for beat, _ in snapshot.beats if beat.line]
    for line in lines:
        if match := re.match(r"(train|eval)\s+(\d+)/(\d+)\b", line):
            view.line, view.total = line, int(match[3])
    view.line = view.line or next(iter(lines), "")


def _states(looks: Looks, machines: Any) -> dict[int, dict[str, Any]]:
    try:
        return looks.states(machines)
    except (CloudError, HostError):
        return {}


def _answered(worker: int, answer: dict[str, Any]) -> Host:
    """A host that keeps no heartbeat in a bucket."""
    state = str(answer.get("state", "none"))
    return Host(
        worker, 0.0, state, answer.get("code"), str(answer.get("message", "")), answer.get("step"), answer=state
    )


def _show_directory(view: Overview, directory: RunDirectory, now_s: float) -> None:
    view.run_directory = dataclasses.asdict(directory)
    if directory.checkpoint_s is not None:
        view.checkpoint_age_s = now_s - directory.checkpoint_s
    if isinstance(step := directory.train.get("step"), int):
        view.step = max(step, -1 if view.step is None else view.step)


def _show_cost(view: Overview, snapshot: Snapshot, price: Any, now_s: float) -> None:
    view.usd_per_hour, view.price = price.most_usd_per_hour, price.price
    earlier_s = float((snapshot.watcher.memory if snapshot.watcher else {}).get("earlier_s", 0.0))
    if snapshot.spent is not None and snapshot.spent.run_id == (view.run or {}).get("run_id", ""):
        earlier_s += snapshot.spent.seconds
    age_s = (view.machines or {}).get("age_s")
    if earlier_s or age_s is not None:
        view.hours = (earlier_s + max(0.0, age_s or 0.0)) / 3600
    if view.hours is not None and view.usd_per_hour is not None:
        view.usd = view.hours * view.usd_per_hour


def _next(view: Overview) -> list[str]:
    """Commands that make sense now."""
    ended = [host["code"] for host in view.hosts if host["state"] == ENDED]
    over = len(ended) >= view.workers > 0
    hopeless = over and policy(min(ended, key=cause)) == GIVE_UP
    watched = [] if view.watcher and view.watcher["alive"] else ["watch"]
    is_there = view.machines is not None or view.machines_error is not None
    if _alive(view) and is_there:
        words = ["logs -f", *([] if view.stopped else watched), "stop"]
    elif view.bucket_error or (view.run is None and view.machines_error):
        words = ["status"]
    elif view.run is None:
        words = ["run CONFIG"] if view.machines and view.machines["ready"] else ["up"]
    elif over and not any(ended):
        words = [*_pull(view), *(["down"] if is_there else [])] or ["up"]
    elif not is_there:
        words = ["logs", "up"] if view.stopped or view.gave_up or hopeless else watched or ["logs -f"]
    elif view.stopped or view.gave_up or hopeless:
        words = ["logs", "run CONFIG", "down"]
    else:
        words = ["logs -f", *watched, "stop"]
    return [f"python -m launch {word}" for word in words]


def _alive(view: Overview) -> list[int]:
    """Workers on which the run goes on."""
    return [host["worker"] for host in view.hosts if host["state"] in RUNNING]


def _pull(view: Overview) -> list[str]:
    directory = view.run_directory or {}
    if directory.get("exports"):
        return ["pull"]
    return [f"pull --step {directory['checkpoints'][-1]}"] if directory.get("checkpoints") else []


def _partly_ended(view: Overview) -> str:
    """What to do where the others wait, or go on and cost money."""
    failed = [host for host in view.hosts if host["state"] == ENDED and host["code"]]
    if not failed or not _alive(view):
        return ""
    best = min(failed, key=lambda host: cause(host["code"]))
    return f"worker {best['worker']} ended with {best['code']}, others still run; `python -m launch stop` ends them"


def render(view: Overview) -> list[str]:
    """The lines that a person reads."""
    rows = [("machines", _machines(view))]
    if view.machines_error or view.bucket_error:
        rows += [("note", f"could not look: {text}") for text in dict.fromkeys(view.errors)]
    rows.append(("run", _run(view)))
    if view.run or view.hosts:
        rows.append(("hosts", "; ".join(_hosts(view))))
        rows += [("note", text)] if (text := _partly_ended(view)) else []
    rows += [row for row in _progress(view) if row[1]]
    if view.watcher:
        age = duration(view.watcher["age_s"])
        rows.append(("watch", f"{view.watcher['by']}, {age} ago" + ("" if view.watcher["alive"] else ": gone")))
    elif view.gave_up:
        rows.append(("watch", f"gave up: {printable(view.gave_up)}"))
    rows.append(("cost", _cost(view)))
    lines = [f"{name:<10}{text}" for name, text in rows]
    return [*lines, *(f"{'next' if number == 0 else '':<10}{word}" for number, word in enumerate(view.next))]


def _machines(view: Overview) -> str:
    machines = view.machines
    if machines is None:
        return f"{view.name}: unknown" if view.machines_error else f"{view.name}: none"
    parts = [
        f"{view.name}: {machines['state']}",
        machines["health"],
        f"{counted(machines['hosts'], 'host')} of {machines['type']}",
    ]
    parts += [f"since {duration(machines['age_s'])}"] if machines["age_s"] is not None else []
    parts += [] if machines["ours"] else ["made by others"]
    return ", ".join([*parts, *([printable(machines["error"])] if machines["error"] else [])])


def _run(view: Overview) -> str:
    run = view.run
    if run is None:
        if view.bucket_error:
            return "unknown"
        return "none" if view.bucket else "unknown: the settings name no bucket"
    text = f"{run['run_id']}: janus {printable(' '.join(run['command']), 80)}; attempt {run['attempt']}, start "
    text += f"{run['start']}, by {run['by']}"
    return f"{text}; stopped by {printable(view.stopped)}" if view.stopped else text


def _hosts(view: Overview) -> list[str]:
    """How many are in the most common state; the others by name."""
    if not view.hosts:
        return [f"no heartbeat of {view.workers} yet"]
    kinds = [(host["state"], host["code"]) for host in view.hosts]
    usual = max(sorted(set(kinds), key=str), key=lambda kind: (kinds.count(kind), kind[0] != ENDED))
    code = "" if usual[1] is None else f" with exit code {usual[1]}"
    texts = [f"{kinds.count(usual)} of {view.workers} {usual[0]}{code}"]
    if view.heartbeat_age_s is not None:
        texts[0] += f", heartbeat {duration(view.heartbeat_age_s)} ago"
    odd = [host for host, kind in zip(view.hosts, kinds, strict=True) if kind != usual]
    odd += [{"worker": worker, "state": "no heartbeat"} for worker in _missing(view)]
    for host in odd[:_ODD]:
        code = "" if host.get("code") is None else f" {host['code']}"
        message = f": {host['message']}" if host.get("message") else ""
        texts.append(f"worker {host['worker']} {host['state']}{code}{message}")
    if usual[1]:
        messages = [host["message"] for host, kind in zip(view.hosts, kinds, strict=True) if kind == usual]
        texts += [message for message in messages if message][:1]
    return [*texts, *([f"and {len(odd) - _ODD} more"] if len(odd) > _ODD else [])]


def _missing(view: Overview) -> list[int]:
    known = {host["worker"] for host in view.hosts}
    return [worker for worker in range(view.workers) if worker not in known]


def _progress(view: Overview) -> list[tuple[str, str]]:
    directory = view.run_directory or {}
    train, held_out = directory.get("train") or {}, directory.get("eval") or {}
    parts = []
    if view.step is not None:
        parts.append(f"step {view.step}" + (f"/{view.total}" if view.total else ""))
    parts += [f"loss {train['loss']:.4g}"] if isinstance(train.get("loss"), int | float) else []
    parts += [f"{train['tokens_per_s']:,.0f} tokens/s"] if isinstance(train.get("tokens_per_s"), int | float) else []
    parts += [f"held-out loss {held_out['loss']:.4g}"] if isinstance(held_out.get("loss"), int | float) else []
    rows = [("progress", ", ".join(parts) or view.line)]
    if (share := directory.get("goodput")) is not None:
        rows.append(("goodput", f"{share:.0%} of the time was training, over {counted(directory['starts'], 'start')}"))
    if steps := directory.get("checkpoints"):
        age = "" if view.checkpoint_age_s is None else f", {duration(view.checkpoint_age_s)} ago"
        rows.append(("saved", f"step {steps[-1]}{age}"))
    if exports := directory.get("exports"):
        rows.append(("export", f"step {exports[-1]}"))
    return rows


def _cost(view: Overview) -> str:
    if view.usd_per_hour is None:
        return view.price
    if view.usd is None or view.hours is None:
        return f"nothing known so far ({view.price})"
    about = "at most" if view.price.startswith("at most") else "about"
    return f"{about} ${view.usd:,.2f} so far: {view.hours:.1f} h ({view.price})"
