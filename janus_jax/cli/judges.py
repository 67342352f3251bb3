"""Options of commands that ask a judge, and its endpoint."""

import contextlib
import dataclasses
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from janus_jax.cli.outputs import require_writable
from janus_jax.errors import ConfigError, StorageError, counted

if TYPE_CHECKING:
    from janus_jax.storage.endpoint import Endpoint

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


@dataclasses.dataclass(frozen=True)
class Options:
    """Of a judge's endpoint."""

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
        from janus_jax.evaluation.bench import judgements

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
        from janus_jax.evaluation.bench import judgements

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


def tell(line: str) -> None:
    """Prints a line to stderr."""
    print(line, file=sys.stderr, flush=True)
