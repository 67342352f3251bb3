"""What goes wrong at an awkward moment, and what is left then. README.md beside this lists all failures."""

import types

import pytest

import launch.context
from launch.__main__ import main
from launch.commands import run as run_command
from launch.context import Context
from launch.errors import HostError
from launch.runs import start
from launch.settings import load
from tests.support.fake_machines import FakeMachines
from tests.support.launch_hosts import Records, ScratchHost, ScratchHosts, a_run, until
from tests.support.launches import SETTINGS, run_record
from tests.support.repository import ROOT
from tests.support.watching import Life, beats, log, preempt, put, watch

READY = types.SimpleNamespace(code="c1", environment="e1", python="~/python", cwd=str(ROOT))
LOST = "worker 1 (demo-0): Connection timed out"


# --- Preempted at an awkward moment


@pytest.mark.parametrize("stage", ["setup", "start"])
def test_preempted_during_a_stage(store, steps, stage):
    put(store, run_record())
    preempt(steps)()
    real, steps.errors[stage] = getattr(steps, stage), [HostError(LOST)]

    def gone(*arguments):
        if steps.errors[stage]:
            preempt(steps)()
        return real(*arguments)

    setattr(steps, stage, gone)
    life = Life(store, *[lambda: None] * 7, lambda: beats(store, "ended", code=0))
    assert watch(store, steps, life)[0].run() == 0
    assert (steps.done.count("create"), steps.done.count("delete")) == (2, 2) and steps.existing.ready
    assert LOST in log(store) and steps.done[-1].startswith("start 2.")


def test_preempted_again_and_again_while_hosts_copy_their_data(store, steps):
    put(store, run_record())
    beats(store, "running")  # no step yet
    again = [preempt(steps), *[lambda: None] * 3]
    life = Life(store, *again, *again, lambda: beats(store, "ended", code=0), every_s=300)
    assert watch(store, steps, life)[0].run() == 0
    assert steps.done == ["delete", "create", "setup", "start 2.2", "delete", "create", "setup", "start 3.3"]


def test_preempted_while_saving_lets_the_save_end(store, steps):
    put(store, run_record())
    beats(store, step=9)

    def leaving():
        steps.existing.state, steps.existing.ready, steps.existing.gone = "SUSPENDING", False, True
        beats(store, step=9)

    def still_saving():
        beats(store, step=9)
        assert steps.done == []

    saved = lambda: beats(store, "ended", code=10, step=10)  # noqa: E731
    life = Life(
        store, leaving, still_saving, still_saving, saved, *[lambda: None] * 3, lambda: beats(store, "ended", code=0)
    )
    assert watch(store, steps, life)[0].run() == 0
    assert steps.done == ["delete", "create", "setup", "start 2.2"]
    assert log(store).index("leaving at step 9") < log(store).index("gone at step 10")


# --- State


def test_a_lost_cache_loses_nothing(store, steps, tmp_path, monkeypatch):
    put(store, run_record())
    preempt(steps)()
    steps.errors["create"] = [HostError("no luck")]
    watch(store, steps)[0].run(once=True)
    first = log(store)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    life = Life(store, *[lambda: None] * 5, lambda: beats(store, "ended", code=0))
    assert watch(store, steps, life)[0].run() == 0
    assert log(store).startswith(first) and "create failed: no luck" in first
    assert steps.done == ["delete", "create", "create", "setup", "start 2.2"]


# --- Ctrl-C, and connections


@pytest.fixture
def hosts(tmp_path):
    made = ScratchHosts([ScratchHost(tmp_path / f"host{number}", number) for number in range(2)])
    yield made
    for host in made.hosts:
        host.close()


@pytest.fixture
def context():
    printed: list[str] = []
    made = Context(load("/dev/null", SETTINGS), say=printed.append)
    made.__dict__ |= {"records": Records("gs://bkt/launch/demo"), "printed": printed, "warn": printed.append}
    return made


@pytest.mark.parametrize("stage", ["prepare", "start"])
def test_ctrl_c_while_a_run_starts_leaves_none(context, hosts, monkeypatch, stage):
    real = hosts.agent

    def cut_off(name, message=None, **options):
        if name != stage:
            return real(name, message, **options)
        real(name, message, only=hosts.hosts[:1])  # one host has done it when Ctrl-C comes
        raise KeyboardInterrupt

    monkeypatch.setattr(hosts, "agent", cut_off)
    with pytest.raises(KeyboardInterrupt):
        start.start(context, hosts, READY, a_run("runs"), address="h")
    assert [host.agent("state")["state"] in start.ALIVE for host in hosts.hosts] == [False, False]
    if stage == "prepare":
        assert context.records.read("run.json") is None


def test_a_connection_that_is_lost_mid_run_is_taken_up_again(context, hosts, monkeypatch):
    run = a_run("runs")
    start.start(context, hosts, READY, run, address="h")
    until(lambda: "ready" in hosts.hosts[0].agent("tail", {"lines": 5})["text"])
    hosts.down, slept = {0, 1}, []

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 3:
            hosts.down = set()
            start.end(context, hosts, run.run_id)

    monkeypatch.setattr(run_command, "time", types.SimpleNamespace(sleep=sleep, monotonic=lambda: 0.0))
    assert run_command._follow(context, hosts, run) == 10
    assert len(slept) == 3 and any("ready" in line for line in context.printed)


def test_ctrl_c_while_machines_are_deleted_can_be_made_good(monkeypatch, capsys):
    fake = FakeMachines()
    fake.keep_time(monkeypatch)
    monkeypatch.setattr(
        launch.context,
        "Context",
        lambda settings, dry_run: Context(settings, dry_run, say=fake.lines.append, runner=fake.run),
    )
    words = ["--name=janus", "--project=p", "--zone=us-central2-b", "--type=v4-16", "--settings=/dev/null"]
    assert main(["up", *words]) == 0
    fake.on = {"delete": fake.interrupt}
    assert main(["down", *words]) == 130
    fake.on.clear()
    assert main(["down", *words]) == 0
    assert (fake.queued, fake.nodes) == ({}, {})
