"""The options of `janus bench`. `janus_jax/evaluation/` does the work."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from janus_jax.cli import arguments, export_answers, judges
from janus_jax.cli.option_groups import grouped
from janus_jax.cli.outputs import CsvFile, JsonFile, require_table_files, show_table

if TYPE_CHECKING:
    from janus_jax.generation.prompt_file import PromptRow

app = typer.Typer(help="Judge answers by rubrics, as Multifaceted Bench does.", **arguments.SETTINGS)

Bench = Annotated[
    str,
    typer.Argument(metavar="BENCH", help="Rows with prompt, reference_answer and rubrics: .jsonl, .json, .parquet."),
]


@app.callback()
def _bench() -> None:
    pass


@app.command("run", epilog="Example: janus bench run bench.jsonl runs/sft --out answers.jsonl")
@grouped(top_p=0.9, repetition_penalty=1.03)
def run(
    bench: Bench,
    model: arguments.Model,
    out: Annotated[Path, typer.Option(metavar="FILE", help="JSONL file of answers to write.")],
    system: Annotated[
        str,
        typer.Option(
            metavar="row|none|default|TEXT|@FILE",
            help="System message: the row's own, none, 'You are a helpful assistant.', or a text for all rows.",
        ),
    ] = "row",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first rows of the bench.")] = None,
    step: arguments.Step = None,
    template: arguments.Template = None,
    max_new_tokens: arguments.MaxNewTokens = 1024,
    seed: arguments.Seed = 0,
    rows: Annotated[int, typer.Option(min=1, help="Answers that grow at the same time.")] = 32,
    cache_dtype: arguments.CacheDtype = None,
    base_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Ask an OpenAI-compatible endpoint, such as vLLM with an export; MODEL is what it calls the model.",
        ),
    ] = None,
    key_variable: judges.KeyVariable = "OPENAI_API_KEY",
    no_key: judges.NoKey = False,
    no_seed: judges.NoSeed = False,
    timeout: judges.Timeout = 600.0,
    *,
    sampling: arguments.Sampling,
    place: arguments.Place,
) -> None:
    """Answer every row of BENCH with MODEL. The defaults are the paper's.

    Stopped and started again with the same options, it goes on where it was. With --base-url a server answers, for
    example vLLM on a GPU.
    """
    from janus_jax.cli.generate import answer_all
    from janus_jax.evaluation.official.systems import read_systems
    from janus_jax.generation.requests import AnswerOptions
    from janus_jax.generation.stopping import StoppingOptions

    instead = None if system == "row" else read_systems([system])[0]

    def read(_: "Counter[str]") -> "list[PromptRow]":
        from janus_jax.evaluation.bench.answering import prompt_row
        from janus_jax.evaluation.bench.rows import read_bench

        with judges.noting("no part of a bench row; it is not used") as unread:
            return [prompt_row(row, instead) for row in read_bench(bench, unread=unread)[:limit]]

    if base_url is not None:
        own = {"--step": step, "--template": template, "--cache-dtype": cache_dtype}
        why = "not allowed with --base-url, whose server decides it"
        arguments.require_unset({name: (value, None) for name, value in own.items()}, why)
        place.require_none(why)
        options = {"temperature": sampling.temperature, "top_p": sampling.top_p}
        options |= {"max_tokens": max_new_tokens, "seed": seed}
        neutral = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
        options |= {name: value for name, off in neutral.items() if (value := getattr(sampling, name)) != off}
        if no_seed:
            options.pop("seed")
        variable = None if no_key else key_variable
        judges.answer(base_url, model, read, out, options, concurrent=rows, key_variable=variable, timeout_s=timeout)
        return
    of_server = {"--key-variable": (key_variable, "OPENAI_API_KEY"), "--no-key": (no_key, False)}
    of_server |= {"--no-seed": (no_seed, False), "--timeout": (timeout, 600.0)}
    arguments.require_unset(of_server, "needs --base-url")
    answer_all(
        model,
        read,
        out,
        AnswerOptions(
            sampling.options(), StoppingOptions(max_new_tokens), seed=seed, rows=rows, cache_dtype=cache_dtype
        ),
        place,
        step=step,
        template=template,
    )


@app.command(
    "judge",
    epilog="Example: janus bench judge bench.jsonl --answers answers.jsonl --judge gpt-4o "
    "--base-url https://api.openai.com/v1 --out judged",
)
@grouped()
def judge(
    bench: Bench,
    answers: Annotated[
        Path, typer.Option(metavar="FILE", help="Answers of janus bench run, or rows with id and response.")
    ],
    options: judges.Options,
) -> None:
    """Have every answer scored from 1 to 5 by each rubric of its row.

    No reply is asked for or paid for twice: stopped, killed or started again with a larger budget or --limit, the same
    command goes on where it was, and tries verdicts again that failed.
    """
    arguments.on_cpu()
    from janus_jax.evaluation.bench.judge import questions

    judges.ask("absolute", questions, bench, {"answers": answers}, options)


@app.command("table", epilog="Example: janus bench table judged/sft judged/dpo --csv table.csv")
def table(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Directories of janus bench judge.")],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=FILE",
            help="A set of prompts, for means by membership; may be repeated.",
            show_default=False,
        ),
    ] = None,
    json_file: JsonFile = None,
    csv_file: CsvFile = None,
) -> None:
    """Show mean scores with 95 % bootstrap intervals, beside the paper's Table 2."""
    arguments.on_cpu()
    from janus_jax.evaluation.bench import judgements, tables

    require_table_files(json_file, csv_file, inputs=set_ or ())
    sets = tables.parse_sets(set_ or ())
    judged = [judgements.read(path, "absolute") for path in directories]
    made = [tables.groups(one, name, sets) for one, name in zip(judged, tables.names_of(directories), strict=True)]
    show_table(tables.table(judged, made), json_file, csv_file, tables.as_json(judged, made))


@app.command(
    "compare",
    epilog="Example: janus bench compare bench.jsonl --answers mine.jsonl --against other.jsonl --judge gpt-4o "
    "--base-url https://api.openai.com/v1 --out compared",
)
@grouped(runs=1)
def compare(
    bench: Bench,
    answers: Annotated[Path, typer.Option(metavar="FILE", help="Answers whose wins are counted.")],
    against: Annotated[Path, typer.Option(metavar="FILE", help="Answers of the other model.")],
    options: judges.Options,
    json_file: JsonFile = None,
    csv_file: CsvFile = None,
) -> None:
    """Have a judge name the better of two answers to each row, in both orders.

    Journal, budgets and going on are those of janus bench judge.
    """
    arguments.on_cpu()
    from janus_jax.evaluation.bench import judgements, pairwise

    require_table_files(json_file, csv_file, inputs=(bench, answers, against))
    files = {"answers": answers, "against": against}
    if judges.ask("pairwise", pairwise.questions, bench, files, options):
        judged = judgements.read(options.out, "pairwise")
        made = pairwise.table(judged, f"{answers.stem} against {against.stem}")
        show_table(made, json_file, csv_file, pairwise.as_json(pairwise.result(judged)))


app.command("export", epilog=export_answers.EPILOG)(export_answers.export)
app.command("helpfulness", epilog=export_answers.RESULTS_EPILOG)(export_answers.helpfulness)
