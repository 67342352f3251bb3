"""The better of two answers to each row, asked for in both orders, so that a preference for a place cancels out."""

import csv
import dataclasses
import io
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from janus_jax.evaluation.bench.asking import Outcome, Prompts
from janus_jax.evaluation.bench.judge import Judging, rest, verdicts
from janus_jax.evaluation.bench.judgements import Judged
from janus_jax.evaluation.bench.rows import BenchRow
from janus_jax.evaluation.intervals import mean_interval
from janus_jax.evaluation.paper import paper
from janus_jax.storage.endpoint import Endpoint
from janus_jax.storage.endpoint_requests import Messages, Reply

_CONSISTENT = 0.75
"""Share of pairs with the same verdict in both orders, below which the judge is called inconsistent."""
_MARK = re.compile(
    r"\[\s*RESULT\s*\]|\bRESULT\b|(?i:\[\s*result\s*\]|\b(?:result|winner|verdict|better response)\b\s*[*_\"]*\s*[:=])"
)
_NAMED = re.compile(
    r"[\s*_`\"'()\[\]{}:=#]*(?:the\s+)?(?:better\s+(?:one|response|answer)\s+is\s+)?(?:a\s+(?=tie|draw))?"
    r"(?:(?:response|answer|assistant)\s+)?[*_`\"'()\[\]{}]*(?P<name>A|B|tie|draw|equal|neither|both)\b"
    r"(?!\s*(?:[/|,&]|or\b|and\b|,)\s*(?:(?:response|answer)\s+)?[*_`\"'()\[\]{}]*(?:A|B|tie)\b)",
    re.IGNORECASE,
)

_ENDS = re.compile(r"[*_`\"')\]}]*(?:$|[.!,;:\n-]|\s*\n|\s+(?:is|wins|because|since|for|as|by|-)\b|\s*$|\s*\()")


def winner(reply: str, *, is_cut: bool = False) -> str | None:
    """A, B or tie, as the last explicit marker says; None: none does, or it is in doubt."""
    marks = list(_MARK.finditer(reply))
    named = _NAMED.match(reply, marks[-1].end()) if marks else None
    if named is None or not _ENDS.match(reply, named.end()):
        return None
    if is_cut and named.end() == len(reply):
        return None
    return named["name"].upper() if len(named["name"]) == 1 else "tie"


def conversations(
    rows: Sequence[BenchRow], answers: Sequence[str], against: Sequence[str], prompts: Prompts, judging: Judging
) -> list[Messages]:
    """Two for each row: our answer first, then the other one first."""
    made = []
    for row, own, other in zip(rows, answers, against, strict=True):
        rubric = "\n".join(f"{number}. {one.criteria}" for number, one in enumerate(row.rubrics, 1))
        for first, second in ((own, other), (other, own)):
            made.append(
                prompts.fill(
                    instruction=judging.instruction(row),
                    response_a=first,
                    response_b=second,
                    reference_answer=row.reference_answer,
                    rubric=rubric,
                )
            )
    return made


def compare(
    endpoint: Endpoint,
    directory: Path,
    rows: Sequence[BenchRow],
    asked: Sequence[Messages],
    judging: Judging,
    *,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Mapping[str, Any]]:
    """As `judge.judge`, of pairs: one line for each row, order and run. `winner` is own, other, tie or null."""

    def line(place: int, run: int, outcome: Outcome) -> dict[str, Any]:
        row, order = divmod(place, 2)
        sides = ("own", "other") if order == 0 else ("other", "own")
        won = {"A": sides[0], "B": sides[1], "tie": "tie", None: None}[outcome.value]
        return {"id": rows[row].id, "order": order, "run": run, "winner": won, **rest(outcome)}

    places = {(row.id, order): 2 * number + order for number, row in enumerate(rows) for order in (0, 1)}
    return verdicts(endpoint, directory, asked, read_winner, places, line, judging, tell=tell)


def read_winner(reply: Reply) -> str | None:
    return winner(reply.text or "", is_cut=reply.finish_reason == "length")


@dataclasses.dataclass(frozen=True)
class Pair:
    """Both orders of one row in one run."""

    id: str
    run: int
    score: float
    """1: our answer wins in both orders; 0: it loses in both; 0.5: a tie, or as much for as against it."""
    consistent: bool
    own_words: int
    other_words: int


