"""A watcher in memory, and what happens between its looks."""

import json

from launch.records import Run
from launch.watching.watch import Watch
from tests.support.launches import beat, context

RUN = "gs://bkt/launch/demo/run.json"


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
        steps.existing.state, steps.existing.ready, steps.existing.gone = "SUSPENDED", False, True

    return event


def restarted(store):
    """Nothing while watch waits a moment; then the run that it starts ends."""
    return [*[lambda: None] * 3, lambda: beats(store, "ended", code=0)]


def log(store, run_id="demo-1") -> str:
    return store.objects[f"gs://bkt/launch/demo/{run_id}/watch.log"][0].decode()
