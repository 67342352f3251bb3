"""The better of two answers to each row, asked for in both orders, so that a preference for a place cancels out."""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from janus_jax.errors import counted
from janus_jax.evaluation.bench import judgements
from janus_jax.evaluation.bench.asking import Prompts
from janus_jax.evaluation.bench.judge import Judging, Questions
from janus_jax.evaluation.bench.judgements import Judged
from janus_jax.evaluation.bench.rows import BenchRow
from janus_jax.evaluation.bench.verdicts import plain
from janus_jax.evaluation.intervals import Cell, mean_cell
from janus_jax.evaluation.result_table import Row, Table
from janus_jax.storage.endpoint_requests import Reply

_CONSISTENT = 0.75
"""Share of pairs with the same verdict in both orders, below which the judge is called inconsistent."""
_MARK = re.compile(
    r"\[\s*RESULT\s*\]|\bRESULT\b|(?i:<\s*(?:result|winner|verdict)\s*>|\[\s*result\s*\]"
    r"|\b(?:result|winner|verdict|better response)\b\s*[*_\"]*\s*[:=])"
)
_NAMED = re.compile(
    r"(?:[\s*_`\"'()\[\]{}:=#<$]|\\boxed)*(?:the\s+)?(?:better\s+(?:one|response|answer)\s+is\s+)?(?:a\s+(?=tie|draw))?"
    r"(?:(?:response|answer|assistant)\s+)?[*_`\"'()\[\]{}]*(?P<name>A|B|tie|draw|equal|neither|both)\b"
    r"(?!\s*(?:[/|,&]|or\b|and\b|,)\s*(?:(?:response|answer)\s+)?[*_`\"'()\[\]{}]*(?:A|B|tie)\b)",
    re.IGNORECASE,
)

_SIDES = ({"A": "own", "B": "other", "tie": "tie"}, {"A": "other", "B": "own", "tie": "tie"})
_ENDS = re.compile(
    r"[*_`\"')\]}>$]*(?:$|[.!;<\n]|[,:-](?!\s*[0-9])|\s+(?:are|wins|because|since|for|as|by|-)\b|\s*\("
    r"|\s+is\b(?!\s+(?:not|worse|less|weaker|no)\b))"
)
_REASON = re.compile(r"\s+(?:because|since|as(?!\s+well))\b")
_THAN = re.compile(
    r"(?:\b(?:than|over|to|beats|outperforms)|(?<=[(,\s])not)\s+(?:the\s+)?(?:(?:response|answer|assistant)\s+)?[AB]\b",
    re.IGNORECASE,
)
_DOUBT = re.compile(
    r"\?|n't\b|\b(?:no|not|also|bad|poor|worse|inferior|weaker|beaten|outperformed|loses|lost|or|and)\b", re.IGNORECASE
)


def winner(reply: str, *, is_cut: bool = False) -> str | None:
    """A, B or tie, as the last explicit marker says; None: none does, or it is in doubt."""
    reply = plain(reply)
    marks = list(_MARK.finditer(reply))
    named = _NAMED.match(reply, marks[-1].end()) if marks else None
    if named is None or not _ENDS.match(reply, named.end()):
        return None
    if (is_cut and named.end() == len(reply)) or _in_doubt(named["name"].upper(), reply[named.end() :]):
        return None
    return named["name"].upper() if len(named["name"]) == 1 else "tie"


def _in_doubt(name: str, following: str) -> bool:
    """Whether the rest of the sentence may mean the other answer."""
    if _REASON.match(following):
        return False
    rest = _THAN.sub("", re.split(r"\n|[.!]\s", following, maxsplit=1)[0])
    other = {"A": "B", "B": "A"}.get(name, "[AB]")
    is_one = name in ("A", "B")
    return re.search(rf"\b{other}\b", rest) is not None or (is_one and _DOUBT.search(rest) is not None)


