"""The options of `janus measure`. `janus_jax/evaluation/` does the work."""

import typer

from janus_jax.cli import arguments, toxicity

app = typer.Typer(help="Measure answers without a judge.", **arguments.SETTINGS)
app.add_typer(toxicity.app, name="toxicity")


@app.callback()
def _measure() -> None:
    pass
