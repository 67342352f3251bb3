"""The loop of `watch`, with a bucket in memory and machines that do what the test says."""

import argparse
import dataclasses
import json

import pytest

from janus_jax.errors import HeldError
from launch import watch as logic
from launch.commands import watch as command
from launch.context import Context
from launch.errors import CloudError, HostError, Kind
from launch.lease import Lease, LostLease
from launch.records import STALE_S, Run, Stop
from launch.watch import Watch, next_run
from tests.support.launches import SETTINGS, FakeBucket, FakeSteps, Store, beat, context, run_record

RUN = "gs://bkt/launch/demo/run.json"


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def steps(store) -> FakeSteps:
    steps = FakeSteps(store)
    steps.machines()
    return steps


class Life:
    """What happens between looks: one function after the other, then nothing. Time passes with each."""

    def __init__(self, store, *events, every_s=20.0):
        self.store, self.events, self.every_s, self.looks = store, list(events), every_s, 0

    def __call__(self, seconds):
        self.looks += 1
        assert self.looks < 200, "it never ends"
        self.store.now += max(self.every_s, seconds)
        if self.events:
            self.events.pop(0)()


def put(store, run):
    store.put(RUN, run.dumps().encode())
    return run


def now(store) -> Run:
    return Run.from_json(json.loads(store.objects[RUN][0]))


def beats(store, state="running", **values):
    for worker in range(2):
        beat(store, now(store), worker, state, **values)


def watch(store, steps, life=lambda seconds: None, **values):
    made = context(store)
    watcher = Watch(made, steps=steps, sleep=life, **values)
    return watcher, made


def preempt(steps):
    def event():
        steps.there.state, steps.there.ready, steps.there.gone = "SUSPENDED", False, True

    return event


def restarted(store):
    """Nothing while watch waits a moment; then the run that it starts ends."""
    return [*[lambda: None] * 3, lambda: beats(store, "ended", code=0)]


def log(store, run_id="demo-1") -> str:
    return store.objects[f"gs://bkt/launch/demo/{run_id}/watch.log"][0].decode()


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

    def stopping(*arguments):
        store.put("gs://bkt/launch/demo/stop.json", stop)
        return act(*arguments)

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
    steps.there.created = "1970-01-01T00:00:00Z"
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
    steps.there.created = "1970-01-01T00:00:00Z"
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


def test_once_looks_once_and_acts_once(store, steps):
    put(store, run_record())
    preempt(steps)()
    assert watch(store, steps)[0].run(once=True) == 0
    assert steps.done == ["delete", "create", "setup", "start 2.2"]
    assert watch(store, steps)[0].run(once=True) == 0 and len(steps.done) == 4  # the lease was given back
    beats(store, "ended", code=12, message="loss is nan")
    assert watch(store, steps)[0].run(once=True) == 12


def test_counters_outlive_the_watcher(store, steps):
    put(store, run_record())
    codes = []
    for _ in range(40):
        beats(store, "ended", code=13, step=4)
        codes.append(watch(store, steps)[0].run(once=True))
        store.now += 1000
        if codes[-1]:
            break
    assert codes[-1] == 13 and len([what for what in steps.done if what.startswith("start")]) == 8


def test_a_second_watcher_is_refused_and_the_first_stops_when_it_was_asleep(store, steps):
    put(store, run_record())
    beats(store)

    def refused():
        with pytest.raises(HeldError, match="@"):
            watch(store, steps)[0].run(once=True)

    def asleep():
        store.now += STALE_S + 1
        preempt(steps)()
        Lease(FakeBucket("gs://bkt/launch/demo", store), "bob@there").take()

    with pytest.raises(LostLease, match="bob@there"):
        watch(store, steps, Life(store, refused, asleep))[0].run()
    assert steps.done == []


def test_a_watcher_that_lost_its_lease_in_a_long_step_does_not_go_on(store, steps):
    put(store, run_record())
    preempt(steps)()
    create = steps.create

    def long(notify):
        made = create(notify)
        store.now += STALE_S + 1
        Lease(FakeBucket("gs://bkt/launch/demo", store), "bob@there").take()
        return made

    steps.create = long
    with pytest.raises(LostLease, match="bob@there"):
        watch(store, steps)[0].run()
    assert steps.done == ["delete", "create"]


def test_a_new_run_on_the_slice_is_watched_from_then_on(store, steps):
    put(store, run_record())
    beats(store, "ended", code=13)
    other = run_record(run_id="demo-2")
    life = Life(store, lambda: [put(store, other), beats(store, "ended", code=0)])
    assert watch(store, steps, life)[0].run() == 0
    assert steps.done == [] and "demo-2" in log(store, "demo-2")


