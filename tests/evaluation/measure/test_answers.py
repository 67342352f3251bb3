"""Rows with answers in every form that we or others write, and refusals that name file and row."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from janus_jax.errors import ConfigError, DataError
from janus_jax.evaluation.bench.rows import row_id
from janus_jax.evaluation.measure.answers import Answer, named_files, read_answer_rows
from janus_jax.evaluation.measure.diversity import diversity
from tests.support.answers import answer_row
from tests.support.benches import bench_row, write_rows

REAL = os.environ.get("JANUS_REAL_DATA")


def read(path, *rows, **options):
    return read_answer_rows(write_rows(path / "a.jsonl", list(rows)), **options)


def refused(path, *rows, **options):
    with pytest.raises(DataError) as error:
        read(path, *rows, **options)
    return str(error.value).replace(f"{path}/", "")


def test_the_same_answer_in_every_form_is_the_same_row(tmp_path):
    asked = {"system": "Be brief.", "prompt": "Why?"}
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "So."},
    ]
    rows = read(
        tmp_path,
        {"messages": talk[:2], "answers": [{"text": "So."}]},
        {**asked, "response": "So."},
        {"system_prompt": "Be brief.", "user_prompt": "Why?", "output": "So."},
        {"system_message": "Be brief.", "instruction": "Why?", "responses": ["So."]},
        {"system": "Be brief.", "input": "Why?", "reference_answer": "So."},
        {**asked, "chosen": "So.", "rejected": "No."},
        {**asked, "chosen": talk, "rejected": talk},
        {"messages": talk},
    )
    assert len(rows) == 8 and set(rows) == {rows[0]}
    assert (rows[0].system, rows[0].prompt, rows[0].answers) == ("Be brief.", "Why?", (Answer("So."),))


def test_what_stands_beside_an_answer_is_kept_or_counted(tmp_path):
    unread: Counter[str] = Counter()
    cut, two, bench = read(
        tmp_path,
        answer_row(["", "b"], id=7, finish="length", mood="x"),
        answer_row("a", reference_answer="Ref.", lot="q"),
        bench_row(1),
        unread=unread,
        key=None,
    )
    assert (cut.id, [one.is_cut for one in cut.answers], cut.answers[0].is_empty) == ("7", [True, True], True)
    assert (two.id, two.is_named) == (row_id("", "Why?"), False)
    assert (two.reference, two.answers[0].is_cut) == ("Ref.", False)
    assert (bench.answers[0].text, bench.answers[0].is_cut, bench.reference) == ("Reference 1.", None, None)
    assert unread == {"mood": 1, "lot": 1}
    assert read(tmp_path, {**answer_row("a"), "lot": 3}, key="lot")[0].key == "3"
    assert read(tmp_path, {"prompt": "p", "chosen": "a", "rejected": "b"}, column="rejected")[0].answers[0].text == "b"


@pytest.mark.skipif(not REAL, reason="JANUS_REAL_DATA names no folder of real rows")
def test_rows_of_the_release_are_read(tmp_path):
    blocks = list(json.loads(Path(str(REAL), "multifaceted_rows.json").read_text(encoding="utf-8")).values())
    rows = [row for block in blocks for row in ([block] if "system" in block else block.values())]
    unread: Counter[str] = Counter()
    made = read(tmp_path, *rows, unread=unread)
    assert [one.column for one in made] == ["reference_answer", "output", "reference_answer", "reference_answer"]
    assert all(one.system and len(one.answers[0].text) > 200 for one in made) and not unread
    with pytest.raises(ConfigError, match="no instruction has two rows with different system messages"):
        diversity(made)  # two of the four are one row in two releases


def test_a_limit_that_was_met_is_read_beside_a_text_too(tmp_path):
    rows = read(tmp_path, {"prompt": "p", "response": "a", "finish_reason": "length"}, {"prompt": "p", "response": "a"})
    assert [one.answers[0].is_cut for one in rows] == [True, None]


def test_bad_rows_are_named(tmp_path):
    good = answer_row("a")
    assert refused(tmp_path, good, {"prompt": "p"}) == (
        "a.jsonl:2: has no answers: answers, responses, response, output is needed; found: prompt"
    )
    assert refused(tmp_path, {"response": "a"}).startswith("a.jsonl:1: a row needs prompt")
    assert refused(tmp_path, {**good, "response": "b"}).startswith("a.jsonl:1: has both 'answers' and 'response'; say")
    assert refused(tmp_path, good, key="lot") == "a.jsonl:1: has no 'lot'; found: messages, prompt_tokens, answers"
    assert "'lot' must be a string or a whole number" in refused(tmp_path, {**good, "lot": [1]}, key="lot")
    assert refused(tmp_path, good, column="x").startswith("a.jsonl:1: has no 'x'; found: messages")
    assert "item 2 must be a string, found int 3" in refused(tmp_path, {"prompt": "p", "answers": ["a", 3]})
    assert "found an empty list" in refused(tmp_path, {"prompt": "p", "answers": []})
    assert "must be a string, found null" in refused(tmp_path, {"prompt": "p", "answers": [{"score": 1}]})
    assert refused(tmp_path) == "a.jsonl: is empty; at least one row is needed"
    (tmp_path / "b.jsonl").write_text("[1]\n")
    with pytest.raises(DataError, match=r"b.jsonl:1: a row must be an object, found list"):
        read_answer_rows(tmp_path / "b.jsonl")


def test_files_with_names():
    assert named_files(["x=a.jsonl", "b.jsonl", "x=c", "runs/k=3/a.jsonl"]) == {
        "x": ["a.jsonl", "c"],
        "b.jsonl": ["b.jsonl"],
        "runs/k=3/a.jsonl": ["runs/k=3/a.jsonl"],
    }
    for wrong in ("=a", "x="):
        with pytest.raises(ConfigError, match="allowed: FILE or NAME=FILE"):
            named_files([wrong])
    with pytest.raises(ConfigError, match="the file is named twice"):
        named_files(["x=a", "y=a"])
