"""Time of the demo's steps on eight simulated devices: glibc keeps freed memory or not, or beside another checkout.

    python -m tests.benchmarks.simulated_step
    python -m tests.benchmarks.simulated_step --kind dpo --beside CHECKOUT    # another version of this repository

Pairs of fresh processes take turns. Printed are the medians, in seconds and in seconds of CPU, and the median of the
ratios within pairs. The loss of the last step says whether both sides computed the same.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.repository import ROOT

STEPS = 12


def measure(keep: bool, kind: str, data: Path) -> dict[str, float]:
    """Medians of `STEPS` steps in this process, after one that compiles, and the last loss."""
    from janus_jax.parallel import environment, processes

    if not keep:
        environment.keep_freed_memory = lambda: None
    processes.start(processes.RuntimeOptions(devices=8))
    import jax

    import janus_jax
    from janus_jax.config.run import load_config
    from janus_jax.training.setup import prepare

    changes = ["mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2", f"data.dir={data}"]
    changes += ["init.from=null", "model={preset: tiny}"] if kind == "dpo" else []
    setup = prepare(load_config(Path(janus_jax.__file__).parent / "cli" / "demo" / f"{kind}.yaml", changes))
    state, step = setup.program.init(setup.initial_params("float32")), setup.program.train
    seconds, cpu, scalars = [], [], {}
    for loaded in setup.loader.batches(steps=STEPS + 1):
        begun = time.perf_counter(), time.process_time()
        state, scalars, _ = jax.block_until_ready(step(state, loaded.batch))
        seconds.append(time.perf_counter() - begun[0])
        cpu.append(time.process_time() - begun[1])
    medians = {"seconds": statistics.median(seconds[1:]), "CPU seconds": statistics.median(cpu[1:])}
    return medians | {"loss": float(scalars["loss"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--kind", choices=["sft", "dpo"], default="sft")
    parser.add_argument("--beside", type=Path, help="a checkout whose package is the other side")
    parser.add_argument("--measure", choices=["kept", "returned"], help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure == "kept", arguments.kind, arguments.data)))
        return
    sides = {"kept": ROOT, "returned": ROOT}
    names = {"kept": "freed memory kept", "returned": "freed memory returned"}
    if arguments.beside:
        sides = {"this": ROOT, "other": arguments.beside.resolve()}  # processes run in another directory
        names = {"this": "this code", "other": str(arguments.beside)}
    with tempfile.TemporaryDirectory() as scratch:
        from janus_jax.data.build.pipeline import build
        from janus_jax.data.sample import write_sample

        data = Path(scratch) / "data"
        build(write_sample(arguments.kind, Path(scratch) / "rows"), data, kind=arguments.kind)
        taken: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
        for pair in range(arguments.pairs):
            for name in sorted(sides, reverse=pair % 2 == 1):
                command = [
                    sys.executable,
                    "-P",
                    __file__,
                    "--measure",
                    name if name in ("kept", "returned") else "kept",
                ]
                command += ["--kind", arguments.kind, "--data", str(data)]
                paths = {"PYTHONPATH": os.pathsep.join((str(sides[name]), str(ROOT)))}
                done = subprocess.run(command, cwd=scratch, env=os.environ | paths, check=True, capture_output=True)
                taken[name].append(json.loads(done.stdout.splitlines()[-1]))
    for unit in ("seconds", "CPU seconds", "loss"):
        for name, measured in taken.items():
            values = [one[unit] for one in measured]
            each = [round(value, 6 if unit == "loss" else 3) for value in values]
            print(f"{names[name]}: {unit} of a step: median {statistics.median(values):.3f} of {each}")
        if unit != "loss":
            one, other = (([m[unit] for m in measured]) for measured in taken.values())
            ratios = [a / b for a, b in zip(one, other, strict=True)]
            print(f"ratio of {unit}: {statistics.median(ratios):.2f}, pairs {[round(ratio, 2) for ratio in ratios]}")


if __name__ == "__main__":
    main()
