"""`janus demo`: the whole job on one machine, from records to two Hugging Face directories and a table of results."""

import concurrent.futures
import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from janus_jax.cli.demo.stages import STAGES, largest_mesh
from janus_jax.errors import ConfigError

if TYPE_CHECKING:
    from janus_jax.config.run import RunConfig

_CONFIGS = Path(__file__).parent
_ONLY_AT_THE_END = 10**9
"""Steps between evaluations of a real model: one evaluation takes longer than a short training."""
_REPEATED_STEPS = 3
"""Steps at the end of SFT that run twice: in the run itself, and resumed from a checkpoint."""


def run(
    *,
    model: Path | None,
    steps: int | None,
    out: Path,
    devices: int,
    objective: str = "dpo",
    importing: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
) -> None:
    """Builds data, trains SFT and then on preferences, resumes, exports, compares, and prints a table.

    Args:
        model: Hugging Face directory to start from; None for a small model with random weights.
        steps: optimizer steps of each stage; None for those of the demo's configurations.
        out: directory for all output; an earlier demo in it is replaced.
        devices: CPU devices to simulate.
        objective: the stage after SFT, a name in STAGES.
        importing: what to be in while modules are imported, some of which crash if a signal raises an exception.
    Raises:
        ConfigError: `out` contains files that are not from a demo.
    """
    started = time.perf_counter()
    console = Console()
    out = Path(os.path.expanduser(out))
    with importing():
        from janus_jax.parallel import processes
        from janus_jax.storage import staging

        processes.start(processes.RuntimeOptions(devices=devices, programs=str(staging.cache() / "programs")))
        from janus_jax.checkpoint.stored_model import open_model
        from janus_jax.cli.demo import figures, report
        from janus_jax.config.run import load_config
        from janus_jax.evaluation.pairs import pair_accuracies
        from janus_jax.model.config import PRESETS
        from janus_jax.text.tokenizer import load_tokenizer
        from janus_jax.training.run import train
        from janus_jax.training.setup import prepare

    stage = STAGES[objective]
    shape = PRESETS["tiny"] if model is None else open_model(model).config
    mesh = largest_mesh(shape, devices)
    load_tokenizer(model)  # fails on bad input before anything is written
    _clear(out)
    console.rule("[bold]1. Data: the embedded Multifaceted sample -> TFDS -> seqio Task -> token ids")
    sft_data, counts = _build("sft", model, out)
    console.print(counts, highlight=False)
    with _beside() as beside:
        building = beside.submit(_build, stage.name, model, out)
        mesh_text = " x ".join(f"{axis} {size}" for axis, size in mesh.items())
        console.rule(f"[bold]2. SFT of {'random weights' if model is None else model} on a mesh of {mesh_text}")
        common = [*(f"mesh.{axis}={size}" for axis, size in mesh.items()), *_steps(steps)]
        shards = mesh["data"] * mesh["fsdp"]
        sft_changes = [
            *common,
            _path("run.dir", out / "sft"),
            _path("data.dir", sft_data),
            f"batch.rows={-(-4 // shards) * shards}",
        ]
        changes = [*common, _path("run.dir", out / stage.name), _path("data.dir", out / "data" / stage.name)]
        if model is not None:
            sft_changes += ["model=null", _path("init.from", model), "schedule.learning_rate=1.0e-5", "remat=full"]
            sft_changes += [f"eval.every_steps={_ONLY_AT_THE_END}", "eval.at_start=false"]
            changes += ["schedule.learning_rate=5.0e-6", "remat=full", "eval.every_steps=null"]
            changes += ["batch.examples=6", "batch.row_length=512"]  # one prompt a step: a real model is slow here
        sft = load_config(_CONFIGS / "sft.yaml", sft_changes)
        total = prepare(sft).total_steps
        stop = max(1, total - _REPEATED_STEPS)
        sft = load_config(_CONFIGS / "sft.yaml", [*sft_changes, f"checkpoint.every_steps={stop}", "checkpoint.keep=9"])

        def compile_next() -> int:
            """Weights of the same shape stand for those that SFT has not trained yet."""
            building.result()
            start = ["init.from=null", "model.preset=tiny"] if model is None else [_path("init.from", model)]
            return _compile(load_config(_CONFIGS / f"{stage.name}.yaml", [*changes, *start]))

        compiling = beside.submit(compile_next)
        with figures.Bar(console, "SFT", total) as bar:
            sft_summary = train(sft, writers=[bar, _Watch(compiling)], preemptible=False)

        preference = load_config(_CONFIGS / f"{stage.name}.yaml", [*changes, _path("init.from", out / "sft")])
        preference_total = compiling.result()
        unigram = beside.submit(report.unigram, sft)
        sft_export = beside.submit(report.compare_export, sft)
        console.rule(f"[bold]3. Resume: the last {total - stop} steps again, from the checkpoint of step {stop}")
        resumed = report.prove_resume(sft, stop, out / "resumed")
        console.print(f"losses and final weights {'bit-equal' if resumed else '[red]DIFFER'}")

        console.rule(f"[bold]4. {stage.description}")
        console.print(building.result()[1], highlight=False)
        with figures.Bar(console, stage.label, preference_total, stage.margin[0]) as bar:
            preference_summary = train(preference, writers=[bar], preemptible=False)

    console.rule("[bold]5. Results")
    held_out_batches = None if model is None else 2
    accuracies = pair_accuracies(
        preference, preference_summary.step, kinds=report.held_out_kinds(), held_out_batches=held_out_batches
    )
    exports = {"sft": sft_export.result(), stage.name: report.compare_export(preference)}
    picture = figures.curves(out / "sft", out / stage.name, stage, out / "curves.png")
    results = report.Results(
        stage=stage,
        sft=sft_summary,
        preference=preference_summary,
        unigram=unigram.result(),
        accuracies=accuracies,
        resumed=resumed,
        export_errors=exports,
        picture=picture,
        seconds=time.perf_counter() - started,
    )
    report.show(console, results, out, devices)
    (out / "summary.json").write_text(results.as_json())
    if not resumed or not results.exports_equal:
        raise RuntimeError("the resumed run or an export differs from the run; this is a bug")


