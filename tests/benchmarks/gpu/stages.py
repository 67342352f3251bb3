"""The stages in order, the processes that run them, and which attention the steps get."""

import atexit
import dataclasses
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from tests.benchmarks.gpu.supervise import Results, run_stage

PLAIN = "reference"
LEAST_S = 20.0
"""With less time left a stage is not begun."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """One process.

    Args:
        kind: `card`, `kernel`, `torch_kernel`, `step`, `torch_step`, `decode` or `torch_decode`.
        subject: the kernel or the case.
        attention: for steps; `best` and `second`: what the kernels' stages gave.
        needs: modules without which it is skipped.
    """

    name: str
    kind: str
    limit_s: float
    subject: str = ""
    attention: str = ""
    needs: tuple[str, ...] = ()
    compiled: bool = False


_TORCH, _TRL = ("torch",), ("torch", "transformers", "trl", "datasets", "accelerate")


def stages(kernels: tuple[str, ...], *, rehearse: bool) -> list[Stage]:
    """All of them, the most important first; what the time does not suffice for is left out from the end."""
    every = [
        Stage("card", "card", 60),
        *(Stage(f"kernel-{name}", "kernel", 90, name) for name in kernels),
        Stage("kernel-torch", "torch_kernel", 60, needs=_TORCH),
        Stage("sft-2b", "step", 110, "sft-2b", "best"),
        Stage("dpo-2b", "step", 110, "dpo-2b", "best"),
        Stage("sft-7b", "step", 170, "sft-7b", "best"),
        Stage("decode-7b", "decode", 80),
        Stage("torch-sft-2b", "torch_step", 90, "sft-2b", "varlen", _TRL),
        Stage("torch-dpo-2b", "torch_step", 90, "dpo-2b", "sdpa", _TRL),
        Stage("torch-decode-7b", "torch_decode", 50, needs=("torch", "transformers")),
        Stage("kernel-plain", "kernel", 60, PLAIN),
        Stage("dpo-2b-plain", "step", 90, "dpo-2b", PLAIN),
        Stage("sft-2b-plain", "step", 90, "sft-2b", PLAIN),
        Stage("torch-sft-2b-sdpa", "torch_step", 90, "sft-2b", "sdpa", _TRL),
        Stage("sft-2b-second", "step", 90, "sft-2b", "second"),
        Stage("torch-sft-2b-compiled", "torch_step", 150, "sft-2b", "varlen", _TRL, compiled=True),
    ]
    return [stage for stage in every if not (rehearse and stage.compiled)]  # torch compiles for minutes on a CPU


def run_all(
    results: Results,
    chosen: list[Stage],
    *,
    budget_s: Callable[[], float],
    rehearse: bool,
    failures: dict[str, str],
    attention: str | None,
) -> None:
    """Runs the stages one after another. Those that there is no time for, and those that have no kernel, are listed.

    A step whose kernel fails, crashes or hangs gets the next one in a new process: an error may leave the card in a
    state where nothing works.

    Args:
        budget_s: seconds that are left.
        failures: stage -> how it fails on purpose.
        attention: what steps get in the place of the quickest kernel.
    """
    compiled = tempfile.mkdtemp(prefix="janus_jax_gpu_compiled_")
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)
    for stage in chosen:
        wanted = attention if attention and stage.attention == "best" else attention_of(stage, results)
        reason = None
        if wanted is None:
            reason = "no second kernel is equal to plain JAX on these rows"
        elif budget_s() < LEAST_S:
            reason = "no time is left for it"
        if reason is not None or wanted is None:
            results.stages.append({"name": stage.name, "state": "skipped", "reason": reason, "measurements": []})
            results.write()
            continue
        for number, name in enumerate(wanted.split(",")):
            if number and budget_s() < LEAST_S:
                break
            how = None if number else failures.get(stage.name)
            limit = min(stage.limit_s * (3 if rehearse else 1), 5.0 if how == "hang" else math.inf, budget_s())
            print(f"{stage.name} {name}, at most {limit:.0f} s", flush=True)
            command = [sys.executable, "-m", "tests.benchmarks.gpu", "--stage", stage.name, "--attention", name]
            command += ["--rehearse"] * rehearse + (["--simulate", how] if how else [])
            title = f"{stage.name}-with-{name}" if number else stage.name
            run_stage(results, title, command, limit_s=limit, environment=environment(stage, rehearse, compiled))
            last = results.stages[-1]
            print(f"  {last['state']} in {last['seconds']} s {last.get('reason', '')}", flush=True)
            if last["state"] in ("ok", "skipped"):
                break


def attention_of(stage: Stage, results: Results) -> str | None:
    """The attention that a step's stage gets; None: it asks for a kernel that is not there.

    `best` are the kernels that are equal to plain JAX on the rows of the step, quickest first, then plain JAX, with
    commas: a step takes the first that works.
    """
    if stage.attention not in ("best", "second"):
        return stage.attention
    rows = "pairs" if stage.subject.startswith("dpo") else "sft"
    times = {
        one["kernel"]: one["ms"]
        for one in results.measurements("kernel")
        if one["rows"] == rows and one["kernel"] not in (PLAIN, "torch")
    }
    ranked = sorted(times, key=lambda name: times[name])
    if stage.attention == "best":
        return ",".join([*ranked, PLAIN])
    return ranked[1] if len(ranked) > 1 else None


def environment(stage: Stage, rehearse: bool, compiled: str) -> dict[str, str]:
    """Of a stage's process: JAX stays away from a card that torch uses.

    Args:
        compiled: directory in which stages find what earlier ones compiled.
    """
    here = dict(os.environ)
    here.setdefault("JAX_COMPILATION_CACHE_DIR", compiled)
    here.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")
    here.setdefault("PYTHONUNBUFFERED", "1")
    if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in here:  # its old name; JAX refuses both
        here.setdefault("XLA_CLIENT_MEM_FRACTION", "0.9")  # as runs do; JAX's 0.75 leaves much of a card unused
    here.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    here["TOKENIZERS_PARALLELISM"], here["HF_HUB_OFFLINE"] = "false", "1"
    if rehearse or stage.kind.startswith("torch"):
        here["JAX_PLATFORMS"] = "cpu"
    if rehearse:
        here["CUDA_VISIBLE_DEVICES"] = ""
        here.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")  # compiles in a third of the time
    return here


def run_here(stage: Stage, attention: str, *, rehearse: bool, simulate: str | None) -> None:
    """What a stage's process does."""
    from tests.benchmarks.gpu import child
    from tests.benchmarks.gpu.sizes import ON_A_CARD, REHEARSAL

    sizes = REHEARSAL if rehearse else ON_A_CARD

    def measure() -> None:
        _need_card(stage, rehearse)
        if stage.kind in ("card", "kernel"):
            from tests.benchmarks.gpu import kernels

            kernels.card(sizes) if stage.kind == "card" else kernels.kernel(stage.subject, sizes)
        elif stage.kind == "step":
            from tests.benchmarks.gpu import steps

            steps.step(stage.subject, sizes, attention)
        elif stage.kind == "torch_kernel":
            from tests.benchmarks.gpu import torch_kernels

            torch_kernels.kernel(sizes)
        elif stage.kind.endswith("decode"):
            from tests.benchmarks.gpu import decode

            decode.decode(sizes) if stage.kind == "decode" else decode.torch_decode(sizes)
        else:
            from tests.benchmarks.gpu import torch_steps

            torch_steps.step(stage.subject, sizes, attention, compiled=stage.compiled)

    child.run(measure, needs=stage.needs, simulate=simulate)


def _need_card(stage: Stage, rehearse: bool) -> None:
    if rehearse:
        return
    library: Any
    if stage.kind.startswith("torch"):
        import torch as library

        here = library.cuda.is_available()
    else:
        import jax as library

        here = library.default_backend() == "gpu"
    if not here:
        raise RuntimeError(f"{library.__name__} sees no NVIDIA GPU; --rehearse runs tiny shapes on the CPU")
