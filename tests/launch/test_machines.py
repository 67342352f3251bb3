"""Machines are asked for, judged, adopted and deleted, on a stand-in for gcloud in this process.

`requests.json` is what the real gcloud sends for the words that `request` gives.
"""

import json

import pytest

from janus_jax.errors import ConfigError, HeldError
from launch.cloud import capacity, machines
from launch.errors import CloudError
from tests.support.fake_machines import NOT_FOUND, PARENT, FakeMachines, Fault, settings
from tests.support.repository import ROOT

RECORDED = json.loads((ROOT / "tests/launch/recordings/requests.json").read_text())
TOKEN = "0123456789abcdef"


@pytest.fixture
def cloud(monkeypatch):
    fake = FakeMachines()
    fake.keep_time(monkeypatch)
    return fake


def created(cloud, **changes):
    return machines.create(cloud.context(**changes), notify=cloud.lines.append)


@pytest.mark.parametrize("number", range(len(RECORDED)))
def test_requests_are_those_recorded(number):
    recorded = RECORDED[number]
    wanted = settings(name=f"n{number}", **recorded["settings"])
    gcloud = FakeMachines().context().gcloud
    assert machines.request(wanted, capacity.of(wanted), TOKEN, gcloud) == recorded["argv"]


def test_requests_carry_every_setting():
    body = RECORDED[2]["request"]["body"]
    (spec,) = body["tpu"]["nodeSpec"]
    assert body["reservationName"] == f"{PARENT}/reservations/-"
    assert body["queueingPolicy"] == {"validUntilDuration": "21600s"}
    assert spec["multisliceParams"] == {"nodeCount": 2, "nodeIdPrefix": "n2"}
    assert spec["node"]["networkConfig"] == {"enableExternalIps": False, "network": "net", "subnetwork": "sub"}
    assert spec["node"]["serviceAccount"] == {"email": "sa@p.iam.gserviceaccount.com", "scope": [machines.SCOPE]}
    assert spec["node"]["labels"] == {"janus-launch": "n2", "janus-token": TOKEN, "team": "a-b", "cost": "7"}
    assert RECORDED[1]["request"]["body"]["spot"] == {}
    assert RECORDED[3]["request"]["body"]["tpu"]["nodeSpec"][0]["node"]["runtimeVersion"] == "v2-alpha-other"


def test_workers_are_counted_slice_by_slice(cloud):
    result = created(cloud, type="v5e-16", slices=11, name="many")
    assert result.ready and result.ours and result.slices == 11
    assert [worker.number for worker in result.workers] == list(range(22))
    assert [(result.workers[n].node, result.workers[n].index) for n in (0, 1, 4, 21)] == [
        ("many-0", 0),
        ("many-0", 1),
        ("many-2", 0),
        ("many-10", 1),
    ]
    assert result.workers[21].internal and result.workers[21].external


@pytest.mark.parametrize(
    ("patch", "state", "health", "ready", "gone"),
    [
        ({}, "ACTIVE", "HEALTHY", True, False),
        ({"health": "UNHEALTHY_MAINTENANCE"}, "ACTIVE", "UNHEALTHY_MAINTENANCE", True, False),
        ({"state": "PREEMPTED"}, "PREEMPTED", "HEALTHY", False, True),
        ({"state": "REPAIRING"}, "REPAIRING", "HEALTHY", False, False),
        ({"networkEndpoints": []}, "ACTIVE", "HEALTHY", False, False),
        ({"networkEndpoints": [{"ipAddress": "10.0.0.9"}, {}]}, "ACTIVE", "HEALTHY", False, False),
    ],
)
def test_a_queued_resource_is_judged_with_its_nodes(cloud, patch, state, health, ready, gone):
    created(cloud, slices=2)
    cloud.nodes["janus-1"] |= patch
    result = machines.find(cloud.context(slices=2))
    assert (result.state, result.health, result.ready, result.gone) == (state, health, ready, gone)


def test_slices_may_be_named_otherwise_than_asked_for(cloud):
    created(cloud, slices=2)
    for node in list(cloud.nodes.values()):
        node["name"] = node["name"].replace("janus-", "janus-w")
    result = machines.find(cloud.context(slices=2))
    assert result.ready and result.nodes == ("janus-w0", "janus-w1")


def test_the_worst_health_is_shown(cloud):
    created(cloud, slices=2)
    cloud.nodes["janus-0"]["health"] = "UNHEALTHY_MAINTENANCE"
    cloud.nodes["janus-1"] |= {"health": "UNHEALTHY_TENSORFLOW", "healthDescription": "no answer"}
    result = machines.find(cloud.context(slices=2))
    assert (result.health, result.words) == ("UNHEALTHY_TENSORFLOW", "ACTIVE: UNHEALTHY_TENSORFLOW: no answer")


