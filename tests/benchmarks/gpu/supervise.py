"""Runs one stage after another, each in a process of its own, and keeps what they measured.

A stage prints a line that starts with `MARK` for every measurement. `results.json` is written anew after each, so what
was measured stays when the whole is cut off. A process that hangs or crashes ends alone.
"""

import contextlib
import dataclasses
import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MARK = "@measured "
"""Begins the lines of standard output that hold a measurement, as JSON."""

_TAIL = 30
"""Last lines of a failed stage that results.json keeps; log.txt has all."""


@dataclasses.dataclass
class Results:
    """Everything measured so far, and the file that holds it."""

    directory: Path
    facts: dict[str, Any]
    """The machine, its versions and what was asked for."""
    stages: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def write(self) -> None:
        """Replaces results.json at once."""
        whole = json.dumps({**self.facts, "stages": self.stages}, indent=1)
        partial = self.directory / "results.json.partial"
        partial.write_text(whole + "\n", encoding="utf-8")
        os.replace(partial, self.directory / "results.json")

    def measurements(self, what: str) -> list[dict[str, Any]]:
        """Those of a kind, of all stages."""
        return [one for stage in self.stages for one in stage["measurements"] if one["what"] == what]


def run_stage(results: Results, name: str, command: list[str], *, limit_s: float, environment: dict[str, str]) -> None:
    """Runs a stage and adds it to the results, with its state: ok, skipped, failed, crashed or timeout."""
    stage: dict[str, Any] = {"name": name, "state": "running", "limit_s": round(limit_s), "measurements": []}
    results.stages.append(stage)
    results.write()
    started, tail = time.monotonic(), []

    def line(text: str) -> None:
        if not text.startswith(MARK):
            tail.append(text)
            del tail[:-_TAIL]
            return
        try:
            one = json.loads(text.removeprefix(MARK))
        except ValueError:  # cut off, or another line in the middle
            tail.append(text)
            return
        if one["what"] in ("failed", "skipped"):
            stage.update(state=one.pop("what"), **one)
        else:
            stage["measurements"].append(one)
            print(f"  {_short(one)}", flush=True)
        results.write()

    with (results.directory / "log.txt").open("a", encoding="utf-8") as log:
        log.write(f"=== {name}\n")
        code = _run(command, limit_s, environment, line, log.write)
    stage["seconds"] = round(time.monotonic() - started, 1)
    if code is None:
        stage.update(state="timeout", reason=f"took more than {limit_s:.0f} s")
    elif code and stage["state"] == "running":
        by = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        stage.update(state="crashed", reason=f"ended by {by}")
    elif stage["state"] == "running":
        stage["state"] = "ok"
    if stage["state"] not in ("ok", "skipped"):
        stage["tail"] = tail
    results.write()


def _run(
    command: list[str],
    limit_s: float,
    environment: dict[str, str],
    line: Callable[[str], None],
    log: Callable[[str], Any],
) -> int | None:
    """The exit code of a command whose output goes line by line to `line` and `log`; None if it took too long."""
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # so that what it starts ends with it
    )
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        for text in process.stdout:
            lines.put(text)
        lines.put(None)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    deadline = time.monotonic() + limit_s
    try:
        while True:
            text = lines.get(timeout=max(0.0, deadline - time.monotonic()))
            if text is None:
                return process.wait(timeout=max(1.0, deadline - time.monotonic()))
            log(text)
            line(text.rstrip("\n"))
    except (queue.Empty, subprocess.TimeoutExpired):
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):  # the driver may hold it until the card answers
                process.wait(timeout=20)


def _short(one: dict[str, Any]) -> str:
    """A measurement on one line, without its long lists."""
    shown = {key: value for key, value in one.items() if not isinstance(value, list | dict)}
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in shown.items()
    )