def questions(
    rows: Sequence[BenchRow], own: Sequence[str], other: Sequence[str], prompts: Prompts, judging: Judging
) -> Questions:
    """Two for each row: our answer first, then the other one first. The verdict is own, other or tie."""
    names, conversations = [], []
    for row, *texts in zip(rows, own, other, strict=True):
        rubric = "\n".join(f"{number}. {one.criteria}" for number, one in enumerate(row.rubrics, 1))
        asked = {"instruction": judging.instruction(row), "reference_answer": row.reference_answer, "rubric": rubric}
        for order, (first, second) in enumerate((texts, texts[::-1])):
            names.append({"id": row.id, "order": order})
            conversations.append(prompts.fill(response_a=first, response_b=second, **asked))

    def read(reply: Reply) -> str | None:
        named = winner(reply.text or "", is_cut=reply.finish_reason == "length")
        return _SIDES[names[reply.place]["order"]].get(named or "")

    return Questions(names, conversations, "winner", read)


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
    named: list[tuple[str, bool]]
    """Row of each verdict that names an answer, and whether that stood in the first place."""

    def share(self, test: Callable[[Pair], bool]) -> Cell:
        """Of pairs, with its interval over rows; the runs of a row are resampled together."""
        return _share((pair.id, test(pair)) for pair in self.pairs)

    def score(self) -> Cell:
        """Mean over rows, a tie counted half, with its interval."""
        return mean_cell(np.array([np.mean(own) for own in _by_row((pair.id, pair.score) for pair in self.pairs)]))

    def shares(self) -> dict[str, Cell]:
        """Wins, ties and losses, and how often both orders have the same verdict."""
        return {
            "win": self.share(lambda pair: pair.score > 0.5),
            "tie": self.share(lambda pair: pair.score == 0.5),
            "loss": self.share(lambda pair: pair.score < 0.5),
            "win + tie": self.share(lambda pair: pair.score >= 0.5),
            "consistent": self.share(lambda pair: pair.consistent),
        }

    def first_place(self) -> Cell:
        """Share of verdicts for the answer in the first place, of those that name one."""
        return _share(self.named)

    def longer_wins(self) -> Cell:
        """Share of pairs that the longer answer won, of those with a winner and answers of different lengths."""
        return _share((pair.id, (pair.own_words > pair.other_words) == (pair.score > 0.5)) for pair in self._decided())

    def _decided(self) -> list[Pair]:
        return [pair for pair in self.pairs if pair.score != 0.5 and pair.own_words != pair.other_words]

    def facts(self) -> dict[str, float]:
        """Shares of pairs; `score` counts a tie half, with its 95 % bootstrap interval over rows."""
        shares, score = {name: _number(cell.value) for name, cell in self.shares().items()}, self.score()
        sides = [(pair.own_words, pair.other_words)[:: 1 if pair.score > 0.5 else -1] for pair in self._decided()]
        words = np.array(sides, np.float64).reshape(-1, 2).mean(axis=0) if sides else (float("nan"),) * 2
        return {
            "pairs": len(self.pairs),
            "left_out": self.left_out,
            **{name: shares[name] for name in ("win", "tie", "loss")},
            "score": _number(score.value),
            "low": _number(score.low),
            "high": _number(score.high),
            "consistent": shares["consistent"],
            "first_place": _number(self.first_place().value),
            "longer_wins": _number(self.longer_wins().value),
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
                named.append((line["id"], line["winner"] == ("own", "other")[line["order"]]))
    pairs = [
        Pair(id, run, sum(points[one] for one in orders.values()) / 2, orders[0] == orders[1], *words[id])
        for (id, run), orders in verdicts.items()
        if len(orders) == 2
    ]
    return Result(pairs, len(verdicts) - len(pairs), named)


def table(judged: Judged, name: str) -> Table:
    """The result as a table of one row. Args: name: of the pair of models."""
    made = result(judged)
    facts, shares = made.facts(), made.shares()
    columns = {f"{share} %": shares[share] for share in ("win", "tie", "loss", "win + tie")}
    columns |= {"score %": made.score(), "consistent %": shares["consistent"]}
    columns |= {"first place wins %": made.first_place(), "longer wins %": made.longer_wins()}
    percents = [Cell(*(None if part is None else 100 * part for part in cell)) for cell in columns.values()]
    row = Row.from_cells(name, [Cell(len(made.pairs)), *percents])
    notes = [
        *judgements.notes(judged, name, {"orders": "both"}),
        "score: a tie counts half; consistent: the same verdict in both orders",
        "no pair has a winner and answers of different lengths"
        if np.isnan(facts["winner_words"])
        else f"winners have {facts['winner_words']:.0f} words, losers {facts['loser_words']:.0f}",
    ]
    if facts["consistent"] < _CONSISTENT:
        notes.append("warning: the judge is inconsistent: its verdicts follow the order of the answers")
    if made.left_out:
        notes.append(f"warning: {counted(made.left_out, 'pair')} without a verdict in one order, which count nowhere")
    title = "Pairs judged in both orders, with 95 % bootstrap intervals over rows"
    return Table("pairwise", title, ("pairs", *columns), [row], notes, judged.settings, "pairwise")


def _by_row(numbers: Iterable[tuple[str, float]]) -> list[list[float]]:
    rows: dict[str, list[float]] = defaultdict(list)
    for id, number in numbers:
        rows[id].append(number)
    return list(rows.values())


def _share(numbers: Iterable[tuple[str, float]]) -> Cell:
    """Mean of all numbers, with its interval over rows."""
    rows = _by_row(numbers)
    return mean_cell(np.array([np.mean(own) for own in rows]), np.array([len(own) for own in rows]))


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def as_json(result: Result) -> dict[str, Any]:
    """What programs also read: all shares, and every pair."""
    return {**result.facts(), "of_pairs": [dataclasses.asdict(pair) for pair in result.pairs]}
