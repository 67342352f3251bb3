"""Records of a launch as one look reads them."""

import argparse

from launch.cloud import machines
from launch.commands import stop
from launch.records import Stop
from launch.runs.snapshot import Reader
from tests.support.launches import SETTINGS, FakeBucket, Store, context, run_record

FOLDER = "gs://bkt/launch/demo"


def test_a_record_goes_with_its_own_generation():
    """Not with that of a newer one, which somebody writes between the two lists of the first look."""
    store, lists = Store(), []
    store.put(f"{FOLDER}/run.json", run_record().dumps().encode())
    store.put(f"{FOLDER}/stop.json", Stop("", "ann", 0.0).dumps().encode())

    def meanwhile(call, url):
        lists.append(call)
        if lists.count("entries") == 2 and call == "entries":
            store.put(f"{FOLDER}/run.json", run_record(run_id="demo-2").dumps().encode())
            store.put(f"{FOLDER}/stop.json", Stop("demo-1", "ann", 0.0).dumps().encode())

    store.refusal = meanwhile
    seen = Reader(FakeBucket(FOLDER, store)).read()  # type: ignore[arg-type]
    assert (seen.run.run_id, seen.stored.generation) == ("demo-1", 1)
    assert (seen.stopped, seen.stop_generation) == (None, 1)


def test_stop_looks_where_the_run_was_started(monkeypatch):
    """Settings of another workstation may name another zone, in which there are no such machines."""
    store, zones = Store(), []
    run = run_record(settings={**SETTINGS, "zone": "us-east1-d"})
    store.put(f"{FOLDER}/run.json", run.dumps().encode())
    monkeypatch.setattr(machines, "find", lambda context: zones.append(context.settings.zone))
    stop.run(context(store), argparse.Namespace(reason="", grace=1.0))
    assert zones == ["us-east1-d"] and f"{FOLDER}/stop.json" in store.objects
