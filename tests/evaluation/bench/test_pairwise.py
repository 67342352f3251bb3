"""Pairs: the verdict is read or in doubt, and wins, ties and consistency are right by hand."""

import dataclasses

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
        ("The better one is A.", None),
        ("[RESULT] A or B", None),
        ("[RESULT] A, B or TIE", None),
        ("[RESULT] A/B", None),
        ("[RESULT] A response that cites", None),
        ("[RESULT] 4", None),
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
