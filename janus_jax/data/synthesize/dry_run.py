"""What `janus data synthesize --dry-run` prints."""

from collections.abc import Iterator, Sequence

from janus_jax.data.synthesize import instructions
from janus_jax.data.synthesize.pipeline import STEPS, UNLIMITED, Synthesis
from janus_jax.data.synthesize.stage import Planned
from janus_jax.errors import ConfigError, counted
from janus_jax.storage.endpoint_requests import amount, figure


def lines(work: Synthesis, only: str | None = None) -> Iterator[str]:
    """What sources drop, what each step would ask for, and whether the budget suffices. Nobody is asked.

    Args:
        only: this step; None: all.

    Raises:
        JanusError: what the steps that ask nobody raise. After the lines: what the run would raise because of rows that
            were edited, or of requests that wait for answers of a batch API.
    """
    notes: list[str] = []
    refusals: list[ConfigError] = []
    planned = work.estimate(only, tell=notes.append, refused=refusals.append)
    if not planned:
        report = work.out / "report.html"
        what = (f"{only} is made" if only else "all steps are made") + _of_limit(work, only)
        yield f"{what}, and nothing would be asked for" + (f"; the report: {report}" if report.exists() else "")
        return
    yield from notes
    asking = [one for one in planned if STEPS[one.step].section]
    if asking:
        yield from _table(asking)
        yield from _of_budget(work, Planned.total(asking))
    else:
        yield f"nothing would be asked for; still to be made: {', '.join(one.step for one in planned)}"
    if only is not None and (before := work.unmade_before(only)):
        yield f"--step {only} needs steps that are to be made before it: {', '.join(before)}"
    if refusals:
        raise refusals[0]


def _of_limit(work: Synthesis, only: str | None) -> str:
    """For which instructions all is made; empty: for all."""
    whole = work.directories[instructions.NAME].facts()["counts"]["rows"]
    if work.limit is None or work.limit >= whole or only in UNLIMITED:
        return ""
    return f" for the {counted(work.limit, 'instruction')} of --limit"


def _table(planned: Sequence[Planned]) -> Iterator[str]:
    widths = {"requests": 10, "answered": 10, "prompt": 14, "answers": 14, "at most": 16, "money": 12, "most money": 12}
    yield f"{'step':<12}" + "".join(f"{name:>{width}}" for name, width in widths.items())
    for one in [*planned, Planned.total(planned)] if len(planned) > 1 else planned:
        known = [0.0 if value is None and not one.requests else value for value in (one.money, one.most_money)]
        money = ["?" if value is None else amount(value) for value in known]
        yield (
            f"{one.step:<12}{one.requests:>10,}{one.in_journal:>10,}{one.prompt_tokens:>14,}{one.completion_tokens:>14,}"
            f"{one.most_tokens:>16,}{money[0]:>12}{money[1]:>12}"
        )


def _of_budget(work: Synthesis, whole: Planned) -> Iterator[str]:
    """For each limit, whether it ends the run. Without a request, none does, also if it is passed already."""
    if not whole.requests:
        return
    budget, (tokens, money) = work.config.budget, work.spent()
    if budget.tokens is not None:
        about = whole.prompt_tokens + whole.completion_tokens
        yield _suffices("tokens", budget.tokens, tokens, about, whole.most_tokens)
    if budget.money is not None:
        yield _suffices("money", budget.money, money or 0.0, whole.money or 0.0, whole.most_money or 0.0)


def _suffices(name: str, limit: float, spent: float, about: float, most: float) -> str:
    if spent + about > limit:
        verdict = "the run will probably stop before its end; a larger budget goes on"
    elif spent + most > limit:
        verdict = "the run may stop before its end; a larger budget goes on"
    else:
        verdict = "suffices, unless many answers do not pass a gate"
    whole, spent_, about_, most_ = (figure(name, value) for value in (limit, spent, about, most))
    return f"budget.{name} = {whole}: {verdict} (spent {spent_}, to come about {about_}, at most {most_})"
