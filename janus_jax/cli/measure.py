"""The options of `janus measure`. `janus_jax/evaluation/` does the work."""

from typing import TYPE_CHECKING, Annotated

import typer

from janus_jax.cli import arguments, judges
from janus_jax.cli.outputs import CsvFile, JsonFile, PlotFile, require_table_files, show_table
from janus_jax.errors import ConfigError, named

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
        with named(name):
            measured[name] = measure.diversity(rows, by_key=by is not None, samples=samples)
    settings = {"answers": given, "column": column, "by": "sample" if samples else by or "prompt"}
    if plot is not None:
        from janus_jax.evaluation.measure import chart

        chart.diversity(measured, plot)
    show_table(measure.table(measured, settings), json_file, csv_file)


@app.command("verbosity", epilog="Example: janus measure verbosity janus=answers.jsonl --reference bench.jsonl")
def verbosity(
    answers: Answers,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="A bench, or rows with answers to compare with. Default: reference_answer of the rows, if they have "
            "one.",
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Count the tokens of this model, or of a tokenizer's directory, not words."),
    ] = None,
    column: Column = None,
    json_file: JsonFile = None,
    csv_file: CsvFile = None,
    plot: PlotFile = None,
) -> None:
    """How long answers are, beside the reference answers; how many are cut off or run in circles."""
    arguments.on_cpu()
    require_table_files(json_file, csv_file, plot)
    from janus_jax.evaluation.measure import verbosity as measure
    from janus_jax.evaluation.measure.answers import named_files

    given = named_files(answers)
    length, unit = (measure.in_words, "words") if tokenizer is None else (measure.in_tokens(tokenizer), "tokens")
    read = {name: _read(files, column, needs_prompt=False) for name, files in given.items()}
    references = None if reference is None else _read([reference], None, needs_prompt=False)
    measured = {}
    for name, rows in read.items():
        with named(name):
            measured[name] = measure.verbosity(rows, references, length)
    beside = measure.of_references(measured.values(), length)
    settings = {"answers": given, "reference": reference, "tokenizer": tokenizer, "column": column}
    if plot is not None:
        from janus_jax.evaluation.measure import chart

        chart.verbosity(measured, beside, unit, plot)
    show_table(measure.table(measured, beside, unit, settings), json_file, csv_file)
