"""`python -m launch.host.supervisor DIRECTORY`: runs one host's command, and says how it is and how it ended.

    DIRECTORY/spec.json         what to run: `Spec`
    DIRECTORY/files/            files that the command names
    DIRECTORY/supervisor.pid    {"pid", "start", "child", "child_start"}
    DIRECTORY/heartbeat.json    `Heartbeat`; with state "ended" it is how the run ended
    DIRECTORY/log.POSITION      what the command printed

It has no terminal and needs no connection. The kernel kills the command if this process is killed.
"""

import contextlib
import ctypes
import dataclasses
import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from launch.host import machine
from launch.host.log import Log
from launch.host.upload import Uploads
from launch.records import HEARTBEAT_S, MANY, Heartbeat, Run, Spec, number, printable

LOST_HOST = 17
_DRAIN_S = 2.0
_LAST_UPLOADS_S = 60.0
_STEP = re.compile(r"\btrain\s+([\d,]+)/")
_PATIENCE_S = 2.0
"""Before a signal is passed on that `stop` has not sent: at a shutdown systemd sends it to the command too."""
_STOPS = re.compile(r"(SIG[A-Z]+|Ctrl-C): the run will save and stop")
"""Training has heard a signal. A second one would end its save."""
_LAST_WORDS = re.compile(r"(error|stopped): ")
_PR_SET_PDEATHSIG = 1
_ALONE = {"TPU_PROCESS_BOUNDS": "1,1,1", "TPU_CHIPS_PER_PROCESS_BOUNDS": "2,2,1"}
"""For a command that one host of a larger slice runs alone: libtpu would wait for the others. Every such host has 2 x 2
chips."""


def words(spec: Spec, files: Path) -> list[str]:
    """The command's words on a host."""
    run = Run.from_json(spec.run)
    command = [os.fspath(files / word) if word in run.files else word for word in run.command]
    if spec.workers > 1 and command[0] in MANY:
        flags = {"--coordinator": spec.coordinator, "--num-processes": spec.workers, "--process-id": spec.worker}
        command[1:1] = [str(word) for pair in flags.items() for word in pair]
    return [spec.python, "-m", "janus_jax.cli", *command]


