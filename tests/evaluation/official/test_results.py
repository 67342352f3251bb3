"""Results of the official tools, as they write them, beside the paper's Table 3."""

import json

import pytest

from janus_jax.errors import DataError
from janus_jax.evaluation.official.results import read_results
from tests.support.official import write_questions

BOARD = (
    ",win_rate,standard_error,n_wins,n_wins_base,n_draws,n_total,discrete_win_rate,mode,avg_length,"
    "length_controlled_winrate,lc_standard_error\n"
    "mine,60.0,5.0,5,3,0,8,62.5,community,8,55.0,2.0\nother,10.0,1.0,1,7,0,8,12.5,minimal,9,,\n"
)


def score(question, turn, value, model="mine"):
    judge = ["gpt-4", "single-v1"]
    return {"question_id": question, "model": model, "judge": judge, "score": value, "turn": turn, "tstamp": 1.0}


def games(number, *scores, category="arena-hard-v0.1"):
    own = [None if one == "failed" else {"score": one, "judgment": {}, "prompt": []} for one in scores]
    return {"uid": f"{number}", "category": category, "judge": "j", "model": "mine", "baseline": "b", "games": own}


def test_three_tools_beside_the_paper(janus, tmp_path):
    board = tmp_path / "leaderboard.csv"
    board.write_text(BOARD)
    turns = [score(81, 1, 9), score(81, 2, 4), score(82, 1, 8), score(82, 2, -1)]
    mt = write_questions(tmp_path / "gpt-4_single.jsonl", turns)
    # Wins of mine: B in the first game, A in the second. 1 and 1, then 3 times 0 and one half, then a failure.
    arena = write_questions(
        tmp_path / "mine.jsonl", [games(1, "B>A", "A>B"), games(2, "A>>B", "A=B"), games(3, None, "A>B")]
    )
    code, out, _ = janus(*("bench", "helpfulness", board, mt, arena, "--model", "mine", "--json", tmp_path / "t.json"))
    assert code == 0 and "Janus 7B" in out and "1 judgment of mine failed and counts nowhere" in out, out
    table = json.loads((tmp_path / "t.json").read_text())
    (row,) = table["rows"]
    assert table["kind"] == "helpfulness" and table["columns"] == table["paper"]["columns"]
    assert row["values"] == pytest.approx([55, 60, 7, 100 * 2.5 / 6])
    assert row["low"][:2] == pytest.approx([55 - 3.92, 60 - 9.8]) and row["low"][2] < 7 < row["high"][2]
    assert set(read_results([str(board)]).models) == {"mine", "other"}


def test_both_turns_of_a_question_are_resampled_together(tmp_path):
    """Equal scores of both turns say no more than one of them does."""
    numbers = range(81, 91)
    pairs = [score(number, turn, number % 10 + 1) for number in numbers for turn in (1, 2)]
    singles = [one for one in pairs if one["turn"] == 1]
    files = [write_questions(tmp_path / f"{len(lines)}.jsonl", lines) for lines in (pairs, singles)]
    both, single = (read_results([str(file)]).models["mine"]["MT-Bench"] for file in files)
    assert both == pytest.approx(single) and both.low < 5.5 < both.high


def test_files_that_are_refused(tmp_path):
    (tmp_path / "leaderboard.csv").write_text(BOARD)
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    write_questions(tmp_path / "v2.jsonl", [games(1, "A>B", "B>A", category="hard_prompt")])
    write_questions(tmp_path / "mixed.jsonl", [score(81, 1, 9), games(1, "A>B", "B>A")])
    write_questions(tmp_path / "answers.jsonl", [{"question_id": 81, "choices": []}])
    (tmp_path / "none.jsonl").write_text("")
    for names, message in (
        (["x.csv"], "x.csv: has no column 'win_rate'"),
        (["v2.jsonl"], "v2.jsonl:1: is another judgment"),
        (["mixed.jsonl"], "mixed.jsonl:2: is another judgment than the first line"),
        (["answers.jsonl"], "answers.jsonl:1: is no judgment"),
        (["none.jsonl"], "none.jsonl: holds no judgments"),
        (["missing.csv"], "missing.csv: cannot be read: No such file"),
        (["leaderboard.csv"] * 2, "has 'AlpacaEval 2.0 LC %' of 'mine', as an earlier file has"),
    ):
        with pytest.raises(DataError) as error:
            read_results([str(tmp_path / name) for name in names])
        assert message in str(error.value)
