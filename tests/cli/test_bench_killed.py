"""`janus bench judge`, killed at random moments while the endpoint makes trouble. The server's log is the proof."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from tests.support.benches import answers_to, asked_about, bench_row, write_rows
from tests.support.endpoint_server import Answer, refused, said, serving
from tests.support.repository import ROOT

pytest.importorskip("openai")

CONCURRENT = 4


def verdict(body):
    row, rubric = asked_about(body)
    return said(f"Fine. [RESULT] {1 + (row + rubric + body['seed']) % 5}")


def troubled(body, count):
    """The first try of every second request goes wrong, in one of seven ways."""
    kind = random.Random(json.dumps(body)).randrange(14)
    half = verdict(body)
    half.cut = True
    troubles = [
        refused(429, Retry_After="0.1"),
        refused(500, Retry_After="0"),
        Answer("<html>no"),
        Answer({"object": "error", "choices": []}),
        Answer(None),
        half,
        Answer({"object": "too late"}, delay=1.5),
    ]
    answer = troubles[kind] if kind < len(troubles) and count == 0 else verdict(body)
    answer.delay = max(answer.delay, 0.03)
    return answer


@pytest.mark.parametrize(("rows", "kills"), [(8, 1), pytest.param(40, 5, marks=pytest.mark.slow)])
def test_killed_and_resumed_nothing_is_lost_or_paid_twice(janus, tmp_path, monkeypatch, rows, kills):
    for name, value in {"PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "x", "NO_PROXY": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    made = [bench_row(number) for number in range(rows)]
    bench, answers = write_rows(tmp_path / "b.jsonl", made), write_rows(tmp_path / "a.jsonl", answers_to(made))
    words = ["bench", "judge", bench, "--answers", answers, "--judge", "j", "--concurrent", CONCURRENT]
    moments, journal = random.Random(kills), tmp_path / "judged/replies.jsonl"
    at_kills = []
    with serving(troubled) as server:
        own = [*words, "--timeout", 1, "--base-url", server.url, "--out", tmp_path / "judged"]
        command = [sys.executable, "-m", "janus_jax.cli", *map(str, own)]
        for _ in range(kills):
            before, deadline = len(server.asked), time.monotonic() + 120
            process = subprocess.Popen(command, stderr=subprocess.PIPE, env=dict(os.environ))
            while len(server.asked) == before and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(moments.uniform(0, 1.5))
            assert process.poll() is None, "it ended before the kill"
            process.send_signal(signal.SIGKILL)
            process.communicate()
            time.sleep(0.1)  # what it sent has arrived
            kept = {json.loads(line)["key"] for line in journal.read_text().splitlines()[1:] if '"text": "' in line}
            at_kills.append((len(server.asked), kept))
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        for place, kept in at_kills:
            assert not kept & set(server.asked[place:])  # what is on disk is never asked for again
        assert kills == 1 or at_kills[-1][1]
        twice = Counter(server.answered)
        assert twice.total() - len(twice) <= CONCURRENT * kills  # those that were under way
        assert len(twice) == rows * 2 * 3
    lines = [json.loads(line) for line in (tmp_path / "judged/judgements.jsonl").read_text().splitlines()]
    assert len(lines) == rows * 2 * 3 and all(line["score"] for line in lines)
    with serving(lambda body, count: verdict(body)) as server:
        assert janus(*words, "--base-url", server.url, "--out", tmp_path / "calm")[0] == 0
    tables = []
    for name in ("judged", "calm"):
        assert janus("bench", "table", tmp_path / name, "--json", tmp_path / f"{name}.json")[0] == 0
        (model,) = json.loads((tmp_path / f"{name}.json").read_text())["models"]
        tables.append([{**group, "model": ""} for group in model["groups"]] + model["run_means"])
    assert tables[0] == tables[1]
