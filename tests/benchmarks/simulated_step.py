"""Time of the demo's SFT step on eight simulated devices, with glibc keeping freed memory and without.

    python -m tests.benchmarks.simulated_step

Pairs of fresh processes take turns; printed are the medians, and the median of the ratios within pairs.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.repository import ROOT

STEPS = 12


def measure(keep: bool, data: Path) -> float:
    """Seconds of a step in this process: the median of `STEPS`, after one that compiles."""
    from janus_jax.parallel import environment, processes

    if not keep:
        environment.keep_freed_memory = lambda: None
    processes.start(processes.RuntimeOptions(devices=8))
    import jax

    from janus_jax.config.run import load_config
    from janus_jax.training.setup import prepare

    changes = ["mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2", f"data.dir={data}"]
    setup = prepare(load_config(ROOT / "janus_jax" / "cli" / "demo" / "sft.yaml", changes))
    state, step = setup.program.init(setup.initial_params("float32")), setup.program.train
    seconds = []
    for loaded in setup.loader.batches(steps=STEPS + 1):
        begun = time.perf_counter()
        state, *_ = jax.block_until_ready(step(state, loaded.batch))
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--measure", choices=["kept", "returned"], help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure == "kept", arguments.data)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        from janus_jax.data.build.pipeline import build
        from janus_jax.data.sample import write_sample

        data = Path(scratch) / "data"
        build(write_sample("sft", Path(scratch) / "rows"), data, kind="sft")
        times: dict[str, list[float]] = {"kept": [], "returned": []}
        for pair in range(arguments.pairs):
            for name in sorted(times, reverse=pair % 2 == 1):
                command = [sys.executable, "-m", "tests.benchmarks.simulated_step", "--measure", name]
                done = subprocess.run([*command, "--data", str(data)], cwd=ROOT, check=True, capture_output=True)
                times[name].append(json.loads(done.stdout.splitlines()[-1]))
    for name, seconds in times.items():
        print(f"freed memory {name:8}: {statistics.median(seconds):.3f} s a step of {[round(s, 3) for s in seconds]}")
    ratios = [a / b for a, b in zip(times["kept"], times["returned"], strict=True)]
    print(f"kept / returned: {statistics.median(ratios):.2f}, pairs {[round(ratio, 2) for ratio in ratios]}")


if __name__ == "__main__":
    main()
