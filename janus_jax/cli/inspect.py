"""`janus data inspect`: its options; the work is in `janus_jax/data/inspect/`."""

import re
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from janus_jax.cli.outputs import require_file
from janus_jax.errors import ConfigError

EPILOG = (
    "Example: janus data inspect data/dpo --html dpo.html; or: janus data inspect configs/dpo.yaml data.dir=data/dpo"
)


def data_inspect(
    target: Annotated[
        str, typer.Argument(metavar="DIR|CONFIG", help="A data set that `janus data build` made, or a configuration.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Changes to keys of CONFIG, like batch.rows=4.", show_default=False),
    ] = None,
    row_length: Annotated[
        int | None, typer.Option(min=1, help="Of DIR: slots of a row; without it 8192, or 4096 for pairs.")
    ] = None,
    max_sequence_length: Annotated[
        int | None,
        typer.Option(min=1, help="Of DIR: tokens of a prompt with a response; without it the row, or half for pairs."),
    ] = None,
    objective: Annotated[
        Literal["sft", "dpo", "rm"] | None,
        typer.Option(help="Of DIR: whose rows; without it by the kind of the data, pairs as DPO reads them."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="One split alone; without it all of DIR, or all CONFIG reads.")
    ] = None,
    epoch: Annotated[int, typer.Option(min=0, help="Of the rows, counted from 0.")] = 0,
    rows: Annotated[int, typer.Option(min=0, help="How many rows to show, the first ones.")] = 2,
    row: Annotated[int | None, typer.Option(min=0, help="Show this row alone, counted from 0.")] = None,
    slots: Annotated[
        str | None,
        typer.Option(metavar="FIRST-LAST", help="Slots of the table; without it those at the first example's borders."),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Show all examples of a row, and all of their text.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write the report as one self-contained page.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the numbers as JSON.")] = None,
) -> None:
    """Show what training will see: packed rows, lengths, fill, repeats, bias. Exits with 2 if an example is broken."""
    for name, path in (("--html", html), ("--json", json)):
        if path is not None:
            require_file(name, path)
    wanted = None if slots is None else _slots(slots)
    from janus_jax.data.inspect.opened import DirectoryOptions
    from janus_jax.data.inspect.report import Shown, inspect

    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")  # texts hold characters that a terminal's encoding may lack
    inspect(
        target,
        overrides or [],
        options=DirectoryOptions(row_length, max_sequence_length, objective),
        split=split,
        shown=Shown(rows, row, epoch, wanted, full, html, json),
    )


def _slots(text: str) -> range:
    found = re.fullmatch(r"([0-9]+)-([0-9]+)", text)
    if not found or int(found[1]) > int(found[2]):
        raise ConfigError(f"--slots {text}: allowed: FIRST-LAST, like 200-240")
    return range(int(found[1]), int(found[2]) + 1)
