"""`down` with a run on the machines, and stop records that come while a start is on its way."""

import argparse
import json

import pytest

from janus_jax.errors import HeldError
from launch.commands import down, up
from launch.context import Context
from launch.errors import CloudError, Kind
from launch.records import Heartbeat
from launch.remote import hosts as remote
from launch.remote.environment import Ready
from launch.remote.ship import Code
from launch.runs import start
from tests.support.fake_machines import FakeMachines
from tests.support.launch_hosts import ScratchHost, ScratchHosts, a_run, until
from tests.support.launches import FakeBucket, Store
from tests.support.repository import ROOT

STOP = "gs://bkt/launch/janus/stop.json"
READY = Ready("code", "env", "~/python", str(ROOT), Code({}))


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def cloud(monkeypatch):
    fake = FakeMachines()
    fake.keep_time(monkeypatch)
    return fake


@pytest.fixture
def context(cloud, store, monkeypatch):
    made = cloud.context(bucket="gs://bkt")
    made.__dict__["records"] = FakeBucket("gs://bkt/launch/janus", store)
    monkeypatch.setattr(made, "warn", cloud.lines.append)
    monkeypatch.setattr(Context, "me", "me")
    return made


@pytest.fixture
def hosts(tmp_path, monkeypatch):
    made = ScratchHosts([ScratchHost(tmp_path / f"host{number}", number) for number in range(2)])
    monkeypatch.setattr(remote, "connect", lambda context, machines: made)
    yield made
    for host in made.hosts:
        host.close()


def command(module, context, *words):
    parser = argparse.ArgumentParser()
    module.add(parser)
    return module.run(context, parser.parse_args(words))


def stop(context):
    stored = context.records.read("stop.json")
    return None if stored is None else stored.value


def started(context, hosts, mode="runs"):
    start.start(context, hosts, READY, a_run(mode), address="10.0.0.2")
    for host in hosts.hosts if mode == "runs" else ():
        until(lambda host=host: "ready" in host.agent("tail", {"lines": 5})["text"])


def test_down_ends_a_run_so_that_it_saves_and_nobody_makes_its_machines_again(context, cloud, hosts):
    command(up, context)
    started(context, hosts)
    cloud.on["delete"] = lambda: recorded.append((stop(context), [h.agent("state")["code"] for h in hosts.hosts]))
    recorded = []
    command(down, context)
    record, codes = recorded[0]
    assert (record["run_id"], record["down"], codes) == ("demo-1", True, [10, 10])
    wording = "\n".join(cloud.lines)
    assert "run demo-1: nobody starts it or makes its machines again, until `up` or `run`" in wording
    assert "run demo-1: ending it first" in wording and "step 1234 is saved" in wording
    assert cloud.queued == {} and cloud.lines[-1] == "janus: deleted"
    assert context.records.read("spent.json").value["run_id"] == "demo-1"
    command(up, context)
    assert stop(context)["run_id"] == "" and any("watch` resumes it" in line for line in cloud.lines)


def test_down_at_once_asks_no_host(context, cloud, hosts):
    command(up, context)
    context.records.write("run.json", a_run().to_json())
    command(down, context, "--now")
    assert hosts.calls == [] and cloud.queued == {} and stop(context)["run_id"] == "demo-1"


def test_down_deletes_machines_whose_hosts_are_lost(context, cloud, hosts):
    command(up, context)
    context.records.write("run.json", a_run().to_json())
    hosts.down = {0, 1}
    command(down, context)
    assert cloud.queued == {} and any("2 hosts cannot be reached (Connection timed out)" in x for x in cloud.lines)


def test_down_without_machines_still_keeps_watchers_from_making_them(context, cloud, hosts):
    context.records.write("run.json", a_run().to_json())
    command(down, context)
    assert stop(context)["run_id"] == "demo-1" and cloud.lines[-1] == "janus: nothing to delete"


def test_down_without_its_record_deletes_nothing_unless_it_has_to(context, cloud, hosts, store):
    command(up, context)
    store.refusal = lambda call, url: CloudError(Kind.UNAVAILABLE, "503")
    with pytest.raises(CloudError, match="--now deletes the machines all the same"):
        command(down, context)
    assert list(cloud.queued) == ["janus"]
    command(down, context, "--now")
    assert cloud.queued == {} and any("a watcher may make the machines again" in line for line in cloud.lines)


def test_down_refuses_a_run_of_somebody_else_that_goes_on(context, cloud, hosts, store):
    command(up, context)
    run = a_run(by="ann@laptop")
    context.records.write("run.json", run.to_json())
    with pytest.raises(HeldError, match="run demo-1 of ann@laptop is alive: it has just been started; you are me;"):
        command(down, context, "--now")
    store.now += 1000
    beat = Heartbeat("demo-1", 1, 1, 0, "h", "running", 0.0)
    store.put("gs://bkt/launch/janus/demo-1/heartbeats/1/00", beat.dumps().encode())
    with pytest.raises(
        HeldError, match=r"1 host of it sent a heartbeat in the last 90 s; .* --force; if janus is their"
    ):
        command(down, context)
    assert stop(context) is None and list(cloud.queued) == ["janus"]
    command(down, context, "--force")
    assert cloud.queued == {} and "run demo-1 is of ann@laptop" in cloud.lines


