"""`stop` ends the run where hosts are reached, and keeps everyone from starting it again in any case."""

import sys

import pytest

from janus_jax.errors import JanusError
from launch.commands import run as run_command
from launch.commands import stop as stop_command
from launch.errors import CloudError, HostError, Kind
from launch.runs import start
from tests.support.launch_hosts import a_run, until
from tests.support.started import Machines, Ready, Worker, arguments, stand_for_cloud


@pytest.fixture
def cloud(monkeypatch, hosts):
    return stand_for_cloud(monkeypatch, hosts)


def test_stop_ends_the_run_on_the_slices_that_are_left(context, cloud, hosts):
    start.start(context, hosts, Ready(python="~/python"), a_run("runs"), address="h")
    for host in hosts.hosts:
        until(lambda host=host: "ready" in host.agent("tail", {"lines": 5})["text"])
    cloud.now = Machines((Worker(1), Worker(2)), ready=False, state="PREEMPTED", gone=True, nodes=("demo-0", "demo-1"))
    assert stop_command.run(context, arguments(stop_command)) == 0
    assert [host.agent("state")["code"] for host in hosts.hosts] == [10, 10]
    assert "run demo-1: the machines are PREEMPTED: ending it on the hosts that are left" in context.printed


def test_stop_says_what_is_saved(context, config, cloud, hosts):
    assert stop_command.run(context, arguments(stop_command)) == 0
    assert context.printed[-1] == "demo: nothing to stop, no run was started"
    run_command.run(context, arguments(run_command, config, "--env", "MODE=runs"))
    for host in hosts.hosts:
        until(lambda host=host: "ready" in host.agent("tail", {"lines": 5})["text"])
    assert stop_command.run(context, arguments(stop_command, "--reason", "enough")) == 0
    saved = "exit code 10: stopped: runs/x: step 1234 is saved; SIGTERM ended the run"
    assert context.printed[-2] == f"worker 0 (node), worker 1 (node): {saved}"
    record = context.records.read("stop.json").value
    assert (record["run_id"], record["reason"]) == (context.records.read("run.json").value["run_id"], "enough")
    stop_command.run(context, arguments(stop_command))
    assert context.printed[-2] == f"worker 0 (node), worker 1 (node): had ended already, {saved}"


def test_stop_without_its_hosts_leaves_the_record(context, cloud, hosts):
    context.records.write("run.json", a_run().to_json())
    hosts.down = {1}
    assert stop_command.run(context, arguments(stop_command)) == 17
    assert "worker 1 (node): cannot be reached, so the run may go on there: Connection timed out" in context.printed
    cloud.now = None
    context.records.write("stop.json", {})
    assert stop_command.run(context, arguments(stop_command)) == 0
    assert context.records.read("stop.json").value["run_id"] == "demo-1"


LEAVING = (
    "run demo-1: its machines are SUSPENDING, so no host is reached; a training that goes on there saves when its "
    "notice comes, and ends with them; nobody starts it again"
)


def test_stop_succeeds_by_its_record_while_the_machines_leave(context, cloud, hosts):
    context.records.write("run.json", a_run().to_json())
    cloud.now = Machines((), ready=False, state="SUSPENDING", gone=True)  # as find says of a queued resource
    assert stop_command.run(context, arguments(stop_command)) == 0
    assert context.printed[1:] == [LEAVING] and hosts.calls == []
    assert context.records.read("stop.json").value["run_id"] == "demo-1"


@pytest.mark.parametrize("how", ["hosts", "ssh", "gcloud"])
@pytest.mark.parametrize("slices", [1, 2])
def test_stop_of_machines_that_leave_meanwhile(context, cloud, hosts, monkeypatch, how, slices):
    """Of several slices others may go on, so there a host that is not reached is no success."""
    context.records.write("run.json", a_run().to_json())
    names = tuple(f"demo-{number}" for number in range(slices))
    cloud.now = Machines((Worker(0), Worker(1)), ready=False, state="SUSPENDING", gone=True, nodes=names)
    hosts.down = {0, 1}
    errors = {"ssh": HostError("worker 0 (demo)", "timed out"), "gcloud": CloudError(Kind.UNKNOWN, "gcloud failed")}
    if how in errors:

        def lost(*_):
            raise errors[how]

        monkeypatch.setattr(sys.modules["launch.remote.hosts"], "connect", lost)
    if slices == 1 or how == "hosts":
        assert stop_command.run(context, arguments(stop_command)) == (0 if slices == 1 else 17)
    else:
        with pytest.raises(JanusError, match="nobody starts it again, but it may go on") as refused:
            stop_command.run(context, arguments(stop_command))
        assert refused.value.exit_code == errors[how].exit_code
    assert (LEAVING in context.printed) == (slices == 1)
    assert context.records.read("stop.json").value["run_id"] == "demo-1"
