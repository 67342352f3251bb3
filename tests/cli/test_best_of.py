"""`janus generate --best-of`: the best answer by the rewards of transformers; gone on with after kills."""

import json

import jax
import pytest
import torch
import transformers

from janus_jax.generation import rewards
from janus_jax.generation.journal import Journal
from tests.support.text_models import language_model, reward_model

pytestmark = pytest.mark.usefixtures("one_device")

ROWS = [{"id": "a", "prompt": "Why?", "system": "be brief"}, {"prompt": "naïve 世界"}, {"prompt": "the fox"}]
N = 4


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {
        "lm": language_model(root / "lm"),
        "reward": reward_model(root / "reward", "mistral-inst"),
        "short": reward_model(root / "short", longest=46),
    }


@pytest.fixture
def ask(janus, models, tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def run(*options, best_of=N, reward="reward", model="lm"):
        out = tmp_path / "a.jsonl"
        named = [*(("--best-of", best_of) if best_of else ()), *(("--reward", models[reward]) if reward else ())]
        asked = ["--prompts", file, "--out", out, "--rows", 4, "--max-new-tokens", 10, "--seed", 1, *named, *options]
        return *janus("generate", models[model], *asked), out

    return run


def test_the_best_answer_stands_first(ask, models, tmp_path, monkeypatch):
    live = []
    monkeypatch.setattr(rewards.RewardModel, "stored", noting(live, rewards.RewardModel.stored))
    code, output, err, out = ask()
    assert code == 0, err
    assert live == [[]], "the language model is in memory beside the reward model"
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line.get("id") for line in lines] == ["a", None, None]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(models["reward"])
    server = transformers.AutoTokenizer.from_pretrained(models["reward"])
    every = []
    for line in lines:
        result = [one["reward"] for one in line["answers"]]
        assert result == sorted(result, reverse=True) and len(set(result)) == N
        assert sorted(one["sample"] for one in line["answers"]) == list(range(N))
        every.append(sorted(result))
        for one in line["answers"]:
            whole = [*line["messages"], {"role": "assistant", "content": one["text"]}]
            ids = server.apply_chat_template(whole, return_dict=False)
            with torch.no_grad():
                assert one["reward"] == pytest.approx(float(model(torch.tensor([ids])).logits), abs=1e-4)
    curve = json.loads((tmp_path / "a.jsonl.rewards.json").read_text())
    assert (curve["n"], curve["prompts"], curve["prompts_left_out"]) == ([1, 2, 3, 4], 3, 0)
    expected = [sum(sum(one) / N for one in every) / 3, sum(one[-1] for one in every) / 3]
    assert [curve["expected_reward"][0], curve["expected_reward"][-1]] == pytest.approx(expected)
    assert f"n = 1     {expected[0]:.4f}" in output and f"n = 4     {expected[1]:.4f}" in output
    names = ["a.jsonl", "a.jsonl.rewards.json", "p.jsonl"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names

    # A kill while answers are generated, and one while they are scored.
    add, content = Journal.add, out.read_bytes()
    out.unlink()
    for journal in ("a.jsonl.part", "a.jsonl.rewards.part"):
        with monkeypatch.context() as patched:
            patched.setattr(Journal, "add", dying(journal, add))
            with pytest.raises(Killed):
                ask()
        assert (tmp_path / journal).exists() and not out.exists()
    assert ask(best_of=3)[0] == 2
    loaded = len(live)
    code, _, err, _ = ask()
    assert code == 0 and "3 of 3 prompts are answered" in err and "1 of 3 rows are scored" in err
    assert len(live) == loaded + 1
    again = [json.loads(line) for line in out.read_bytes().splitlines()]
    for ours, theirs in zip(again, map(json.loads, content.splitlines()), strict=True):
        assert [one["text"] for one in ours["answers"]] == [one["text"] for one in theirs["answers"]]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def noting(live, load):
    """Notes new arrays with the width of the language model that are alive; other tests of the process have some."""
    kept = jax.live_arrays()
    before = set(map(id, kept))

    def stored(*args, **options):
        live.append([one.shape for one in jax.live_arrays() if 32 in one.shape and id(one) not in before and kept])
        return load(*args, **options)

    return stored


def dying(name, add):
    """As a kill after the second line of a journal."""

    def dies(journal, number, record):
        if journal.path.name == name and journal.done:
            raise Killed
        add(journal, number, record)

    return dies


def test_answers_that_are_too_long_stand_last(ask, tmp_path):
    code, output, err, out = ask(reward="short")
    assert code == 0, err
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    unread = [sum(one["reward"] is None for one in line["answers"]) for line in lines]
    assert sum(unread) > 0
    for line, count in zip(lines, unread, strict=True):
        assert all(one["reward"] is None for one in line["answers"][N - count :])
    curve = json.loads((tmp_path / "a.jsonl.rewards.json").read_text())
    assert curve["answers_unread"] == sum(unread) and curve["prompts"] == unread.count(0)
    assert f"cannot read {sum(unread)} answers" in output


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"reward": None}, (), "--best-of and --reward"),
        ({"best_of": None}, (), "--best-of and --reward"),
        ({"best_of": None, "reward": None}, ("--reward-template", "plain"), "needs --reward"),
        ({}, ("--n", 3), "--n 3"),
        ({"reward": "lm"}, (), "is a language model, which gives no rewards"),
        ({"model": "reward"}, (), "is a reward model, which makes no text"),
        ({}, ("--reward-template", "plain"), "not in plain"),
        (
            {"reward": "short"},
            ("--system", "the quick brown fox jumps" * 4),
            "p.jsonl:2: the prompt with a short answer",
        ),
    ],
)
def test_bad_options_are_named(ask, tmp_path, changes, options, message):
    code, _, err, _ = ask(*options, **changes)
    assert (code, err.count("\n")) == (2, 1) and message in err, err
    assert [path.name for path in tmp_path.iterdir()] == ["p.jsonl"]
