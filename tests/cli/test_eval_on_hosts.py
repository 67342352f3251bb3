"""`janus eval` in two processes of two devices: process 0 alone has data, lm-evaluation-harness and files."""

import json

import pytest

pytest.importorskip("lm_eval", reason="extra eval")

from tests.support import harness, processes


def test_two_hosts_say_what_one_says(janus, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    model, data = harness.model(tmp_path / "lm", bos=True), harness.data(tmp_path / "data")
    (data / "bbq_generate.jsonl").write_text((data / "bbq.jsonl").read_text())
    command = [
        "eval",
        model,
        "--tasks",
        "winogender_all,bbq_generate",
        "--limit",
        3,
        "--rows",
        4,
        "--max-new-tokens",
        8,
    ]
    command += ["--template", "chatml", "--apply-chat-template"]
    where = ("--coordinator", f"127.0.0.1:{processes.free_port()}", "--num-processes", 2, "--devices", 2)

    def on_host(number):
        own = ["--data-dir", data if number == 0 else tmp_path / "nothing", "--out", tmp_path / f"host{number}"]
        own += ["--json", tmp_path / f"host{number}.json"]
        return ["-m", "janus_jax.cli", *command, *own, *where, "--process-id", number]

    ended = processes.launch(on_host(0), on_host(1))
    assert [code for code, _ in ended] == [0, 0] and ended[1][1] == "", ended
    assert not (tmp_path / "host1").exists() and not (tmp_path / "host1.json").exists()
    code, _, err = janus(*command, "--data-dir", data, "--out", tmp_path / "one", "--json", tmp_path / "one.json")
    assert code == 0, err
    tables = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("host0", "one")]
    for ours, theirs in zip(tables[0]["rows"], tables[1]["rows"], strict=True):
        assert ours["name"] == theirs["name"] and ours["values"] == pytest.approx(theirs["values"], nan_ok=True)
    for name in ("winogender_all", "bbq_generate"):
        samples = [
            [json.loads(line)["resps"] for line in next((tmp_path / place).rglob(f"samples_{name}_*")).open()]
            for place in ("host0", "one")
        ]
        if name == "bbq_generate":
            assert samples[0] == samples[1]
        else:
            scores = [[float(pair[0][0]) for doc in own for pair in doc] for own in samples]
            assert scores[0] == pytest.approx(scores[1], abs=1e-3)
