"""The commands of `janus runs`; `janus_jax/training/curves.py` does the work."""

import os
from pathlib import Path
from typing import Annotated

import typer

from janus_jax.cli.arguments import SETTINGS, in_lines
from janus_jax.cli.outputs import require_file
from janus_jax.errors import ConfigError

app = typer.Typer(help="Look at training runs.", **SETTINGS)

_SUFFIXES = (".png", ".pdf", ".svg")


@app.callback()
def _runs() -> None:
    pass


@app.command("plot", epilog="Example: janus runs plot runs/sft runs/sft_small --out compared.png")
def runs_plot(
    directories: Annotated[
        list[str], typer.Argument(metavar="DIR", help="Run directories or gs:// URLs, to be overlaid.")
    ],
    out: Annotated[
        str, typer.Option(help="Picture to write: .png, .pdf or .svg. An existing file is replaced.")
    ] = "curves.png",
) -> None:
    """Draw the curves of runs, finished or not, into one picture: loss, rewards, accuracy, gradient norm, tokens/s."""
    from janus_jax.storage.bucket import BucketPath, Prefix, is_url

    if os.path.splitext(out)[1] not in _SUFFIXES:
        raise ConfigError(f"--out {out}: allowed: a name that ends in {', '.join(_SUFFIXES)}")
    picture = BucketPath(out) if is_url(out) else Path(out)
    if isinstance(picture, Path):
        require_file("--out", picture)
    else:
        Prefix(out)  # refuses other URLs than gs://
    if repeated := {name for name in directories if directories.count(name) > 1}:
        raise ConfigError(f"DIR {sorted(repeated)[0]}: is given twice")
    from janus_jax.training.curves import draw, read_curves

    runs = [read_curves(name, label) for name, label in zip(directories, _labels(directories), strict=True)]
    draw(runs, picture)
    print(in_lines(f"{out}: curves of {', '.join(directories)}"))


def _labels(directories: list[str]) -> list[str]:
    """The shortest ends of the paths that differ."""
    parts = [Path(os.path.abspath(name)).parts for name in directories]
    for count in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(part[-count:]) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    return directories
