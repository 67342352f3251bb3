"""`janus measure toxicity`: continuations, scores, perplexities and the table, each gone on with after a kill."""

import csv
import json
import math

import numpy as np
import pytest
import torch
import transformers

from tests.support.endpoint_server import Answer, serving
from tests.support.text_models import language_model
from tests.support.toxic import TEXTS, continued, lines, published, write


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return language_model(tmp_path_factory.mktemp("model") / "lm")


@pytest.fixture
def measure(janus):
    def run(*arguments):
        return janus("measure", "toxicity", *arguments)

    return run


@pytest.fixture
def generate(measure, model, tmp_path):
    """Continues published prompts; (code, stderr, path)."""

    def run(*options, name="g.jsonl", model=model, rows=None):
        prompts = write(tmp_path / "prompts.jsonl", published() if rows is None else rows)
        out = tmp_path / name
        code, _, err = measure("run", model, "--prompts", prompts, "--out", out, "--rows", 8, *options)
        return code, err, out

    return run


SHORT = ("--n", 3, "--max-new-tokens", 6)


def test_the_protocol_is_the_default_and_the_text_goes_on_as_it_is(generate, model):
    code, err, out = generate("--limit", 1)
    assert code == 0, err
    (row,) = lines(out)
    assert len(row["answers"]) == 25 and max(one["tokens"] for one in row["answers"]) == 20
    assert row["prompt"] == TEXTS[0] and row["id"] == "0001-a.txt-0-9" and row["prompt_toxicity"] == 0.05
    made = row["generation"]
    assert (made["temperature"], made["top_p"], made["top_k"], made["chat"]) == (1.0, 0.9, 0, False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    bare = tokenizer(TEXTS[0], add_special_tokens=False).input_ids
    assert row["prompt_tokens"] == 1 + len(bare)  # BOS, and no template


def test_greedy_text_is_what_transformers_continues(generate, model):
    code, err, out = generate("--n", 1, "--max-new-tokens", 5, "--temperature", 0)
    assert code == 0, err
    server = transformers.AutoModelForCausalLM.from_pretrained(model).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    for row in lines(out):
        ids = [tokenizer.bos_token_id, *tokenizer(row["prompt"], add_special_tokens=False).input_ids]
        made = server.generate(torch.tensor([ids]), max_new_tokens=5, do_sample=False)[0, len(ids) :]
        assert row["answers"][0]["text"] == tokenizer.decode(made, skip_special_tokens=True)


def test_chat_puts_prompts_into_messages(generate):
    code, err, out = generate(*SHORT, "--chat", "--system", "Be kind.", "--non-toxic")
    assert code == 0, err
    assert "left out by --non-toxic: they have no toxicity" in err
    rows = lines(out)
    assert [row["messages"] for row in rows] == [
        [{"role": "system", "content": "Be kind."}, {"role": "user", "content": text}] for text in TEXTS[:2]
    ]
    assert all("prompt" not in row and row["generation"]["system"] == "Be kind." for row in rows)


def test_a_model_without_template_goes_on_with_texts(generate, model, tmp_path):
    import shutil

    bare = tmp_path / "bare"
    shutil.copytree(model, bare)
    (bare / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((bare / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (bare / "tokenizer_config.json").write_text(json.dumps(config))
    code, err, out = generate(*SHORT, "--limit", 1, model=bare)
    assert code == 0, err
    _, _, same = generate(*SHORT, "--limit", 1, name="same.jsonl")
    assert [row["answers"] for row in lines(out)] == [row["answers"] for row in lines(same)]
    code, err, _ = generate(*SHORT, "--chat", name="chat.jsonl", model=bare)
    assert code == 2 and "no chat template" in err


def test_a_killed_command_goes_on(generate, tmp_path):
    code, err, out = generate(*SHORT)
    assert code == 0, err
    whole = out.read_text()
    from janus_jax.generation import journal

    class Killed(Exception):
        pass

    def add(self, number, record, add=journal.Journal.add):
        if len(self.done) == 2:
            raise Killed
        add(self, number, record)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(journal.Journal, "add", add)
        generate(*SHORT, name="again.jsonl")
    assert len((tmp_path / "again.jsonl.part").read_text().splitlines()) == 3
    code, err, out = generate(*SHORT, name="again.jsonl")
    assert code == 0 and "2 of 4 prompts are answered" in err
    assert out.read_text() == whole


ROWS = [
    {"id": "a", "prompt": "the quick br", "answers": [{"text": "own fox"}, {"text": ""}, {"text": " naïve"}]},
    {"id": "b", "prompt": "Why?", "answers": [{"text": " fox fox"}, {"text": "the"}]},
    {"id": "c", "messages": [{"role": "user", "content": "Why?"}], "answers": ["So.", "\nSo."]},
]


def published_perplexity(server, tokenizer, prompt, whole):
    """By the published script: losses of both texts times their predicted tokens."""

    def loss(text):
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False).input_ids]])
        with torch.no_grad():
            return server(ids, labels=ids).loss.item() * (ids.shape[1] - 1), ids.shape[1]

    (full, long), (before, short) = loss(whole), loss(prompt)
    return math.exp((full - before) / (long - short))


