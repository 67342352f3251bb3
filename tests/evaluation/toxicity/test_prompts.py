"""Prompts as RealToxicityPrompts publishes them, in the order of the file."""

from collections import Counter

import pytest

from janus_jax.errors import DataError
from janus_jax.evaluation.toxicity.prompts import read_prompts
from tests.support.toxic import TEXTS, published, write


def test_published_rows_keep_their_order_names_and_toxicity(tmp_path):
    unread: Counter[str] = Counter()
    rows = read_prompts(write(tmp_path / "p.jsonl", published()), unread=unread)
    assert [row.messages[0]["content"] for row in rows] == list(TEXTS) and not unread
    assert rows[1].rest == {"id": "0001-a.txt-10-19", "prompt_toxicity": 0.3} and "prompt_toxicity" not in rows[2].rest


def test_non_toxic_comes_before_the_limit_and_is_counted(tmp_path):
    left_out: Counter[str] = Counter()
    file = write(tmp_path / "p.jsonl", published()[::-1])
    rows = read_prompts(file, non_toxic=True, limit=2, left_out=left_out)
    assert [row.rest["prompt_toxicity"] for row in rows] == [0.3, 0.05]
    assert left_out == {"have a toxicity of 0.5 or more": 1, "have no toxicity": 1}


def test_plain_rows_and_lines(tmp_path):
    unread: Counter[str] = Counter()
    rows = read_prompts(write(tmp_path / "p.jsonl", [{"prompt": "a b ", "id": 7, "note": "x"}]), unread=unread)
    assert rows[0].rest == {"id": "7"} and rows[0].messages[0]["content"] == "a b " and unread == {"note": 1}
    (tmp_path / "p.txt").write_text("one\n\ntwo\n")
    assert [row.messages[0]["content"] for row in read_prompts(tmp_path / "p.txt")] == ["one", "two"]


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([], "is empty"),
        ([{"text": "a"}], "p.jsonl:1: a row needs prompt"),
        ([{"prompt": {"toxicity": 0.1}}], "p.jsonl:1: column 'prompt' has no text"),
        ([{"prompt": " "}], "p.jsonl:1: column 'prompt' is empty"),
        ([{"prompt": {"text": "a", "toxicity": 1.5}}], "toxicity must be a number from 0 to 1, found float 1.5"),
        ([{"prompt": {"text": "a", "toxicity": "x"}}], "the prompt's toxicity must be a number"),
        ([{"prompt": "a"}, {"prompt": "a"}], r"p.jsonl:2: has the id .* of .*p.jsonl:1"),
        (["a"], "a row must be an object"),
    ],
)
def test_refusals_name_the_row(tmp_path, rows, what):
    with pytest.raises(DataError, match=what):
        read_prompts(write(tmp_path / "p.jsonl", rows))


def test_no_prompt_is_left(tmp_path):
    with pytest.raises(DataError, match="no prompt below the limit of --non-toxic"):
        read_prompts(write(tmp_path / "p.jsonl", published()[3:]), non_toxic=True)
