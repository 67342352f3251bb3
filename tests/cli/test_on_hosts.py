"""Commands in two processes of two devices each: process 0 alone has files, both end alike, and say what one says.

A real `janus generate` whose second process gets SIGTERM: `pytest -n 0 -m slow tests/cli/test_on_hosts.py`.
"""

import json
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="extra eval")

from janus_jax.checkpoint.stored_model import open_model
from janus_jax.generation.engine import Engine
from tests.support import generating, harness, processes, torch_models
from tests.support.hosts import DEVICES, on_hosts
from tests.support.run_configs import SMALLEST_YAML
from tests.support.text_models import language_model, reward_model

pytestmark = pytest.mark.usefixtures("one_device")

GENERATE = ("--seed", 3, "--rows", 8, "--max-new-tokens", 6)
SEVERAL = (*GENERATE, "--n", 2, "--log-probs")
EVAL = ("--tasks", "winogender_all,bbq_generate", "--limit", 3, "--rows", 4, "--max-new-tokens", 8)
EVAL += ("--template", "chatml", "--apply-chat-template")


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Models and data, which both hosts read, and a directory of each host, of which one has files."""
    root = tmp_path_factory.mktemp("place")
    language_model(root / "lm")
    reward_model(root / "reward")
    harness.model(root / "harness", bos=True)
    torch_models.mistral(sliding_window=7).save_pretrained(root / "hf")
    (root / "small.yaml").write_text(SMALLEST_YAML.replace("preset: tiny", "preset: tiny, vocab_size: 96"))
    for number in range(2):
        (root / f"host{number}").mkdir()
    data = harness.data(root / "host0/data")
    (data / "bbq_generate.jsonl").write_text((data / "bbq.jsonl").read_text())
    write_rows(root / "host0/p.jsonl", [{"id": number, "prompt": f"Why {number}?"} for number in range(5)])
    write_rows(root / "host0/empty.jsonl", [{"prompt": "Why?"}, {"prompt": ""}])
    return root


@pytest.fixture(scope="module")
def ended(place, tmp_path_factory):
    """How each command ended in both processes: exit code and output."""

    def both(*words, own=((), ()), **files):
        """Words on both hosts, then those of each, then options that name files of each."""
        return [
            [
                *(*words, *own[number]),
                *(part for name, file in files.items() for part in (f"--{name}", place / f"host{number}" / file)),
            ]
            for number in range(2)
        ]

    generate = ("generate", place / "lm", *GENERATE)
    timed = ("time-step", place / "small.yaml", "batch.row_length=64", "batch.max_sequence_length=32", "--steps", 1)
    best = ("--best-of", 3, "--reward", place / "reward")
    commands = {
        "several": both("generate", place / "lm", *SEVERAL, prompts="p.jsonl", out="several.jsonl"),
        "best": both(*generate, *best, prompts="p.jsonl", out="best.jsonl"),
        "score": both("score", place / "reward", "--key", "again", responses="best.jsonl", out="scored.jsonl"),
        "live": both("tests.support.generating:", place),
        "time": both(*timed, own=(("--json", place / "times.json"), ("--json", place / "none/times.json"))),
        "empty prompt": both(*generate, prompts="empty.jsonl", out="none.jsonl"),
        "seeds": both(*generate, own=(("--seed", 1), ("--seed", 2)), prompts="p.jsonl", out="none.jsonl"),
        "chips": both(*timed, own=((), ("--chips", place / "none.yaml"))),
        "eval": both("eval", place / "harness", *EVAL, **{"data-dir": "data", "out": "eval", "json": "eval.json"}),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(place / "cache"))
        return on_hosts(tmp_path_factory.mktemp("hosts"), commands)


def test_process_0_alone_reads_writes_and_speaks(place, ended):
    worked = {name: one for name, one in ended.items() if name not in ("empty prompt", "seeds", "chips")}
    assert [[code for code, _ in one] for one in worked.values()] == [[0, 0]] * 6, worked
    assert {name: second[1] for name, (_, second) in worked.items()} == dict.fromkeys(worked, "")
    assert list((place / "host1").iterdir()) == []
    kept = {"p.jsonl", "empty.jsonl", "data"}
    kept |= {"several.jsonl", "best.jsonl", "best.jsonl.rewards.json", "scored.jsonl", "eval", "eval.json"}
    assert {path.name for path in (place / "host0").iterdir()} == kept


def test_two_hosts_write_what_one_writes(janus, place, ended, tmp_path):
    assert "wrote" in ended["several"][0][1]
    prompts, out = place / "host0/p.jsonl", tmp_path / "a.jsonl"
    assert janus("generate", place / "lm", *SEVERAL, "--prompts", prompts, "--out", out)[0] == 0
    for ours, theirs in zip(read_rows(place / "host0/several.jsonl"), read_rows(out), strict=True):
        assert ours["id"] == theirs["id"]
        assert [text["token_ids"] for text in ours["answers"]] == [text["token_ids"] for text in theirs["answers"]]


def test_two_hosts_choose_and_score_as_one_does(janus, place, ended, tmp_path):
    assert "n = 3" in ended["best"][0][1]
    prompts, out, judge = place / "host0/p.jsonl", tmp_path / "a.jsonl", place / "reward"
    words = ("--best-of", 3, "--reward", judge, "--prompts", prompts, "--out", out)
    assert janus("generate", place / "lm", *GENERATE, *words)[0] == 0
    for ours, theirs in zip(read_rows(place / "host0/scored.jsonl"), read_rows(out), strict=True):
        assert ours["id"] == theirs["id"]
        for one, other in zip(ours["answers"], theirs["answers"], strict=True):
            assert (one["text"], one["sample"]) == (other["text"], other["sample"])
            assert [one["reward"], one["again"]] == pytest.approx([other["reward"]] * 2, abs=1e-4)


def test_two_hosts_generate_with_a_copy_of_weights_that_they_have_read(place, ended):
    engine = Engine.stored(open_model(place / "hf"), devices=jax.devices()[:1], rows=6, steps_per_call=4)
    expected = generating.told(engine)
    assert len(expected["texts"]) == 10 and ended["live"] == ((0, ""), (0, ""))
    for number in range(2):
        made = json.loads((place / f"{number}.json").read_text())
        assert made["texts"] == expected["texts"]
        for ours, theirs in zip(made["log_probs"], expected["log_probs"], strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_two_hosts_evaluate_as_one_does(janus, place, ended, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(place / "cache"))
    files = ("--data-dir", place / "host0/data", "--out", tmp_path / "eval", "--json", tmp_path / "eval.json")
    code, _, err = janus("eval", place / "harness", *EVAL, *files)
    assert (code, ended["eval"][0][0]) == (0, 0), err
    ours, theirs = (json.loads((root / "eval.json").read_text())["rows"] for root in (place / "host0", tmp_path))
    for one, other in zip(ours, theirs, strict=True):
        assert one["name"] == other["name"] and one["values"] == pytest.approx(other["values"], nan_ok=True)

    def answers(root, task):
        return [row["resps"] for row in read_rows(next((root / "eval").rglob(f"samples_{task}_*")))]

    assert answers(place / "host0", "bbq_generate") == answers(tmp_path, "bbq_generate")
    scores = [
        [float(pair[0][0]) for own in answers(root, "winogender_all") for pair in own]
        for root in (place / "host0", tmp_path)
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)


def test_two_hosts_time_one_step_together(place, ended):
    assert f"MEASURED on {2 * DEVICES} x cpu: " in ended["time"][0][1]
    assert json.loads((place / "times.json").read_text())["devices"] == 2 * DEVICES


@pytest.mark.parametrize(
    ("name", "message"),
    [("empty prompt", "empty.jsonl:2: "), ("seeds", "--seed is 2 in process 1"), ("chips", "none.yaml")],
)
def test_a_mistake_on_one_host_ends_both_alike(place, ended, name, message):
    for code, output in ended[name]:
        assert code == 2 and output.startswith("error: ") and output.count("\n") == 1 and message in output
    assert not list(place.glob("host?/none*"))


@pytest.mark.slow
def test_two_hosts_end_together_and_go_on(janus, place, tmp_path):
    rows = [{"id": number, "prompt": f"Why {number}?"} for number in range(100)]
    for number in range(2):
        (tmp_path / f"host{number}").mkdir()
    write_rows(tmp_path / "host0/p.jsonl", rows)

    def commands():
        where = ("--coordinator", f"127.0.0.1:{processes.free_port()}", "--num-processes", 2, "--devices", 4)
        for number in range(2):
            here = tmp_path / f"host{number}"
            files = ("--prompts", here / "p.jsonl", "--out", here / "a.jsonl", "--process-id", number)
            yield ["-m", "janus_jax.cli", "generate", place / "lm", *SEVERAL, *files, *where]

    first, second = (
        subprocess.Popen([sys.executable, *map(str, command)], env=processes.environment()) for command in commands()
    )
    part, until = tmp_path / "host0/a.jsonl.part", time.monotonic() + 300
    while time.monotonic() < until and not (part.exists() and part.read_bytes().count(b"\n") > 3):
        time.sleep(0.01)
    second.send_signal(signal.SIGTERM)
    assert (second.wait(120), first.wait(120)) == (143, 13)
    assert 0 < part.read_bytes().count(b"\n") < len(rows)

    ended = processes.launch(*commands())
    assert [code for code, _ in ended] == [0, 0], ended
    assert "of 100 prompts are answered" in ended[0][1] and "wrote" in ended[0][1] and ended[1][1] == ""
    assert sorted(path.name for path in (tmp_path / "host0").iterdir()) == ["a.jsonl", "p.jsonl"]
    prompts, out = tmp_path / "host0/p.jsonl", tmp_path / "a.jsonl"
    assert janus("generate", place / "lm", *SEVERAL, "--prompts", prompts, "--out", out)[0] == 0
    for ours, theirs in zip(read_rows(tmp_path / "host0/a.jsonl"), read_rows(out), strict=True):
        assert ours["id"] == theirs["id"]
        assert [text["token_ids"] for text in ours["answers"]] == [text["token_ids"] for text in theirs["answers"]]