def test_perplexities_are_those_of_the_published_formula_in_torch(measure, model, tmp_path):
    file = write(tmp_path / "g.jsonl", ROWS)
    code, _, err = measure("perplexity", file, "--model", model, "--out", tmp_path / "p.jsonl")
    assert code == 0, err
    rows = lines(tmp_path / "p.jsonl")
    server = transformers.AutoModelForCausalLM.from_pretrained(model).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    both = [tokenizer(text, add_special_tokens=False).input_ids for text in ("the quick br", "the quick brown fox")]
    assert both[1][: len(both[0])] != both[0]  # the tokenizer merges across the border
    got, expected = [], []
    for row in rows:
        prompt = row.get("prompt") or row["messages"][0]["content"]
        assert row["perplexity_model"] == str(model)
        for one in row["answers"]:
            if not one["text"]:
                assert one["perplexity"] is None
                continue
            apart = " " if "messages" in row and not one["text"][0].isspace() else ""
            got.append(one["perplexity"])
            expected.append(published_perplexity(server, tokenizer, prompt, prompt + apart + one["text"]))
    assert len(got) == 6 and len(set(got)) == 6
    np.testing.assert_allclose(got, expected, rtol=2e-4)


def scored(value):
    return Answer({"attributeScores": {"TOXICITY": {"summaryScore": {"value": value}}}})


def test_a_killed_score_asks_for_nothing_twice(measure, tmp_path, monkeypatch):
    monkeypatch.setenv("PERSPECTIVE_API_KEY", "k")
    texts = [[f"text {row} {at}" for at in range(5)] for row in range(4)]
    texts[2][3] = ""
    file = write(tmp_path / "g.jsonl", [continued(str(row), own) for row, own in enumerate(texts)])
    left, answered = [7], []

    def script(body, count):
        left[0] -= 1
        if left[0] < 0:
            return Answer({"error": {"message": "no"}}, 403)
        answered.append(body["comment"]["text"])
        return scored(0.125)

    out = tmp_path / "s.jsonl"
    with serving(script) as server:
        command = ("score", file, "--scorer", "perspective", "--url", server.url, "--out", out, "--concurrent", 1)
        for more in (5, 9, 100):
            code, _, err = measure(*command, "--requests-a-second", 1e5)
            assert "2026" in err
            if code:
                assert code == 2 and "does not accept the key" in err and not out.exists()
            left[0] = more
    assert code == 0, err
    assert "1 continuation without a score: empty" in err
    assert sorted(answered) == sorted(text for own in texts for text in own if text)
    rows = lines(out)
    assert rows[2]["answers"][3] == {"text": "", "toxicity": None, "unscored": "empty"}
    assert rows[0]["answers"][0] == {"text": "text 0 0", "toxicity": 0.125}
    assert rows[0]["scorer"] == {"name": "perspective", "attribute": "TOXICITY", "language": "en", "url": server.url}


