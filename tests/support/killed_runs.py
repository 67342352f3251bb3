"""A run that is killed at chosen moments of chosen phases, and compared with one that nobody disturbed.

A start is `janus train` in processes of its own, which note when phases begin and end and which rows a step reads.
"""

import dataclasses
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from janus_jax.checkpoint.run_dir import RunDir
from janus_jax.config.run import to_yaml
from tests.support.repository import ROOT
from tests.support.run_configs import ONE_LAYER, run_config
from tests.support.training_examples import random_examples, write_dataset

STEPS_OF_EPOCH, SAVE_EVERY, EVALUATE_EVERY = 12, 5, 8
PHASES = ("reference", "compile", "restore", "evaluation", "save", "epoch end", "export")
"""`compile`: the first step of a process, with its compilation. `save`: until it is committed in the background.
`epoch end`: from the last step of an epoch to the end of the next one."""
END_S = 300
"""How long a start may take to end after a signal."""


@dataclasses.dataclass(frozen=True)
class Kill:
    """A signal to one of the processes of a start, or to all, in the middle of a phase."""

    phase: str
    signal: str  # SIGKILL or SIGTERM
    share: float  # of the phase, as long as it usually is, before the signal
    victims: tuple[int, ...] = (0,)


@dataclasses.dataclass(frozen=True)
class Hit:
    """What a kill met and what it left."""

    kill: Kill
    missed: bool  # the start ended before the moment came
    phases: list[str]  # open in the first victim when the signal was sent
    half_written: bool  # it left an unfinished checkpoint
    codes: list[int]  # exit codes, negative for signals
    seconds: float  # until all had ended, after the signal
    trained: int | None  # the last step that was made
    saved: int | None  # the newest whole checkpoint afterwards
    wrong: list[str]  # what should not be


def dataset(root: Path) -> Path:
    """Writes 96 pairs, which take STEPS_OF_EPOCH batches of eight, and 18 held-out ones."""
    splits = {name: random_examples(n, pairs=True, seed=n) for name, n in (("train", 96), ("validation", 18))}
    return write_dataset(root / "dpo", splits, kind="dpo")


def config(root: Path, run: Path, *, epochs: int, mesh: dict[str, int], **changes: Any) -> Path:
    """Writes the configuration of a DPO run with a reference pass, evaluation, saves and an export."""
    settings: dict[str, Any] = {
        "model": ONE_LAYER,
        "batch": {"rows": None, "examples": 8, "microbatches": 1},
        "schedule": {"epochs": epochs},
        "mesh": mesh,
        "eval": {"every_steps": EVALUATE_EVERY, "at_start": True, "stop_after": 99},
        "checkpoint": {"every_steps": SAVE_EVERY, "keep": 2, "keep_every_steps": 20},
        "logging": {"every_steps": 1},
        "export": {"hf": True, "dtype": "float32"},
    }
    file = run.with_suffix(".yaml")
    file.write_text(to_yaml(run_config(root, run, "dpo", **{**settings, **changes})))
    return file


class Start:
    """`janus train FILE` on one or more processes, while it goes on.

    Args:
        notes: the processes write notes to NOTES.0, NOTES.1, ... and what they print to NOTES.0.log, ...
        devices: of each process.
        port: where several processes meet.
        cache: of compiled programs; None compiles anew.
    """

    def __init__(
        self, file: Path, notes: Path, *, processes: int = 1, devices: int, port: int = 0, cache: Path | None = None
    ):
        self.notes = [notes.with_name(f"{notes.name}.{process}") for process in range(processes)]
        env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        flags = env.get("XLA_FLAGS", "").split()
        env["XLA_FLAGS"] = " ".join(flag for flag in flags if "device_count" not in flag)
        env.pop("JAX_COMPILATION_CACHE_DIR", None)
        if cache is not None:
            env |= {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        self.processes = []
        for process, own in enumerate(self.notes):
            options = ["--devices", str(devices)]
            if processes > 1:
                options += ["--coordinator", f"127.0.0.1:{port}", "--num-processes", str(processes)]
                options += ["--process-id", str(process)]
            own.touch()
            with own.with_name(f"{own.name}.log").open("w") as log:
                command = [sys.executable, "-m", "tests.support.killed_runs", str(own), str(file), *options]
                self.processes.append(subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=ROOT))

    def running(self) -> bool:
        """Whether all processes are alive."""
        return all(process.poll() is None for process in self.processes)

    def end(self, timeout_s: float) -> list[int]:
        """Exit codes; what is alive after `timeout_s` is killed."""
        deadline = time.monotonic() + timeout_s
        for process in self.processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
        return [process.wait() for process in self.processes]

    def printed(self, process: int = 0) -> str:
        return self.notes[process].with_name(f"{self.notes[process].name}.log").read_text()


