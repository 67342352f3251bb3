"""From the command `janus train` to the end of its first step, in parts; the first start beside the second.

    janus demo                                    # once: makes the data
    python -m tests.benchmarks.startup            # configs/demo_sft.yaml on one device
    python -m tests.benchmarks.startup --resume   # the second start goes on where the first was stopped
    python -m tests.benchmarks.startup CONFIG [a.b=c ...]

Tracing, lowering and compiling are of all programs until the first step is done, and are left out of the parts above
them. The second start is another run with the same programs: it reads what the first one has compiled. A later step
shows how much of the first one is the step itself.
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

ROOT = Path(__file__).parents[2]


def start(config: str, changes: list[str], environment: dict[str, str]) -> dict[str, float]:
    """Seconds of each part of one start, which makes two steps."""
    command = [sys.executable, "-m", "tests.benchmarks.one_start", str(time.time()), config, *changes]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise SystemExit(done.stdout + done.stderr)
    return json.loads(lines[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("config", nargs="?", default=str(ROOT / "configs/demo_sft.yaml"))
    parser.add_argument("changes", nargs="*", default=[], help="a.b=c of the configuration")
    given = parser.parse_args()
    first, second = [], []
    for _ in range(given.repeat):
        with tempfile.TemporaryDirectory() as scratch:
            environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
            environment |= {"JAX_PLATFORMS": "cpu", "JANUS_CACHE": f"{scratch}/cache"}
            for number, results in enumerate((first, second)):
                changes = [
                    "mesh.data=1",
                    "mesh.fsdp=1",
                    "mesh.tensor=1",
                    "eval.every_steps=null",
                    f"run.dir={scratch}/run{0 if given.resume else number}",
                    *given.changes,
                ]
                stops = {"START_IS_STOPPED": "1"} if given.resume and number == 0 else {}
                results.append(start(given.config, changes, environment | stops))
    print(f"median seconds of {given.repeat} starts{'':<10}{'first':>8}{'second':>8}")
    for part in first[0]:
        one, two = (statistics.median(result[part] for result in results) for results in (first, second))
        print(f"{part:<36}{one:8.2f}{two:8.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
