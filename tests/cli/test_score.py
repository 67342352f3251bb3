"""`janus score`: rewards and log-probs of transformers, gone on with after a kill, refusals in one line."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers

from tests.support import torch_models
from tests.support.text_models import language_model, reward_model

pytestmark = pytest.mark.usefixtures("one_device")

ROWS = [
    {"id": "a", "prompt": "Why?", "system": "be brief", "responses": ["So.", "the quick brown fox", "naïve 世界"]},
    {"messages": [{"role": "user", "content": "naïve 世界"}], "answers": [{"text": "fox", "finish_reason": "stop"}]},
    {"prompt": "Why?", "chosen": "the fox", "rejected": "So.", "main_source": "x"},
    {"prompt": "Why?", "answers": [{"text": "the fox", "finish_reason": "length"}] * 2},
    {"prompt": "Why?", "output": "the fox"},
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {"reward": reward_model(root / "reward"), "lm": language_model(root / "lm")}


@pytest.fixture
def score(janus, models, tmp_path):
    """Runs the command on rows; (code, stderr, path of the output)."""

    def run(model, *options, rows=ROWS, out=tmp_path / "out.jsonl"):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        code, _, err = janus("score", models.get(model, model), "--responses", file, "--out", out, *options)
        return code, err, out

    return run


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def texts(server, row):
    """Ids of conversations with one answer each, and of the prompt."""
    messages = row.get("messages") or [{"role": "user", "content": row["prompt"]}]
    if "system" in row:
        messages = [{"role": "system", "content": row["system"]}, *messages]
    answers = row.get("responses") or [one["text"] for one in row.get("answers", [])]
    answers = answers or [row[name] for name in ("chosen", "rejected", "output") if name in row]
    prompt = server.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    for answer in answers:
        whole = [*messages, {"role": "assistant", "content": answer}]
        yield prompt, server.apply_chat_template(whole, return_dict=False)[len(prompt) :]


def test_rewards_are_those_of_transformers(score, models, tmp_path, monkeypatch):
    from janus_jax.generation import journal, scores

    code, err, out = score("reward")
    assert code == 0, err
    assert "'reward' holds rewards of a reward model" in err and "5 of 5 rows" in err
    lines, model = lines_of(out), transformers.AutoModelForSequenceClassification.from_pretrained(models["reward"])
    server = transformers.AutoTokenizer.from_pretrained(models["reward"])
    expected = []
    for row in ROWS:
        with torch.no_grad():
            expected.append([float(model(torch.tensor([p + r])).logits) for p, r in texts(server, row)])
    output = [
        lines[0]["reward"],
        [one["reward"] for one in lines[1]["answers"]],
        [lines[2]["reward"]["chosen"], lines[2]["reward"]["rejected"]],
        [one["reward"] for one in lines[3]["answers"]],
        [lines[4]["reward"]],
    ]
    for ours, theirs in zip(output, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert (lines[0]["id"], lines[2]["main_source"], lines[3]["answers"][0]["finish_reason"]) == ("a", "x", "length")
    assert all(row.keys() <= line.keys() for row, line in zip(ROWS, lines, strict=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "rows.jsonl"]

    # As a kill leaves it: two rows are scored, the third line is cut.
    monkeypatch.setattr(scores, "_TOKENS_AT_ONCE", 1)
    calls = []
    with monkeypatch.context() as patched:
        patched.setattr(journal.Journal, "finish", lambda one: calls.append(one.path.read_bytes()))
        out.unlink()
        assert score("reward")[0] == 0
    whole = calls[0].splitlines(keepends=True)
    out.with_name("out.jsonl.part").write_bytes(b"".join(whole[:3]) + whole[3][:9])
    assert "holds scores of other rows" in score("reward", "--key", "other")[1]
    code, err, _ = score("reward")
    assert code == 0 and "2 of 5 rows are scored" in err and "3 of 3 rows" in err
    assert [line.keys() for line in lines_of(out)] == [line.keys() for line in lines]
    assert lines_of(out)[4]["reward"] == pytest.approx(lines[4]["reward"], abs=1e-5)


def test_log_probs_are_those_of_transformers(score, models):
    code, err, out = score("lm", "--key", "lp")
    assert code == 0 and "'lp' holds log-probs under a language model" in err, err
    lines, server = lines_of(out), transformers.AutoTokenizer.from_pretrained(models["lm"])
    model = transformers.AutoModelForCausalLM.from_pretrained(models["lm"])
    output = [*lines[0]["lp"], *(one["lp"] for one in lines[1]["answers"])]
    expected = [pair for row in ROWS[:2] for pair in texts(server, row)]
    output, expected = [*output, lines[3]["answers"][0]["lp"], lines[4]["lp"]], [*expected, *[None] * 2]
    ((prompt, whole),) = texts(server, ROWS[4])
    expected[-2:] = [(prompt, whole[:-1]), (prompt, whole)]  # the first was cut before its end
    for ours, (prompt, rest) in zip(output, expected, strict=True):
        logps, greedy = torch_models.log_probs(model, prompt, rest)
        assert ours["sum"] == pytest.approx(logps.sum(), abs=1e-3)
        assert ours["mean"] == pytest.approx(logps.mean(), abs=1e-4)
        assert (ours["tokens"], ours["is_greedy"]) == (len(rest), greedy)


LONG = {"prompt": "Why?", "responses": ["So.", "why " * 400]}


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([ROWS[0], {"prompt": "Why?", "response": ""}], (), "rows.jsonl:2: column 'response' is empty"),
        ([LONG], (), "rows.jsonl:1: response 2 with its prompt: has "),
        ([{"prompt": "why " * 400, "response": "So."}], (), "rows.jsonl:1: the response with its prompt: has "),
        ([], (), "rows.jsonl: is empty"),
        (ROWS, ("--template", "mistral-inst"), "reads texts in template chatml, not in mistral-inst"),
        (ROWS, ("--template", "alpaca"), "'alpaca'"),
        (ROWS, ("--step", 3), "step=3"),
        (ROWS, ("--key", " "), "--key"),
        (ROWS, ("--key", "id"), "rows.jsonl:1: has 'id' already"),
        (ROWS, ("--out", "none/x.jsonl"), "none is not a directory"),
    ],
)
def test_bad_input_is_named(score, tmp_path, rows, options, message):
    code, err, _ = score("reward", *options, rows=rows)
    assert (code, err.count("\n")) == (2, 1) and message in err, err
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_bad_models_and_files_are_named(score, models, tmp_path, janus):
    other, bare = reward_model(tmp_path / "other", ids=300), tmp_path / "bare"
    shutil.copytree(models["reward"], bare)
    (bare / "tokenizer.json").unlink()
    for model, message in ((tmp_path / "none", "no such directory"), (bare, "has no tokenizer"), (other, "300 embed")):
        code, err, out = score(model)
        assert (code, err.count("\n")) == (2, 1) and message in err, err
    (tmp_path / "b.jsonl").write_bytes(b"\0\xff\x93")
    for name, message in (("b.jsonl", "b.jsonl:1: "), ("none.jsonl", "none.jsonl"), ("a.bin", "unknown file type")):
        code, _, err = janus("score", models["reward"], "--responses", tmp_path / name, "--out", out)
        assert (code, err.count("\n")) == (2, 1) and message in err, err
    assert not out.exists()