def killed(start: Start, kill: Kill, lasts: dict[str, float], run: Path) -> Hit:
    """Sends the signal when its moment comes, waits for the end and looks at what is left."""
    first = kill.victims[0]
    before = newest(run)
    while start.running() and not _has_begun(start.notes[first], kill.phase):
        time.sleep(0.002)
    moment = time.monotonic() + kill.share * lasts.get(kill.phase, 1.0)
    while start.running() and time.monotonic() < moment and _is_open(start.notes[first], kill.phase):
        time.sleep(0.001)
    before = max(before or 0, newest(run) or 0) or None
    if missed := not start.running():
        codes = start.end(END_S)
        sent = time.monotonic()
    else:
        sent = time.monotonic()
        for victim in kill.victims:
            start.processes[victim].send_signal(getattr(signal, kill.signal))
        codes = start.end(END_S)
    seconds = time.monotonic() - sent
    noted = [[*events(file)] for file in start.notes]
    for name, length in lengths(noted[first]).items():
        lasts[name] = length
    steps = [event["step"] for events_ in noted for event in events_ if "step" in event]
    trained, saved = max(steps, default=None), newest(run)
    wrong = []
    if (before or 0) > (saved or 0):
        wrong.append(f"step {before} was whole before the kill, and afterwards the newest is {saved}")
    if not missed and kill.signal == "SIGTERM":
        stopped = [event["stopped"] for events_ in noted for event in events_ if "stopped" in event]
        finished = len(codes) > 1 and "export" in open_phases(noted[first], sent)  # several processes finish an export
        if set(codes) != {0 if finished else 10} and (any(noted) or set(codes) - {10, 143}):
            wrong.append(f"exit codes {codes}")
        if len({*stopped}) > 1 or (stopped and stopped[0] != (saved or 0)) or (trained or 0) > (saved or 0):
            wrong.append(f"stopped at {stopped} after step {trained}, and the newest saved step is {saved}")
    if not missed and kill.signal == "SIGKILL" and any(code == 0 for code in codes):
        wrong.append(f"exit codes {codes}")
    if missed and any(codes):
        wrong.append(f"exit codes {codes} without a kill")
    return Hit(
        kill=kill,
        missed=missed,
        phases=sorted(open_phases(noted[first], sent)),
        half_written=any("orbax-checkpoint-tmp" in path.name for path in (run / "checkpoints").glob("*")),
        codes=codes,
        seconds=round(seconds, 1),
        trained=trained,
        saved=saved,
        wrong=wrong,
    )


def newest(run: Path) -> int | None:
    """The newest whole checkpoint."""
    return max(RunDir(run).committed_steps(), default=None)


def events(file: Path) -> Iterator[dict[str, Any]]:
    """What a process noted; without a line that a kill has cut."""
    for line in file.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)


def open_phases(noted: Sequence[dict[str, Any]], at: float) -> set[str]:
    """Phases that have begun and not ended at a moment."""
    phases: set[str] = set()
    for event in noted:
        if event["at"] <= at:
            phases |= {event["begin"]} if "begin" in event else set()
            phases -= {event["end"]} if "end" in event else set()
    return phases


def _has_begun(notes: Path, phase: str) -> bool:
    return any(event.get("begin") == phase for event in events(notes))


def _is_open(notes: Path, phase: str) -> bool:
    return phase in open_phases([*events(notes)], math.inf)


