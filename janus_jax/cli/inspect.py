"""The options of `janus data inspect`, which is in `janus_jax/data/inspect/`."""

import re
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from janus_jax.cli.arguments import Overrides
from janus_jax.cli.outputs import require_file
from janus_jax.data.inspect import thresholds
from janus_jax.errors import ConfigError

EPILOG = (
    "Example: janus data inspect data/dpo --html dpo.html; or: janus data inspect configs/dpo.yaml data.dir=data/dpo"
)


def data_inspect(
    target: Annotated[
        str, typer.Argument(metavar="DIR|CONFIG", help="A data set from `janus data build`, or a configuration.")
    ],
    overrides: Overrides = None,
    row_length: Annotated[
        int | None, typer.Option(min=1, help="With DIR: slots per row. Default: 8192, or 4096 for pairs.")
    ] = None,
    max_sequence_length: Annotated[
        int | None,
        typer.Option(min=1, help="With DIR: longest prompt with one response. Default: row length, half for pairs."),
    ] = None,
    objective: Annotated[
        Literal["sft", "dpo", "rm"] | None,
        typer.Option(help="With DIR: pack as this objective does. Default: the kind of the data (for orpo: dpo)."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Show this split only. Default: all of DIR, or all that CONFIG reads.")
    ] = None,
    epoch: Annotated[int, typer.Option(min=0, help="Epoch whose rows are shown, counted from 0.")] = 0,
    rows: Annotated[int, typer.Option(min=0, help="Number of rows to show, from the first.")] = 2,
    row: Annotated[int | None, typer.Option(min=0, help="Show this row only, counted from 0.")] = None,
    slots: Annotated[
        str | None,
        typer.Option(metavar="FIRST-LAST", help="Slots to list. Default: where the first example's parts meet."),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Show all examples of a row, with their whole text.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write the report to this file as one self-contained page.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the numbers to this file as JSON.")] = None,
    look_at: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND=SHARE,...",
            help=f"Shares past which the verdict is LOOK AT THIS. Defaults: {thresholds.HELP}.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Show what training will read: packed rows, lengths, fill, duplicates, length bias. The verdict is WRONG (exit
    code 2) if an example is broken, LOOK AT THIS if a share is past its threshold, else FINE."""
    for name, path in (("--html", html), ("--json", json)):
        if path is not None:
            require_file(name, path)
    listed = None if slots is None else _slots(slots)
    from janus_jax.data.inspect.opened import DirectoryOptions
    from janus_jax.data.inspect.report import ReportOptions, inspect

    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")  # texts may hold characters that the terminal's encoding lacks
    inspect(
        target,
        overrides or [],
        options=DirectoryOptions(row_length, max_sequence_length, objective),
        split=split,
        report=ReportOptions(rows, row, epoch, listed, full, html, json, tuple(look_at or ())),
    )


def _slots(text: str) -> range:
    match = re.fullmatch(r"([0-9]+)-([0-9]+)", text)
    if not match or int(match[1]) > int(match[2]):
        raise ConfigError(f"--slots {text}: allowed: FIRST-LAST, like 200-240")
    return range(int(match[1]), int(match[2]) + 1)
