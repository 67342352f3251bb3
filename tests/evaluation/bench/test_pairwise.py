"""Pairs: the verdict is read or in doubt, and wins, ties and consistency are right by hand."""

import dataclasses
import random

import pytest

from janus_jax.evaluation.bench.judgements import Judged
from janus_jax.evaluation.bench.pairwise import result, table, winner


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("B is longer. [RESULT] A", "A"),
        ("[RESULT] **B**", "B"),
        ("[RESULT]: Response A", "A"),
        ("[RESULT] [[B]]", "B"),
        ("[RESULT] A.", "A"),
        ("[RESULT] A is better", "A"),
        ("[RESULT] TIE", "tie"),
        ("[RESULT] a tie", "tie"),
        ("[RESULT] A tie.", "tie"),
        ("[RESULT] A. On reflection: [RESULT] B", "B"),
        ("Winner: B", "B"),
        ('{"feedback": "x", "winner": "A"}', "A"),
        ("<think>[RESULT] A</think> [RESULT] B", "B"),
        ("[RESULT] \uff21", "A"),
        ("Winner\uff1aA", "A"),
        ("[RESULT] B</s>", "B"),
        ("[RESULT] \\boxed{A}", "A"),
        ("<result>A</result>", "A"),
        ("[RESULT] A (not B)", "A"),
        ("[RESULT] Both are equally good", "tie"),
        ("<think>[RESULT] A", None),
        ("[RESULT] A is worse", None),
        ("[RESULT] A is not better than B", None),
        ("[RESULT] A: 4", None),
        ("[RESULT] A > B", None),
        ("[RESULT] A?", None),
        ("[RESULT] Not A", None),
        ("The better one is A.", None),
        ("[RESULT] A or B", None),
        ("[RESULT] A, B or TIE", None),
        ("[RESULT] A/B", None),
        ("[RESULT] A response that cites", None),
        ("[RESULT] 4", None),
        ("[RESULT] A wins over B", "A"),
        ("[RESULT] A because B is short", "A"),
        ("[RESULT] A</think>I choose B", None),
        *((f"[RESULT] A{rest}", None) for rest in (" (or B)", "; B", " as well as B", ": worse", " (3) B (4)")),
        *((f"[RESULT] A is {rest}", None) for rest in ("slightly worse", "inferior", "beaten by B", "also bad")),
        ("[RESULT] [[B<A]]", None),
        ("Winner: A for style, B for content", None),
        ('{"winner": ["A", "B"]}', None),
        ("[RESULT]", None),
        ("A", None),
    ],
)
def test_the_last_marker_names_the_better_one(reply, right):
    assert winner(reply) == right


def kept(tmp_path, verdicts):
    """Verdicts: of each row, those of both orders. Ours has 10 words, the other 10 plus the number of the row."""
    rows = [{"id": str(n), "source": "", "prompt": "", "words": [10, 10 + n]} for n in range(len(verdicts))]
    lines = [
        {"id": str(number), "order": order, "run": 0, "winner": winner, "reason": "" if winner else "no verdict"}
        for number, orders in enumerate(verdicts)
        for order, winner in enumerate(orders)
    ]
    settings = {"judge": "j", "runs": 1, "temperature": 1.0, "show_system": False, "prompts": "x"}
    return Judged(tmp_path, settings, rows, lines)


def test_wins_ties_and_consistency_by_hand(tmp_path):
    verdicts = [("own", "own"), ("other", "other"), ("own", "other"), ("tie", "tie"), ("own", "tie"), ("own", None)]
    judged = kept(tmp_path, verdicts)
    made = result(judged)
    facts = made.facts()
    assert [pair.score for pair in made.pairs] == [1, 0, 0.5, 0.5, 0.75]
    assert (facts["win"], facts["tie"], facts["loss"], facts["score"]) == (0.4, 0.4, 0.2, pytest.approx(0.55))
    assert (facts["consistent"], facts["left_out"]) == (0.6, 1)
    assert facts["longer_wins"] == 0.5 and (facts["winner_words"], facts["loser_words"]) == (10.5, 12)
    lines = table(judged, "mine").lines()
    assert "warning: 1 pair without a verdict in one order, which count nowhere" in lines
    assert "warning: mine: 1 of 12 verdicts failed; they count nowhere; most often: no verdict" in lines
    assert any(line.startswith("GPT-4-0613") and line.endswith("66.4") for line in lines)
    assert facts["low"] <= 0.55 <= facts["high"]
    win, *others, consistent = list(made.shares().values())
    assert win.low < 0.4 < win.high and consistent.low < 0.6 < consistent.high
    assert others[-1].value == pytest.approx(0.8)  # win + tie
    longer, first = made.longer_wins(), made.first_place()
    assert (longer.low, longer.high) == (0, 1) and first.low < first.value < first.high  # 2 pairs; 6 of 8 verdicts
    assert first.value == 6 / 8


def test_runs_of_a_row_are_resampled_together(tmp_path):
    """Equal runs say no more than one of them does."""
    once = kept(tmp_path, [("own", "own"), ("other", "other"), ("own", "own"), ("tie", "tie")] * 3)
    lines = [line | {"run": run} for line in once.lines for run in range(3)]
    thrice = dataclasses.replace(once, lines=lines)
    for name, cell in result(thrice).shares().items():
        assert cell == pytest.approx(result(once).shares()[name])


def test_a_judge_that_only_sees_the_place_is_inconsistent(tmp_path):
    judged = kept(tmp_path, [("own", "other")] * 20)
    made = result(judged)
    facts = made.facts()
    assert (facts["score"], facts["low"], facts["high"], facts["tie"], facts["consistent"]) == (0.5, 0.5, 0.5, 1, 0)
    assert facts["first_place"] == 1.0
    assert any("the judge is inconsistent" in line for line in table(judged, "mine").lines())
    steady = kept(tmp_path, [("own", "own")] * 20)
    assert not any("inconsistent" in line for line in table(steady, "mine").lines())
    assert dataclasses.asdict(made)["left_out"] == 0


def test_a_known_preference_lies_in_its_interval(tmp_path):
    """The judge prefers ours with 0.6, ties with 0.1, and repeats its verdict in the other order with 0.8."""
    inside = longer = 0
    for seed in range(30):
        draw = random.Random(seed)

        def verdict(draw=draw):
            return draw.choices(["own", "tie", "other"], [0.6, 0.1, 0.3])[0]

        firsts = [verdict() for _ in range(80)]
        facts = result(kept(tmp_path, [(one, one if draw.random() < 0.8 else verdict()) for one in firsts])).facts()
        inside += facts["low"] <= 0.65 <= facts["high"]
        longer += facts["low"] > 0.5  # ours is never the longer one
    assert inside >= 26 and longer >= 22


def test_a_bias_for_the_place_does_not_move_a_known_preference(tmp_path):
    """Of 40 % of all rows the judge names the first place; of the others it prefers ours with 0.7."""
    inside = 0
    for seed in range(30):
        draw, verdicts = random.Random(seed), []
        for _ in range(100):
            own = "own" if draw.random() < 0.7 else "other"
            verdicts.append(("own", "other") if draw.random() < 0.4 else (own, own))
        facts = result(kept(tmp_path, verdicts)).facts()
        inside += facts["low"] <= 0.4 * 0.5 + 0.6 * 0.7 <= facts["high"]
        assert facts["first_place"] > 0.6 and facts["consistent"] < 0.75
    assert inside >= 26
