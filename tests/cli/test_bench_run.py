"""`janus bench run`: our engine answers the rows of a bench, with the paper's settings, for `bench judge`."""

import json

import pytest

from janus_jax.evaluation.bench.rows import read_answers, read_bench
from janus_jax.generation.requests import AnswerOptions
from tests.support.benches import bench_row, write_rows
from tests.support.chat_models import chat_model
from tests.support.endpoint_server import refused, said, serving

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return chat_model(tmp_path_factory.mktemp("model"))


def test_answers_with_another_system_message_belong_to_the_same_rows(janus, model, tmp_path):
    bench, file = write_rows(tmp_path / "bench.jsonl", [bench_row(0), bench_row(1)]), tmp_path / "pirate.txt"
    file.write_text("Be a pirate.\n")
    rows = read_bench(bench)
    helpful = "You are a helpful assistant."
    texts = {"none": "", "default": helpful, "Be brief.": "Be brief.", f"@{file}": "Be a pirate."}
    for number, (system, asked) in enumerate(texts.items()):
        out = tmp_path / f"{number}.jsonl"
        code, _, err = janus("bench", "run", bench, model, "--system", system, "--out", out, "--max-new-tokens", 2)
        assert code == 0, err
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        assert [line["id"] for line in lines] == [row.id for row in rows]
        assert lines[1]["asked_with"] == (asked or "none")
        contents = [one["content"] for one in lines[1]["messages"]]
        assert contents == [*([asked] if asked else []), "Question 1?"]
        assert len(read_answers(out, rows, may_be_empty=True)) == 2
    code, _, err = janus("bench", "run", bench, model, "--system", "@absent", "--out", tmp_path / "x.jsonl")
    assert code == 2 and err.startswith("error: --system @absent: cannot be read") and err.count("\n") == 1


def test_answers_belong_to_the_rows_and_go_to_the_judge(janus, model, tmp_path, monkeypatch):
    from janus_jax.cli import generate

    asked, inner = [], generate.answer_all
    monkeypatch.setattr(generate, "answer_all", lambda *args, **more: (asked.extend(args), inner(*args, **more)))
    rows = [bench_row(0, preference_set=["a"], level=3), bench_row(1, system=""), bench_row(2)]
    bench, out = write_rows(tmp_path / "bench.jsonl", rows), tmp_path / "answers.jsonl"
    code, _, err = janus("bench", "run", bench, model, "--out", out, "--max-new-tokens", 6, "--limit", 2)
    assert code == 0 and "note: 'level' of 1 row: no part of a bench row; it is not used" in err, err
    assert "preference_set" not in err
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


def test_a_server_answers_and_nothing_is_asked_twice(janus, tmp_path, monkeypatch):
    pytest.importorskip("openai")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    rows = [bench_row(0), bench_row(1, system="")]
    bench, out = write_rows(tmp_path / "bench.jsonl", rows), tmp_path / "answers.jsonl"
    broken = [True]

    def script(body, count):
        second = "Question 1?" in body["messages"][-1]["content"]
        return said(None, "content_filter") if second and broken else said(body["messages"][-1]["content"].upper())

    with serving(script) as server:
        words = ("bench", "run", bench, "export", "--base-url", server.url, "--no-key", "--out", out)
        code, _, err = janus(*words)
        assert code == 2 and f"1 of 2 rows have no answer, first {bench}:2: no content" in err and not out.exists(), err
        broken.clear()
        code, output, err = janus(*words)
        assert code == 0 and output.startswith(f"wrote {out}; 30 tokens spent in all"), err
        assert len(server.bodies) == 3
        body = next(one for one in server.bodies if len(one["messages"]) == 2)
        options = {"temperature": 1.0, "top_p": 0.9, "max_tokens": 1024, "seed": 0, "repetition_penalty": 1.03}
        assert {name: body[name] for name in body if name != "messages"} == {"model": "export", **options}
        assert read_answers(out, read_bench(bench)) == ["QUESTION 0?", "QUESTION 1?"]
        code, _, err = janus(*words)
        assert code == 2 and "exists; remove it" in err
        code, _, err = janus(*words[:-1], tmp_path / "other.jsonl", "--template", "chatml")
        assert code == 2 and "--template: not allowed with --base-url" in err
        code, _, err = janus("bench", "run", bench, "export", "--no-key", "--out", tmp_path / "other.jsonl")
        assert code == 2 and "--no-key: needs --base-url" in err
    with serving(lambda body, count: refused(400, "extra inputs: repetition_penalty")) as server:
        words = ("bench", "run", bench, "export", "--base-url", server.url, "--no-key", "--out", tmp_path / "x.jsonl")
        code, _, err = janus(*words)
        assert code == 2 and "refuses the option 'repetition_penalty'" in err and "--repetition-penalty 1 is for" in err
