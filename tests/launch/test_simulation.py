"""Whatever happens, a run is not lost, does not run twice, and does not go on after a stop: launch's own code in a
simulated cloud, with events of any kind at any time. Each violation that it has shown is a test of its own."""

import argparse
import contextlib
import functools
import itertools
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from janus_jax.errors import JanusError
from launch.cloud import machines
from launch.commands import down as down_command
from launch.commands import stop as stop_command
from launch.records import Run
from launch.remote import hosts
from launch.runs import start
from launch.watching.watch import Watch
from tests.support.launches import run_record
from tests.support.simulated_cloud import STEPS, World, install
from tests.support.simulated_time import Killed

STOP = "gs://bkt/launch/demo/stop.json"
RUN = "gs://bkt/launch/demo/run.json"
HOURS = 3600.0


class Life:
    """A run that has begun, and what people and fate do."""

    def __init__(self, monkeypatch, *, ours=True):
        self.world = world = World()
        install(world, monkeypatch)
        run = run_record()
        labels = {"janus-launch": "demo", "janus-token": "t0"} if ours else {}
        world.make("demo", labels, ready=True)
        world.store.put(RUN, run.dumps().encode())
        for host in world.hosts.values():
            host.answer("start", {"run": run.to_json()})
        self.faults, self.actors = 0, {}

    @property
    def others(self):
        """Whether machines of this name are not the launch's own."""
        labels = [queued["tpu"]["nodeSpec"][0]["node"]["labels"] for queued in self.world.queued.values()]
        return {} in labels

    def watch(self, station=0, *, cron=False, **options):
        world = self.world

        def often():
            while True:
                with contextlib.suppress(JanusError):
                    Watch(world.context(station), sleep=world.pause).run(once=True)
                world.pause(60.0)
                if world.saved >= STEPS or STOP in world.store.objects:
                    return 0

        if cron:
            return self._spawn(station, "watch", often)

        def work():
            return Watch(world.context(station), sleep=world.pause, **options).run()

        return self._spawn(station, "watch", work)

    def stop(self, station=1):
        arguments = argparse.Namespace(reason="", grace=60)
        return self._spawn(station, "stop", lambda: stop_command.run(self.world.context(station), arguments))

    def down(self, station=1, now=False):
        arguments = argparse.Namespace(adopt=False, grace=60, now=now, force=True)
        return self._spawn(station, "down", lambda: down_command.run(self.world.context(station), arguments))

    def again(self, station=0):
        """As `run`, with the same configuration."""
        world = self.world

        def work():
            context = world.context(station)
            pod = machines.find(context)
            if pod is None or not pod.ready:
                return 16
            with hosts.connect(context, pod) as group:
                start.require_free(group)
                before = start.previous(context)
                last = Run.from_json(before.value)
                new = run_record(run_id=f"demo-{last.attempt + 1}", attempt=last.attempt + 1)
                ready = argparse.Namespace(python="python", cwd=".")
                start.start(context, group, ready, new, address="10.0.0.1", before=before)
            return 0

        return self._spawn(station, "run", work)

    def _spawn(self, station, what, work):
        actor = self.world.spawn(station, what, work)
        self.actors.setdefault(what, []).append(actor)
        return actor

    def newest(self):
        return Run.from_json(json.loads(self.world.store.objects[RUN][0]))

    def happen(self, kind, one):
        world = self.world
        station = world.stations[one]
        self.faults += 1
        watchers = [actor for actor in self.actors.get("watch", ()) if actor.ended_s is None]
        running = world.alive()
        match kind:
            case "others":
                "demo" in world.queued or world.make("demo", {}, ready=True)
            case "preempt" | "preempt softly":
                world.preempt(softly=kind != "preempt")
            case "dead" | "ended":
                running and running[one % len(running)].end(-9 if kind == "dead" else 143)
            case "unreached":
                for host in list(world.hosts.values())[:1]:
                    host.reached = False
                    world.at(600.0, functools.partial(setattr, host, "reached", True))
            case "no capacity":
                world.capacity = False
                world.at(1200.0, lambda: setattr(world, "capacity", True))
            case "no bucket":
                world.bucket_up = False
                world.at(400.0, lambda: setattr(world, "bucket_up", True))
            case "offline":
                station.online = False
                world.at(500.0, lambda: setattr(station, "online", True))
            case "asleep" | "asleep long":
                station.asleep_until = world.now + (100.0 if kind == "asleep" else 5000.0)
            case "answers lost":
                station.loses = 2
            case "watcher killed":
                for actor in watchers[:1]:
                    actor.killed = True
            case "interrupt":
                for actor in watchers[:1]:
                    actor.interrupted = True
            case "watch":
                self.watch(one)
            case "stop":
                self.stop(one)
            case "down":
                self.down(one)
            case "run":
                self.again(one)

    def forbidden(self):
        """Whether a person has ended the run: then the times at which that was done."""
        done = [a for what in ("stop", "down") for a in self.actors.get(what, ()) if a.result in (None, 0)]
        return [actor for actor in done if actor.ended_s is not None]

    def settle(self):
        """The faults have ended; a person starts `watch` where nobody watches; then what must hold is looked at."""
        world = self.world
        world.go(1500)
        for station in world.stations:
            station.loses = 0
        asked = self.actors.get("stop", []) + self.actors.get("down", [])
        world.go(3 * HOURS, lambda: all(a.ended_s is not None for a in asked))
        done = world.go(6 * HOURS, self._idle)
        for _ in range(2):  # a person starts `watch` again where it was interrupted, or gave up
            if done and not asked and (world.saved < STEPS or self.actors["watch"][-1].result != 0):
                world.go(100)
                self.watch(0)
                done = world.go(6 * HOURS, self._idle)
        self.check(done, asked)

    def _idle(self):
        return all(actor.ended_s is not None for actor in self.world.actors)

    def check(self, done, asked):
        world = self.world
        assert not world.trouble
        assert done, "somebody goes on for ever: " + str([a.what for a in world.actors if a.ended_s is None])
        for actor in world.actors:
            assert isinstance(actor.result, int | None | JanusError | KeyboardInterrupt | Killed), repr(actor.result)
        starts = [s for _, s in world.places]
        if "run" not in self.actors:
            assert starts == sorted(set(starts)), world.places
            assert world.places == sorted(world.places)
        advanced = list(dict.fromkeys(world.advanced))
        assert [one for one, _ in itertools.groupby(world.advanced)] == advanced, "two starts advance in turns"
        assert len({host.run["run_id"] for host in world.alive()}) <= 1
        assert world.creations <= 1 + self.faults
        if self.forbidden():
            assert not [host for host in world.alive() if host.run["run_id"] == "demo-1"]
            first_s = min(actor.ended_s for actor in self.forbidden())
            assert not [at_s for at_s, run_id in world.begun if run_id == "demo-1" and at_s > first_s], world.begun
        if [actor for actor in self.forbidden() if actor.what == "down"]:
            assert not world.queued or self.others, world.queued
        if not asked and not self.others:
            assert world.saved == STEPS
            assert "run" in self.actors or 0 in [a.result for a in self.actors["watch"]]


