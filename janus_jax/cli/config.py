"""The commands of `janus config`: a run configuration in full, and one made from another trainer's recipe."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from janus_jax.cli import arguments
from janus_jax.cli.outputs import require_new_file
from janus_jax.errors import ConfigError, ConversionError

app = typer.Typer(help="Show run configurations, and import other trainers' recipes.", **arguments.SETTINGS)


@app.callback()
def _config() -> None:
    pass


@app.command("show", epilog="Example: janus config show configs/sft_65k.yaml mesh.tensor=4")
def config_show(config: arguments.ConfigFile, overrides: arguments.Overrides = None) -> None:
    """Print CONFIG in full: base files merged, overrides applied, every default written out."""
    from janus_jax.config.run import to_yaml

    print(to_yaml(arguments.load(config, overrides)), end="")


@app.command("import", epilog="Example: janus config import axolotl.yml --devices 4 --out mine.yaml init.from=runs/sft")
def config_import(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="An axolotl YAML, a shell script or text with an OpenRLHF or TRL command, or a TRL YAML or JSON.",
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Keys of the configuration that is made, like SECTION.KEY=4, set last. Values are YAML or text.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "--output", metavar="FILE.yaml", help="New file. Default: YAML to stdout, report to stderr."
        ),
    ] = None,
    tool: Annotated[
        Literal["axolotl", "openrlhf", "trl"] | None,
        typer.Option("--from", help="What FILE is for. Default: recognised by its content."),
    ] = None,
    devices: Annotated[
        int | None, typer.Option(min=1, help="Devices that the recipe ran on, where FILE does not say it.")
    ] = None,
    objective: Annotated[
        Literal["sft", "dpo", "orpo", "rm"] | None, typer.Option(help="Of a TRL file that does not say its trainer.")
    ] = None,
    compat: Annotated[
        bool, typer.Option("--compat", help="Set the compat switches that come closest to the tool's numbers.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Write the file although keys that change the result are not here.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON, on stdout.")] = False,
) -> None:
    """Turn a recipe of axolotl, OpenRLHF or TRL into a configuration, and report what became of every key.

    Nothing of FILE is run. If keys that change the result have nothing like them here, nothing is written (exit code
    2), unless you give --force.
    """
    if out is not None:
        require_new_file("--out", out)
    from janus_jax.config.imports import recipe as recipes
    from janus_jax.storage.local import write_whole

    recipe = recipes.import_recipe(
        file,
        tool=tool,
        devices=devices,
        objective=objective,
        equal=compat,
        overrides=overrides or [],
        unreadable=_unreadable,
    )
    refused = None if force else recipes.refusal(recipe)
    if as_json:
        print(json.dumps(recipes.as_json(recipe), indent=2, ensure_ascii=False, default=str))
    else:
        print(*recipes.lines(recipe), sep="\n", file=sys.stdout if out is not None else sys.stderr)
    if refused is not None:
        raise ConfigError(refused)
    if out is not None:
        write_whole(out, recipe.text)
        print(f"wrote {out}", file=sys.stderr)
    elif not as_json:
        print(recipe.text, end="")
    for note in recipe.notes:
        print(arguments.in_lines(f"note: {note}"), file=sys.stderr)


def _unreadable(model: str) -> str:
    """Why a Hugging Face directory on this machine cannot be read; empty: it can, or there is none."""
    directory = os.path.expanduser(model)
    if not os.path.isfile(os.path.join(directory, "config.json")):
        return ""
    from janus_jax.checkpoint.hf.config import read_model_config

    try:
        read_model_config(directory)
    except ConversionError as error:
        return str(error)
    return ""
