"""`janus eval`: the table of social bias, the harness's own files, gone on with after a stop, refusals in one line."""

import csv
import importlib.util
import json
import re

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="extra eval")

from janus_jax.evaluation.harness import lm, social_bias, tasks, together
from janus_jax.generation.engine import Engine
from tests.support import harness
from tests.support.text_models import reward_model

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("eval")
    harness.model(root / "lm", bos=True)
    harness.data(root / "data")
    reward_model(root / "rm")
    return root


@pytest.fixture
def evaluate(janus, root, monkeypatch):
    """Runs the command; (exit code, stdout, stderr)."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(root / "cache"))

    def run(*options, model="lm", data="data"):
        return janus("eval", root / model, "--data-dir", root / data, *options)

    return run


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_social_bias_follows_from_the_log_likelihoods(evaluate, root, tmp_path):
    out, files = tmp_path / "out", [tmp_path / "t.json", tmp_path / "t.csv"]
    code, shown, err = evaluate("--social-bias", "--out", out, "--json", files[0], "--csv", files[1])
    assert code == 0, err
    assert "Winogender: gotcha accuracy" in shown and "its numbers could not be obtained" in shown
    table = json.loads(files[0].read_text())
    assert table["kind"] == "harness" and table["settings"]["model"] == str(root / "lm")
    values = {row["name"]: row["values"] for row in table["rows"]}
    assert [line["name"] for line in csv.DictReader(files[1].open())] == list(values)
    place = out / str(root / "lm").replace("/", "__")
    written = json.loads(next(place.glob("results_*.json")).read_text())
    assert written["config"]["model_args"]["pretrained"] == str(root / "lm") and written["lm_eval_version"]
    samples = {name: lines_of(next(place.glob(f"samples_{name}_*.jsonl"))) for name in harness.ROWS}

    def best(sample):
        return int(np.argmax([float(one[0][0]) for one in sample["resps"]]))

    sentences = [(one["doc"], best(one) == one["doc"]["label"]) for one in samples["winogender_all"]]
    assert values["Winogender: accuracy"] == [pytest.approx(np.mean([right for _, right in sentences])), 12]
    minority = {"baker": "female", "florist": "male"}  # of an occupation's people
    misleading = [
        right
        for doc, right in sentences
        if doc["gender"] != "neutral" and (doc["gender"] == minority[doc["occupation"]]) is (doc["label"] == 0)
    ]
    assert values["Winogender: gotcha accuracy"] == [pytest.approx(np.mean(misleading)), 4]
    more = [best(one) == 0 for one in samples["crows_pairs_english"]]
    assert values["CrowS-Pairs: % stereotype (ideal 50)"] == [pytest.approx(100 * np.mean(more)), 4]
    assert values["CrowS-Pairs: % stereotype (ideal 50), age"] == [pytest.approx(100 * np.mean(more[:2])), 2]
    assert written["results"]["crows_pairs_english"]["pct_stereotype,none"] == np.mean(more)
    unclear = [one for one in samples["bbq"] if one["doc"]["context_condition"] == "ambig"]
    assert values["BBQ: accuracy, ambiguous"] == [np.mean([best(one) >= 2 for one in unclear]), 2]
    assert not (out / "requests.part").exists()


def test_scores_of_bias_are_those_of_the_paper_of_bbq():
    from janus_jax.evaluation.harness import social_bias

    def sample(right, biased, known, clear):
        return {"amb_bias_score": (right, biased, known, np.array(clear))}

    clear = [sample(1, 1, 1, True)] * 6 + [sample(0, 0, 1, True)] * 2 + [sample(0, 0, 0, True)] * 2
    unclear = [sample(1, 0, 0, False)] * 5 + [sample(0, 0, 1, False)] * 4 + [sample(0, 1, 1, False)]
    values = {row.name: row.values[0] for row in social_bias.bbq([*clear, *unclear])}
    assert values["BBQ: s_DIS"] == pytest.approx(2 * 6 / 8 - 1)
    assert values["BBQ: s_AMB"] == pytest.approx((1 - 0.5) * (2 * 1 / 5 - 1))
    never = {row.name: row.values[0] for row in social_bias.bbq([sample(0, 0, 1, True)] * 3)}
    assert never["BBQ: s_DIS"] == -1 and never["BBQ: s_AMB"] is None


def test_a_stopped_evaluation_goes_on(evaluate, tmp_path, monkeypatch):
    monkeypatch.setattr(lm, "_TOKENS_AT_ONCE", 20)
    score, scored = together.Together.score, []

    def dies(self, pairs):
        if len(scored) == 3:
            raise MemoryError("killed")
        scored.append(len(pairs))
        return score(self, pairs)

    monkeypatch.setattr(together.Together, "score", dies)
    command = ["--tasks", "winogender_all,crows_pairs_english", "--out", tmp_path / "out", "--json"]
    with pytest.raises(MemoryError):
        evaluate(*command, tmp_path / "a.json")
    kept = len((tmp_path / "out" / "requests.part").read_text().splitlines()) - 1
    assert kept == sum(scored)
    code, _, err = evaluate(*command, tmp_path / "a.json", "--limit", 2)
    assert code == 2 and "requests.part holds answers to other requests" in err
    again = []
    monkeypatch.setattr(
        together.Together, "score", lambda self, pairs: (again.append(len(pairs)), score(self, pairs))[1]
    )
    code, _, err = evaluate(*command, tmp_path / "a.json")
    assert code == 0 and f"{kept} of 32 requests are answered" in err and sum(again) == 32 - kept
    code, _, err = evaluate(*command[:2], "--json", tmp_path / "b.json")
    assert code == 0 and json.loads((tmp_path / "a.json").read_text()) == json.loads((tmp_path / "b.json").read_text())


def test_examples_are_turns_of_the_conversation(evaluate, tmp_path):
    options = ["--tasks", "winogender_all", "--limit", 2, "--num-fewshot", 2, "--apply-chat-template"]
    options += ["--system-instruction", "be brief", "--out", tmp_path / "turns"]
    assert evaluate(*options)[0] == 0
    assert evaluate(*options[:-1], tmp_path / "one", "--no-fewshot-as-multiturn")[0] == 0
    contexts = {
        name: lines_of(next((tmp_path / name).rglob("samples_*.jsonl")))[0]["arguments"]["gen_args_0"]["arg_0"]
        for name in ("turns", "one")
    }
    assert all(text.startswith("<s><|im_start|>system\nbe brief<|im_end|>") for text in contexts.values())
    assert [contexts[name].count("<|im_start|>assistant\n") for name in ("turns", "one")] == [3, 1]


@pytest.fixture
def unread(monkeypatch):
    """Fails if weights are read."""
    monkeypatch.setattr(Engine, "stored", lambda *_, **__: pytest.fail("weights are read"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tasks", "bbq", "--limit", 0], r"--limit 0: allowed: 1 or more"),
        (["--tasks", "bbq", "--social-bias"], r"--tasks and --social-bias: allowed: exactly one"),
        ([], r"--tasks and --social-bias: allowed: exactly one"),
        (["--tasks", "bbq,bbq"], r"names bbq twice"),
        (["--tasks", "bbq_generate"], r"task bbq_generate: expected its data \(oskarvanderwal/bbq/All\) in .*jsonl"),
        (["--tasks", "winogender_gotcha_male"], r"expected its data .* in .*/winogender_gotcha_male.jsonl"),
        (["--tasks", "bbk"], r"lm_eval has no task 'bbk'; similar: bbq"),
        (["--tasks", "humaneval"], r"task humaneval: runs code that the model writes"),
        (["--tasks", "mmmu_val_accounting"], r"task mmmu_val_accounting: shows images"),
        (["--tasks", "bbq", "--template", "chatml"], r"--template: needs --apply-chat-template"),
        (["--tasks", "bbq", "--data-dir", "nowhere"], r"--data-dir nowhere: is no directory"),
    ],
)
def test_refusals(evaluate, unread, monkeypatch, options, message):
    whole = tasks.TaskManager
    some = [str(tasks._places()[name]) for name in ("bbq", "winogender_all")]  # all of them take long
    monkeypatch.setattr(
        tasks, "TaskManager", lambda **own: whole(**own or {"include_defaults": False, "include_path": some})
    )
    code, _, err = evaluate(*options)
    assert code == 2 and re.search(message, err) and len(err.splitlines()) == 1, err


def test_a_reward_model_is_refused(evaluate, unread):
    code, _, err = evaluate("--tasks", "bbq", model="rm")
    assert code == 2 and "is a reward model" in err


def test_rows_that_a_task_cannot_use_are_refused(evaluate, root, unread, tmp_path):
    (tmp_path / "bbq.json").write_text(json.dumps([{**harness.BBQ[0], "category": "Height"}]))
    code, _, err = evaluate("--tasks", "bbq", data=tmp_path)
    assert code == 2 and f"task bbq: {tmp_path}/bbq.json: a document cannot be asked" in err
    (tmp_path / "bbq.json").write_text('[{"context": "x"}]')
    code, _, err = evaluate("--tasks", "bbq", data=tmp_path)
    assert code == 2 and f"task bbq: cannot be made of {tmp_path}/bbq.json: KeyError" in err


def test_without_the_package_it_says_how_to_install_it(evaluate, monkeypatch):
    spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *own: None if name == "lm_eval" else spec(name, *own))
    code, _, err = evaluate("--tasks", "bbq")
    assert code == 2 and "pip install 'janus_jax[eval]'" in err


def test_a_table_without_gotchas_says_why():
    assert social_bias.why_without([{"pct_female": 60.5}, {}]) == "none of these sentences is a gotcha"
    assert social_bias.why_without([{}]) == "no row has pct_female, and no file is named winogender_gotcha"
