"""The options of `janus bench`. `janus_jax/evaluation/` does the work."""

import contextlib
import dataclasses
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from janus_jax.cli import arguments
from janus_jax.cli.outputs import require_file, require_writable
from janus_jax.errors import ConfigError, StorageError, counted

if TYPE_CHECKING:
    from janus_jax.generation.prompt_file import PromptRow
    from janus_jax.storage.endpoint import Endpoint

app = typer.Typer(help="Judge answers by rubrics, as Multifaceted Bench does.", **arguments.SETTINGS)

Bench = Annotated[
    str,
    typer.Argument(metavar="BENCH", help="Rows with prompt, reference_answer and rubrics: .jsonl, .json, .parquet."),
]
Out = Annotated[Path, typer.Option(metavar="DIR", help="Directory of the verdicts. The same command goes on in it.")]
Judge = Annotated[str, typer.Option(metavar="MODEL", help="The judge, as its endpoint names it.")]
BaseUrl = Annotated[str, typer.Option(metavar="URL", help="OpenAI-compatible endpoint, like http://127.0.0.1:8000/v1.")]
KeyVariable = Annotated[str, typer.Option(metavar="NAME", help="Environment variable with the API key.")]
NoKey = Annotated[bool, typer.Option("--no-key", help="The endpoint takes no key.")]
Runs = Annotated[int, typer.Option(min=1, help="Verdicts on each question, which are averaged.")]
Temperature = Annotated[float, typer.Option(min=0, help="Of the judge.")]
TopP = Annotated[float, typer.Option(min=0, max=1, help="Of the judge.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="Most tokens of a judge's reply.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the judge's replies; each run has one of its own.")]
Asks = Annotated[int, typer.Option(min=1, help="Most replies asked for one verdict, until it can be read.")]
ShowSystem = Annotated[
    bool, typer.Option("--show-system", help="Show the judge the system message. The paper did not.")
]
PromptsDir = Annotated[
    Path | None, typer.Option("--prompts", metavar="DIR", help="Your own judge prompts, KIND_system.txt and KIND.txt.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first rows of the bench.")]
JudgeEmpty = Annotated[bool, typer.Option("--judge-empty", help="Have empty answers judged instead of refusing them.")]
Concurrent = Annotated[int, typer.Option(min=1, help="Requests at the same time.")]
RequestsAMinute = Annotated[int | None, typer.Option(min=1, help="Limit of your account.")]
TokensAMinute = Annotated[int | None, typer.Option(min=1, help="Limit of your account.")]
TokenBudget = Annotated[int | None, typer.Option(min=1, help="Most tokens to spend; it stops before that.")]
MoneyBudget = Annotated[float | None, typer.Option(help="Most money to spend; needs --prices.")]
PricesOption = Annotated[
    str | None, typer.Option("--prices", metavar="IN,OUT", help="Price of a million tokens of prompts, and of replies.")
]
Timeout = Annotated[float, typer.Option("--timeout", min=0.1, metavar="SECONDS", help="Of one try.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be asked for and what it costs at most.")]


@app.callback()
def _bench() -> None:
    pass


@app.command("run", epilog="Example: janus bench run bench.jsonl runs/sft --out answers.jsonl")
def run(
    bench: Bench,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As janus generate takes it.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="JSONL file of answers to write.")],
    limit: Limit = None,
    step: Annotated[int | None, typer.Option(min=0, help="Step of a run. Default: the newest.")] = None,
    template: Annotated[
        str | None, typer.Option(help="mistral-inst, chatml or plain, for a model whose files name no template.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 1024,
    temperature: Annotated[float, typer.Option(help="0: always the most probable token.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Only so many of the most probable tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Only the most probable tokens with this share together.")] = 0.9,
    min_p: Annotated[float, typer.Option(help="Only tokens at least this probable, relative to the best one.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: tokens that have come are less likely.")] = 1.03,
    seed: Annotated[int, typer.Option(help="Of the random numbers.")] = 0,
    rows: Annotated[int, typer.Option(min=1, help="Answers that grow at the same time.")] = 32,
    cache_dtype: Annotated[
        Literal["bfloat16", "float32", "int8"] | None,
        typer.Option(help="Of the keys and values of earlier tokens. Default: bfloat16, on CPUs float32."),
    ] = None,
    coordinator: arguments.Coordinator = None,
    num_processes: arguments.NumProcesses = None,
    process_id: arguments.ProcessId = None,
    devices: arguments.Devices = None,
) -> None:
    """Answer every row of BENCH with MODEL. The defaults are the paper's.

    Stopped and started again with the same options, it goes on where it was.
    """
    from janus_jax.cli.generate import answer_all
    from janus_jax.generation.sampling import SamplingOptions
    from janus_jax.generation.stopping import StoppingOptions

    def read(_: "Counter[str]") -> "list[PromptRow]":
        from janus_jax.evaluation.bench import read_bench
        from janus_jax.generation.prompt_file import PromptRow

        with _told("no part of a bench row; it is not used") as unread:
            wanted = read_bench(bench, unread=unread)[:limit]
        made = []
        for row in wanted:
            system = [{"role": "system", "content": row.system}] if row.system.strip() else []
            made.append(PromptRow((*system, {"role": "user", "content": row.prompt}), {"id": row.id}, row.place))
        return made

    answer_all(
        model,
        read,
        out,
        step=step,
        template=template,
        stopping=StoppingOptions(max_new_tokens),
        sampling=SamplingOptions(temperature, top_k, top_p, min_p, repetition_penalty),
        seed=seed,
        rows=rows,
        cache_dtype=cache_dtype,
        place=arguments.runtime_options(coordinator, num_processes, process_id, devices),
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
    judge: Judge,
    base_url: BaseUrl,
    out: Out,
    key_variable: KeyVariable = "OPENAI_API_KEY",
    no_key: NoKey = False,
    runs: Runs = 3,
    temperature: Temperature = 1.0,
    top_p: TopP = 0.9,
    max_tokens: MaxTokens = 1024,
    seed: Seed = 0,
    asks: Asks = 5,
    show_system: ShowSystem = False,
    prompts: PromptsDir = None,
    limit: Limit = None,
    judge_empty: JudgeEmpty = False,
    concurrent: Concurrent = 8,
    requests_a_minute: RequestsAMinute = None,
    tokens_a_minute: TokensAMinute = None,
    token_budget: TokenBudget = None,
    money_budget: MoneyBudget = None,
    prices: PricesOption = None,
    timeout: Timeout = 120.0,
    dry_run: DryRun = False,
) -> None:
    """Have every answer scored from 1 to 5 by each rubric of its row.

    No reply is asked for or paid for twice: stopped, killed or started again with a larger budget, the same command
    goes on where it was, and tries verdicts again that failed.
    """
    arguments.on_cpu()
    from janus_jax.evaluation import judge as judging
    from janus_jax.evaluation.asking import read_prompts
    from janus_jax.evaluation.bench import read_answers, read_bench

    how = judging.Judging(judge, base_url, runs, temperature, top_p, max_tokens, seed, asks, show_system)
    written = read_prompts("absolute", prompts)
    with _told("not shown to the judge") as unread:
        rows = read_bench(bench, unread=unread)
    with _told("not judged") as unread:
        texts = read_answers(answers, rows, may_be_empty=judge_empty, limit=limit, unread=unread)
    rows = rows[:limit]
    settings = how.settings("absolute", written, rows, answers=texts)
    settings |= {"bench": bench, "answers": str(answers)}
    _, asked = judging.conversations(rows, texts, written, how)
    options = _Options(
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
        _tell(f"note: {judging.estimate(endpoint, asked, how).text()}")
        lines = judging.judge(endpoint, out, rows, texts, written, how, tell=_tell)
        spent = _spent(endpoint)
    _report_failures(lines, "score")
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
    from janus_jax.evaluation import judgements, tables
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


@dataclasses.dataclass(frozen=True)
class _Options:
    """Of an endpoint."""

    key_variable: str
    no_key: bool
    concurrent: int
    requests_a_minute: int | None
    tokens_a_minute: int | None
    token_budget: int | None
    money_budget: float | None
    prices: str | None
    timeout: float

    def _open(self, how: Any, journal: Path, *, key: bool) -> "Endpoint":
        from janus_jax.storage.endpoint import Endpoint

        return Endpoint(
            how.base_url,
            how.judge,
            journal=journal,
            key_variable=self.key_variable if key and not self.no_key else None,
            concurrent=self.concurrent,
            requests_a_minute=self.requests_a_minute,
            tokens_a_minute=self.tokens_a_minute,
            token_budget=self.token_budget,
            money_budget=self.money_budget,
            prices=_prices(self.prices),
            timeout_s=self.timeout,
        )

    @contextlib.contextmanager
    def estimating(self, out: Path, settings: dict[str, Any], how: Any) -> Iterator["Endpoint"]:
        """An endpoint that asks nothing, needs no key and leaves nothing."""
        from janus_jax.evaluation import judgements

        judgements.require_same(out, settings)
        with tempfile.TemporaryDirectory() as scratch:
            journal = out / judgements.JOURNAL
            journal = journal if journal.exists() else Path(scratch) / judgements.JOURNAL
            with self._open(how, journal, key=False) as endpoint:
                yield endpoint

    @contextlib.contextmanager
    def opened(
        self, out: Path, settings: dict[str, Any], how: Any, rows: Sequence[Any], words: Sequence[Any]
    ) -> Iterator["Endpoint"]:
        """An endpoint whose journal lies in `out`, which is made, or is of the same settings."""
        from janus_jax.evaluation import judgements

        require_writable("--out", out)
        judgements.require_same(out, settings)
        made = not out.exists()
        out.mkdir(parents=True, exist_ok=True)
        try:
            endpoint = self._open(how, out / judgements.JOURNAL, key=True)
        except BaseException:
            if made:
                with contextlib.suppress(OSError):
                    out.rmdir()  # unless it holds something
            raise
        with endpoint:
            judgements.require_same(out, settings)  # of one that was ahead of us
            judgements.write_settings(out, settings, rows, words)
            try:
                yield endpoint
            except StorageError as error:
                if "cannot be reached" not in str(error):
                    raise
                what = f"{error}; what is judged is kept in {out}, and the same command goes on"
                raise ConfigError("--base-url", what) from error


def _prices(text: str | None) -> Any:
    from janus_jax.storage.endpoint_requests import Prices

    if text is None:
        return None
    try:
        prompt, completion = map(float, text.split(","))
        if not (prompt >= 0 and completion >= 0):
            raise ValueError
    except ValueError:
        raise ConfigError(f"--prices {text}: allowed: two numbers, like 2.5,10") from None
    return Prices(prompt, completion)


@contextlib.contextmanager
def _told(what: str) -> Iterator["Counter[str]"]:
    """A counter whose contents are said at the end."""
    counter: Counter[str] = Counter()
    yield counter
    for name, count in counter.items():
        _tell(f"note: {name!r} of {counted(count, 'row')}: {what}")


def _spent(endpoint: "Endpoint") -> str:
    money = "" if endpoint.money is None else f", {endpoint.money:,.4f} of money"
    uncounted = f" ({endpoint.usage.uncounted:,} replies counted at their most)" if endpoint.usage.uncounted else ""
    return f"{endpoint.usage.tokens:,} tokens spent in all{uncounted}{money}"


def _report_failures(lines: Sequence[dict[str, Any]], key: str) -> None:
    failed = Counter(line["reason"] for line in lines if line[key] is None)
    if failed:
        _tell(
            f"warning: {failed.total():,} of {len(lines):,} verdicts failed and count nowhere; run again to retry them"
        )
        for reason, count in failed.most_common(5):
            _tell(f"  {count:,}: {reason}")


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
