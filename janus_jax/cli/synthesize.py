"""`janus data synthesize`: a collection of system messages and responses, made by a model."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from janus_jax.cli import arguments
from janus_jax.cli.outputs import require_writable, tell
from janus_jax.errors import ConfigError

EPILOG = "Example: janus data synthesize synthesis.yaml --limit 10 --dry-run"

StepName = Literal["instructions", "hierarchy", "sets", "systems", "responses", "rubrics", "collection"]


def data_synthesize(
    file: arguments.ConfigFile,
    overrides: arguments.Overrides = None,
    step: Annotated[StepName | None, typer.Option(help="Make only this step; those before it must be made.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Ask about so many instructions only; later more, or all.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be asked for, and what it costs.")
    ] = False,
    batch: Annotated[
        bool, typer.Option("--batch", help="Write requests into files for a batch API instead of sending them.")
    ] = False,
    answers: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="With --step: answers of a batch API; may be repeated.", show_default=False),
    ] = None,
    runner: Annotated[
        str | None,
        typer.Option(
            help="Read and filter the records of the step instructions on Apache Beam: direct (this machine), "
            "dataflow, flink, spark, or a runner's name. Needs the extra beam. Default: without Beam."
        ),
    ] = None,
    beam_option: arguments.BeamOptions = None,
    processes: Annotated[int, typer.Option(min=1, help="With --runner direct: worker processes.")] = 1,
) -> None:
    """Make instructions, preferences, system messages and responses like those of the Multifaceted Collection."""
    from janus_jax.data.build.beam.runner import Runner
    from janus_jax.data.synthesize import dry_run as estimates
    from janus_jax.data.synthesize.config import load_synthesis
    from janus_jax.data.synthesize.pipeline import STEPS, Synthesis

    if answers and (step is None or not STEPS[step].section):
        asking = ", ".join(name for name, one in STEPS.items() if one.section)
        raise ConfigError(f"--answers: allowed: only with --step, one of {asking}")
    for path in answers or ():
        if not path.is_file():
            raise ConfigError(f"--answers {path}: no such file")
    if dry_run and (batch or answers):
        raise ConfigError("--dry-run: not allowed with --batch or --answers")
    if dry_run and runner not in (None, "direct"):
        raise ConfigError(f"--dry-run: would read the instructions with --runner {runner}; allowed: --runner direct")
    if runner is None and (beam_option or processes > 1):
        raise ConfigError("--beam-option, --processes: allowed: only with --runner")
    if runner is not None and step not in (None, "instructions"):
        raise ConfigError("--runner: allowed: only where the step instructions is made")
    settings = load_synthesis(file, overrides or [], inputs=True)
    require_writable("out", settings.out)
    on_beam = None if runner is None else Runner(runner, tuple(beam_option or ()))
    work = Synthesis(settings, limit=limit, batch=batch, runner=on_beam, processes=processes, tell=tell)
    if dry_run:
        for line in estimates.lines(work, step):
            print(line)
        return
    done = work.run(step, answers or ())
    tokens, money = work.spent()
    paid = f"{tokens:,} tokens spent in all" + ("" if money is None else f", {money:,.4f} of money")
    what = f"made: {step or 'all steps'}" if done else f"waiting for answers: {work.waits}"
    print(f"{what} in {settings.out}; {paid}", flush=True)
