"""Groups of options: a command takes a dataclass, and typer shows an option for each of its fields."""

import dataclasses
from typing import Annotated

import typer
from typer.testing import CliRunner

from janus_jax.cli.option_groups import OptionGroup, grouped


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size(OptionGroup):
    wide: Annotated[int, typer.Option(help="Columns.")]
    high: Annotated[int, typer.Option(min=1, help="Lines.")] = 2


def test_fields_are_options_in_the_place_of_their_group():
    app, got = typer.Typer(), []

    @app.command()
    @grouped(high=7)
    def draw(name: str, *, size: Size, loud: Annotated[bool, typer.Option("--loud")] = False) -> None:
        got.append((name, size, loud))

    runner = CliRunner()
    assert runner.invoke(app, ["a", "--wide", "3"]).exit_code == 0
    assert runner.invoke(app, ["b", "--wide", "3", "--high", "4", "--loud"]).exit_code == 0
    assert got == [("a", Size(wide=3, high=7), False), ("b", Size(wide=3, high=4), True)]
    assert runner.invoke(app, ["a"]).exit_code == runner.invoke(app, ["a", "--wide", "1", "--high", "0"]).exit_code == 2
    shown = runner.invoke(app, ["--help"]).output
    assert shown.index("--wide") < shown.index("--high") < shown.index("--loud")