def test_a_node_that_a_list_leaves_out_is_asked_for(cloud, monkeypatch):
    created(cloud)
    monkeypatch.setattr(cloud, "_tpu_vm_list", lambda flags: [])
    assert machines.find(cloud.context()).ready
    monkeypatch.setattr(cloud, "_tpu_vm_describe", lambda name, flags: None)
    assert machines.find(cloud.context()).state == "MISSING"


def test_a_failed_request_says_why(cloud):
    created(cloud)
    cloud.states, cloud.failed = ["FAILED"], {"code": 8, "message": "no more capacity"}
    result = machines.find(cloud.context())
    assert (result.gone, result.error) == (True, "RESOURCE_EXHAUSTED: no more capacity")


def test_every_request_has_a_token_of_its_own(cloud):
    first = created(cloud)
    machines.delete(cloud.context(), first)
    assert created(cloud).token != first.token and machines.find(cloud.context(name="other")) is None


def test_deleting_waits_until_it_is_gone_and_bears_errors_that_pass(cloud):
    result = created(cloud)
    refusals = [
        "ERROR: (gcloud.x) UNAVAILABLE: try again",
        "ERROR: (gcloud.x) FAILED_PRECONDITION: it is just being suspended",
    ]
    cloud.faults = [Fault("delete", refusal) for refusal in refusals]
    machines.delete(cloud.context(), result, notify=cloud.lines.append)
    assert (cloud.queued, cloud.nodes, [fault.times for fault in cloud.faults]) == ({}, {}, [0, 0])


def test_machines_that_others_made_while_the_workstation_slept_are_not_deleted(cloud):
    first = created(cloud)
    cloud.faults = [Fault("delete", "ERROR: (gcloud.x) UNAVAILABLE: try again")]

    def others_go_on():
        cloud.on = {}
        machines.delete(cloud.context(), first)
        created(cloud)

    cloud.on = {"sleep": others_go_on}
    machines.delete(cloud.context(), first)
    assert machines.find(cloud.context()).token != first.token


def test_a_request_that_another_watcher_has_taken_over_is_not_taken_back(cloud):
    def notify(line):
        raise HeldError("another watcher has taken over")

    cloud.states = ["PROVISIONING"]
    with pytest.raises(HeldError):
        machines.create(cloud.context(), notify=notify)
    assert list(cloud.queued) == ["janus"]


def test_a_request_that_may_not_be_made_is_not_taken_back_either(cloud):
    def before():
        raise ConfigError("stopped")

    with pytest.raises(ConfigError, match="stopped"):
        machines.create(cloud.context(), notify=cloud.lines.append, before=before)
    assert [line.split()[4] for line in cloud.commands] == ["describe", "list"] and cloud.lines == []


def test_a_request_whose_repetition_may_not_be_made_is_taken_back(cloud):
    cloud.faults = [Fault("create", "ERROR: (gcloud.x) UNAVAILABLE: later", lands=True)]
    cloud.on = {"create": lambda: cloud.faults.append(Fault("describe", NOT_FOUND))}  # it is not seen at once
    calls = []

    def before():
        calls.append(1)
        if len(calls) > 1:
            raise ConfigError("stopped")

    with pytest.raises(ConfigError, match="stopped"):
        machines.create(cloud.context(), notify=cloud.lines.append, before=before)
    assert len(calls) == 2 and not cloud.queued


def test_machines_of_others_are_not_deleted(cloud):
    cloud.add_node("janus")
    with pytest.raises(CloudError, match="this launch did not make it"):
        machines.delete(cloud.context(), machines.find(cloud.context()))
    assert list(cloud.nodes) == ["janus"]


def test_adopted_machines_are_ours_for_every_workstation(cloud):
    cloud.add_node("janus", labels={"who": "them"})
    before = machines.find(cloud.context())
    assert (before.ours, before.is_queued, before.state) == (False, False, "READY")
    adopted = machines.create(cloud.context(), notify=cloud.lines.append, adopt=True)
    assert (adopted.ours, adopted.adopted) == (True, True) and adopted == machines.find(cloud.context())
    assert adopted.token not in ("", before.token)
    assert cloud.nodes["janus"]["labels"]["who"] == "them"
    assert created(cloud) == adopted  # up again


@pytest.mark.parametrize("state", ["PREEMPTED", "CREATING"])
def test_adopted_machines_that_die_are_left_alone(cloud, state):
    cloud.add_node("janus")
    machines.create(cloud.context(), notify=cloud.lines.append, adopt=True)
    cloud.nodes["janus"]["state"] = state
    if state == "CREATING":  # it dies while `up` waits for it
        cloud.on["sleep"] = lambda: cloud.nodes["janus"].update(state="PREEMPTED")
    with pytest.raises(CloudError, match="--adopt"):
        created(cloud)
    assert list(cloud.nodes) == ["janus"]
