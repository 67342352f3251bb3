"""How watching ends, is handed over and is called, with a bucket in memory."""

import argparse
import dataclasses
import json

import pytest

from janus_jax.errors import HeldError
from launch.commands import watch as command
from launch.context import Context
from launch.errors import CloudError, Kind
from launch.records import STALE_S
from launch.watching import watch as logic
from launch.watching.lease import Lease, LostLease
from launch.watching.watch import next_run
from tests.support.launches import SETTINGS, FakeBucket, context, run_record
from tests.support.watching import Life, beats, log, preempt, put, watch


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

    def long(notify, **options):
        made = create(notify, **options)
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
    assert (steps.existing is None) == deleted


def test_a_deletion_at_the_end_that_is_refused_for_a_while_is_tried_again(store, steps):
    put(store, run_record())
    beats(store, "ended", code=0)
    steps.errors["delete"] = [CloudError(Kind.UNAVAILABLE, "503")]
    assert watch(store, steps, Life(store), down_at_end=True)[0].run() == 0
    assert steps.existing is None


@pytest.mark.parametrize("flags, deleted", [({"down_at_end": True}, False), ({"down_at_give_up": True}, True)])
def test_the_machines_stay_at_give_up_unless_asked(store, steps, flags, deleted):
    put(store, run_record())
    beats(store, "ended", code=3, message="does not fit")
    assert watch(store, steps, Life(store), **flags)[0].run() == 3
    assert (steps.existing is None) == deleted
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
    steps.existing.created = "1970-01-12T12:46:40Z"  # an hour before the store's clock
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


def test_ctrl_c_before_the_first_look_gives_the_lease_back(store, steps, monkeypatch):
    put(store, run_record())
    watcher, _ = watch(store, steps)

    def interrupt(*_):
        raise KeyboardInterrupt(2)

    monkeypatch.setattr("launch.watching.watch.Memory.from_json", interrupt)  # right after the lease is taken
    with pytest.raises(KeyboardInterrupt):
        watcher.run()
    Lease(FakeBucket("gs://bkt/launch/demo", store), "bob@there").take()
