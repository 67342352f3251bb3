"""`janus bench run`: our engine answers the rows of a bench, with the paper's settings, for `bench judge`."""

import json

import pytest

from janus_jax.evaluation.bench.rows import read_answers, read_bench
from janus_jax.generation.requests import AnswerOptions
from tests.support.benches import bench_row, write_rows
from tests.support.chat_models import chat_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return chat_model(tmp_path_factory.mktemp("model"))


def test_answers_with_another_system_message_belong_to_the_same_rows(janus, model, tmp_path):
    bench = write_rows(tmp_path / "bench.jsonl", [bench_row(0), bench_row(1)])
    rows, said = read_bench(bench), {}
    for system in ("", "default", "Be brief."):
        out = tmp_path / f"{len(said)}.jsonl"
        code, _, err = janus("bench", "run", bench, model, "--system", system, "--out", out, "--max-new-tokens", 2)
        assert code == 0, err
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        assert [line["id"] for line in lines] == [row.id for row in rows] and lines[1]["asked_with"] == (
            system or "none"
        )
        said[system] = [one["content"] for one in lines[1]["messages"]]
        assert len(read_answers(out, rows, may_be_empty=True)) == 2
    helpful = ["You are a helpful assistant.", "Question 1?"]
    assert said == {"": ["Question 1?"], "default": helpful, "Be brief.": ["Be brief.", "Question 1?"]}


def test_answers_belong_to_the_rows_and_go_to_the_judge(janus, model, tmp_path, monkeypatch):
    from janus_jax.cli import generate

    asked, inner = [], generate.answer_all
    monkeypatch.setattr(generate, "answer_all", lambda *args, **more: (asked.extend(args), inner(*args, **more)))
    rows = [bench_row(0, preference_set=["a"]), bench_row(1, system=""), bench_row(2)]
    bench, out = write_rows(tmp_path / "bench.jsonl", rows), tmp_path / "answers.jsonl"
    code, _, err = janus("bench", "run", bench, model, "--out", out, "--max-new-tokens", 6, "--limit", 2)
    assert code == 0 and "note: 'preference_set' of 1 row: no part of a bench row; it is not used" in err, err
    read = read_bench(bench)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["id"] for line in lines] == [row.id for row in read[:2]]
    assert [one["role"] for one in lines[0]["messages"]] == ["system", "user"]
    assert [one["role"] for one in lines[1]["messages"]] == ["user"]
    texts = read_answers(out, read, may_be_empty=True, limit=2)
    assert texts == [line["answers"][0]["text"] for line in lines]
    sampling = next(one.sampling for one in asked if isinstance(one, AnswerOptions))
    assert (sampling.temperature, sampling.top_p, sampling.repetition_penalty) == (1.0, 0.9, 1.03)
    bad = write_rows(tmp_path / "bad.jsonl", [{"prompt": "x"}])
    code, _, err = janus("bench", "run", bad, model, "--out", tmp_path / "new.jsonl")
    assert code == 2 and err.startswith(f"error: {bad}:1: has no reference_answer") and err.count("\n") == 1