def test_scores_and_perplexities_from_elsewhere_and_the_table(measure, tmp_path):
    texts = [[f"a b {at}" for at in range(25)] for _ in range(3)]
    file = write(tmp_path / "g.jsonl", [continued(str(row), own) for row, own in enumerate(texts)])
    numbers = [
        {"id": str(row), "sample": at, "score": 0.6 if (row, at) == (1, 7) else 0.1, "perplexity": 10.0}
        for row in range(3)
        for at in range(25)
    ]
    given = write(tmp_path / "n.jsonl", numbers[::-1])
    code, _, err = measure("score", file, "--scores", given, "--name", "lab", "--out", tmp_path / "s.jsonl")
    assert code == 0 and "'perplexity' of 75 lines is not used" in err
    code, _, err = measure(
        "perplexity",
        tmp_path / "s.jsonl",
        "--perplexities",
        given,
        "--name",
        "gpt2-xl",
        "--out",
        tmp_path / "mine.jsonl",
    )
    assert code == 0, err
    files = {name: tmp_path / f"t.{name}" for name in ("json", "csv", "svg")}
    code, out, err = measure(
        "table", tmp_path / "mine.jsonl", "--json", files["json"], "--csv", files["csv"], "--plot", files["svg"]
    )
    assert code == 0, err
    output = json.loads(files["json"].read_text())
    assert output["kind"] == "toxicity" and output["settings"]["scorer"]["name"] == "lab"
    assert output["rows"][0]["values"][:3] == pytest.approx([(0.1 + 0.6 + 0.1) / 3, 1 / 3, 10.0])
    (row,) = csv.DictReader(files["csv"].open())
    assert row["name"] == "mine" and float(row["output perplexity"]) == 10.0
    assert "scorer: lab" in out and "Janus 7B (not comparable" in out and "<svg" in files["svg"].read_text()


def test_bad_input_is_one_line_with_exit_code_2(measure, generate, model, tmp_path, monkeypatch):
    monkeypatch.delenv("PERSPECTIVE_API_KEY", raising=False)
    file = write(tmp_path / "in.jsonl", [continued("a", ["x"])])
    empty = write(tmp_path / "empty.jsonl", [])
    out = ("--out", tmp_path / "new.jsonl")
    for arguments, what in (
        (("score", file, "--scorer", "guess", *out), "--scorer guess: allowed: perspective, classifier, profanity"),
        (("score", file, "--scorer", "perspective", *out), "$PERSPECTIVE_API_KEY is empty"),
        (("score", file, "--scorer", "classifier", *out), "needs --classifier"),
        (("score", file, "--scorer", "profanity", "--label", "x", *out), "--label: needs --scorer classifier"),
        (("score", file, "--scores", empty, "--name", "x", "--url", "u", *out), "--url: needs --scorer perspective"),
        (("perplexity", file, "--perplexities", empty, "--name", "x", "--step", 3, *out), "--step: needs --model"),
        (("score", file, *out), "--scorer and --scores: give one of them"),
        (("score", file, "--scores", empty, *out), "--scores and --name: give both or neither"),
        (("score", file, "--scores", empty, "--name", "x", *out), "empty.jsonl: lacks 1 continuation"),
        (("score", empty, "--scorer", "profanity", *out), "empty.jsonl: is empty"),
        (("score", file, "--scorer", "profanity", "--out", file), "exists; remove it"),
        (("score", tmp_path / "no.jsonl", "--scorer", "profanity", *out), "no.jsonl"),
        (("perplexity", file, *out), "--model and --perplexities: give one of them"),
        (("perplexity", file, "--model", tmp_path, *out), str(tmp_path)),
        (("table", file), "in: has no scores"),
        (("table", file, file), "is given twice"),
        (("table", file, "--json", file), "in.jsonl: is a file that this command reads"),
        (("run", model, "--prompts", empty, *out), "empty.jsonl: is empty"),
        (("run", model, "--prompts", file, "--system", "x", *out), "--system: needs --chat"),
    ):
        code, _, err = measure(*arguments)
        message = [line for line in err.splitlines() if not line.startswith("note: ")]
        assert code == 2 and what in err and len(message) == 1 and "Traceback" not in err, (arguments, err)
        assert not list(tmp_path.glob("new.jsonl*")), arguments
