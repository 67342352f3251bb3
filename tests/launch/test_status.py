"""What `status` says, with and without machines, run and bucket."""

import argparse
import json
import time

import pytest

from launch.commands import status
from launch.errors import CloudError, Kind
from launch.records import Stop, Watcher, duration
from launch.runs import overview, stopping
from tests.support.launches import FakeSteps, Store, beat, context, run_record

FOLDER = "gs://bkt/launch/demo"
RUN = "gs://bkt/runs/demo"


@pytest.fixture
def store() -> Store:
    store = Store()
    store.put(f"{FOLDER}/run.json", run_record(attempt=2, start=3).dumps().encode())
    return store


@pytest.fixture
def steps(store) -> FakeSteps:
    steps = FakeSteps(store)
    steps.machines(created="1970-01-12T12:46:40Z")  # an hour before the store's clock
    return steps


def look(store, steps, **settings):
    view = overview.gather(context(store, **settings), steps)
    return view, "\n".join(overview.render(view))


def training(store):
    records = [
        {"kind": "train", "step": 20, "loss": 1.5, "tokens_per_s": 45000.0},
        {"kind": "eval", "step": 20, "loss": 2},
    ]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    store.put(f"{RUN}/metrics/0000000009.ab-from-0-00001.jsonl", b'{"kind": "train", "step": 30, "loss": 9}\n')
    store.put(f"{RUN}/metrics/0000000010.ab-from-10-00002.jsonl", lines.encode())
    for step in (10, 20):
        store.put(f"{RUN}/checkpoints/{step}/commit_success.txt", b"")
    store.put(f"{RUN}/checkpoints/30/params/x", b"")
    store.put(f"{RUN}/goodput.json", b'{"starts": [{"seconds": {"step": 75, "setup": 25}, "ended": 1, "starts": 2}]}')
    store.now += 60
    for worker in range(2):
        beat(store, run_record(attempt=2, start=3), worker, step=21, line="train 21/75  loss 1.4")


def test_a_run_that_goes_on(store, steps):
    training(store)
    store.put(f"{FOLDER}/watch.json", Watcher("ann@here", "t", {"earlier_s": 7200.0}).dumps().encode())
    view, text = look(store, steps)
    assert (view.step, view.total, view.checkpoint_age_s) == (21, 75, 60)
    assert "2 of 2 running" in text and "step 21/75, loss 1.5, 45,000 tokens/s" in text
    assert "75% of the time" in text and "2 starts" in text and "step 20, 60 s ago" in text
    assert view.hours == pytest.approx(3 + 60 / 3600) and "list price" in text and "$37.71" in text
    assert "ann@here" in text and view.next == ["python -m launch logs -f", "python -m launch stop"]


def test_an_unknown_spot_price_has_a_bound(store, steps):
    steps.prices = (None, 20.0)
    text = look(store, steps)[1]
    assert (
        "at most $20.00 so far: 1.0 h (at most $20.00 an hour: on-demand list price of 2026-01, spot unknown)" in text
    )
    steps.prices = (None, None)
    assert "cost      the price of this type is not known" in look(store, steps)[1]


def test_machines_that_are_deleted_have_cost_money(store, steps):
    made, steps.existing = context(store), None
    for created in ("1970-01-12T12:46:40Z", "1970-01-12T13:16:40Z", "no time"):
        stopping.count_machines(made, "demo-1", created)
    assert "$18.75 so far: 1.5 h" in look(store, steps)[1]
    stopping.count_machines(made, "demo-2", "1970-01-12T12:46:40Z")
    assert "nothing known so far" in look(store, steps)[1]


def test_few_calls(store, steps):
    training(store)
    store.calls.clear()
    look(store, steps)
    assert len(store.calls) <= 7, store.calls


def test_the_host_that_is_odd_is_named(store, steps):
    steps.count = 64
    steps.machines()
    run = run_record(attempt=2, start=3)
    for worker in range(64):
        beat(store, run, worker)
    beat(store, run, 17, "ended", code=137, message="killed\n\x1b[31m")
    text = look(store, steps)[1]
    assert "63 of 64 running" in text and "worker 17 ended 137: killed" in text and "\x1b" not in text


def test_a_host_that_is_odd_is_named_once(store, steps):
    run = run_record(attempt=2, start=3)
    beat(store, run, 0, "ended", code=2, message="the data are gone")
    beat(store, run, 1, "ended", code=143, message="terminated")
    text = look(store, steps)[1]
    assert "worker 0 ended 2: the data are gone; terminated" in text and text.count("the data are gone") == 1


def test_hosts_are_asked_only_when_a_heartbeat_is_old(store, steps):
    training(store)
    steps.errors["states"] = [AssertionError("asked")]
    look(store, steps)
    steps.errors.clear()
    store.now += 1000
    steps.answers = {n: {"state": "unreachable"} for n in range(2)}
    assert "2 of 2 unreachable" in look(store, steps)[1]


def test_without_machines_the_bucket_still_tells(store, steps):
    training(store)
    steps.existing = None
    view, text = look(store, steps)
    assert "demo: none" in text and "step 20" in text and view.next == ["python -m launch watch"]