@pytest.mark.parametrize("flags, code, deleted", [({}, 0, False), ({"down_at_end": True}, 0, True)])
def test_the_machines_stay_at_the_end_unless_asked(store, steps, flags, code, deleted):
    put(store, run_record())
    beats(store, "ended", code=0)
    assert watch(store, steps, Life(store), **flags)[0].run() == code
    assert (steps.there is None) == deleted


def test_a_deletion_at_the_end_that_is_refused_for_a_while_is_tried_again(store, steps):
    put(store, run_record())
    beats(store, "ended", code=0)
    steps.errors["delete"] = [CloudError(Kind.UNAVAILABLE, "503")]
    assert watch(store, steps, Life(store), down_at_end=True)[0].run() == 0
    assert steps.there is None


@pytest.mark.parametrize("flags, deleted", [({"down_at_end": True}, False), ({"down_at_give_up": True}, True)])
def test_the_machines_stay_at_give_up_unless_asked(store, steps, flags, deleted):
    put(store, run_record())
    beats(store, "ended", code=3, message="does not fit")
    assert watch(store, steps, Life(store), **flags)[0].run() == 3
    assert (steps.there is None) == deleted
    assert "does not fit" in log(store)


def test_without_a_run_there_is_nothing_to_watch(store, steps):
    watcher, made = watch(store, steps)
    assert watcher.run() == 2
    assert "no run" in "".join(made.lines)  # type: ignore[attr-defined]


def test_ctrl_c_gives_the_lease_back_and_leaves_the_run_alone(store, steps):
    put(store, run_record())
    beats(store)

    def interrupt(seconds):
        raise KeyboardInterrupt(2)

    with pytest.raises(KeyboardInterrupt):
        watch(store, steps, interrupt)[0].run()
    assert steps.done == [] and Lease(FakeBucket("gs://bkt/launch/demo", store), "bob").take() is not None


def test_earlier_machines_are_paid_for_too(store, steps):
    put(store, run_record())
    preempt(steps)()
    steps.there.created = "1970-01-12T12:46:40Z"  # an hour before the store's clock
    watch(store, steps)[0].run(once=True)
    memory = json.loads(store.objects["gs://bkt/launch/demo/watch.json"][0])["memory"]
    assert memory["earlier_s"] == pytest.approx(3600)


def test_the_next_start_keeps_what_the_run_is():
    run = run_record()
    assert next_run(run, new=True) == dataclasses.replace(run, attempt=2, start=2)
    assert next_run(run, new=False) == dataclasses.replace(run, attempt=1, start=2)


def test_the_command_makes_the_machines_of_the_run_s_own_settings(store, steps, monkeypatch):
    run = run_record(settings={**SETTINGS, "zone": "europe-west4-b", "unknown": 1, "ssh_key": "~/other"})
    put(store, run)
    beats(store, "ended", code=0)
    made, notes = context(store), []
    made.__dict__["warn"] = notes.append
    used = []
    monkeypatch.setattr(logic, "Steps", lambda context: used.append(context.settings) or steps)
    monkeypatch.setattr(Context, "bucket", property(lambda self: FakeBucket("gs://bkt", store)))
    parser = argparse.ArgumentParser()
    command.add(parser)
    assert command.run(made, parser.parse_args(["--once"])) == 0
    assert (used[0].zone, used[0].ssh_key) == ("europe-west4-b", "~/.ssh/google_compute_engine")
    with pytest.raises(SystemExit):
        parser.parse_args(["--poll", "0"])


def test_a_dry_run_says_what_it_would_do_and_does_nothing(store, steps, monkeypatch):
    put(store, run_record())
    preempt(steps)()
    made = context(store)
    made.dry_run = True
    monkeypatch.setattr(logic, "Steps", lambda context: steps)
    before = dict(store.objects)
    parser = argparse.ArgumentParser()
    command.add(parser)
    assert command.run(made, parser.parse_args([])) == 0
    assert "SUSPENDED" in made.lines[0] and "create" in made.lines[0]  # type: ignore[attr-defined]
    assert store.objects == before and steps.done == []


def test_a_run_that_another_workstation_is_about_to_start_is_left_to_it(store, steps):
    put(store, run_record())  # the record is there some seconds before the hosts run it
    steps.answers = {n: {"state": "none"} for n in range(2)}
    life = Life(store, lambda: beats(store), lambda: beats(store, "ended", code=0))
    assert watch(store, steps, life)[0].run() == 0
    assert steps.done == []
