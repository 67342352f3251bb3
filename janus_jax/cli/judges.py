"""How `janus bench` asks a judge: options that its commands share, and what they do with them."""

import contextlib
import dataclasses
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from janus_jax.cli import arguments
from janus_jax.cli.option_groups import OptionGroup
from janus_jax.cli.outputs import require_new_file, require_writable, tell
from janus_jax.errors import ConfigError, counted

if TYPE_CHECKING:
    from janus_jax.storage.endpoint import Endpoint

Limit = Annotated[int | None, typer.Option(min=1, help="Only the first rows of the bench; later more, or all.")]
KeyVariable = Annotated[str, typer.Option(metavar="NAME", help="Environment variable with the API key.")]
NoKey = Annotated[bool, typer.Option("--no-key", help="The endpoint takes no key.")]
NoSeed = Annotated[bool, typer.Option("--no-seed", help="Send none, for endpoints that refuse it.")]
Timeout = Annotated[float, typer.Option("--timeout", min=0.1, metavar="SECONDS", help="Of one try.")]

_LEAVE_OUT = {
    "seed": "--no-seed",
    "temperature": "--no-temperature",
    "top_p": "--no-top-p",
    "max_tokens": "--max-completion-tokens",
    "repetition_penalty": "--repetition-penalty 1",
    "top_k": "--top-k 0",
    "min_p": "--min-p 0",
}
"""Option of a request -> what is for an endpoint that refuses it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(OptionGroup):
    """Of every command that asks a judge, one field for each option."""

    judge: Annotated[str, typer.Option(metavar="MODEL", help="The judge, as its endpoint names it.")]
    base_url: Annotated[
        str, typer.Option(metavar="URL", help="OpenAI-compatible endpoint, like http://127.0.0.1:8000/v1.")
    ]
    out: Annotated[Path, typer.Option(metavar="DIR", help="Directory of the verdicts. The same command goes on in it.")]
    key_variable: KeyVariable = "OPENAI_API_KEY"
    no_key: NoKey = False
    runs: Annotated[int, typer.Option(min=1, help="Verdicts on each question, which are averaged.")] = 3
    temperature: Annotated[float, typer.Option(min=0, help="Of the judge.")] = 1.0
    no_temperature: Annotated[bool, typer.Option("--no-temperature", help="Leave it to the endpoint.")] = False
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Of the judge.")] = 0.9
    no_top_p: Annotated[bool, typer.Option("--no-top-p", help="Leave it to the endpoint.")] = False
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a judge's reply.")] = 1024
    max_completion_tokens: Annotated[
        int | None, typer.Option(min=1, help="The same, for endpoints that refuse max_tokens.")
    ] = None
    seed: Annotated[int, typer.Option(min=0, help="Of the judge's replies; each run has one of its own.")] = 0
    no_seed: NoSeed = False
    asks: Annotated[int, typer.Option(min=1, help="Most replies asked for one verdict, until it can be read.")] = 5
    show_system: Annotated[
        bool, typer.Option("--show-system", help="Show the judge the system message. The paper did not.")
    ] = False
    prompts: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Your own judge prompts, KIND_system.txt and KIND.txt.")
    ] = None
    limit: Limit = None
    judge_empty: Annotated[
        bool, typer.Option("--judge-empty", help="Have empty answers judged instead of refusing them.")
    ] = False
    concurrent: Annotated[int, typer.Option(min=1, help="Requests at the same time.")] = 8
    requests_a_minute: Annotated[int | None, typer.Option(min=1, help="Limit of your account.")] = None
    tokens_a_minute: Annotated[int | None, typer.Option(min=1, help="Limit of your account.")] = None
    token_budget: Annotated[int | None, typer.Option(min=1, help="Most tokens to spend; it stops before that.")] = None
    money_budget: Annotated[float | None, typer.Option(help="Most money to spend; needs --prices.")] = None
    prices: Annotated[
        str | None, typer.Option(metavar="IN,OUT", help="Price of a million tokens of prompts, and of replies.")
    ] = None
    timeout: Timeout = 120.0
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be asked for and what it costs at most.")
    ] = False

    def judging(self) -> Any:
        """The `Judging` of these options.

        Raises:
            ConfigError: an option is given, and left out by another one.
        """
        from janus_jax.evaluation.bench.judge import Judging

        left_out = {
            "--no-temperature": (self.no_temperature, "temperature"),
            "--no-top-p": (self.no_top_p, "top_p"),
            "--no-seed": (self.no_seed, "seed"),
            "--max-completion-tokens": (self.max_completion_tokens, "max_tokens"),
        }
        for option, (given, name) in left_out.items():
            if given:
                unset = {f"--{name.replace('_', '-')}": (getattr(self, name), getattr(Options, name))}
                arguments.require_unset(unset, f"not allowed with {option}")
        return Judging(
            self.judge,
            self.base_url,
            runs=self.runs,
            temperature=None if self.no_temperature else self.temperature,
            top_p=None if self.no_top_p else self.top_p,
            max_tokens=None if self.max_completion_tokens else self.max_tokens,
            max_completion_tokens=self.max_completion_tokens,
            seed=None if self.no_seed else self.seed,
            asks=self.asks,
            show_system=self.show_system,
        )

    def endpoint(self, journal: Path, *, key: bool) -> "Endpoint":
        """Without a key, it only estimates."""
        from janus_jax.storage.endpoint import Endpoint

        if self.money_budget is not None and self.prices is None:
            raise ConfigError(f"--money-budget {self.money_budget:g}: needs --prices")
        return Endpoint(
            self.base_url,
            self.judge,
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


def ask(kind: str, questions: Callable[..., Any], bench: str, files: Mapping[str, Path], options: Options) -> bool:
    """Has answers judged: absolute or pairwise. Prints what came of it; false if that is only an estimate.

    Args:
        questions: makes them of the rows, the answers of all files, prompts and a `Judging`.
        files: of answers, by the name of their option.
    """
    from janus_jax.evaluation.bench import judgements
    from janus_jax.evaluation.bench.asking import read_prompts
    from janus_jax.evaluation.bench.judge import estimate, verdicts
    from janus_jax.evaluation.bench.rows import read_answers, read_bench

    how, written, answers = options.judging(), read_prompts(kind, options.prompts), []
    with noting("not shown to the judge") as unread:
        rows = read_bench(bench, unread=unread)
    for file in files.values():
        with noting("not judged") as unread:
            read = read_answers(file, rows, may_be_empty=options.judge_empty, limit=options.limit, unread=unread)
            answers.append(read)
    settings = how.settings(kind, written) | {"bench": bench, "bench_rows": len(rows)}
    settings |= {name: str(file) for name, file in files.items()}
    rows = rows[: options.limit]
    kept, asked = judgements.row_lines(rows, answers), questions(rows, *answers, written, how)
    out = options.out
    if not options.dry_run:
        require_writable("--out", out)
    judgements.require_same(out, settings, kept)
    if options.dry_run:
        with tempfile.TemporaryDirectory() as scratch:
            journal = next((one for one in (out / judgements.JOURNAL,) if one.exists()), Path(scratch) / "journal")
            with options.endpoint(journal, key=False) as endpoint:
                print(estimate(endpoint, asked, how).text(), flush=True)
        return False
    with opened(lambda: options.endpoint(out / judgements.JOURNAL, key=True), out) as endpoint:
        judgements.require_same(out, settings, kept)  # of one that was ahead of us
        judgements.write_settings(out, settings, kept)
        tell(f"note: {estimate(endpoint, asked, how).text()}")
        lines = verdicts(endpoint, out, asked, how, tell=tell)
        paid = spent(endpoint)
    report_failures(lines, asked.verdict)
    print(f"{counted(len(lines), 'verdict')} in {out}; {paid}", flush=True)
    return True


def answer(base_url: str, model: str, read: Callable[..., Any], out: Path, options: dict[str, Any], **how: Any) -> None:
    """Has a model behind an endpoint answer prompts.

    Args:
        read: gives them, as `AnswerFile` calls it.
        options: of requests.
        how: arguments of the `Endpoint`.
    """
    arguments.on_cpu()
    from janus_jax.evaluation.bench.answering import answer_through
    from janus_jax.storage.endpoint import Endpoint

    require_new_file("--out", out)
    rows, journal = read(Counter()), out.with_name(f"{out.name}.replies")
    with (
        Endpoint(base_url, model, journal=journal, **how) as endpoint,
        explained(f"answers are kept in {journal}", "MODEL"),
    ):
        tell(f"note: {endpoint.estimate([row.messages for row in rows], **options).text()}")
        answer_through(endpoint, rows, out, tell=tell, **options)
        print(f"wrote {out}; {spent(endpoint)}", flush=True)


@contextlib.contextmanager
def opened(make: "Callable[[], Endpoint]", out: Path) -> "Iterator[Endpoint]":
    """An endpoint whose journal lies in the directory `out`, which is made; its errors name options."""
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        endpoint = make()
    except BaseException:
        if made:
            with contextlib.suppress(OSError):
                out.rmdir()  # unless it holds something
        raise
    with endpoint, explained(f"what is judged is kept in {out}, and the same command goes on"):
        yield endpoint


@contextlib.contextmanager
def explained(kept: str, model: str = "--judge") -> Iterator[None]:
    """Names options in errors of an endpoint. Args: kept: what is not lost; model: what names the model."""
    from janus_jax.storage.endpoint_errors import NoCompletionError, RefusedOptionError, RefusedRequestError
    from janus_jax.storage.endpoint_requests import UnreachableError

    try:
        yield
    except (UnreachableError, NoCompletionError) as error:
        raise ConfigError("--base-url", f"{error}; {kept}") from error
    except RefusedRequestError as error:
        options = {"key": "--key-variable", "model": f"{model}, --base-url"}
        error.args = (options.get(error.about, "--base-url"), *error.args)
        raise
    except RefusedOptionError as error:
        if (option := _LEAVE_OUT.get(error.option)) is None:
            raise
        raise ConfigError(f"{error}; {option} is for such an endpoint") from error


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
def noting(what: str) -> Iterator["Counter[str]"]:
    """A counter whose contents are said at the end."""
    counter: Counter[str] = Counter()
    yield counter
    for name, count in counter.items():
        tell(f"note: {name!r} of {counted(count, 'row')}: {what}")


def spent(endpoint: "Endpoint") -> str:
    """What was paid, for the last line of a command."""
    money = "" if endpoint.money is None else f", {endpoint.money:,.4f} of money"
    uncounted = f" ({endpoint.usage.uncounted:,} replies counted at their most)" if endpoint.usage.uncounted else ""
    return f"{endpoint.usage.tokens:,} tokens spent in all{uncounted}{money}"


def report_failures(lines: Sequence[Mapping[str, Any]], key: str) -> None:
    """Says how many verdicts failed, and why."""
    failed = Counter(line["reason"] for line in lines if line[key] is None)
    if failed:
        tell(
            f"warning: {failed.total():,} of {len(lines):,} verdicts failed and count nowhere; run again to retry them"
        )
        for reason, count in failed.most_common(5):
            tell(f"  {count:,}: {reason}")