def lengths(noted: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Seconds of each phase that came to its end, of the last one of each kind."""
    begun, taken = {}, {}
    for event in noted:
        if "begin" in event:
            begun[event["begin"]] = event["at"]
        elif (name := event.get("end")) in begun:
            taken[name] = event["at"] - begun.pop(name)
    return taken


def rows_read(starts: Sequence[Sequence[Path]]) -> tuple[dict[int, dict[str, str]], list[str]]:
    """{step: {microbatch/row: hash}} of all rows that the steps of a run read, over its starts; and contradictions.

    Args:
        starts: the notes of the processes of each start, in their order.
    """
    read: dict[int, dict[str, str]] = {}
    wrong = []
    for files in starts:
        for event in (event for file in files for event in events(file) if "step" in event):
            rows = read.setdefault(event["step"], {})
            for row, digest in event["rows"].items():
                if rows.setdefault(row, digest) != digest:
                    wrong.append(f"step {event['step']} read another row {row} in {files[0]} than before")
    return read, wrong


def gaps(starts: Sequence[Sequence[Path]], saved: Sequence[int | None]) -> list[str]:
    """Starts that do not go on with the step after the newest checkpoint.

    Args:
        saved: the newest whole checkpoint before each start.
    """
    wrong = []
    for files, step in zip(starts, saved, strict=True):
        for file in files:
            steps = [event["step"] for event in events(file) if "step" in event]
            if steps and steps != [*range((step or 0) + 1, (step or 0) + 1 + len(steps))]:
                wrong.append(f"{file}: steps {steps[0]} to {steps[-1]} after step {step}")
    return wrong


# --- In the processes of a start


def main(notes: str, *arguments: str) -> None:
    """`janus train ARGUMENTS`, which notes in NOTES what it does."""
    from janus_jax.checkpoint.state import Checkpoints
    from janus_jax.cli.main import main as janus
    from janus_jax.training import hooks, reference, run

    out = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(**event: Any) -> None:
        os.write(out, (json.dumps({"at": time.monotonic(), **event}) + "\n").encode())

    def watch(owner: Any, name: str, phase: str, *, ends: bool = True) -> None:
        call = getattr(owner, name)

        def noted(*args: Any, **kwargs: Any) -> Any:
            note(begin=phase)
            try:
                return call(*args, **kwargs)
            finally:
                if ends:
                    note(end=phase)

        setattr(owner, name, noted)

    class Watch(hooks.Hook):
        """Is the first hook, so that a step is noted before anything else happens after it."""

        compiled = saving = False

        def before_step(self, run: hooks.Run) -> None:
            if not self.compiled:
                note(begin="compile")
            saving = run.checkpoints.saving()
            if self.saving and not saving:
                note(end="save")
            self.saving = saving

        def after_step(self, run: hooks.Run, step: hooks.Step) -> None:
            if not self.compiled:
                note(end="compile")
                self.compiled = True
            if run.step % STEPS_OF_EPOCH == 1 and run.step > 1:
                note(end="epoch end")
            note(step=run.step, rows=_rows(step.loaded.batch))
            if run.step % STEPS_OF_EPOCH == 0:
                note(begin="epoch end")

        def at_stop(self, run: hooks.Run, step: hooks.Step | None) -> None:
            note(stopped=run.step)

    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    watch(reference, "_precompute", "reference")
    watch(Checkpoints, "restore", "restore")
    watch(hooks.Evaluate, "_evaluate", "evaluation")
    watch(hooks, "export_step", "export")
    watch(Checkpoints, "save", "save", ends=False)
    wait = Checkpoints.wait

    def waited(checkpoints: Checkpoints) -> None:
        wait(checkpoints)
        note(end="save")

    Checkpoints.wait = waited
    listed = run._hooks
    run._hooks = lambda *args: [Watch(), *listed(*args)]
    sys.argv = ["janus", "train", *arguments]
    janus()


def _end_with(parent: int) -> None:
    """Ends this process when its parent has ended, so that a soak that is started again has the run for itself."""
    while os.getppid() == parent:
        time.sleep(0.1)
    os._exit(1)


def _rows(batch: Any) -> dict[str, str]:
    """{microbatch/row: hash of all that the row holds} of the rows that lie on this process's devices."""
    rows: dict[str, Any] = {}
    for field in dataclasses.fields(batch):
        parts: dict[tuple[int, int], bytes] = {}
        for shard in getattr(batch, field.name).addressable_shards:
            first = shard.index[1].start or 0
            values = np.asarray(shard.data)
            for micro in range(values.shape[0]):
                for row in range(values.shape[1]):
                    parts[micro, first + row] = values[micro, row].tobytes()
        for (micro, row), content in parts.items():
            rows.setdefault(f"{micro}/{row}", hashlib.sha256()).update(content)
    return {name: digest.hexdigest()[:16] for name, digest in rows.items()}


if __name__ == "__main__":
    main(*sys.argv[1:])
