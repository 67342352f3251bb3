"""The options of `janus time-step`. `janus_jax/planning/timing.py` does the work."""

from pathlib import Path
from typing import Annotated

import typer

from janus_jax.cli import arguments
from janus_jax.cli.option_groups import grouped
from janus_jax.cli.outputs import require_file, require_writable

EPILOG = "Example, on every host of a slice: janus time-step configs/sft_65k.yaml --trace trace"


@grouped()
def time_step(
    config: arguments.ConfigAlone,
    overrides: arguments.Overrides = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps to time, after one warm-up step.")] = 5,
    trace: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a trace of the timed steps, for xprof or TensorBoard.")
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the numbers as JSON.")] = None,
    chips: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML file whose chip figures override the package's.")
    ] = None,
    *,
    place: arguments.Place,
) -> None:
    """Time the training step of CONFIG on this machine's devices, with random weights and made-up rows.

    Prints the measured figures beside the plan of the same program.
    """
    place.runtime()
    loaded = arguments.load(config, overrides)
    from janus_jax.parallel import processes

    place.start()
    with processes.agreement("outputs"):
        if trace is not None:
            require_writable("--trace", trace)
        if json is not None and processes.is_main():
            require_file("--json", json)
    from janus_jax.planning.report.text import show_timing
    from janus_jax.planning.timing import time_step

    timing = time_step(loaded, steps=steps, trace=trace, chips=chips)
    if not processes.is_main():
        return
    show_timing(timing)
    if json is not None:
        from janus_jax.storage.local import write_json

        write_json(json, timing.to_json())
        print(f"wrote {json}")
    if trace is not None:
        print(f"wrote {trace}")
