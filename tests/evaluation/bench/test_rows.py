"""Rows of a bench and the answers to them: every published form, and refusals that name file and row."""

import hashlib
import json
import os
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from janus_jax.errors import DataError
from janus_jax.evaluation.bench.rows import read_answers, read_bench
from tests.support.benches import answers_to, bench_row, write_rows

ROWS = [bench_row(number) for number in range(3)]
REAL = os.environ.get("JANUS_REAL_DATA")


@pytest.fixture
def bench(tmp_path):
    return write_rows(tmp_path / "bench.jsonl", ROWS)


def refused(path, rows):
    with pytest.raises(DataError) as error:
        read_bench(write_rows(path / "bench.jsonl", rows))
    return str(error.value).replace(f"{path}/", "")


def test_the_published_schema_gets_ids(bench):
    rows = read_bench(bench)
    wanted = hashlib.sha256(b"You are helper 1.Question 1?").hexdigest()[:16]
    assert (rows[1].id, rows[1].prompt, rows[1].source) == (wanted, "Question 1?", "alpaca")
    assert [len(row.rubrics) for row in rows] == [2, 2, 2]
    assert rows[0].rubrics[1].scores[4] == "kind 1 at 5"


def test_every_form_of_a_release_is_the_same_bench(tmp_path, bench):
    plain = read_bench(bench)
    flat = [
        {
            "system_prompt": row["system"],
            "input": row["prompt"],
            "reference_answer": row["reference_answer"],
            "score_rubric": [
                {"criteria": one["criteria"]}
                | {f"score{score}_description": text for score, text in one["score_descriptions"].items()}
                for one in row["rubrics"]
            ],
            "capability": row["source"],
        }
        for row in ROWS
    ]
    as_text = [{**row, "rubric": json.dumps(row["rubrics"]), "rubrics": None} for row in ROWS]
    of_texts = [{**row, "rubrics": [json.dumps(one) for one in row["rubrics"]]} for row in ROWS]
    for rows in (flat, as_text, of_texts):
        assert read_bench(write_rows(tmp_path / "other.jsonl", rows)) == plain
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "bench.parquet")
    assert read_bench(tmp_path / "bench.parquet") == plain
    keyed = tmp_path / "keyed.json"
    keyed.write_text(json.dumps({str(number): {"id": number, **row} for number, row in enumerate(ROWS)}))
    assert [row.id for row in read_bench(keyed)] == ["0", "1", "2"]


def test_one_rubric_may_stand_alone_and_other_columns_are_counted(tmp_path):
    unread = Counter()
    rows = [bench_row(0, rubrics=ROWS[0]["rubrics"][0], preference_set=[{"a": 1}], level=3, input="and more")]
    (row,) = read_bench(write_rows(tmp_path / "b.jsonl", rows), unread=unread)
    assert len(row.rubrics) == 1 and row.prompt == "Question 0?\nand more"
    assert unread == {"level": 1}


RUBRIC = ROWS[0]["rubrics"][0]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rubrics": None}, "has no rubrics: 'rubrics' or 'rubric'"),
        ({"rubrics": []}, "column 'rubrics' must be a rubric or a list of them"),
        ({"rubrics": "not json"}, "column 'rubrics' is a text, but not valid JSON"),
        ({"rubrics": [RUBRIC, {"criteria": "x"}]}, "column 'rubrics', rubric 2 has no text for 'score1_description'"),
        ({"rubrics": [{**RUBRIC, "criteria": ""}]}, "rubric 1 has no criteria"),
        ({"rubrics": [{"criteria": "x", "score_descriptions": {"1": "a", "2": "b"}}]}, "no text for '3'"),
        (
            {"rubrics": [{"criteria": "x", "score_descriptions": dict.fromkeys("0123456", "a")}]},
            "has '0'; allowed: criteria and score_descriptions, for scores 1 to 5",
        ),
        ({"rubrics": [RUBRIC, RUBRIC]}, "has the same rubric twice"),
        ({"rubric": [RUBRIC]}, "has both 'rubrics' and 'rubric'; keep one"),
        ({"prompt": ""}, "column 'prompt' is empty"),
        ({"prompt": None}, "has no prompt"),
        ({"reference_answer": None}, "has no reference_answer"),
        ({"id": [1]}, "column 'id' must be a string or a whole number"),
        ({"rubrics": None, "rubric": ROWS[0]["rubrics"]}, "has the column 'rubric' with score_descriptions, but bench"),
        ({"id": 7}, "has the column 'id', but bench.jsonl:1 has no id"),
        ({"system": ROWS[0]["system"], "prompt": ROWS[0]["prompt"]}, "has the system message and the prompt of bench"),
    ],
)
def test_a_bad_row_is_named(tmp_path, changes, says):
    error = refused(tmp_path, [ROWS[0], bench_row(1, **changes)])
    assert error.startswith("bench.jsonl:2: ") and says in error


