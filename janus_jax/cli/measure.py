"""The options of `janus measure`. `janus_jax/evaluation/` does the work."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from janus_jax.cli import arguments, judges, toxicity
from janus_jax.cli.outputs import CsvFile, JsonFile, PlotFile, require_table_files, show_table, tell
from janus_jax.errors import ConfigError, named

if TYPE_CHECKING:
    from janus_jax.evaluation.measure.answers import AnswerRow

app = typer.Typer(help="Measure answers without a judge.", **arguments.SETTINGS)
app.add_typer(toxicity.app, name="toxicity")

Answers = Annotated[
    list[str],
    typer.Argument(
        metavar="[NAME=]FILE",
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
    files: list[str], column: str | None = None, key: str | None = None, *, needs_prompt: bool = True
) -> "list[AnswerRow]":
    from janus_jax.evaluation.measure.answers import read_answer_rows

    with judges.noting("not measured") as unread:
        parts = [
            read_answer_rows(file, column=column, key=key, needs_prompt=needs_prompt, unread=unread) for file in files
        ]
    return [row for part in parts for row in part]


def _read_answers(
    given: dict[str, list[str]], column: str | None, key: str | None = None, *, needs_prompt: bool = True
) -> "dict[str, list[AnswerRow]]":
    """Name -> rows. What is measured is said where it is no answer of a model."""
    from janus_jax.evaluation.measure.answers import ANSWERS

    read = {name: _read(files, column, key, needs_prompt=needs_prompt) for name, files in given.items()}
    for name, rows in read.items():
        for other in sorted({row.column for row in rows} - {*ANSWERS, column}):
            tell(f"note: {name}: measures the column {other!r}")
    return read


@app.command("diversity", epilog="Example: janus measure diversity janus=answers.jsonl --plot diversity.svg")
def diversity(
    answers: Answers,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Compare rows with the same value here. Default: with one prompt and different system messages; "
            "prompt: with one prompt, whatever their system messages.",
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
    require_table_files(json_file, csv_file, plot, inputs=answers)
    from janus_jax.evaluation.measure import diversity as measure
    from janus_jax.evaluation.measure.answers import PROMPT, named_files

    if by is not None and samples:
        raise ConfigError("--by and --samples: compare different answers; give one of them")
    given = named_files(answers)
    measured = {}
    for name, rows in _read_answers(given, column, by, needs_prompt=not samples and by in (None, PROMPT)).items():
        with named(name):
            measured[name] = measure.diversity(rows, by_key=by is not None, samples=samples)
    settings = {
        "answers": given,
        "column": column,
        "by": "samples of a row" if samples else by or "prompt, with different system messages",
    }
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
    require_table_files(json_file, csv_file, plot, inputs=(*answers, reference))
    from janus_jax.evaluation.measure import verbosity as measure
    from janus_jax.evaluation.measure.answers import named_files

    given = named_files(answers)
    length, unit = (measure.in_words, "words") if tokenizer is None else (measure.in_tokens(tokenizer), "tokens")
    read = _read_answers(given, column, needs_prompt=False)
    references = None if reference is None else _read([reference], needs_prompt=False)
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


@app.command(
    "system-effect",
    epilog="Example: janus measure system-effect none=none.jsonl helpful=helpful.jsonl multifaceted=own.jsonl",
)
def system_effect(
    answers: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME=FILE",
            help="Answers to the same prompts, one file for each kind of system message: janus bench run --system.",
        ),
    ],
    judged: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=DIR", help="Verdicts of janus bench judge on the answers of NAME. Repeatable."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Also read the answers of the last NAME with this model, under the system messages of all."),
    ] = None,
    step: arguments.Step = None,
    template: Annotated[
        str | None, typer.Option(help="mistral-inst, chatml or plain, for a model whose files name no template.")
    ] = None,
    devices: arguments.Devices = None,
    column: Column = None,
    json_file: JsonFile = None,
    csv_file: CsvFile = None,
    plot: PlotFile = None,
) -> None:
    """What a system message changes: how alike the answers are, their lengths, a judge's scores, and log-probs.

    With --model, on one host: the mean log-prob of a token of the same answers under each kind of system message.
    """
    if model is None:
        of_model = {"--step": step, "--template": template, "--devices": devices}
        if alone := [name for name, value in of_model.items() if value is not None]:
            raise ConfigError(f"{alone[0]}: is of the model, but --model is not given")
        arguments.on_cpu()
    else:
        from janus_jax.parallel import processes

        place = arguments.runtime_options(None, None, None, devices)
        processes.supervise(place)
        processes.start(place)
    require_table_files(json_file, csv_file, plot, inputs=answers)
    from janus_jax.checkpoint.stored_model import open_model
    from janus_jax.evaluation.measure import system_effect as measure
    from janus_jax.evaluation.measure.answers import named_files
    from janus_jax.generation.engine import require_language_model
    from janus_jax.parallel import supervisor

    given = named_files(answers)
    if len(given) < 2:
        raise ConfigError(f"{answers[0]}: is one condition; two or more NAME=FILE are needed")
    directories = _judged(judged or [], list(given))
    read = _read_answers(given, column)
    with named(" and ".join(given)):
        aligned, notes = measure.align(read)
    scores, judges_of, log_probs = {}, {}, {}
    for name, directory in directories.items():
        with named(f"--judged {name}"):
            scores[name], judges_of[name] = measure.judged_scores(directory, aligned[name])
    settings = {"answers": given, "judged": {name: str(path) for name, path in directories.items()}, "column": column}
    if model is not None:
        *_, last = given
        stored = open_model(model, step)
        require_language_model(stored.config, model)
        log_probs = measure.log_probs(stored, aligned, last, template=template, tell=tell)
        settings |= {"model": model, "step": stored.step, "log_probs_of": last}
        notes.append(f"log-probs: of the answers of {last}, under {model}")
    measured, more = measure.compare(aligned, scores, log_probs)
    notes += [*more, *(measure.judge_notes(judges_of) if judges_of else [])]
    if plot is not None:
        from janus_jax.evaluation.measure import chart

        chart.system_effect(measured, plot)
    show_table(measure.table(measured, notes, settings), json_file, csv_file)
    supervisor.last_words(0, "")


def _judged(given: list[str], names: list[str]) -> dict[str, Path]:
    directories: dict[str, Path] = {}
    for one in given:
        name, _, directory = one.partition("=")
        if name not in names or not directory or name in directories:
            raise ConfigError(f"--judged {one}: allowed: NAME=DIR, once for each of {', '.join(names)}")
        directories[name] = Path(directory)
    return directories
