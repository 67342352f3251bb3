"""The options of `janus bench`. `janus_jax/evaluation/` does the work."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from janus_jax.cli import arguments, judges
from janus_jax.cli.outputs import require_file
from janus_jax.errors import counted

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
def run(
    bench: Bench,
    model: arguments.Model,
    out: Annotated[Path, typer.Option(metavar="FILE", help="JSONL file of answers to write.")],
    system: Annotated[
        str,
        typer.Option(
            metavar="row|none|default|TEXT",
            help="System message: the row's own, none, 'You are a helpful assistant.', or this text for all rows.",
        ),
    ] = "row",
    limit: judges.Limit = None,
    step: arguments.Step = None,
    template: arguments.Template = None,
    max_new_tokens: arguments.MaxNewTokens = 1024,
    temperature: arguments.Temperature = 1.0,
    top_k: arguments.TopK = 0,
    top_p: arguments.TopP = 0.9,
    min_p: arguments.MinP = 0.0,
    repetition_penalty: arguments.RepetitionPenalty = 1.03,
    seed: arguments.Seed = 0,
    rows: Annotated[int, typer.Option(min=1, help="Answers that grow at the same time.")] = 32,
    cache_dtype: arguments.CacheDtype = None,
    coordinator: arguments.Coordinator = None,
    num_processes: arguments.NumProcesses = None,
    process_id: arguments.ProcessId = None,
    devices: arguments.Devices = None,
) -> None:
    """Answer every row of BENCH with MODEL. The defaults are the paper's.

    Stopped and started again with the same options, it goes on where it was.
    """
    from janus_jax.cli.generate import answer_all
    from janus_jax.generation.requests import AnswerOptions
    from janus_jax.generation.sampling import SamplingOptions
    from janus_jax.generation.stopping import StoppingOptions

    def read(_: "Counter[str]") -> "list[PromptRow]":
        from janus_jax.evaluation.bench.rows import OTHER_SYSTEM, read_bench
        from janus_jax.generation.prompt_file import PromptRow

        with judges.noting("no part of a bench row; it is not used") as unread:
            wanted = read_bench(bench, unread=unread)[:limit]
        made = []
        for row in wanted:
            content = {"row": row.system, "none": "", "default": "You are a helpful assistant."}.get(system, system)
            first = [{"role": "system", "content": content}] if content.strip() else []
            rest = {"id": row.id} | ({} if system == "row" else {OTHER_SYSTEM: system or "none"})
            made.append(PromptRow((*first, {"role": "user", "content": row.prompt}), rest, row.place))
        return made

    sampling = SamplingOptions(temperature, top_k, top_p, min_p, repetition_penalty)
    answer_all(
        model,
        read,
        out,
        AnswerOptions(sampling, StoppingOptions(max_new_tokens), seed=seed, rows=rows, cache_dtype=cache_dtype),
        arguments.runtime_options(coordinator, num_processes, process_id, devices),
        step=step,
        template=template,
    )


@app.command(
    "judge",
    epilog="Example: janus bench judge bench.jsonl --answers answers.jsonl --judge gpt-4o "
    "--base-url https://api.openai.com/v1 --out judged",
)
def judge(
    bench: Bench,
    answers: Annotated[
        Path, typer.Option(metavar="FILE", help="Answers of janus bench run, or rows with id and response.")
    ],
    judge: judges.Judge,
    base_url: judges.BaseUrl,
    out: judges.Out,
    key_variable: judges.KeyVariable = "OPENAI_API_KEY",
    no_key: judges.NoKey = False,
    runs: judges.Runs = 3,
    temperature: judges.Temperature = 1.0,
    top_p: judges.TopP = 0.9,
    max_tokens: judges.MaxTokens = 1024,
    seed: judges.Seed = 0,
    asks: judges.Asks = 5,
    show_system: judges.ShowSystem = False,
    prompts: judges.PromptsDir = None,
    limit: judges.Limit = None,
    judge_empty: judges.JudgeEmpty = False,
    concurrent: judges.Concurrent = 8,
    requests_a_minute: judges.RequestsAMinute = None,
    tokens_a_minute: judges.TokensAMinute = None,
    token_budget: judges.TokenBudget = None,
    money_budget: judges.MoneyBudget = None,
    prices: judges.PricesOption = None,
    timeout: judges.Timeout = 120.0,
    dry_run: judges.DryRun = False,
) -> None:
    """Have every answer scored from 1 to 5 by each rubric of its row.

    No reply is asked for or paid for twice: stopped, killed or started again with a larger budget, the same command
    goes on where it was, and tries verdicts again that failed.
    """
    arguments.on_cpu()
    from janus_jax.evaluation.bench import judge as judging
    from janus_jax.evaluation.bench.asking import read_prompts
    from janus_jax.evaluation.bench.rows import read_answers, read_bench

    how = judging.Judging(judge, base_url, runs, temperature, top_p, max_tokens, seed, asks, show_system)
    written = read_prompts("absolute", prompts)
    with judges.noting("not shown to the judge") as unread:
        rows = read_bench(bench, unread=unread)
    with judges.noting("not judged") as unread:
        texts = read_answers(answers, rows, may_be_empty=judge_empty, limit=limit, unread=unread)
    rows = rows[:limit]
    settings = how.settings("absolute", written, rows, answers=texts)
    settings |= {"bench": bench, "answers": str(answers)}
    _, asked = judging.conversations(rows, texts, written, how)
    options = judges.Options(
        key_variable,
        no_key,
        concurrent,
        requests_a_minute,
        tokens_a_minute,
        token_budget,
        money_budget,
        prices,
        timeout,
    )
    if dry_run:
        with options.estimating(out, settings, how) as endpoint:
            print(judging.estimate(endpoint, asked, how).text(), flush=True)
        return
    with options.opened(out, settings, how, rows, [len(text.split()) for text in texts]) as endpoint:
        judges.tell(f"note: {judging.estimate(endpoint, asked, how).text()}")
        lines = judging.judge(endpoint, out, rows, texts, written, how, tell=judges.tell)
        spent = judges.spent(endpoint)
    judges.report_failures(lines, "score")
    print(f"{counted(len(lines), 'verdict')} in {out}; {spent}", flush=True)


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
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the table here.")] = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Also write the table here.")] = None,
) -> None:
    """Show mean scores with 95 % bootstrap intervals, beside the paper's Table 2."""
    arguments.on_cpu()
    from janus_jax.evaluation.bench import judgements, tables
    from janus_jax.storage import local

    for name, file in (("--json", json_file), ("--csv", csv_file)):
        if file is not None:
            require_file(name, file)
    sets = tables.parse_sets(set_ or ())
    judged = [judgements.read(path, "absolute") for path in directories]
    made = [tables.groups(one, name, sets) for one, name in zip(judged, tables.names_of(directories), strict=True)]
    if json_file is not None:
        local.write_json(json_file, tables.as_json(judged, made))
    if csv_file is not None:
        local.write_whole(csv_file, tables.as_csv(judged, made))
    print(*tables.lines_of(judged, made), sep="\n", flush=True)