def test_down_takes_the_machines_of_a_run_of_somebody_else_that_is_over(context, cloud, hosts, store):
    command(up, context)
    context.records.write("run.json", a_run(by="ann@laptop").to_json())
    beat = Heartbeat("demo-1", 1, 1, 0, "h", "ended", 0.0, code=0)
    store.put("gs://bkt/launch/janus/demo-1/heartbeats/1/00", beat.dumps().encode())
    command(down, context)
    assert cloud.queued == {}


def test_a_run_that_goes_on_in_another_zone_is_not_replaced(context, store):
    elsewhere = {**context.settings.model_dump(mode="json"), "zone": "europe-west4-b"}
    context.records.write("run.json", a_run(by="ann@laptop", settings=elsewhere).to_json())
    words = ["janus", "doctor"]
    text = "run demo-1 of ann@laptop goes on in europe-west4-b of p: it has just been started; end it there"
    with pytest.raises(HeldError, match=text):
        start.prepare(context, words, workers=2, ready=READY)
    store.now += 1000
    assert start.prepare(context, words, workers=2, ready=READY).attempt == 1


def test_down_and_up_leave_the_record_of_stop(context, cloud, hosts):
    command(up, context)
    context.records.write("run.json", a_run().to_json())
    context.records.write("stop.json", {"run_id": "demo-1", "by": "me", "at_s": 0.0})
    command(down, context)
    command(up, context)
    assert (stop(context)["run_id"], stop(context)["by"]) == ("demo-1", "me")


def test_a_dry_run_of_down_shows_what_would_change(context, cloud, hosts, monkeypatch):
    command(up, context)
    context.records.write("run.json", a_run().to_json())
    context.dry_run = context.gcloud.dry_run = True
    monkeypatch.setattr(hosts, "_ask", lambda name, message, only=None: [])
    command(down, context)
    assert hosts.calls == ["stop"] and list(cloud.queued) == ["janus"]
    assert "queued-resources delete janus" in cloud.lines[-1]


@pytest.mark.parametrize("first", [True, False])
def test_a_stop_that_comes_while_a_run_starts_ends_it(context, hosts, first, monkeypatch):
    run = a_run("runs")
    if not first:
        context.records.write("run.json", run.to_json())
        run = start.next_start(run)
    agent = hosts.agent

    def stopping(name, *arguments, **more):
        if name == "start":
            context.records.write("stop.json", {"run_id": "demo-1", "by": "bob", "at_s": 0.0})
        return agent(name, *arguments, **more)

    monkeypatch.setattr(hosts, "agent", stopping)
    with pytest.raises(HeldError, match="run demo-1 was stopped by bob while it started, and is ended"):
        start.start(context, hosts, READY, run, address="10.0.0.2")
    assert [host.agent("state")["state"] for host in hosts.hosts] == ["ended", "ended"]
    assert stop(context)["run_id"] == "demo-1"


def test_a_new_run_writes_no_stop_record_that_could_replace_one(context, cloud, hosts, store):
    old = {"run_id": "demo-0", "by": "bob", "at_s": 0.0, "down": True}
    context.records.write("stop.json", old)
    command(up, context)  # its machines are there again, but that run is not the newest any more
    started(context, hosts, "quick")
    command(up, context)
    assert stop(context) == old and not any("resumes it" in line for line in cloud.lines)
    assert store.calls.count("write stop.json") == 1


@pytest.mark.parametrize("module", [down, up])
def test_down_and_up_do_not_replace_a_stop_that_comes_now(context, cloud, hosts, store, module):
    command(up, context)
    context.records.write("run.json", a_run().to_json())
    context.records.write("stop.json", {"run_id": "demo-1" if module is up else "demo-0", "down": True})
    asked = {"run_id": "demo-1", "by": "bob", "at_s": 0.0}

    def stopping(call, url):
        if (call, url) == ("write", STOP):
            store.refusal = lambda call, url: None
            context.records.write("stop.json", asked)

    store.refusal = stopping
    command(module, context)
    assert stop(context) == asked


def test_a_bucket_that_is_not_there_is_refused_with_the_remedy(context, store):
    store.refusal = lambda call, url: CloudError(Kind.NOT_FOUND, url, "404")
    with pytest.raises(CloudError, match=r"^gs://bkt: no such bucket; .* create gs://bkt --location=us-") as got:
        start.require_bucket(context)
    assert got.value.kind is Kind.NOT_FOUND
    store.refusal = lambda call, url: CloudError(Kind.PERMISSION, url, "403")
    with pytest.raises(CloudError, match="403"):
        start.require_bucket(context)


def test_every_host_runs_in_its_own_home(context, hosts):
    for host in hosts.hosts:
        (host.home / "janus/code").mkdir(parents=True)
        (host.home / "janus/code/c1").symlink_to(ROOT)
    ready = Ready("c1", "env", "~/python", "~/janus/code/c1", Code({}))
    start.start(context, hosts, ready, a_run(), address="10.0.0.2")
    for host in hosts.hosts:
        host.wait("ended")
        spec = json.loads((host.home / "janus/run/spec.json").read_text())
        assert (spec["python"], spec["cwd"]) == (str(host.python), f"{host.home}/janus/code/c1")
        assert host.agent("state")["code"] == 0
