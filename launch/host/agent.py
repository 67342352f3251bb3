"""`python -m launch.host.agent COMMAND`: what the workstation asks of a host. One JSON message on stdin; the last line
of stdout is the answer, an object, with `error` if the host refuses.

    facts     what this host is
    prepare   checks that this host can run a `Spec`, and writes its files
    start     starts the prepared `Spec`; the same one again changes nothing
    state     how the run is
    stop      ends the run of {"run_id"}, after {"grace_s"} by force; with {"final"}, this host never starts it again
    tail      {"lines"} newest lines of the log, or those since {"position"}
    clean     ends left-over processes that hold chips, and removes libtpu's lock

Every command may come twice: a lost connection makes ssh's caller try again. The exit code is never 255, ssh's own.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_START_S = 30.0
"""How long a supervisor may take to say that it is there."""
_SPARE_BYTES = 1 << 30
"""Disk that stays free for logs and temporary files."""


def home() -> Path:
    """This package's directory on a host."""
    return Path(os.path.expanduser("~/janus"))


def state(message: dict[str, Any]) -> dict[str, Any]:
    """How the run is, as far as this host knows."""
    spec, pids = _json(home() / "run" / "spec.json"), _json(home() / "run" / "supervisor.pid")
    if spec is None:
        return {"state": "none", "run_id": None}
    age_s = _age_s(home() / "run" / "spec.json") or 0.0
    is_alive = age_s < _START_S if pids is None else _is(pids["pid"], pids["start"])
    beat = _json(home() / "run" / "heartbeat.json") or {}  # after the look at the process
    run = spec["run"]
    now = beat.get("state", "starting")
    known = {name: beat.get(name) for name in ("code", "message", "line", "step", "at_s")}
    age = _age_s(home() / "run" / "heartbeat.json")
    return {
        **known,
        **{name: run[name] for name in ("run_id", "attempt", "start")},
        "state": now if is_alive or now == "ended" else "dead",
        "age_s": age,
        "pid": pids and pids["pid"],
    }


