"""From the command `janus train` to the end of its first step, in parts; the first start beside the second.

    janus demo                                    # once: makes the data
    python -m tests.benchmarks.startup            # configs/demo_sft.yaml on one device
    python -m tests.benchmarks.startup --resume   # the second start goes on where the first was stopped
    python -m tests.benchmarks.startup CONFIG [a.b=c ...]
    python -m tests.benchmarks.startup --beside CHECKOUT    # and another version of this repository, in turns

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

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]


def start(root: Path, config: str, changes: list[str], environment: dict[str, str]) -> dict[str, float]:
    """Seconds of each part of one start, which makes two steps, by the package of a checkout."""
    command = [sys.executable, "-P", str(ROOT / "tests/benchmarks/one_start.py"), str(time.time()), config, *changes]
    done = subprocess.run(command, env=environment | {"PYTHONPATH": str(root)}, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise SystemExit(done.stdout + done.stderr)
    return json.loads(lines[-1])


def both_starts(root: Path, given: argparse.Namespace) -> list[dict[str, float]]:
    """The parts of a first and a second start of a checkout."""
    with tempfile.TemporaryDirectory() as scratch:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
        environment |= {"JAX_PLATFORMS": "cpu", "JANUS_CACHE": f"{scratch}/cache"}
        results = []
        for number in range(2):
            changes = [
                "mesh.data=1",
                "mesh.fsdp=1",
                "mesh.tensor=1",
                "eval.every_steps=null",
                f"run.dir={scratch}/run{0 if given.resume else number}",
                *given.changes,
            ]
            stops = {"START_IS_STOPPED": "1"} if given.resume and number == 0 else {}
            results.append(start(root, given.config, changes, environment | stops))
        return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("config", nargs="?", default=str(ROOT / "configs/demo_sft.yaml"))
    parser.add_argument("changes", nargs="*", default=[], help="a.b=c of the configuration")
    parser.add_argument("--beside", type=Path, help="a checkout whose package starts too")
    given = parser.parse_args()
    roots = [ROOT] if given.beside is None else [ROOT, given.beside.absolute()]
    taken: dict[Path, list[list[dict[str, float]]]] = {root: [] for root in roots}
    for turn in range(given.repeat):
        for root in reversed(roots) if turn % 2 else roots:
            taken[root].append(both_starts(root, given))
    columns = ["first start", "second start", "first of the other", "second of the other"][: 2 * len(roots)]
    table = Table(f"median seconds of {given.repeat}", *columns)
    for part in taken[ROOT][0][0]:
        starts = (turns for root in roots for turns in zip(*taken[root], strict=True))
        table.add_row(part, *(f"{statistics.median(one[part] for one in turns):.2f}" for turns in starts))
    Console(width=120).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
