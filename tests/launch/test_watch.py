"""What `watch` does to keep a run going, with a bucket in memory and machines that do what the test says."""

import pytest

from launch.errors import CloudError, HostError, Kind
from launch.records import STALE_S, Stop
from tests.support.launches import run_record
from tests.support.watching import Life, beats, log, now, preempt, put, restarted, watch


def test_a_run_that_is_preempted_twice_goes_on_and_ends(store, steps):
    put(store, run_record())
    beats(store, step=3)
    life = Life(
        store,
        lambda: beats(store, step=5),
        preempt(steps),  # seconds after a save: the heartbeats are fresh
        lambda: beats(store, step=8),
        lambda: [beats(store, "ended", code=10, step=9), preempt(steps)()],
        lambda: beats(store, step=12),
        lambda: beats(store, "ended", code=0, step=20),
    )
    watcher, made = watch(store, steps, life)
    assert watcher.run() == 0
    again = ["delete", "create", "setup"]
    assert steps.done == [*again, "start 2.2", *again, "start 3.3"]
    assert now(store).owner == "owner"
    text = log(store)
    assert "SUSPENDED" in text and "attempt 3" in text and "done" in text
    assert [line for line in made.lines if "$12.50" in line and "down" in line]  # type: ignore[attr-defined]


def test_the_log_is_one_that_a_person_can_read_also_after_another_watcher(store, steps, tmp_path):
    put(store, run_record())
    beats(store)
    watch(store, steps)[0].run(once=True)
    first = log(store)
    assert "running" in first
    beats(store, "ended", code=0)
    watch(store, steps)[0].run()
    assert log(store).startswith(first) and "done" in log(store)
    local = (tmp_path / "janus-launch" / "demo" / "watch.log").read_text()
    assert local == log(store)


def test_a_stop_record_ends_watching_before_anything_is_done(store, steps):
    put(store, run_record())
    preempt(steps)()
    store.put("gs://bkt/launch/demo/stop.json", Stop("demo-1", "bob@there", 1.0).dumps().encode())
    assert watch(store, steps)[0].run() == 0 and steps.done == []
    assert "bob@there" in log(store)


@pytest.mark.parametrize("answers", [True, False])
def test_a_run_that_goes_on_although_it_was_stopped_is_ended(store, steps, answers):
    put(store, run_record())
    beats(store)
    store.put("gs://bkt/launch/demo/stop.json", Stop("demo-1", "bob@there", 1.0).dumps().encode())
    steps.errors["end"] = [] if answers else [HostError("worker 1 (demo-0): lost")]
    assert watch(store, steps)[0].run() == (0 if answers else 17)
    assert steps.ended == ["demo-1"] * answers and "goes on on 2 of 2 hosts" in log(store)
    assert answers or "lost" in log(store)
    steps.ended.clear()
    beats(store, "ended", code=10)
    assert watch(store, steps)[0].run() == 0 and steps.ended == []


def test_a_stop_record_of_another_run_does_not_count(store, steps):
    put(store, run_record())
    beats(store, "ended", code=0)
    store.put("gs://bkt/launch/demo/stop.json", Stop("demo-0", "bob@there", 1.0).dumps().encode())
    watch(store, steps)[0].run()
    assert "done" in log(store)


@pytest.mark.parametrize("step", ["delete", "create", "setup"])
def test_a_stop_during_a_step_ends_watching_before_the_run_starts(store, steps, step):
    put(store, run_record())
    preempt(steps)()
    stop = Stop("demo-1", "bob@there", 1.0).dumps().encode()
    act = getattr(steps, step)

    def stopping(*arguments, **options):
        store.put("gs://bkt/launch/demo/stop.json", stop)
        return act(*arguments, **options)

    setattr(steps, step, stopping)
    assert watch(store, steps, Life(store))[0].run() == 0
    assert not [what for what in steps.done if what.startswith("start")]


def test_no_capacity_at_re_creation_is_tried_again_with_pauses(store, steps):
    put(store, run_record())
    preempt(steps)()
    steps.errors["create"] = [CloudError(Kind.STOCK_OUT, "no capacity: v4") for _ in range(5)]
    life = Life(store)
    started = steps.start

    def start(*arguments):
        started(*arguments)
        beats(store, "ended", code=0)

    steps.start = start
    assert watch(store, steps, life)[0].run() == 0
    assert steps.done.count("create") == 6 and steps.done.count("delete") == 1
    assert life.looks > 10  # the pauses