def prepare(message: dict[str, Any]) -> dict[str, Any]:
    """Refuses what cannot run here; else writes spec and files, to be started."""
    message, run = _at_home(message), message["run"]
    if refusal := _held(run):
        return refusal
    if _is_there(run):
        return state({})
    if error := _obstacle(message):
        return {"error": error}
    from launch.host import machine

    target = home() / "run.next"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name, text in run["files"].items():
        path = target / "files" / name
        if not path.resolve().is_relative_to(target.resolve()):
            return {"error": f"the file {name} would lie outside of the run's directory"}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    with open(os.open(target / "spec.json", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(message, file)
    return {"state": "prepared", "run_id": run["run_id"], "ended": [*_leftovers(), *machine.free_chips()]}


def start(message: dict[str, Any]) -> dict[str, Any]:
    """Starts what was prepared, or prepares it first; returns once the supervisor is there."""
    message, run, directory = _at_home(message), message["run"], home() / "run"
    if refusal := _held(run):
        return refusal
    if _is_there(run):
        return state({})
    prepared = _json(home() / "run.next" / "spec.json")
    if prepared is None or not _same(prepared["run"], run):
        answer = prepare(message)
        if "error" in answer:
            return answer
    if directory.exists():
        shutil.rmtree(home() / "run.last", ignore_errors=True)
        directory.rename(home() / "run.last")
    (home() / "run.next").rename(directory)
    os.utime(directory / "spec.json")
    with (directory / "supervisor.log").open("ab") as output:
        subprocess.Popen(  # an orphan in a session of its own as soon as this agent ends: no connection holds it
            [message["python"], "-m", "launch.host.supervisor", os.fspath(directory)],
            cwd=message["cwd"],
            env={**os.environ, "PYTHONPATH": message["cwd"]},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        answer = state({})
        if answer["state"] in ("running", "ended"):
            return answer
        time.sleep(0.05)
    last = (directory / "supervisor.log").read_text(errors="replace").strip().splitlines()[-1:]
    return {"error": f"the supervisor did not start within {_START_S:.0f} s: {''.join(last) or 'it says nothing'}"}


def stop(message: dict[str, Any]) -> dict[str, Any]:
    """SIGTERM, once for a run however often this is called; SIGKILL after the grace.

    Returns:
        The state then; `was` is the one before.
    """
    from launch.host import machine

    if message.get("final"):  # a start may be on its way, from a workstation that sleeps
        (home() / "stopped.json").write_text(json.dumps(message["run_id"]))
    now, pids = state({}), _json(home() / "run" / "supervisor.pid")
    if now["state"] in ("none", "ended") or now["run_id"] != message["run_id"]:
        return {**now, "was": now["state"]}
    if now["state"] == "dead" or pids is None:
        _leftovers()
        return {**state({}), "was": "dead"}
    deadline = time.monotonic() + float(message.get("grace_s", 60))
    with contextlib.suppress(FileExistsError, ProcessLookupError):
        os.close(os.open(home() / "run" / "stopping", os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        os.kill(pids["pid"], signal.SIGTERM)
    while (now := state({}))["state"] in ("starting", "running") and time.monotonic() < deadline:
        time.sleep(0.1)
    if now["state"] in ("starting", "running"):
        pids = _json(home() / "run" / "supervisor.pid") or pids
        if pids["child"] is not None:
            machine.end(_session(pids))  # the supervisor then says so
        deadline = time.monotonic() + 10
        while (now := state({}))["state"] in ("starting", "running") and time.monotonic() < deadline:
            time.sleep(0.1)
        if now["state"] in ("starting", "running"):
            machine.end([pids["pid"]])
        now = {**state({}), "killed": True}
    return {**now, "was": "running"}


def tail(message: dict[str, Any]) -> dict[str, Any]:
    """Text of the log, and the position after it."""
    from launch.host import log

    if "position" in message:
        text, position = log.since(home() / "run", message["position"])
    else:
        text, position = log.tail(home() / "run", int(message.get("lines", 20)))
    return {"text": text, "position": position, **{key: state({})[key] for key in ("run_id", "state")}}


def clean(message: dict[str, Any]) -> dict[str, Any]:
    """Frees the chips, unless a run is there."""
    from launch.host import machine

    now = state({})
    if now["state"] in ("starting", "running"):
        return {"error": f"run {now['run_id']} is running here", "held": now["run_id"]}
    return {"ended": [*_leftovers(), *machine.free_chips()]}


def facts(message: dict[str, Any]) -> dict[str, Any]:
    """Versions, chips, disk and clock of this host."""
    from launch.host.facts import facts

    return facts()


_COMMANDS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    command.__name__: command for command in (facts, prepare, start, state, stop, tail, clean)
}
_ONE_AT_A_TIME = ("prepare", "start", "stop", "clean")


def main(arguments: list[str]) -> int:
    """Runs the command; prints its answer."""
    try:
        command, message = _COMMANDS[arguments[0]], json.loads(sys.stdin.read().strip() or "{}")
        home().mkdir(parents=True, exist_ok=True)
        with _turn() if arguments[0] in _ONE_AT_A_TIME else contextlib.nullcontext():
            answer = command(message)
    except (IndexError, KeyError) as error:
        answer = {"error": f"unknown command or incomplete message: {error}; commands: {', '.join(_COMMANDS)}"}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
    return 0


@contextlib.contextmanager
def _turn() -> Iterator[None]:
    with (home() / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _at_home(spec: dict[str, Any]) -> dict[str, Any]:
    """A `Spec` with paths of this host: `~` is its home directory."""
    return {**spec, **{name: os.path.expanduser(spec[name]) for name in ("python", "cwd")}}


def _held(run: dict[str, Any]) -> dict[str, Any] | None:
    """The refusal, if another run is alive here, or a person has stopped this one."""
    if _json(home() / "stopped.json") == run["run_id"]:
        return {"error": f"run {run['run_id']} was stopped by a person; `python -m launch run` starts anew"}
    now = state({})
    if now["state"] not in ("starting", "running") or _same(now, run):
        return None
    what = "another start of this run" if now["run_id"] == run["run_id"] else f"run {now['run_id']}"
    return {"error": f"{what} is {now['state']} here (process {now['pid']})", "held": now["run_id"]}


def _is_there(run: dict[str, Any]) -> bool:
    """Whether this very start was made here already, whatever became of it."""
    now = state({})
    return now["state"] != "none" and _same(now, run)


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one[name] == other[name] for name in ("run_id", "attempt", "start"))


def _obstacle(spec: dict[str, Any]) -> str:
    """Why this host cannot run a `Spec`; "" if it can."""
    from launch.host import machine

    per_slice = spec["hosts_per_slice"]
    if text := machine.disagreement(spec["worker"], per_slice, spec["workers"] // per_slice):
        return text
    for what, path in (("interpreter", spec["python"]), ("checkout", spec["cwd"])):
        if not os.path.exists(path):
            return f"{path}: no such {what}; `python -m launch setup`"
    for key, path in spec["run"].get("paths", {}).items():
        if not os.path.exists(path):
            return f"{key} = {path}: no such path on this host, nor was it on the workstation that started the run"
    return _too_little_disk(spec["run"])


def _too_little_disk(run: dict[str, Any]) -> str:
    """Why the inputs in the bucket do not fit on this disk; "" if they do, or if their sizes are not known."""
    root = run.get("env", {}).get("JANUS_CACHE") or os.environ.get("JANUS_CACHE") or "~/.cache/janus_jax"
    cache = Path(os.path.abspath(os.path.expanduser(root)))
    copied = set()
    for path in cache.glob("*/*/.url"):
        with contextlib.suppress(OSError):
            copied.add(path.read_text(encoding="utf-8"))
    missing = {url: _copied_bytes(url) for url in run.get("inputs", ()) if url not in copied}
    disk = next(path for path in (cache, *cache.parents) if path.exists())
    needed, free = sum(missing.values()), shutil.disk_usage(disk).free
    if not needed or needed + _SPARE_BYTES <= free:
        return ""
    names = ", ".join(url for url, size in missing.items() if size)
    return (
        f"too little disk: copies of {names} take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free in {cache}; "
        f"remove older copies there, or name a larger disk with --env JANUS_CACHE=DIRECTORY"
    )


def _copied_bytes(url: str) -> int:
    """Bytes that the command copies from a URL to the disk; 0 if it reads in place, or the bucket does not answer."""
    from janus_jax.errors import JanusError
    from janus_jax.storage.bucket import Prefix, briefly

    try:
        with briefly(10.0):
            sizes = {item.name: item.size for item in Prefix(url).list()}
    except (JanusError, ImportError):  # the command says it better
        return 0
    if "manifest.json" in sizes:
        return sum(sizes.values())
    top = {name: size for name, size in sizes.items() if "/" not in name}
    return sum(top.values()) if "config.json" in top and any(name.endswith(".safetensors") for name in top) else 0


def _leftovers() -> list[str]:
    """Ends what a supervisor that was killed has left; says what."""
    from launch.host import machine

    pids = _json(home() / "run" / "supervisor.pid")
    if pids is None or pids["child"] is None or _is(pids["pid"], pids["start"]):
        return []
    left = _session(pids)
    machine.end(left, grace_s=2.0)
    return [f"ended process {pid}, left by an earlier run" for pid in left]


def _session(pids: dict[str, Any]) -> list[int]:
    """Processes of the command, unless its process id is another's by now."""
    from launch.host import machine

    start = machine.process_start(pids["child"])
    return machine.session(pids["child"]) if start in (None, pids["child_start"]) else []


def _is(pid: int, start: str | None) -> bool:
    from launch.host import machine

    return start is not None and machine.process_start(pid) == start


def _age_s(path: Path) -> float | None:
    try:
        return round(time.time() - path.stat().st_mtime, 1)
    except OSError:
        return None


def _json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
