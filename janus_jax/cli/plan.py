"""`janus plan`: its options; the work is in `janus_jax/planning/`."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from janus_jax.cli.arguments import ConfigAlone, Overrides, interruptibly
from janus_jax.cli.outputs import require_file, require_writable
from janus_jax.errors import ConfigError
from janus_jax.parallel.environment import use_cpu_only

EPILOG = "Example: janus plan configs/sft_65k.yaml --topology v5litepod-16 batch.rows=64 --png plan.png"
DOES_NOT_FIT = 3


def plan(
    config: ConfigAlone,
    topology: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Slice: v5litepod-16, v4-32, a shape like v5p:4x4x12, or cpu:8."),
    ] = None,
    devices: Annotated[
        str | None,
        typer.Option(metavar="cpu:N", help="Instead of --topology: so many simulated devices; needs no libtpu."),
    ] = None,
    overrides: Overrides = None,
    slices: Annotated[int, typer.Option(min=1, help="So many alike, over the data centre's network.")] = 1,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the numbers as JSON.")] = None,
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a picture of memory and time.")] = None,
    dump_hlo: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the program, as lowered and as compiled.")
    ] = None,
    chips: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML with figures and prices that differ from the package's.")
    ] = None,
    explain: Annotated[
        str | None,
        typer.Option(
            metavar="PARAM", help="Compile nothing; say how this parameter, or all below this prefix, is split."
        ),
    ] = None,
    tries: Annotated[
        int, typer.Option(min=0, help="If it does not fit: programs to compile in search of changes that do.")
    ] = 12,
    sweep: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Instead: meshes, microbatches, remat and moments; compile the N likeliest."
        ),
    ] = None,
) -> None:
    """Compile the training step of CONFIG for a slice that is not here: does it fit, what bounds it, what does it cost.

    Exits with 3 if it does not fit. Needs a minute or two, no TPU and no weights.
    """
    topology = _where(topology, devices)
    outputs = {"--json": json, "--png": png, "--dump-hlo": dump_hlo}
    for name, path in outputs.items():
        if path is None:
            continue
        if explain is not None:
            raise ConfigError(f"{name} {path}: allowed: only without --explain, which compiles nothing")
        if name == "--dump-hlo":
            require_writable(name, path)
        else:
            require_file(name, path)
    if png is not None and png.suffix.lower() != ".png":
        raise ConfigError(f"--png {png}: allowed: a name that ends with .png")
    if png is not None and sweep is not None and topology.startswith("cpu"):
        raise ConfigError(f"--png {png}: allowed: for a sweep of TPU slices, whose times it shows")
    use_cpu_only()
    from janus_jax.config.run import load_config

    loaded = load_config(config, overrides or [])
    for advice in loaded.advice():
        print(f"note: {advice}", file=sys.stderr)
    if explain is not None and sweep is not None:
        raise ConfigError("--sweep, --explain: allowed: one of them")
    if explain is not None:
        from janus_jax.planning.report.explain import explain_parameters

        print(explain_parameters(loaded, topology, explain, num_slices=slices))
        return
    if sweep is not None:
        if dump_hlo is not None:
            raise ConfigError(f"--dump-hlo {dump_hlo}: allowed: only without --sweep")
        _sweep(loaded, topology, slices, chips, sweep, json, png)
        return
    from janus_jax.planning import plan as compile_plan
    from janus_jax.planning.chips.slices import load_chips
    from janus_jax.planning.report.text import show

    as_of = load_chips(chips).as_of
    with _patience(f"compiling for {topology}"):
        found = interruptibly(lambda: compile_plan(loaded, topology, num_slices=slices, chips=chips, dump_hlo=dump_hlo))
    show(found, prices_of=as_of)
    if json is not None:
        from janus_jax.storage.local import write_json

        write_json(json, found.to_json())
    if png is not None:
        from janus_jax.planning.report.picture import picture

        picture(found, png)
    _wrote(json, png, dump_hlo)
    if not found.fits:
        if tries:
            _suggest(loaded, topology, slices, chips, tries, found)
        raise typer.Exit(DOES_NOT_FIT)


def _where(topology: str | None, devices: str | None) -> str:
    if (topology is None) == (devices is None):
        raise ConfigError("--topology, --devices: allowed: exactly one of them")
    if topology is not None:
        return topology
    if devices is None or not re.fullmatch(r"(cpu[:-])?[1-9]\d*", devices):
        raise ConfigError(f"--devices {devices}: allowed: cpu:N, like cpu:8; a TPU slice is named by --topology")
    return devices if devices.startswith("cpu") else f"cpu:{devices}"


def _suggest(config: Any, topology: str, slices: int, chips: Path | None, tries: int, failed: Any) -> None:
    """Changes that do fit, each as soon as it is found."""
    from janus_jax.planning.search.suggest import suggestions

    print("\nwhat would fit, each of them compiled, cheapest first:", flush=True)
    there_are, tried = False, 0

    def report(changes: tuple[str, ...], fits: bool) -> None:
        nonlocal tried
        tried += 1
        if not fits:
            print(f"tried, does not fit: {' '.join(changes)}", file=sys.stderr, flush=True)

    found = suggestions(config, topology, slices, failed, chips=chips, tries=tries, report=report)
    while (each := interruptibly(lambda: next(found, None))) is not None:
        there_are, memory = True, each.plan.memory
        print(f"  {' '.join(each.changes)}\n    {memory.needed / 2**30:.2f} GiB; {each.cost}", flush=True)
    if not there_are:
        more = f"; --tries {2 * tries} looks farther" if tried >= tries else ""
        print(f"  nothing: {tried} changes were compiled{more}; a larger slice, or shorter rows")


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
        why = f": {cell.reason}" if cell.status == "failed" else ""
        print(f"{cell.status:<10}{needed:>12}{rate}  {' '.join(cell.changes)}{why}")
    rest = len(cells) - len(shown)
    print(f"{rest:,} more: not compiled, because by estimate they cannot fit, or others are better")
    if json is not None:
        from janus_jax.storage.local import write_json

        write_json(json, [cell.to_json() for cell in cells])
    if png is not None:
        from janus_jax.planning.search.pareto import plot

        plot(cells, png)
    _wrote(json, png)
    if not any(cell.status == "fits" for cell in cells):
        raise typer.Exit(DOES_NOT_FIT)


def _wrote(*paths: Path | None) -> None:
    for path in paths:
        if path is not None:
            print(f"wrote {path}")


@contextlib.contextmanager
def _patience(what: str) -> Iterator[None]:
    """A moving line on stderr if that is a terminal."""
    from rich.console import Console

    if not sys.stderr.isatty():
        yield
        return
    with os.fdopen(os.dup(2), "w") as screen:  # the compiler's own words on stderr are put aside meanwhile
        with Console(file=screen).status(re.sub(r"\[", r"\\[", f"{what}: a minute or two")):
            yield
