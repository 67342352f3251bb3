"""The options of `janus measure`. `janus_jax/evaluation/` does the work."""

import typer

from janus_jax.cli import arguments

app = typer.Typer(help="Measure answers without a judge.", **arguments.SETTINGS)


@app.callback()
def _measure() -> None:
    pass
