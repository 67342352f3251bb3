"""The kernels, training steps and TRL beside them on one NVIDIA GPU, in one call. docs/gpu.md says what is measured.

python -m tests.benchmarks.gpu --out DIR                # on the card; 460 seconds
python -m tests.benchmarks.gpu --out DIR --rehearse     # tiny shapes on the CPU
python -m tests.benchmarks.gpu --report DIR             # the table, from results.json
"""

import argparse
import datetime
import importlib.metadata
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.benchmarks.gpu.stages import Stage, run_all, run_here, stages
from tests.benchmarks.gpu.supervise import Results

_PACKAGES = ("jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda12-plugin", "flax", "optax", "nvidia-cudnn-cu13", "torch")
_PACKAGES += ("triton", "transformers", "trl", "accelerate", "datasets")
_FAILURES = ("raise", "crash", "hang")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="directory for results.json and log.txt")
    parser.add_argument("--budget", type=float, default=460.0, help="seconds for everything (default: 460)")
    parser.add_argument("--stages", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument("--attention", metavar="NAME", help="what steps use (default: the quickest equal kernel)")
    parser.add_argument(
        "--fail",
        action="append",
        default=[],
        metavar="NAME[:HOW]",
        help=f"let a stage fail on purpose: {', '.join(_FAILURES)} (default: raise); may be repeated",
    )
    parser.add_argument("--report", type=Path, metavar="DIR", help="print the table of a finished run and stop")
    parser.add_argument("--stage", help=argparse.SUPPRESS)  # what this program calls itself with
    parser.add_argument("--simulate", choices=_FAILURES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.report is not None:
        from tests.benchmarks.gpu.report import report

        print(report(arguments.report))
        return
    everything = {stage.name: stage for stage in stages(_kernels(arguments.rehearse), rehearse=arguments.rehearse)}
    if arguments.stage is not None:
        stage = everything[arguments.stage]
        run_here(stage, arguments.attention or "", rehearse=arguments.rehearse, simulate=arguments.simulate)
        return
    if arguments.out is None:
        parser.error("give --out DIR or --report DIR")
    for name in arguments.stages or ():
        if name not in everything:
            parser.error(f"--stages {name}: allowed: {', '.join(everything)}")
    failures = dict(_failure(parser, text, everything) for text in arguments.fail)
    chosen = [stage for name, stage in everything.items() if name in (arguments.stages or everything)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the stage's process is ended too
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "log.txt").write_text("", encoding="utf-8")
    results, begun = Results(arguments.out, _facts(arguments.rehearse, arguments.budget)), time.monotonic()
    run_all(
        results,
        chosen,
        budget_s=lambda: arguments.budget - (time.monotonic() - begun),
        rehearse=arguments.rehearse,
        failures=failures,
        attention=arguments.attention,
    )
    results.facts["seconds"] = round(time.monotonic() - begun, 1)
    results.write()
    print(f"{results.facts['seconds']} s; {arguments.out / 'results.json'}")


def _kernels(rehearse: bool) -> tuple[str, ...]:
    from tests.benchmarks.gpu.sizes import ON_A_CARD, REHEARSAL

    return (REHEARSAL if rehearse else ON_A_CARD).kernels


def _failure(parser: argparse.ArgumentParser, text: str, everything: dict[str, Stage]) -> tuple[str, str]:
    name, _, how = text.partition(":")
    if name not in everything or (how or "raise") not in _FAILURES:
        parser.error(f"--fail {text}: allowed: a stage ({', '.join(everything)}), then : and {', '.join(_FAILURES)}")
    return name, how or "raise"


def _facts(rehearse: bool, budget_s: float) -> dict[str, object]:
    """What is known before anything runs. Asks nvidia-smi, so that no library takes the card for it."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        card = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        card = None
    return {
        "form": 1,
        "begun": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "rehearsal": rehearse,
        "budget_s": budget_s,
        "card": card,
        "python": platform.python_version(),
        "versions": versions,
    }


if __name__ == "__main__":
    main()