@pytest.mark.parametrize("kind", [Kind.QUOTA, Kind.PERMISSION])
def test_what_a_person_must_mend_is_not_tried_again(store, steps, kind):
    put(store, run_record())
    preempt(steps)()
    steps.errors["create"] = [CloudError(kind, "denied: look at TPUV4sPerProject")]
    watcher, _ = watch(store, steps, Life(store))
    assert watcher.run() == 16
    assert steps.done.count("create") == 1
    assert "gives up" in log(store) and "TPUV4sPerProject" in log(store)
    assert watch(store, steps)[0].run(once=True) == 16 and steps.done.count("create") == 1  # cron asks again
    watch(store, steps, Life(store, *restarted(store)))[0].run()
    assert steps.done.count("create") == 2  # a person does


def test_no_capacity_for_ever_ends_after_a_bound(store, steps):
    put(store, run_record())
    preempt(steps)()
    steps.errors["create"] = [CloudError(Kind.STOCK_OUT, "no capacity: v4") for _ in range(500)]
    assert watch(store, steps, Life(store, every_s=2000))[0].run() == 16
    assert steps.done.count("create") == 24


def test_a_cloud_that_does_not_answer_ends_after_a_bound_and_harms_nothing(store, steps):
    put(store, run_record())
    steps.errors["find"] = [CloudError(Kind.UNAVAILABLE, "503") for _ in range(500)]
    life = Life(store)
    assert watch(store, steps, life)[0].run() == 16
    assert steps.done == [] and 20 < life.looks < 40


def test_a_bucket_that_does_not_answer_for_a_while_is_no_reason_to_act(store, steps):
    put(store, run_record())
    beats(store)
    watcher, _ = watch(
        store,
        steps,
        Life(
            store,
            lambda: setattr(store, "refusal", lambda call, url: CloudError(Kind.UNAVAILABLE, url, "503")),
            lambda: None,
            lambda: [setattr(store, "refusal", lambda call, url: None), beats(store, "ended", code=0)],
        ),
    )
    assert watcher.run() == 0 and steps.done == []


def test_set_up_that_fails_on_one_host_is_tried_here_then_on_new_machines_then_ends(store, steps):
    put(store, run_record())
    beats(store, "ended", code=13)
    steps.errors["setup"] = [HostError("worker 1 (demo-0): disk full") for _ in range(100)]
    assert watch(store, steps, Life(store, every_s=1000))[0].run() != 0
    assert steps.done.count("setup") == 8 and steps.done.count("create") >= 1
    assert "worker 1" in log(store) and "8 starts brought no newer step" in log(store)
    assert "start" not in " ".join(steps.done)


def test_preempted_during_set_up_makes_other_machines(store, steps):
    put(store, run_record())
    preempt(steps)()
    setup, calls = steps.setup, []

    def preempted(*arguments):
        calls.append(1)
        if len(calls) == 1:
            preempt(steps)()
            raise CloudError(Kind.NOT_FOUND, "not found: demo-0")
        return setup(*arguments)

    steps.setup = preempted
    life = Life(store, *[lambda: None] * 7, lambda: beats(store, "ended", code=0))
    assert watch(store, steps, life)[0].run() == 0
    assert steps.done == ["delete", "create", "delete", "create", "setup", "start 2.2"]


def test_a_dead_supervisor_is_started_again_on_the_same_machines(store, steps):
    put(store, run_record())
    beats(store)
    store.now += STALE_S + 1
    steps.existing.created = "1970-01-01T00:00:00Z"
    steps.answers = {n: {"state": "dead", "run_id": "demo-1", "attempt": 1, "start": 1} for n in range(2)}
    watch(store, steps, Life(store, *restarted(store)))[0].run()
    assert steps.done == ["setup", "start 1.2"]


def test_hosts_without_a_run_on_machines_that_another_made_count_as_a_new_attempt(store, steps):
    put(store, run_record())
    beats(store)
    store.now += STALE_S + 1  # the machines of `steps` are younger than the newest heartbeat
    steps.answers = {n: {"state": "none"} for n in range(2)}
    watch(store, steps, Life(store, *restarted(store)))[0].run()
    assert steps.done == ["setup", "start 2.2"]


def test_the_state_of_an_earlier_start_on_a_host_does_not_count(store, steps):
    put(store, run_record(start=2))
    steps.existing.created = "1970-01-01T00:00:00Z"
    steps.answers = {n: {"state": "ended", "code": 12, "run_id": "demo-1", "attempt": 1, "start": 1} for n in range(2)}
    watch(store, steps, Life(store, *restarted(store)))[0].run()
    assert steps.done[-1].startswith("start")


@pytest.mark.parametrize("answer", ["running", "unreachable"])
def test_a_live_slice_is_not_touched_when_no_heartbeat_comes(store, steps, answer):
    put(store, run_record())
    beats(store)
    here = {"run_id": "demo-1", "attempt": 1, "start": 1}
    steps.answers = {n: {"state": answer, **here} for n in range(2)}
    life = Life(store, *[lambda: None] * 20, lambda: beats(store, "ended", code=0))
    assert watch(store, steps, life)[0].run() == 0
    assert steps.done == []