def _clear(out: Path) -> None:
    marker = out / ".janus-demo"
    if out.exists() and any(out.iterdir()) and not marker.exists():
        raise ConfigError(f"--out {out}: contains files that are not from a demo; choose another directory")
    for name in ("data", "records", "sft", *STAGES, "resumed"):
        shutil.rmtree(out / name, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    marker.touch()


def _build(kind: str, model: Path | None, out: Path) -> tuple[Path, str]:
    """Returns where the data are, and a line about them."""
    from janus_jax.data.build.pipeline import build
    from janus_jax.data.sample import write_sample

    records = write_sample(kind, out / "records" / kind)
    manifest = build(records, out / "data" / kind, kind=kind, tokenizer=model)
    counts = ", ".join(f"{s.examples} {name} examples ({s.tokens:,} tokens)" for name, s in manifest.splits.items())
    return out / "data" / kind, f"{kind}: {counts} in {out / 'data' / kind}"


def _path(key: str, path: Path) -> str:
    return f"{key}={json.dumps(str(path))}"  # quoted: as YAML a path may be another type


def _steps(steps: int | None) -> list[str]:
    if steps is None:
        return []
    return ["schedule.epochs=null", f"schedule.steps={steps}", f"eval.every_steps={max(1, steps // 2)}"]


@contextlib.contextmanager
def _beside() -> Iterator[concurrent.futures.Executor]:
    """A thread for work where the main one leaves a core idle. An error of the main one does not wait for it."""
    pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="demo")
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


class _Watch:
    """A writer of metrics that ends the run with the error of what goes on beside it."""

    def __init__(self, beside: "concurrent.futures.Future[Any]"):
        self._beside = beside

    def write(self, kind: str, step: int, values: Any) -> None:
        if self._beside.done():
            self._beside.result()

    def close(self) -> None:
        pass


def _compile(config: "RunConfig") -> int:
    """Compiles the programs of a run, which later takes them from where JAX keeps them; returns the run's steps.

    What cannot be compiled is left to the run, which says why.
    """
    import jax

    from janus_jax.training.program import BatchShape
    from janus_jax.training.setup import prepare

    setup = prepare(config)
    settings: Any = jax.config  # its attributes are made at run time
    if not settings.jax_enable_compilation_cache or settings.jax_compilation_cache_dir is None:
        return setup.total_steps  # nothing would be kept
    loaders = [loader for loader in (setup.loader, setup.eval_loader) if loader is not None]
    shapes = [BatchShape(1, loader.rows, loader.settings.row_length, loader.max_segments) for loader in loaders]
    program = setup.program
    state, batches = program.abstract_state(), {shape: program.abstract_batch(shape) for shape in shapes}
    with contextlib.suppress(Exception):
        if setup.objective.needs_reference:
            for batch in batches.values():
                program.reference.lower(state.params, batch).compile()
        for shape in shapes[1:]:
            program.evaluate.lower(state.params, batches[shape]).compile()
        program.train.lower(state, batches[shapes[0]]).compile()
    return setup.total_steps
