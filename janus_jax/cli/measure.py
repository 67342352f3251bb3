"""The options of `janus measure`. `janus_jax/evaluation/` does the work."""

from typing import TYPE_CHECKING, Annotated

import typer

from janus_jax.cli import arguments, judges
from janus_jax.cli.outputs import CsvFile, JsonFile, PlotFile, require_table_files, show_table
from janus_jax.errors import ConfigError

if TYPE_CHECKING:
    from janus_jax.evaluation.measure.answers import AnswerRow

app = typer.Typer(help="Measure answers without a judge.", **arguments.SETTINGS)

Answers = Annotated[
    list[str],
    typer.Argument(
        metavar="[NAME=]FILE...",
        help="Answers of janus generate or janus bench run, or rows with prompt, system and response (or output). One "
        "row of the table for each NAME; files of one NAME are read together.",
    ),
]
Column = Annotated[
    str | None, typer.Option(metavar="COLUMN", help="What holds the answers, such as output or rejected.")
]


@app.callback()
def _measure() -> None:
    pass


def _read(
    files: list[str], column: str | None, key: str | None = None, *, needs_prompt: bool = True
) -> "list[AnswerRow]":
    from janus_jax.evaluation.measure.answers import read_answer_rows

    with judges.noting("not measured") as unread:
        parts = [
            read_answer_rows(file, column=column, key=key, needs_prompt=needs_prompt, unread=unread) for file in files
        ]
    return [row for part in parts for row in part]


@app.command("diversity", epilog="Example: janus measure diversity janus=answers.jsonl --plot diversity.svg")
def diversity(
    answers: Answers,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Compare rows with the same value here. Default: with one prompt and different system messages.",
        ),
    ] = None,
    samples: Annotated[
        bool, typer.Option("--samples", help="Compare the answers inside each row (janus generate --n) instead.")
    ] = False,
    column: Column = None,
    json_file: JsonFile = None,
    csv_file: CsvFile = None,
    plot: PlotFile = None,
) -> None:
    """How alike the answers to one instruction are under different system messages: ROUGE-L, beside the poster's.

    The average and the maximum over the pairs of an instruction, each as the mean over all instructions.
    """
    arguments.on_cpu()
    require_table_files(json_file, csv_file, plot)
    from janus_jax.evaluation.measure import diversity as measure
    from janus_jax.evaluation.measure.answers import named_files

    if by is not None and samples:
        raise ConfigError("--by and --samples: compare different answers; give one of them")
    given = named_files(answers)
    measured = {}
    for name, files in given.items():
        rows = _read(files, column, by, needs_prompt=not (by or samples))
        try:
            measured[name] = measure.diversity(rows, by_key=by is not None, samples=samples)
        except ConfigError as error:
            raise ConfigError(name, str(error)) from None
    settings = {"answers": given, "column": column, "by": "sample" if samples else by or "prompt"}
    if plot is not None:
        from janus_jax.evaluation.measure import chart

        chart.diversity(measured, plot)
    show_table(measure.table(measured, settings), json_file, csv_file)