def test_files_that_hold_no_bench(tmp_path):
    assert refused(tmp_path, []) == "bench.jsonl: is empty; at least one row is needed"
    with pytest.raises(DataError, match="unknown file type"):
        read_bench(tmp_path / "b.csv")
    assert "has the id of bench.jsonl:1" in refused(tmp_path, [bench_row(0, id="a"), bench_row(1, id="a")])


def test_answers_are_found_by_id_or_by_messages(tmp_path, bench):
    rows, unread = read_bench(bench), Counter()
    own = [f"Answer {number}." for number in range(3)]
    generated = answers_to(ROWS)
    generated[0]["answers"].append({"text": "another"})
    file = write_rows(tmp_path / "a.jsonl", generated[::-1])
    assert read_answers(file, rows, unread=unread) == own
    assert unread == {"answers after the first one": 1}
    flat = [{"system": row.system, "prompt": row.prompt, "output": own[n]} for n, row in enumerate(rows)]
    assert read_answers(write_rows(file, flat[::-1]), rows) == own
    named = [{"id": row.id, "response": text} for row, text in zip(rows, own, strict=True)]
    assert read_answers(write_rows(file, named), rows) == own
    assert read_answers(file, rows, limit=2, unread=unread) == own[:2]
    assert unread["answers to rows after the limit"] == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"response": ""}, "a.jsonl:2: column 'response' is empty ('')"),
        ({"response": None}, "a.jsonl:2: column 'response' must be a string"),
        ({"id": "zz"}, "a.jsonl:2: has the id str 'zz', which no row of the bench has"),
        ({"id": 0}, "a.jsonl:2: answers the row '0', as "),
        ({"messages": [{"role": "user", "content": "other"}]}, "a.jsonl:2: has the id of "),
        ({"output": "x"}, "a.jsonl:2: has both 'response' and 'output'"),
        (None, "a.jsonl: 1 of 2 rows have no answer, first '1' ("),
    ],
)
def test_answers_that_do_not_fit_are_named(tmp_path, change, says):
    rows = read_bench(write_rows(tmp_path / "b.jsonl", [bench_row(number, id=number) for number in range(2)]))
    answers = [{"id": number, "response": "fine"} for number in range(2)]
    answers = answers[:1] if change is None else [answers[0], {**answers[1], **change}]
    with pytest.raises(DataError) as error:
        read_answers(write_rows(tmp_path / "a.jsonl", answers), rows)
    assert says in str(error.value)
    if change == {"response": ""}:
        assert read_answers(tmp_path / "a.jsonl", rows, may_be_empty=True) == ["fine", ""]


@pytest.mark.skipif(REAL is None, reason="JANUS_REAL_DATA names no directory of real rows")
def test_published_rows_are_read(tmp_path):
    assert REAL is not None
    rows = read_bench(Path(REAL) / "biggen_bench_part.jsonl")
    assert len(rows) == 380 and rows[0].source == "planning" and all(len(row.rubrics) == 1 for row in rows)
    blocks = json.loads((Path(REAL) / "multifaceted_rows.json").read_text())
    first = blocks["5529fba:README.md#3"]
    (tmp_path / "first.json").write_text(json.dumps(first))
    (row,) = read_bench(tmp_path / "first.json")
    assert (row.id, row.source, len(row.rubrics)) == ("468", "alpaca", 4)
    (row,) = read_bench(write_rows(tmp_path / "b.jsonl", [blocks["HEAD:README.md#0"]]))
    assert row.source == "Alpha-nlg (art)" and len(row.id) == 16 and len(row.rubrics) == 4
