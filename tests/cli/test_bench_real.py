"""Real rows from end to end: our engine answers with SmolLM2-135M, and a real server judges.

    XLA_FLAGS= JANUS_REAL_DATA=DIR JANUS_SMOLLM2=DIR pytest -n 0 -m slow tests/cli/test_bench_real.py -s

Without XLA_FLAGS, XLA optimizes: the flags of other tests make a large model slow.

The judge is `janus serve` with the same model, or the server that JANUS_JUDGE_URL names. So small a judge seldom writes
a score: what counts is that each verdict is a score or a counted failure, and that nothing is asked for twice.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("openai")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not {"JANUS_REAL_DATA", "JANUS_SMOLLM2"} <= os.environ.keys(),
        reason="JANUS_REAL_DATA and JANUS_SMOLLM2 name no rows and no model",
    ),
]
ROWS, ASKS = 2, 2


@contextlib.contextmanager
def judging(model):
    """URL of a server."""
    if url := os.environ.get("JANUS_JUDGE_URL"):
        yield url
        return
    command = [sys.executable, "-m", "janus_jax.cli", "serve", model, "--port", "0", "--window", "2048", "--rows", "3"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = []
        while "ready\n" not in lines:
            lines.append(process.stderr.readline())
            assert lines[-1], lines
        try:
            yield next(word for word in " ".join(lines).split() if word.startswith("http")).rstrip(":,")
        finally:
            process.send_signal(signal.SIGTERM)
            process.stderr.read()


def test_real_rows_and_a_real_judge(janus, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    bench, model = Path(os.environ["JANUS_REAL_DATA"]) / "biggen_bench_part.jsonl", os.environ["JANUS_SMOLLM2"]
    answers, judged = tmp_path / "answers.jsonl", tmp_path / "judged"
    began = time.monotonic()
    code, _, err = janus("bench", "run", bench, model, "--out", answers, "--limit", ROWS, "--max-new-tokens", 16)
    assert code == 0 and len(answers.read_text().splitlines()) == ROWS, err
    answered = time.monotonic()
    with judging(model) as url:
        words = ["bench", "judge", bench, "--answers", answers, "--judge", Path(model).name, "--base-url", url]
        words += ["--no-key", "--out", judged, "--max-tokens", 24, "--asks", ASKS, "--timeout", 900, "--judge-empty"]
        code, _, err = janus(*words, "--limit", 1, "--runs", 2)
        assert code == 0, err
        first = (judged / "replies.jsonl").read_text().splitlines()
        code, out, err = janus(*words, "--limit", ROWS, "--runs", 2)
        assert code == 0, err
    replies = (judged / "replies.jsonl").read_text().splitlines()
    assert replies[: len(first)] == first and len({json.loads(one).get("key") for one in replies}) == len(replies)
    lines = [json.loads(line) for line in (judged / "judgements.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * ROWS and all((line["score"] is None) == bool(line["reason"]) for line in lines)
    failed = sum(line["score"] is None for line in lines)
    code, table, err = janus("bench", "table", judged, "--json", tmp_path / "table.json")
    assert code == 0 and ("verdicts failed; they count nowhere" in table) == bool(failed), err
    print(
        f"\n{ROWS} rows answered in {answered - began:.0f} s; {len(lines)} verdicts, {failed} failures, "
        f"{len(replies) - 1} replies in {time.monotonic() - answered:.0f} s; {out}"
    )
