"""The best of several answers, and scores, in two processes of two devices: process 0 alone has the files."""

import json

import pytest

from tests.support import processes
from tests.support.text_models import language_model, reward_model


def test_two_hosts_choose_and_score_as_one_does(janus, tmp_path):
    policy, judge = language_model(tmp_path / "lm"), reward_model(tmp_path / "reward")
    for number in range(2):
        (tmp_path / f"host{number}").mkdir()
    here = tmp_path / "host0"
    (here / "p.jsonl").write_text("".join(json.dumps({"id": n, "prompt": f"Why {n}?"}) + "\n" for n in range(5)))
    options = ["--seed", 3, "--rows", 8, "--max-new-tokens", 6, "--best-of", 3, "--reward", judge]

    def on_hosts(*command, **files):
        """Output of process 0."""
        port = processes.free_port()
        where = ("--coordinator", f"127.0.0.1:{port}", "--num-processes", 2, "--devices", 2)
        ended = processes.launch(
            *(
                [
                    *("-m", "janus_jax.cli", *command, *where, "--process-id", number),
                    *(
                        part
                        for option, name in files.items()
                        for part in (f"--{option}", tmp_path / f"host{number}" / name)
                    ),
                ]
                for number in range(2)
            )
        )
        assert [code for code, _ in ended] == [0, 0] and ended[1][1] == "", ended
        return ended[0][1]

    assert "n = 3" in on_hosts("generate", policy, *options, prompts="p.jsonl", out="a.jsonl")
    on_hosts("score", judge, "--key", "again", responses="a.jsonl", out="s.jsonl")
    assert list((tmp_path / "host1").iterdir()) == []
    assert janus("generate", policy, *options, "--prompts", here / "p.jsonl", "--out", tmp_path / "a.jsonl")[0] == 0
    lines = [
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in (here / "s.jsonl", tmp_path / "a.jsonl")
    ]
    for ours, theirs in zip(*lines, strict=True):
        assert ours["id"] == theirs["id"]
        for one, other in zip(ours["answers"], theirs["answers"], strict=True):
            assert (one["text"], one["sample"]) == (other["text"], other["sample"])
            assert [one["reward"], one["again"]] == pytest.approx([other["reward"]] * 2, abs=1e-4)