@dataclasses.dataclass(frozen=True)
class Result:
    pairs: list[Pair]
    left_out: int
    """Pairs with an order that has no verdict; they count nowhere."""
    first_place: float
    """Share of verdicts for the answer in the first place, of those that name one."""

    def share(self, test: Callable[[Pair], bool]) -> float:
        return float(np.mean([test(pair) for pair in self.pairs])) if self.pairs else float("nan")

    def facts(self) -> dict[str, float]:
        """Shares of pairs; `score` counts a tie half, with its 95 % bootstrap interval over rows."""
        of_rows: dict[str, list[float]] = defaultdict(list)
        for pair in self.pairs:
            of_rows[pair.id].append(pair.score)
        values = np.array([np.mean(scores) for scores in of_rows.values()])
        low, high = mean_interval(values)
        decided = [pair for pair in self.pairs if pair.score != 0.5 and pair.own_words != pair.other_words]
        longer = [(pair.own_words > pair.other_words) == (pair.score > 0.5) for pair in decided]
        sides = [(pair.own_words, pair.other_words)[:: 1 if pair.score > 0.5 else -1] for pair in decided]
        words = np.array(sides, np.float64).reshape(-1, 2).mean(axis=0) if sides else (float("nan"),) * 2
        return {
            "pairs": len(self.pairs),
            "left_out": self.left_out,
            "win": self.share(lambda pair: pair.score > 0.5),
            "tie": self.share(lambda pair: pair.score == 0.5),
            "loss": self.share(lambda pair: pair.score < 0.5),
            "score": float(values.mean()) if len(values) else float("nan"),
            "low": low,
            "high": high,
            "consistent": self.share(lambda pair: pair.consistent),
            "first_place": self.first_place,
            "longer_wins": float(np.mean(longer)) if longer else float("nan"),
            "winner_words": float(words[0]),
            "loser_words": float(words[1]),
        }


def result(judged: Judged) -> Result:
    """The pairs of a directory of verdicts."""
    points = {"own": 1.0, "tie": 0.5, "other": 0.0}
    words = {row["id"]: row["words"] for row in judged.rows}
    verdicts: dict[tuple[str, int], dict[int, str]] = defaultdict(dict)
    named = []
    for line in judged.lines:
        orders = verdicts[line["id"], line["run"]]
        if line["winner"] is not None:
            orders[line["order"]] = line["winner"]
            if line["winner"] != "tie":
                named.append(line["winner"] == ("own", "other")[line["order"]])
    pairs = [
        Pair(id, run, sum(points[one] for one in orders.values()) / 2, orders[0] == orders[1], *words[id])
        for (id, run), orders in verdicts.items()
        if len(orders) == 2
    ]
    first = float(np.mean(named)) if named else float("nan")
    return Result(pairs, len(verdicts) - len(pairs), first)


def lines_of(result: Result, settings: dict[str, Any]) -> list[str]:
    """The result as lines of text, beside the paper's."""
    facts, published = result.facts(), paper("pairwise")
    shown = "shown" if settings["show_system"] else "not shown"
    lines = [
        f"judge {settings['judge']}, {settings['runs']} runs, both orders, temperature {settings['temperature']}, "
        f"system message {shown}, prompts {settings['prompts']}",
        f"win {facts['win']:.1%}, tie {facts['tie']:.1%}, loss {facts['loss']:.1%} of {len(result.pairs):,} pairs; "
        f"win + tie {facts['win'] + facts['tie']:.1%}",
        f"score {facts['score']:.1%} (ties count half), 95 % interval {facts['low']:.1%} to {facts['high']:.1%}",
        f"the same verdict in both orders: {facts['consistent']:.1%}; the first place wins {facts['first_place']:.1%}",
        f"the longer answer wins {facts['longer_wins']:.1%}; winners have {facts['winner_words']:.0f} words, losers "
        f"{facts['loser_words']:.0f}",
    ]
    if facts["consistent"] < _CONSISTENT:
        lines.append("warning: the judge is inconsistent: its verdicts follow the order of the answers")
    if result.left_out:
        lines.append(f"warning: {result.left_out:,} pairs have an order without a verdict; they count nowhere")
    lines.append(f"the paper: {published['place']}; judged by {published['judge']}; {published['note']}")
    for name, row in published["rows"].items():
        lines.append(f"  {name}: " + ", ".join(f"{c} {v}" for c, v in zip(published["columns"], row, strict=True)))
    return lines


def as_json(result: Result, settings: dict[str, Any]) -> dict[str, Any]:
    """The result for programs."""
    return {"settings": settings, **result.facts(), "paper": paper("pairwise")}


def as_csv(result: Result) -> str:
    """One line for each pair."""
    out = io.StringIO()
    writer = csv.DictWriter(out, [field.name for field in dataclasses.fields(Pair)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(pair) for pair in result.pairs)
    return out.getvalue()
