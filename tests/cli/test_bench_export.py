"""`janus bench export`: options, and input that is refused before anything is written."""

import json

import pytest

from janus_jax.evaluation.official import export
from tests.support.chat_models import chat_model
from tests.support.official import QUESTIONS, ScriptedEngine, mt_question, read_answers, write_questions

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return chat_model(tmp_path_factory.mktemp("model"), max_position_embeddings=256)


@pytest.fixture(autouse=True)
def engine(monkeypatch):
    """Every answer is the request's name."""
    monkeypatch.setattr(
        export, "open_engine", lambda model, *_, **__: ScriptedEngine(model.config, lambda one: str(one.name))
    )


def test_answers_of_two_turns_under_two_messages(janus, model, tmp_path):
    questions = write_questions(tmp_path / "q.jsonl", [mt_question(number, extra="x") for number in (81, 82, 83)])
    command = ("bench", "export", model, "--for", "mt_bench", "--prompts", questions, "--out", tmp_path / "data")
    options = ("--name", "mine", "--system", "none", "--system", "Be kind.", "--limit", 2, "--max-new-tokens", 5)
    code, out, err = janus(*command, *options)
    assert code == 0 and "note: 'extra' of 3 questions is not used" in err, err
    for name in ("mine-none", "mine-system-2"):
        path = tmp_path / "data" / "model_answer" / f"{name}.jsonl"
        assert f"wrote {path}: 4 answers of {name}" in out
        turns = [row["choices"][0]["turns"] for row in read_answers("mt_bench", path)]
        assert turns == [["81/1", "81/2"], ["82/1", "82/2"]]
    assert janus(*command, *options)[:2] == (
        0,
        "".join(
            f"{line} is written already\n"
            for line in sorted(map(str, (tmp_path / "data" / "model_answer").glob("*.jsonl")))
        ),
    )
    code, _, err = janus(*command, *options, "--temperature", 0.5)
    assert code == 2 and err.count("\n") == 1 and 'its temperature is {"writing": 0.7}, not 0.5' in err


def test_defaults_of_each_tool(janus, model, tmp_path):
    for tool, (tokens, temperature) in {"alpaca_eval": (4096, 0.7), "arena_hard": (4096, 0.0)}.items():
        questions = write_questions(tmp_path / f"{tool}.jsonl", [QUESTIONS[tool](1)])
        assert janus("bench", "export", model, "--for", tool, "--prompts", questions, "--out", tmp_path / tool)[0] == 0
        (meta,) = (tmp_path / tool).rglob("*.meta.json")
        settings = json.loads(meta.read_text())["settings"]
        assert (settings["max_new_tokens"], settings["temperature"], settings["name"]) == (tokens, temperature, "hf")


def test_input_that_is_refused(janus, model, tmp_path):
    good = write_questions(tmp_path / "q.jsonl", [mt_question(81)])
    bad = write_questions(tmp_path / "bad.jsonl", [mt_question(81), mt_question(82, turns=[])])
    long = write_questions(tmp_path / "long.jsonl", [mt_question(81, turns=["x", "y" * 300])])
    base = {"--for": "mt_bench", "--prompts": good, "--out": tmp_path / "out"}
    for changes, message in (
        ({"--for": "mtbench"}, "--for mtbench: allowed: alpaca_eval, mt_bench, arena_hard"),
        ({"--prompts": tmp_path / "none.jsonl"}, f"{tmp_path}/none.jsonl: cannot be read: No such file"),
        ({"--prompts": bad}, f"{bad}:2: column 'turns' must be a list of 2 texts"),
        ({"--prompts": long}, f"{long}:1: has "),
        ({"--for": "arena_hard"}, f"{good}:1: has no column 'uid'"),
        ({"--out": good}, f"--out {good}: "),
        ({"--system": ""}, "--system '': shows no text"),
        ({"--temperature": -1}, "temperature = -1"),
    ):
        options = [part for pair in (base | changes).items() for part in pair]
        code, out, err = janus("bench", "export", model, *options)
        assert code == 2 and not out and err.startswith("error: ") and message in err and err.count("\n") == 1, err
    assert not (tmp_path / "out").exists()
