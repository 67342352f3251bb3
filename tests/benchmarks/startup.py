"""From the command `janus train` to the end of its first step, in parts; the first start beside the second.

    janus demo                                    # once: makes the data
    python -m tests.benchmarks.startup            # configs/demo_sft.yaml on one device
    python -m tests.benchmarks.startup CONFIG [a.b=c ...]

Tracing, lowering and compiling are of all programs until the first step is done, and are left out of the parts above
them. The second start is another run with the same programs: it finds what the first one has compiled.
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

_DRIVER = """
import collections, json, os, sys, time
marks = [("imports", time.time())]
import jax
from jax import monitoring
kinds = {"jaxpr_trace_duration": "trace", "jaxpr_to_mlir_module_duration": "lower"}
kinds["backend_compile_duration"] = "compile"
spent, parts = collections.Counter(), collections.Counter()
def count(name, seconds, **_):
    if (kind := kinds.get(name.rpartition("/")[2])):
        spent[kind] += seconds
monitoring.register_event_duration_secs_listener(count)
from janus_jax.cli import arguments
from janus_jax.config.run import load_config
config = load_config(sys.argv[2], sys.argv[3:])
marks.append(("jax, config", time.time()))
from janus_jax.parallel import processes
processes.start(arguments.runtime_options(None, None, None, 1))
jax.devices()
marks.append(("devices", time.time()))
from janus_jax.training import run
marks.append(("modules of training", time.time()))

def timed(name, part):
    plain = getattr(run, name)
    def wrapped(*args, **options):
        start, before = time.time(), spent.total()
        try:
            return plain(*args, **options)
        finally:
            parts[part] += time.time() - start - (spent.total() - before)
    setattr(run, name, wrapped)

def stepped(_, of, step):
    jax.block_until_ready(of.state)
    last, result = float(sys.argv[1]), {}
    whole = time.time() - last
    for name, at in marks:
        result[name], last = at - last, at
    result |= parts | {kind: spent[kind] for kind in ("trace", "lower", "compile")}
    print(json.dumps(result | {"the step and the rest": whole - sum(result.values()), "whole": whole}), flush=True)
    os._exit(0)

timed("prepare", "data and program")
timed("begin", "weights")
run.RequireFinite.after_step = stepped
run.train(config, until_step=1, writers=[])
"""
ROOT = Path(__file__).parents[2]


def start(config: str, changes: list[str], environment: dict[str, str]) -> dict[str, float]:
    """Seconds of each part of one start, which makes one step."""
    command = [sys.executable, "-c", _DRIVER, str(time.time()), config, *changes]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
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
                    f"run.dir={scratch}/run{number}",
                    *given.changes,
                ]
                results.append(start(given.config, changes, environment))
    print(f"median seconds of {given.repeat} starts{'':<6}{'first':>8}{'second':>8}")
    for part in first[0]:
        one, two = (statistics.median(result[part] for result in results) for results in (first, second))
        print(f"{part:<32}{one:8.2f}{two:8.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
