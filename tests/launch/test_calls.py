"""How many times commands call gcloud, which takes a second or two of a processor, and the bucket over HTTPS."""

import argparse
import json
import time

import pytest

from launch.commands import down, logs, status, stop, up, watch
from launch.context import Context
from launch.records import Heartbeat
from launch.remote import hosts as remote
from tests.support.counted import Counted
from tests.support.launch_hosts import ScratchHost, ScratchHosts
from tests.support.launches import run_record

FOLDER, RUN = "gs://bkt/launch/janus", "gs://bkt/runs/janus"


@pytest.fixture
def cloud(monkeypatch, tmp_path):
    """A run of two attempts that goes on on two hosts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(Context, "me", "ann@here")
    made = Counted()
    made.machines.keep_time(monkeypatch)
    made.store.now = time.time()
    call(up, made)
    run = run_record(attempt=2, start=3, run_dir=RUN)
    for attempt in (1, 2):
        made.store.now += 60
        for worker in range(2):
            beat = Heartbeat("demo-1", attempt, 2 * attempt - 1, worker, "h", "running", 0.0, step=attempt)
            made.store.put(f"{FOLDER}/demo-1/heartbeats/{attempt}/{worker:02d}", beat.dumps().encode())
    made.store.put(f"{FOLDER}/run.json", run.dumps().encode())
    made.store.put(f"{RUN}/metrics/0000000010.ab-from-10-00002.jsonl", b'{"kind": "train", "step": 9, "loss": 2}\n')
    made.store.put(f"{RUN}/goodput.json", json.dumps({"starts": []}).encode())
    made.calls.clear()
    made.api.requests.clear()
    return made


def call(command, cloud, *words):
    parser = argparse.ArgumentParser()
    command.add(parser)
    cloud.renew()
    return command.run(cloud.context, parser.parse_args(words))


def counted(cloud, title):
    """Calls of gcloud, and requests to the bucket; shown with `pytest -s`."""
    calls, requests = list(cloud.calls), list(cloud.api.requests)
    cloud.calls.clear()
    cloud.api.requests.clear()
    print(
        f"{title}: {len(calls)} calls of gcloud: {', '.join(calls)}; {len(requests)} requests:", *requests, sep="\n  "
    )
    return len(calls), len(requests)


def test_status(cloud):
    assert call(status, cloud) == 0
    calls, requests = counted(cloud, "status")
    assert calls <= 3 and requests <= 20
    shown = "\n".join(cloud.lines)
    assert "2 of 2 running, heartbeat 0 s ago" in shown and "step 9, loss 2" in shown


def test_watch_once(cloud):
    assert call(watch, cloud, "--once") == 0
    calls, requests = counted(cloud, "watch --once, the first time")
    assert calls <= 3 and requests <= 25
    assert any("running at step 2: all 2 hosts run" in line for line in cloud.lines)
    assert call(watch, cloud, "--once") == 0
    calls, requests = counted(cloud, "watch --once, nothing new")
    assert calls <= 3 and requests <= 20


@pytest.fixture
def hosts(tmp_path, monkeypatch):
    made = ScratchHosts([ScratchHost(tmp_path / f"host{number}", number) for number in range(2)])
    monkeypatch.setattr(remote, "connect", lambda context, machines: made)
    return made


def test_other_commands(cloud, hosts):
    for command, most_calls, most_requests in ((up, 3, 2), (logs, 1, 10), (stop, 3, 5), (down, 6, 16)):
        call(command, cloud)
        calls, requests = counted(cloud, command.__name__)
        assert calls <= most_calls and requests <= most_requests
