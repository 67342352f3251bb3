"""What saving costs: steps of the tiny model with an asynchronous save every 10 steps, and without; bandwidth.

    python -m tests.benchmarks.saves

Segments with and without saves take turns in one process (A B B A ...); a segment with saves ends when the last one is
committed. Time of the CPU counts beside that of the clock, which other programs disturb. Here the CPU trains as well as
saves; an accelerator leaves it free. Then: how fast a checkpoint is saved and restored, and how fast the disk writes
(with fsync) and reads as many bytes. Takes three minutes on two idle cores.
"""

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SAVE_EVERY, STEPS = 10, 20
"""Steps between saves, and of a segment."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=6, help="of segments")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--rows", type=int, default=4, help="of 384 slots in a batch")
    parser.add_argument("--dir", type=Path, help="where to save; default: a temporary directory")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.dir) as scratch, training(arguments, Path(scratch)) as (step, save):
        steps_beside_saves(step, save, arguments.pairs)
        bandwidth(save, Path(scratch))


class Saves:
    """A training state and its checkpoints."""

    def __init__(self, checkpoints: Any, program: Any):
        self.checkpoints, self.program = checkpoints, program
        self.state: Any = None
        self.number = 0

    def save(self) -> None:
        """As the hook of a run: returns when the arrays may change."""
        self.number += 1
        data, meta = {"epoch": 0, "row": self.number}, {"model": {}}
        self.checkpoints.save(
            self.number, params=self.state.params, optimizer=self.state.optimizer, data=data, meta=meta
        )

    def restore(self) -> None:
        import jax

        abstract = self.program.abstract_state()
        params, optimizer, *_ = self.checkpoints.restore(
            self.number, params=abstract.params, optimizer=abstract.optimizer
        )
        jax.block_until_ready((params, optimizer))


@contextlib.contextmanager
def training(arguments: argparse.Namespace, scratch: Path) -> Iterator[tuple[Callable[[], None], Saves]]:
    """A function that makes one step and waits for it, and what saves its state."""
    from janus_jax.parallel import environment, processes

    environment.quiet_libraries()
    processes.start(processes.RuntimeOptions(devices=arguments.devices))
    import jax

    from janus_jax.checkpoint.state import Checkpoints
    from janus_jax.config.run import load_config
    from janus_jax.data.build.pipeline import build
    from janus_jax.data.sample import write_sample
    from janus_jax.training.setup import prepare

    data = scratch / "data"
    build(write_sample("sft", scratch / "rows"), data, kind="sft")
    changes = [f"mesh.fsdp={arguments.devices}", f"data.dir={data}", f"batch.rows={arguments.rows}"]
    setup = prepare(load_config("janus_jax/cli/demo/sft.yaml", changes))
    with contextlib.closing(Checkpoints(scratch / "checkpoints", keep=2)) as checkpoints:
        saves = Saves(checkpoints, setup.program)
        saves.state = setup.program.init(setup.initial_params("float32"))
        with contextlib.closing(setup.loader.batches()) as batches:

            def step() -> None:
                saves.state, *_ = jax.block_until_ready(setup.program.train(saves.state, next(batches).batch))

            for _ in range(3):  # compiles
                step()
            saves.save()
            checkpoints.wait()
            yield step, saves


def steps_beside_saves(step: Callable[[], None], saves: Saves, pairs: int) -> None:
    """Prints the time of a step with saves and without."""
    seconds: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    blocked: list[float] = []
    for pair in range(pairs):
        for saving in (pair % 2 == 1, pair % 2 == 0):
            begun = time.perf_counter(), time.process_time()
            for number in range(STEPS):
                step()
                saves.checkpoints.poll()
                if saving and number % SAVE_EVERY == SAVE_EVERY - 1:
                    blocked.append(timed(saves.save))
            saves.checkpoints.wait()
            ended = time.perf_counter(), time.process_time()
            seconds[saving].append(((ended[0] - begun[0]) / STEPS, (ended[1] - begun[1]) / STEPS))
    for number, clock in enumerate(("wall clock", "CPU")):
        without, beside = ([times[number] for times in seconds[saving]] for saving in (False, True))
        ratios = [a / b for a, b in zip(beside, without, strict=True)]
        print(
            f"{clock + ':':<12} {1e3 * statistics.median(without):.0f} ms a step without saves, "
            f"{1e3 * statistics.median(beside):.0f} ms with one every {SAVE_EVERY} steps; ratio "
            f"{statistics.median(ratios):.3f}, pairs {[round(ratio, 3) for ratio in ratios]}"
        )
    print(f"a save holds the steps up for {1e3 * statistics.median(blocked):.0f} ms")


def bandwidth(saves: Saves, scratch: Path, repeats: int = 5) -> None:
    """Prints how fast a checkpoint is written and read while nothing else goes on, and the disk beside it."""
    import jax

    size = sum(leaf.nbytes for leaf in jax.tree.leaves(saves.state))
    times: dict[str, list[float]] = {"save": [], "restore": [], "disk write": [], "disk read": []}
    stored = 0
    for _ in range(repeats):
        times["save"].append(timed(lambda: (saves.save(), saves.checkpoints.wait())))
        files = [path for path in (scratch / "checkpoints" / str(saves.number)).rglob("*") if path.is_file()]
        stored = sum(path.stat().st_size for path in files)
        forget(files)
        times["restore"].append(timed(saves.restore))
        plain, content = scratch / "plain", os.urandom(stored)
        times["disk write"].append(timed(lambda plain=plain, content=content: write(plain, content)))
        forget([plain])
        times["disk read"].append(timed(plain.read_bytes))
    print(f"{size / 1e6:.0f} MB of state, {stored / 1e6:.0f} MB on disk")
    for name, taken in times.items():
        seconds = statistics.median(taken)
        print(f"{name:<10} {seconds:6.2f} s  {stored / seconds / 1e6:6.0f} MB/s of what is on disk")


def timed(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        os.fsync(file.fileno())


def forget(files: list[Path]) -> None:
    """Has the kernel read these files from the disk the next time."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
