"""Starts several processes, and what each of them does for tests of runs."""

import contextlib
import dataclasses
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.repository import ROOT

TIMEOUT_S = 600

_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_PORTS = iter(range(20_000 + 1000 * (_WORKER % 12) + os.getpid() % 900, 32_000))
"""Ports for this process alone, below those of outgoing connections (on Linux from 32768)."""


def launch(*commands: Sequence[object]) -> list[tuple[int, str]]:
    """Runs each command in a Python process of four devices; returns (exit code, output) of each.

    A process that hangs is killed after `TIMEOUT_S` and has code -9.
    """
    processes = [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for command in commands
    ]
    ended = []
    for process in processes:
        try:
            output = process.communicate(timeout=TIMEOUT_S)[0]
        except subprocess.TimeoutExpired:
            for other in processes:
                other.kill()
            output = process.communicate()[0]
        ended.append((process.returncode, output))
    return ended


def run(*commands: Sequence[object]) -> None:
    """As `launch`; fails if one of the processes does."""
    ended = launch(*commands)
    assert [code for code, _ in ended] == [0] * len(commands), "\n\n".join(output for _, output in ended)


def environment() -> dict[str, str]:
    """The environment of the tests without their number of devices, which a process sets for itself."""
    flags = os.environ["XLA_FLAGS"].split()
    own = " ".join(flag for flag in flags if "device_count" not in flag)
    return {**os.environ, "XLA_FLAGS": own, "PYTHONPATH": str(ROOT)}


def free_port() -> int:
    """A port that is free and that neither an outgoing connection nor another test takes."""
    for port in _PORTS:
        with contextlib.suppress(OSError), socket.socket() as free:
            free.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


@dataclasses.dataclass
class Rows:
    """One step's position, the examples that this process read for it, and a hash of each packed row that it read."""

    epoch: int
    row: int
    examples: list[int]
    content: dict[str, str]  # microbatch/row: hash; reference log-probs, which rounding changes, are not part of it

    @classmethod
    def joined(cls, parts: Sequence["Rows"]) -> "Rows":
        """What all processes read for the step together."""
        [place] = {(part.epoch, part.row) for part in parts}
        content = {row: digest for part in parts for row, digest in part.content.items()}
        return cls(*place, sorted(number for part in parts for number in part.examples), content)


@contextlib.contextmanager
def noting_rows(split: str = "train") -> Iterator[list[Rows]]:
    """Yields a list that grows by what loaders of `split` read to train on."""
    from janus_jax.data.loader import Loader

    load, noted = Loader._load, []

    def noting(self, position, reference_logps):
        loaded = load(self, position, reference_logps)
        trains = self.form.branches == 1 or reference_logps is not None  # not the pass that scores the reference
        if self.dataset.split == split and trains:
            ids = loaded.batch.example_id[loaded.batch.valid].tolist()
            noted.append(Rows(position.epoch, position.row, sorted(ids), _content(loaded.batch, self._local)))
        return loaded

    Loader._load = noting
    try:
        yield noted
    finally:
        Loader._load = load


def _content(batch, rows) -> dict[str, str]:
    """Hashes of the rows of a batch, which are numbered `rows` in each of its microbatches."""
    values = [value for name, value in sorted(vars(batch).items()) if name != "reference_logps"]
    return {
        f"{micro}/{row}": hashlib.sha256(b"".join(value[micro, place].tobytes() for value in values)).hexdigest()
        for micro in range(len(batch.tokens))
        for place, row in enumerate(rows)
    }


def train(port: str, process: str, directory: str, count: str = "2", devices: str = "4") -> None:
    """Trains every config of DIRECTORY/configs.json until its step, or to its end (null), or until SIGTERM comes to
    process 1 after step 2 ("SIGTERM").

    Notes rows, or what the signal ended with, in DIRECTORY/rows.NAME.PROCESS.json.
    """
    from janus_jax.config.run import RunConfig
    from janus_jax.errors import Preempted
    from janus_jax.parallel.processes import RuntimeOptions
    from janus_jax.training import run
    from tests.support.programs import shared_programs

    where = {"coordinator": f"127.0.0.1:{port}", "num_processes": int(count), "process_id": int(process)}
    options, programs = RuntimeOptions(**where if count != "1" else {}, devices=int(devices)), {}
    for name, (config, until_step) in json.loads((Path(directory) / "configs.json").read_text()).items():
        values = RunConfig.model_validate(config)
        with noting_rows() as rows, shared_programs(programs):
            if until_step == "SIGTERM":
                try:
                    with _signalled(process == "1", 2, pause_s=0.3):
                        run.train(values, options, writers=())
                except Preempted as stop:
                    noted = [stop.exit_code, str(stop)]
            else:
                summary = run.train(values, options, until_step=until_step, writers=())
                assert until_step in (None, summary.step)
                noted = [dataclasses.asdict(row) for row in rows]
        (Path(directory) / f"rows.{name}.{process}.json").write_text(json.dumps(noted))


@contextlib.contextmanager
def _signalled(mine: bool, step: int, pause_s: float = 0.0) -> Iterator[None]:
    """After `step` this process receives SIGTERM, if it is its turn; each step is followed by a pause."""
    from janus_jax.training.hooks import LogMetrics

    log = LogMetrics.after_step

    def after_step(self, run, done):
        log(self, run, done)
        if mine and run.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(pause_s)

    LogMetrics.after_step = after_step
    try:
        yield
    finally:
        LogMetrics.after_step = log


def stop(port: str, process: str, config: str, step: str) -> None:
    """`janus train CONFIG`; process 1 receives SIGTERM after `step` (0: never)."""
    from janus_jax.cli.main import main

    options = ["--coordinator", f"127.0.0.1:{port}", "--num-processes", "2", "--process-id", process, "--devices", "1"]
    sys.argv = ["janus", "train", config, *options]
    with _signalled(process == "1", int(step)):
        main()


def disagree(port: str, process: str, directory: str) -> None:
    """Tries to begin each pair of configs of DIRECTORY/pairs.json, of which each process takes its own.

    Notes the exit code and message of each in DIRECTORY/errors.PROCESS.json.
    """
    from janus_jax.config.run import RunConfig
    from janus_jax.errors import JanusError
    from janus_jax.parallel.processes import RuntimeOptions
    from janus_jax.training import run

    options = RuntimeOptions(coordinator=f"127.0.0.1:{port}", num_processes=2, process_id=int(process), devices=1)
    ended = {}
    for name, configs in json.loads((Path(directory) / "pairs.json").read_text()).items():
        try:
            run.train(RunConfig.model_validate(configs[int(process)]), options, writers=(), until_step=0)
            ended[name] = [0, ""]
        except JanusError as error:
            ended[name] = [error.exit_code, str(error)]
    (Path(directory) / f"errors.{process}.json").write_text(json.dumps(ended))


def wait(port: str, process: str) -> None:
    """Process 0 waits at a barrier to which process 1 never comes."""
    from janus_jax.parallel import processes

    processes.start(
        processes.RuntimeOptions(coordinator=f"127.0.0.1:{port}", num_processes=2, process_id=int(process), devices=1)
    )
    for _ in range(2):  # a name may be used again
        with processes.agreement("both", TIMEOUT_S):
            pass
    if process == "1":
        os._exit(0)  # without a word
    processes.barrier("alone", TIMEOUT_S)


if __name__ == "__main__":
    {"train": train, "stop": stop, "disagree": disagree, "wait": wait}[sys.argv[1]](*sys.argv[2:])