def environment(spec: Spec) -> dict[str, str]:
    """The command's environment."""
    run = Run.from_json(spec.run)
    path = os.pathsep.join(filter(None, [spec.cwd, os.environ.get("PYTHONPATH")]))
    own = {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    launch = {"JANUS_RUN_OWNER": run.owner, "JANUS_RUN_ATTEMPT": str(run.attempt)}
    alone = _ALONE if spec.hosts_per_slice > 1 and run.command[0] not in MANY else {}
    return {**alone, **os.environ, **own, **run.env, **launch}


class Supervisor:
    """One command on one host."""

    def __init__(self, directory: Path):
        self._directory = directory
        self._spec = Spec.from_json(json.loads((directory / "spec.json").read_text()))
        run = self._run = Run.from_json(self._spec.run)
        name = number(self._spec.worker, self._spec.workers)
        self._log = Log(directory)
        self._notes: list[str] = []
        self._child: subprocess.Popen[bytes] | None = None
        self._signals = 0
        self._asked = self._stops = False
        self._pass_on_at: float | None = None
        self._beat_at = time.monotonic() + HEARTBEAT_S
        self._rest = b""
        self._last_words = ""
        self._beat = Heartbeat(
            run.run_id, run.attempt, run.start, self._spec.worker, socket.gethostname(), "starting", time.time()
        )
        self._uploads: Uploads | None = None
        self._names = (
            f"{run.run_id}/heartbeats/{run.attempt}/{name}",
            lambda part: f"{run.run_id}/logs/{run.attempt}-{run.start}/{name}-{part:06d}.log",
        )

    def stay(self) -> None:
        """Runs the command to its end."""
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        for one in (signal.SIGTERM, signal.SIGINT):
            signal.signal(one, lambda number, frame: self._pass_on())
        self._write_pid()
        self._say(state="starting")
        alone = self._spec.worker > 0 and self._run.command[0] not in MANY
        code = 0 if alone else self._start()
        self._uploads = Uploads(self._spec.bucket, *self._names, self._notes.append)
        if alone:
            self._last_words = f"`janus {self._run.command[0]}` runs on worker 0 alone"
        if code is None:
            self._say(state="running")
            code = self._follow()
        lines = self._beat.line if code else ""
        self._say(state="ended", code=code, message=printable(self._last_words or lines))
        patience_s = _LAST_UPLOADS_S if self._signals < 2 else 5.0
        if not self._uploads.close(self._beat.dumps().encode(), patience_s):
            self._note(f"the bucket did not take how this run ended: {self._beat.dumps()}")

    def _start(self) -> int | None:
        """Starts the command; an exit code if it cannot."""
        libc, parent = ctypes.CDLL(None, use_errno=True), os.getpid()

        def die_with_parent() -> None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(128 + signal.SIGKILL)
            with contextlib.suppress(OSError):  # when memory is short, this goes first
                Path("/proc/self/oom_score_adj").write_text("500")

        try:
            self._child = subprocess.Popen(  # from the main thread: the kernel watches the thread that forks
                words(self._spec, self._directory / "files"),
                cwd=self._spec.cwd,
                env=environment(self._spec),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        except (OSError, subprocess.SubprocessError) as error:
            self._last_words = f"error: the command cannot be started: {error}"
            self._note(self._last_words)
            return LOST_HOST
        self._write_pid()
        if self._signals:
            self._child.send_signal(signal.SIGTERM)
        return None

    def _follow(self) -> int:
        """Reads what the command prints until it ends; its exit code."""
        assert self._child is not None and self._child.stdout is not None
        pipe = self._child.stdout.fileno()
        os.set_blocking(pipe, False)
        selector = selectors.DefaultSelector()
        selector.register(pipe, selectors.EVENT_READ)
        deadline, is_open = None, True
        while is_open and (deadline is None or time.monotonic() < deadline):
            if selector.select(0.2):
                is_open = self._read(pipe)
            self._tick()
            if deadline is None and self._child.poll() is not None:
                deadline = time.monotonic() + _DRAIN_S  # something that it left behind may keep the pipe open
            while self._notes:
                self._note(self._notes.pop(0))
        while self._child.poll() is None:  # it has closed its output
            time.sleep(0.2)
            self._tick()
        machine.end(machine.session(self._child.pid))
        self._take(b"\n" if self._rest else b"")
        code = self._child.returncode
        return 128 - code if code < 0 else code

    def _tick(self) -> None:
        """What is due by now: a heartbeat, a signal."""
        now = time.monotonic()
        if now >= self._beat_at:
            self._beat_at = now + HEARTBEAT_S
            self._say(state="running")
        if self._pass_on_at is not None and now >= self._pass_on_at:
            self._terminate()

    def _read(self, pipe: int) -> bool:
        """Takes what came; False at the end of the pipe."""
        with contextlib.suppress(BlockingIOError):
            data = os.read(pipe, 65536)
            if not data:
                return False
            self._log.write(data)
            if self._uploads is not None:
                self._uploads.log(data)
            self._take(data)
        return True

    def _take(self, data: bytes) -> None:
        """Looks for the newest line, the newest step and the last words."""
        *lines, self._rest = re.split(rb"[\r\n]+", self._rest + data)
        self._rest = self._rest[-4096:]
        for raw in lines:
            text = raw.decode(errors="replace")
            if not text.strip():
                continue
            step = _STEP.search(text)
            self._beat = dataclasses.replace(
                self._beat,
                line=printable(text),
                step=int(step[1].replace(",", "")) if step and step[1] != "," else self._beat.step,
            )
            self._stops = self._stops or _STOPS.match(text) is not None
            if _LAST_WORDS.match(text):
                self._last_words = text

    def _pass_on(self) -> None:
        self._signals += 1
        if self._uploads is not None:
            self._uploads.hurry()
        if self._child is None or self._child.returncode is not None:
            return
        if not self._asked and (self._directory / "stopping").exists():  # `stop` sends one, whatever came before
            self._asked = True
            self._terminate()
        elif self._signals == 1:
            self._pass_on_at = time.monotonic() + _PATIENCE_S
        else:
            machine.end(machine.session(self._child.pid))

    def _terminate(self) -> None:
        """SIGTERM for the command, unless it says that it has heard one."""
        self._pass_on_at = None
        if self._child is not None and self._child.returncode is None and not self._stops:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child.pid, signal.SIGTERM)

    def _say(self, **changes: object) -> None:
        self._beat = dataclasses.replace(self._beat, at_s=time.time(), **changes)  # pyright: ignore[reportArgumentType]
        text = self._beat.dumps()
        with contextlib.suppress(OSError):
            _replace(self._directory / "heartbeat.json", text)
        if self._uploads is not None and self._beat.state != "ended":
            self._uploads.beat(text.encode())

    def _note(self, text: str) -> None:
        data = f"launch: {printable(text, 1000)}\n".encode()
        self._log.write(data)
        if self._uploads is not None:
            self._uploads.log(data)

    def _write_pid(self) -> None:
        child = None if self._child is None else self._child.pid
        pids = {"pid": os.getpid(), "start": machine.process_start(os.getpid()), "child": child}
        pids["child_start"] = None if child is None else machine.process_start(child)
        _replace(self._directory / "supervisor.pid", json.dumps(pids))


def _replace(path: Path, text: str) -> None:
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.replace(path)


if __name__ == "__main__":
    Supervisor(Path(sys.argv[1])).stay()
