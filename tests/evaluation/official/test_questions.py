"""Questions of the official tools as their files have them; rows that cannot be used are named."""

import os
from collections import Counter
from pathlib import Path

import pytest

from janus_jax.errors import DataError
from janus_jax.evaluation.official import TOOLS
from janus_jax.evaluation.official.questions import read_questions
from tests.support.official import QUESTIONS, alpaca_question, arena_question, mt_question, write_questions

REAL = os.environ.get("JANUS_REAL_DATA")


def read(tool, path, unread=None):
    return read_questions(path, TOOLS[tool].read, same=TOOLS[tool].same, unread=unread)


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("name", ["q.json", "q.jsonl"])
def test_rows_of_a_list_or_of_lines(tmp_path, tool, name):
    rows, unread = [QUESTIONS[tool](number) for number in (1, 2)], Counter()
    first, second = read(tool, write_questions(tmp_path / name, rows), unread)
    assert first.place.endswith(f"{name}:1") and second.place.endswith(f"{name}:2") and not unread
    assert first.turns == tuple(rows[0].get("turns", [rows[0].get("instruction", rows[0].get("prompt"))]))
    assert first.id == rows[0].get("question_id", rows[0].get("uid", rows[0].get("instruction")))


def test_what_is_kept_and_what_is_not_used(tmp_path):
    unread = Counter()
    rows = [alpaca_question(1, note="x"), alpaca_question(2, output=None, generator=None)]
    one, two = read("alpaca_eval", write_questions(tmp_path / "q.json", rows), unread)
    assert one.kept == {"dataset": "koala"} and unread == {"note": 1}
    assert one.reference == {
        "dataset": "koala",
        **{key: rows[0][key] for key in ("instruction", "output", "generator")},
    }
    assert two.reference is None
    rows = [mt_question(1, "math", reference=["a", ""])]
    (question,) = read("mt_bench", write_questions(tmp_path / "q.jsonl", rows))
    assert question.category == "math" and question.reference["choices"][0]["turns"] == ["a", ""]


@pytest.mark.parametrize(
    ("tool", "rows", "message"),
    [
        ("alpaca_eval", [{"prompt": "x"}], "1: has no column 'instruction', which is needed; found: prompt"),
        ("alpaca_eval", [alpaca_question(1), alpaca_question(1)], "2: has the instruction of "),
        ("alpaca_eval", [alpaca_question(1), alpaca_question(2, dataset=None)], "2: has no column 'dataset', but "),
        ("alpaca_eval", [alpaca_question(1, input="more")], "1: has column 'input'"),
        ("alpaca_eval", [alpaca_question(1, instruction=" ")], "1: column 'instruction' is empty"),
        ("mt_bench", [mt_question(1), arena_question(2)], "2: has no column 'question_id'"),
        ("mt_bench", [mt_question(1, turns=["x"])], "1: column 'turns' must be a list of 2 texts, found a list of 1"),
        ("mt_bench", [mt_question(1, turns="xy")], "1: column 'turns' must be a list of 2 texts, found"),
        ("mt_bench", [mt_question(1, turns=["x", 3])], "1: column 'turns[1]' must be a string, found int 3"),
        ("mt_bench", [mt_question(1), mt_question(1)], "2: has the id 1 of "),
        ("mt_bench", [mt_question(1, question_id="81")], "1: column 'question_id' must be a whole number"),
        ("mt_bench", [mt_question(1, category=None)], "1: has no column 'category'"),
        ("mt_bench", [mt_question(1, reference=["x"])], "1: column 'reference' must be a list of 2 texts"),
        ("arena_hard", [mt_question(1)], "1: has no column 'uid'"),
        ("arena_hard", [arena_question(1), arena_question(1)], "2: has the id "),
        (
            "arena_hard",
            [arena_question(1), arena_question(2, cluster=None, subcategory="math")],
            "2: has no column 'cluster', but ",
        ),
        ("arena_hard", [arena_question(1), 5], "2: a row must be an object"),
        ("arena_hard", [], "q.jsonl: is empty; at least one question is needed"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path, tool, rows, message):
    path = write_questions(tmp_path / "q.jsonl", rows)
    with pytest.raises(DataError) as error:
        read(tool, path)
    assert str(error.value).startswith(str(path)) and message in str(error.value)


@pytest.mark.skipif(REAL is None, reason="JANUS_REAL_DATA names no directory of real rows")
def test_real_questions_of_mt_bench():
    questions = read("mt_bench", Path(REAL or "", "mt_bench.jsonl"))
    assert len(questions) == 80 and len({question.category for question in questions}) == 8
    assert sum(question.reference is not None for question in questions) == 39


@pytest.mark.skipif("JANUS_REAL_EVALUATION" not in os.environ, reason="JANUS_REAL_EVALUATION names no directory")
def test_real_questions_of_arena_hard_and_other_sets():
    directory = Path(os.environ["JANUS_REAL_EVALUATION"])
    assert read("arena_hard", directory / "arena_hard_v01_part.jsonl")[0].category == "arena-hard-v0.1"
    with pytest.raises(DataError, match=r"koala_part.jsonl:1: has no column 'instruction'"):
        read("alpaca_eval", directory / "koala_part.jsonl")
