"""The options of `janus plan`. `janus_jax/planning/` does the work."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from janus_jax.cli.arguments import Overrides, interruptibly, load, on_cpu
from janus_jax.cli.outputs import require_file, require_writable
from janus_jax.errors import ConfigError

EPILOG = "Example: janus plan configs/sft_65k.yaml --topology v5litepod-16 batch.rows=64 --png plan.png"
DOES_NOT_FIT = 3
TRIES = 12  # changes that are compiled for a step that does not fit


def plan(
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG",
            help="YAML file. Its data and weights need not exist here. With --generate also MODEL: a run, a step, a "
            "converted or Hugging Face directory, a hub id, or a named size, like mistral-7b.",
        ),
    ],
    topology: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="TPU slice: a name (v5litepod-16) or a shape (v5p:4x4x12). GPUs: h100:8. Simulated: cpu:8.",
        ),
    ] = None,
    devices: Annotated[
        str | None, typer.Option(metavar="cpu:N", help="Simulate N devices, without libtpu, instead of --topology.")
    ] = None,
    overrides: Overrides = None,
    slices: Annotated[
        int, typer.Option(min=1, help="Number of identical slices, connected by the data centre's network.")
    ] = 1,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all figures as JSON.")] = None,
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw memory and time as a picture.")] = None,
    dump_hlo: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the program before and after compiling.")
    ] = None,
    chips: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML file whose chip figures and prices override the package's."),
    ] = None,
    measured: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="A step on the same chips, of janus time-step --json, to expect from; may be repeated."
        ),
    ] = None,
    explain: Annotated[
        str | None,
        typer.Option(
            metavar="PARAM", help="Show how the parameters with this name or prefix are sharded. Compiles nothing."
        ),
    ] = None,
    tries: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="If the step does not fit: try up to this many changes to find some that fit. Default: 12.",
        ),
    ] = None,
    sweep: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Search meshes, microbatches, remat and moments; compile the N best estimates."
        ),
    ] = None,
    search_remat: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Find the remat list that fits and recomputes least; compile up to N of them."
        ),
    ] = None,
    generate: Annotated[
        bool, typer.Option("--generate", help="Plan generation instead: memory, and the bound in tokens/s.")
    ] = False,
    rows: Annotated[
        int | None, typer.Option(min=1, help="--generate: answers that grow at the same time. Default: 32.")
    ] = None,
    prompt_tokens: Annotated[
        int | None, typer.Option(min=1, help="--generate: tokens of each prompt. Default: 512.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="--generate: most tokens of an answer. Default: 1024.")
    ] = None,
    cache_dtype: Annotated[
        Literal["bfloat16", "float32", "int8"] | None,
        typer.Option(help="--generate: of keys and values. Default: bfloat16, on simulated devices float32."),
    ] = None,
) -> None:
    """Compile the training step of CONFIG for TPUs or GPUs: does it fit, what limits its speed, what does it cost?

    Needs no TPU or GPU, no weights and no data. Takes one to three minutes. Exits with 3 if the step does not fit.
    """
    topology = _chosen_topology(topology, devices)
    outputs = {"--json": json, "--png": png, "--dump-hlo": dump_hlo}
    for name, path in outputs.items():
        if path is not None and explain is not None:
            raise ConfigError(f"{name} {path}: not allowed with --explain, which compiles nothing")
        if path is not None:
            require = require_writable if name == "--dump-hlo" else require_file
            require(name, path)
    if png is not None and png.suffix.lower() != ".png":
        raise ConfigError(f"--png {png}: allowed: a name that ends with .png")
    if png is not None and sweep is not None and topology.startswith("cpu"):
        raise ConfigError(f"--png {png}: not allowed for a sweep of simulated devices, which have no times to draw")
    on_cpu()
    of_generation = {
        "--rows": rows,
        "--prompt-tokens": prompt_tokens,
        "--max-new-tokens": max_new_tokens,
        "--cache-dtype": cache_dtype,
    }
    of_training = {
        "--tries": tries,
        "--png": png,
        "--dump-hlo": dump_hlo,
        "--explain": explain,
        "--sweep": sweep,
        "--search-remat": search_remat,
        "--measured": (measured or [None])[0],
    }
    for name, value in (of_training if generate else of_generation).items():
        if value is not None:
            raise ConfigError(f"{name} {value}: {'not' if generate else 'only'} allowed with --generate")
    if generate:
        sizes = (rows or 32, prompt_tokens or 512, max_new_tokens or 1024)
        options = dict(zip(("rows", "prompt", "new"), sizes, strict=True)) | {"cache_dtype": cache_dtype}
        _generate(config, overrides, topology, slices, chips, options, json)
        return
    if os.path.isdir(config):
        raise ConfigError(f"{config}: is a directory; allowed: a YAML file, or with --generate a model")
    loaded = load(config, overrides)
    others = {"--explain": explain, "--sweep": sweep, "--search-remat": search_remat}
    for other in (name for name, value in others.items() if value is not None and tries is not None):
        raise ConfigError(f"--tries {tries}: not allowed with {other}")
    if search_remat is not None:
        alone = {"--sweep": sweep, "--explain": explain, "--dump-hlo": dump_hlo, "--measured": (measured or [None])[0]}
        for name, value in alone.items():
            if value is not None:
                raise ConfigError(f"{name} {value}: not allowed with --search-remat")
        _search_remat(loaded, topology, slices, chips, search_remat, json, png)
        return
    if explain is not None and sweep is not None:
        raise ConfigError("--sweep, --explain: allowed: only one of them")
    if measured and (explain is not None or sweep is not None):
        raise ConfigError(f"--measured {measured[0]}: not allowed with --sweep or --explain")
    if chips is not None and explain is not None:
        raise ConfigError(f"--chips {chips}: not allowed with --explain, which needs no figures of chips")
    if explain is not None:
        from janus_jax.planning.report.explain import explain_parameters

        print(explain_parameters(loaded, topology, explain, num_slices=slices))
        return
    if sweep is not None:
        if dump_hlo is not None:
            raise ConfigError(f"--dump-hlo {dump_hlo}: not allowed with --sweep")
        _sweep(loaded, topology, slices, chips, sweep, json, png)
        return
    from janus_jax.planning import expectation
    from janus_jax.planning import plan as compile_plan
    from janus_jax.planning.chips.slices import find_slice, load_chips
    from janus_jax.planning.report.text import show

    timings = [expectation.read_timing(file) for file in measured or ()]
    expectation.require_used(timings, find_slice(topology).family)
    as_of = load_chips(chips).as_of
    with _progress(f"compiling for {topology}"):
        compiling = partial(compile_plan, loaded, topology, num_slices=slices, chips=chips, dump_hlo=dump_hlo)
        planned = expectation.expect(interruptibly(compiling), timings)
    show(planned, prices_of=as_of)
    if json is not None:
        from janus_jax.storage.local import write_json

        write_json(json, planned.to_json())
    if png is not None:
        from janus_jax.planning.report.picture import picture

        picture(planned, png)
    _print_written(json, png, dump_hlo)
    if not planned.fits:
        if tries != 0:
            _suggest(loaded, topology, slices, chips, TRIES if tries is None else tries, planned)
        raise typer.Exit(DOES_NOT_FIT)


def _generate(
    source: str,
    overrides: list[str] | None,
    topology: str,
    slices: int,
    chips: Path | None,
    options: dict[str, Any],
    json: Path | None,
) -> None:
    from janus_jax.planning import generation
    from janus_jax.planning.chips.slices import load_chips
    from janus_jax.planning.report.generation import text

    as_of = load_chips(chips).as_of
    model = generation.model_of(source, load(source, overrides) if source.endswith((".yaml", ".yml")) else None)
    if overrides and not source.endswith((".yaml", ".yml")):
        raise ConfigError(f"{overrides[0]}: a change to a configuration, but {source} is a model")
    with _progress(f"compiling for {topology}"):
        compiling = partial(generation.plan, model, topology, num_slices=slices, chips=chips, **options)
        planned = interruptibly(compiling)
    print(text(planned, prices_of=as_of))
    if json is not None:
        from janus_jax.storage.local import write_json

        write_json(json, planned.to_json())
    _print_written(json)
    if not planned.fits:
        raise typer.Exit(DOES_NOT_FIT)


def _chosen_topology(topology: str | None, devices: str | None) -> str:
    if (topology is None) == (devices is None):
        raise ConfigError("--topology, --devices: allowed: exactly one of them")
    if topology is not None:
        return topology
    if devices is None or not re.fullmatch(r"(cpu[:-])?[1-9]\d*", devices):
        raise ConfigError(f"--devices {devices}: allowed: cpu:N, like cpu:8; use --topology for TPUs and GPUs")
    return devices if devices.startswith("cpu") else f"cpu:{devices}"


def _suggest(config: Any, topology: str, slices: int, chips: Path | None, tries: int, failed: Any) -> None:
    """Prints changes that make the step fit, as they are found."""
    from janus_jax.planning.search.suggest import suggestions

    print("\nchanges that make the step fit (each was compiled), cheapest first:", flush=True)
    any_fits, tried = False, 0

    def report(changes: tuple[str, ...], fits: bool) -> None:
        nonlocal tried
        tried += 1
        if not fits:
            print(f"does not fit: {' '.join(changes)}", file=sys.stderr, flush=True)

    fitting = suggestions(config, topology, slices, failed, chips=chips, tries=tries, report=report)
    while (suggestion := interruptibly(lambda: next(fitting, None))) is not None:
        any_fits, memory = True, suggestion.plan.memory
        print(f"  {' '.join(suggestion.changes)}\n    {memory.needed / 2**30:.2f} GiB; {suggestion.cost}", flush=True)
    if not any_fits:
        more = f"--tries {2 * tries}, " if tried >= tries else ""
        print(f"  none: compiled {tried} changes; try {more}a larger slice or shorter rows")


def _search_remat(
    config: Any, topology: str, slices: int, chips: Path | None, tries: int, json: Path | None, png: Path | None
) -> None:
    from janus_jax.model.remat import as_text
    from janus_jax.planning.search.keep import most_kept

    def report(choice: Any, fits: bool) -> None:
        print(f"{'fits' if fits else 'does not fit'}: remat={as_text(choice.remat)}", file=sys.stderr, flush=True)

    searching = partial(most_kept, config, topology, slices, chips=chips, tries=tries, report=report)
    chosen = interruptibly(searching)
    if chosen is None:
        print(f"none that was compiled fits {topology}; janus plan without --search-remat says what does")
        raise typer.Exit(DOES_NOT_FIT)
    memory: Any = chosen.plan.memory
    print(f"remat={as_text(chosen.choice.remat)}")
    print(f"  {memory.needed / 2**30:.2f} GiB of {memory.usable / 2**30:.2f} GiB on each device of {topology}")
    most = f"{chosen.full.repeated:.0%} with remat=full"
    print(f"  the backward pass recomputes {chosen.choice.repeated:.0%} of the forward pass, {most}")
    if json is not None:
        from janus_jax.storage.local import write_json

        write_json(json, chosen.plan.to_json())
    if png is not None:
        from janus_jax.planning.report.picture import picture

        picture(chosen.plan, png)
    _print_written(json, png)


def _sweep(
    config: Any, topology: str, slices: int, chips: Path | None, limit: int, json: Path | None, png: Path | None
) -> None:
    from janus_jax.planning.search.sweep import sweep

    def report(cell: Any) -> None:
        print(f"{cell.status}: {' '.join(cell.changes)}", file=sys.stderr, flush=True)

    cells = sweep(config, topology, slices, chips=chips, limit=limit, report=report)
    shown = [cell for cell in cells if cell.status in ("fits", "too large", "failed")]
    for cell in shown:
        needed = "" if cell.peak is None else f"{cell.peak / 2**30:6.2f} GiB"
        rate = ""
        if cell.tokens_per_s and cell.serial_tokens_per_s:
            rate = f"{cell.tokens_per_s:12,.0f} tokens/s at the bound, {cell.serial_tokens_per_s:11,.0f} in series"
        reason = f": {cell.reason}" if cell.status == "failed" else ""
        print(f"{cell.status:<10}{needed:>12}{rate}  {' '.join(cell.changes)}{reason}")
    if any(cell.remat.startswith("[") for cell in shown):
        print("remat=[...]: tensors that each block keeps, chosen by estimate; add a row's changes to janus plan with")
        print("--search-remat N, which compiles up to N lists and finds the one that fits and recomputes least")
    rest = len(cells) - len(shown)
    print(f"{rest:,} more: not compiled; by estimate they cannot fit or others are better")
    if json is not None:
        from janus_jax.storage.local import write_json

        write_json(json, [cell.to_json() for cell in cells])
    if png is not None:
        from janus_jax.planning.search.pareto import plot

        plot(cells, png)
    _print_written(json, png)
    if not any(cell.status == "fits" for cell in cells):
        raise typer.Exit(DOES_NOT_FIT)


def _print_written(*paths: Path | None) -> None:
    for path in paths:
        if path is not None:
            print(f"wrote {path}")


@contextlib.contextmanager
def _progress(activity: str) -> Iterator[None]:
    """Shows a spinner if stderr is a terminal."""
    from rich.console import Console

    if not sys.stderr.isatty():
        yield
        return
    with os.fdopen(os.dup(2), "w") as screen:  # file descriptor 2 is redirected while the compiler runs
        with Console(file=screen).status(re.sub(r"\[", r"\\[", f"{activity}: a minute or two")):
            yield
