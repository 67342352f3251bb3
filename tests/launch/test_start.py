"""A run starts on all hosts together, or on none."""

import pytest

from janus_jax.errors import ConfigError, HeldError
from launch.commands import run as run_command
from launch.errors import HostError
from launch.runs import resume, start
from tests.support.launch_hosts import Records, a_run, until
from tests.support.started import Machines, Ready, Worker, arguments, stand_for_cloud


@pytest.fixture
def ready():
    return Ready(python="~/python")


@pytest.fixture
def cloud(monkeypatch, hosts):
    return stand_for_cloud(monkeypatch, hosts)


def test_all_hosts_start_together_and_end_together(context, hosts, ready):
    run = a_run("runs")
    start.start(context, hosts, ready, run, address="10.0.0.2")
    start.start(context, hosts, ready, run, address="10.0.0.2")  # once more, as after a lost connection
    assert context.records.read("run.json").value == run.to_json()
    assert hosts.calls[:3] == ["state", "prepare", "start"]
    with pytest.raises(HeldError, match="run demo-1 is running on this slice"):
        start.start(context, hosts, ready, a_run(run_id="demo-2"), address="10.0.0.2")
    for host in hosts.hosts:
        until(lambda host=host: "ready" in host.agent("tail", {"lines": 5})["text"])
        assert (
            f'"10.0.0.2:8476", "--num-processes", "2", "--process-id", "{host.number}"'
            in host.agent("tail", {"lines": 50})["text"]
        )
    assert [state["code"] for state in start.end(context, hosts, "demo-1")] == [10, 10]


def test_no_half_run_is_left(context, hosts, ready, monkeypatch):
    real = hosts.hosts[1].agent
    fails = lambda name, message=None: {"error": "no luck"} if name == "start" else real(name, message)  # noqa: E731
    monkeypatch.setattr(hosts.hosts[1], "agent", fails)
    with pytest.raises(HostError, match=r"worker 1 \(node\): no luck"):
        start.start(context, hosts, ready, a_run("runs"), address="h")
    assert hosts.hosts[0].agent("state")["state"] == "ended"


def test_two_workstations_do_not_start_at_once(context, hosts, ready):
    seen = start.previous(context)
    context.records.write("run.json", a_run(run_id="theirs", by="you@there").to_json())
    with pytest.raises(HeldError, match="run theirs of you@there"):
        start.start(context, hosts, ready, a_run(), address="h", before=seen)
    assert hosts.hosts[0].agent("state")["state"] == "none"


def test_a_stopped_run_is_not_started_again(context, hosts, ready):
    context.records.write("stop.json", {"run_id": "demo-1", "by": "me", "at_s": 0.0})
    with pytest.raises(HeldError, match="was stopped by me"):
        start.start(context, hosts, ready, start.next_attempt(a_run()), address="h")
    assert hosts.hosts[0].agent("state")["state"] == "none"


def test_run_follows_to_the_end_and_exits_with_the_run_s_code(context, config, cloud, monkeypatch):
    monkeypatch.setattr(run_command, "_LOOK_S", 0.1)
    given = arguments(run_command, config, "--wait", "--env", "MODE=fails", "--revision", "v1")
    assert run_command.run(context, given) == 12 and cloud.revision == "v1"
    failure = "worker 1 (node): exit code 12: error: loss is not finite at step 7"
    assert {"code:    c1, revision v1", "train  1,234/5,000  loss 1.5", failure} <= set(context.printed)
    assert any(line.startswith("run:     demo-") for line in context.printed)


def test_a_dry_run_changes_nothing(context, config, cloud, hosts, monkeypatch):
    context.dry_run = True
    monkeypatch.setattr(hosts, "agent", lambda name, message=None, **_: hosts.calls.append(name) or [{}, {}])
    monkeypatch.setattr(Records, "write", lambda *_, **__: None)  # the real one prints
    assert run_command.run(context, arguments(run_command, config, "--wait")) is None
    assert hosts.calls == ["prepare", "start"]
    assert any(line.startswith("gcloud storage rsync") for line in context.printed)
    assert not context.calls


def test_run_needs_machines(context, config, cloud):
    for now, text in ((None, "no such machines"), (Machines((), ready=False, state="CREATING"), "are CREATING")):
        cloud.now = now
        with pytest.raises(Exception, match=text):
            run_command.run(context, arguments(run_command, config))
    cloud.now = Machines((Worker(0),), ours=False)
    with pytest.raises(ConfigError, match="not of this launch"):
        run_command.run(context, arguments(run_command, config))


def test_run_needs_all_hosts(context, config, cloud, hosts, ready):
    cloud.now = Machines((Worker(0),))
    text = "demo: Google Cloud lists 1 host, but 1 slice of v4-16 have 2"
    with pytest.raises(HostError, match=text):
        run_command.run(context, arguments(run_command, config))
    hosts.hosts = hosts.hosts[:1]
    with pytest.raises(HostError, match=text):
        start.start(context, hosts, ready, a_run(), address="h")


def test_a_configuration_that_could_not_resume_is_refused_before_a_host_is_asked(
    context, config, cloud, hosts, monkeypatch
):
    def refuse(context, config, directory):
        raise ConfigError(f"run.dir={directory}: holds a run with batch.rows = 8, not {config.batch.rows}")

    monkeypatch.setattr(resume, "require_same_config", refuse)
    with pytest.raises(ConfigError, match=r"run\.dir=gs://bucket/runs/demo: holds a run with batch\.rows = 8"):
        run_command.run(context, arguments(run_command, config))
    asked = []
    monkeypatch.setattr(start, "require_quiet", asked.append)
    with pytest.raises(ConfigError):
        run_command.run(context, arguments(run_command, config))
    assert asked == [context] and hosts.calls == [] and not hasattr(cloud, "revision")