@pytest.fixture
def life(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = Life(monkeypatch)
    yield made
    made.world.close()


def test_a_run_goes_on_after_two_preemptions(life):
    life.watch()
    life.world.go(200)
    life.world.preempt()
    life.world.go(300)
    life.world.preempt(softly=True)
    life.faults = 2
    life.settle()
    assert life.world.creations == 2


def test_a_start_that_was_asleep_during_a_stop_does_nothing_though_it_is_then_killed(life):
    world = life.world
    life.watch()
    world.go(100)
    world.on["before agent start"] = lambda: [life.happen("asleep", 0), life.stop()]
    world.on["after agent start"] = lambda: world.on.update(
        {"before read stop.json": lambda: life.happen("watcher killed", 0)}
    )
    life.happen("dead", 0)
    life.settle()
    assert life.actors["stop"][0].result == 0 and not world.alive()


def test_machines_that_are_being_made_during_a_down_are_not_left_over(life):
    world = life.world
    life.watch()
    world.go(100)
    world.preempt()
    world.go(60)
    life.down()
    life.settle()


def test_a_watcher_that_slept_through_a_down_asks_for_no_machines(life):
    """Not even where it is killed right after, so that it could not delete them."""
    world = life.world

    def asleep():
        world.on["after gcloud compute tpus queued-resources create"] = lambda: life.happen("watcher killed", 0)
        return [life.happen("asleep long", 0), life.down()]

    life.watch()
    world.go(100)
    world.preempt()
    world.queued.clear()
    before_create = {"before gcloud compute tpus tpu-vm list": asleep}
    world.on["after entries watch.json stop.json"] = lambda: world.on.update(before_create)
    life.settle()
    assert life.actors["down"][0].result in (None, 0) and world.creations == 0


def test_a_run_that_begins_during_a_down_does_not_bring_the_machines_back(life):
    life.watch()
    for delay_s, kind in ((0.5, "run"), (3.0, "preempt softly"), (3.0, "down")):
        life.world.go(delay_s)
        life.happen(kind, 0)
    life.settle()


KINDS = [
    "preempt",
    "preempt softly",
    "dead",
    "ended",
    "unreached",
    "no capacity",
    "no bucket",
    "offline",
    "asleep",
    "asleep long",
    "answers lost",
    "watcher killed",
    "interrupt",
    "watch",
    "stop",
    "down",
    "run",
    "others",
]
EVENTS = st.lists(
    st.tuples(st.sampled_from([0.5, 3.0, 20.0, 45.0, 61.0, 100.0, 250.0]), st.sampled_from(KINDS), st.integers(0, 1)),
    min_size=1,
    max_size=8,
)


def live(events, **options):
    with pytest.MonkeyPatch.context() as patch:
        made = Life(patch)
        try:
            made.watch(**options)
            for delay_s, kind, one in events:
                made.world.go(delay_s)
                made.happen(kind, one)
            made.settle()
        except AssertionError as error:
            error.add_note("\n".join([str(events), *made.world.printed]))
            raise
        finally:
            made.world.close()


@settings(max_examples=20, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(EVENTS)
def test_whatever_happens(events):
    live(events)


@settings(max_examples=8, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(EVENTS)
def test_whatever_happens_with_cron(events):
    live(events, cron=True)