def test_a_run_that_was_stopped_and_one_that_watch_gave_up(store, steps):
    store.put(f"{FOLDER}/stop.json", Stop("demo-1", "bob@there", 1.0, "enough").dumps().encode())
    assert "stopped by bob@there (enough)" in look(store, steps)[1]
    store.put(f"{FOLDER}/stop.json", Stop("", "bob@there", 1.0).dumps().encode())
    store.put(f"{FOLDER}/watch.json", Watcher("ann@here", "", {"gave_up": "quota"}).dumps().encode())
    assert "gave up: quota" in look(store, steps)[1]


@pytest.mark.parametrize("memory", [{"row": "no run", "run_id": ""}, {"row": "hopeless", "run_id": "demo-0"}])
def test_what_an_earlier_watch_gave_up_is_no_news_of_this_run(store, steps, memory):
    watcher = Watcher("ann@here", "", {"gave_up": "no run was started here", **memory})
    store.put(f"{FOLDER}/watch.json", watcher.dumps().encode())
    assert "gave up" not in look(store, steps)[1]


def following(store, steps) -> list[str]:
    return [word.removeprefix("python -m launch ") for word in look(store, steps)[0].next]


def ended(store, *codes) -> None:
    for worker, code in enumerate(codes):
        beat(store, run_record(attempt=2, start=3), worker, "ended", code=code, message=f"message {code}")


def test_the_next_step_after_the_end(store, steps):
    ended(store, 2, 2)
    assert following(store, steps) == ["logs", "run CONFIG", "down"]
    ended(store, 13, 13)
    assert following(store, steps) == ["logs -f", "watch", "stop"]
    ended(store, 0, 0)
    assert following(store, steps) == ["down"]
    store.put(f"{RUN}/checkpoints/20/commit_success.txt", b"")
    assert following(store, steps) == ["pull --step 20", "down"]
    store.put(f"{RUN}/exports/20/conversion_report.json", b"")
    assert following(store, steps) == ["pull", "down"]
    steps.existing = None
    assert following(store, steps) == ["pull"]
    ended(store, 2, 2)
    assert following(store, steps) == ["logs", "up"]


@pytest.mark.parametrize("why", ["stopped", "gave up", "no machines said", "no bucket said"])
def test_a_run_that_goes_on_never_leads_to_another(store, steps, why):
    training(store)
    if why == "stopped":
        store.put(f"{FOLDER}/stop.json", Stop("demo-1", "bob@there", 1.0).dumps().encode())
    if why == "gave up":
        store.put(f"{FOLDER}/watch.json", Watcher("ann@here", "", {"gave_up": "quota"}).dumps().encode())
    if why == "no machines said":
        steps.errors["find"] = [CloudError(Kind.PERMISSION, "denied")]
    if why == "no bucket said":
        store.refusal = lambda call, url: CloudError(Kind.UNAVAILABLE, url, "503")
        assert following(store, steps) == ["status"]
    else:
        assert following(store, steps)[0::10] == ["logs -f"] and following(store, steps)[-1] == "stop"


def test_hosts_that_go_on_without_another_are_named(store, steps):
    training(store)
    beat(store, run_record(attempt=2, start=3), 0, "ended", code=2, message="bad")
    text = look(store, steps)[1]
    assert "note      worker 0 ended with 2, others still run; `python -m launch stop` ends them" in text
    assert "run CONFIG" not in text


def test_nothing_at_all(steps):
    store = Store()
    steps.existing = None
    view, text = look(store, steps)
    assert "demo: none" in text and view.run is None and view.next == ["python -m launch up"]
    assert json.loads(json.dumps(overview.dataclasses.asdict(view)))["usd"] is None


def test_a_run_that_has_not_begun_to_beat(store, steps):
    steps.answers = {n: {"state": "starting", "run_id": "demo-1", "attempt": 2, "start": 3} for n in range(2)}
    assert "2 of 2 starting" in look(store, steps)[1]


def test_what_cannot_be_looked_at_is_said_and_the_rest_is_shown(store, steps):
    training(store)
    steps.errors["find"] = [CloudError(Kind.PERMISSION, "denied")]
    view, text = look(store, steps)
    assert "could not look: denied" in text and "step 21/75" in text and view.errors
    store.refusal = lambda call, url: CloudError(Kind.UNAVAILABLE, url, "503")
    view, text = look(store, steps)
    assert "503" in text and "ACTIVE" in text and "run       unknown\n" in text


def test_without_a_bucket_the_hosts_are_asked(store, steps):
    here = {"state": "running", "run_id": "demo-1", "step": 5}
    steps.answers = {0: here, 1: {**here, "state": "ended", "code": 13, "message": "lost"}}
    text = look(store, steps, bucket=None)[1]
    assert "1 of 2" in text and "ended 13: lost" in text


def test_the_command_prints_json_with_the_same_facts(store, steps, monkeypatch):
    monkeypatch.setattr(status, "gather", lambda made: overview.gather(made, steps))
    made, parser = context(store), argparse.ArgumentParser()
    status.add(parser)
    assert status.run(made, parser.parse_args(["--json"])) == 0
    assert json.loads(made.__dict__["lines"][0])["run"]["run_id"] == "demo-1"


@pytest.mark.parametrize(
    "seconds, text", [(0, "0 s"), (99, "99 s"), (130, "2 min"), (7500, "2 h 5 min"), (200_000, "2 d 7 h")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_store_whose_clock_cannot_be_asked_leaves_the_workstation_s(store, steps):
    store.refusal = lambda call, url: CloudError(Kind.PERMISSION, url, "403") if call == "write" else None
    store.now = time.time()
    training(store)
    assert "2 of 2 running" in look(store, steps)[1]