@app.command(
    "compare",
    epilog="Example: janus bench compare bench.jsonl --answers mine.jsonl --against other.jsonl --judge gpt-4o "
    "--base-url https://api.openai.com/v1 --out compared",
)
def compare(
    bench: Bench,
    answers: Annotated[Path, typer.Option(metavar="FILE", help="Answers whose wins are counted.")],
    against: Annotated[Path, typer.Option(metavar="FILE", help="Answers of the other model.")],
    judge: judges.Judge,
    base_url: judges.BaseUrl,
    out: judges.Out,
    key_variable: judges.KeyVariable = "OPENAI_API_KEY",
    no_key: judges.NoKey = False,
    runs: judges.Runs = 1,
    temperature: judges.Temperature = 1.0,
    top_p: judges.TopP = 0.9,
    max_tokens: judges.MaxTokens = 1024,
    seed: judges.Seed = 0,
    asks: judges.Asks = 5,
    show_system: judges.ShowSystem = False,
    prompts: judges.PromptsDir = None,
    limit: judges.Limit = None,
    judge_empty: judges.JudgeEmpty = False,
    concurrent: judges.Concurrent = 8,
    requests_a_minute: judges.RequestsAMinute = None,
    tokens_a_minute: judges.TokensAMinute = None,
    token_budget: judges.TokenBudget = None,
    money_budget: judges.MoneyBudget = None,
    prices: judges.PricesOption = None,
    timeout: judges.Timeout = 120.0,
    dry_run: judges.DryRun = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the result here.")
    ] = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Also write the pairs here.")] = None,
) -> None:
    """Have a judge name the better of two answers to each row, in both orders.

    Journal, budgets and going on are those of janus bench judge.
    """
    arguments.on_cpu()
    from janus_jax.evaluation.bench import judgements, pairwise
    from janus_jax.evaluation.bench.asking import read_prompts
    from janus_jax.evaluation.bench.judge import Judging, estimate
    from janus_jax.evaluation.bench.rows import read_answers, read_bench
    from janus_jax.storage import local

    for name, file in (("--json", json_file), ("--csv", csv_file)):
        if file is not None:
            require_file(name, file)
    how = Judging(judge, base_url, runs, temperature, top_p, max_tokens, seed, asks, show_system)
    written = read_prompts("pairwise", prompts)
    with judges.noting("not shown to the judge") as unread:
        rows = read_bench(bench, unread=unread)
    sides = []
    for file in (answers, against):
        with judges.noting("not judged") as unread:
            sides.append(read_answers(file, rows, may_be_empty=judge_empty, limit=limit, unread=unread))
    rows, (own, other) = rows[:limit], sides
    settings = how.settings("pairwise", written, rows, answers=own, against=other)
    settings |= {"bench": bench, "answers": str(answers), "against": str(against)}
    asked = pairwise.conversations(rows, own, other, written, how)
    options = judges.Options(
        key_variable,
        no_key,
        concurrent,
        requests_a_minute,
        tokens_a_minute,
        token_budget,
        money_budget,
        prices,
        timeout,
    )
    if dry_run:
        with options.estimating(out, settings, how) as endpoint:
            print(estimate(endpoint, asked, how).text(), flush=True)
        return
    words = [[len(one.split()), len(two.split())] for one, two in zip(own, other, strict=True)]
    with options.opened(out, settings, how, rows, words) as endpoint:
        judges.tell(f"note: {estimate(endpoint, asked, how).text()}")
        lines = pairwise.compare(endpoint, out, rows, asked, how, tell=judges.tell)
        paid = judges.spent(endpoint)
    judges.report_failures(lines, "winner")
    result = pairwise.result(judgements.read(out, "pairwise"))
    if json_file is not None:
        local.write_json(json_file, pairwise.as_json(result, settings))
    if csv_file is not None:
        local.write_whole(csv_file, pairwise.as_csv(result))
    print(
        *pairwise.lines_of(result, settings), f"{counted(len(lines), 'verdict')} in {out}; {paid}", sep="\n", flush=True
    )
