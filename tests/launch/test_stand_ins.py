"""The cloud of the rehearsal behaves as the real one where tests rely on it."""

import subprocess
import time
from collections.abc import Callable

import pytest

from tests.support.cloud import Cloud, cloud, needs_gcloud
from tests.support.fake_tpu import STEP_BY_STEP, Refused, Tpu, address, host_count

PLACE = "/v2/projects/p/locations/us-central2-b"


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    with cloud(tmp_path_factory.mktemp("cloud")) as made:
        yield made


def create(tpu: Tpu, name: str, kind: str = "v4-16", slices: int = 1) -> None:
    several = {"multisliceParams": {"nodeCount": slices, "nodeIdPrefix": name}}
    node = {"acceleratorType": kind, "networkConfig": {"enableExternalIps": True}}
    spec = {"parent": PLACE.removeprefix("/v2/"), "node": node} | (several if slices > 1 else {"nodeId": name})
    tpu.answer("POST", f"{PLACE}/queuedResources", {"queuedResourceId": name}, {"tpu": {"nodeSpec": [spec]}})


def delete(tpu: Tpu, name: str) -> None:
    tpu.answer("DELETE", f"{PLACE}/queuedResources/{name}", {"force": "true"}, None)


@pytest.fixture
def two(rehearsal):
    """A queued resource of two hosts."""
    create(rehearsal.tpu, "two")
    rehearsal.tpu.set_state("two", "ACTIVE")
    yield rehearsal.hosts("two")
    if "two" in str([*rehearsal.tpu.queued]):
        delete(rehearsal.tpu, "two")


def ssh(rehearsal: Cloud, host: str, command: str) -> subprocess.CompletedProcess:
    return rehearsal.run("ssh", "-o", "ControlPath=none", "-i", "key", f"ada@{host}", "--", command, check=False)


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("kind", "hosts"),
    [("v4-8", 1), ("v4-32", 4), ("v5litepod-8", 1), ("v5litepod-16", 4), ("v5p-16", 2), ("v6e-256", 64)],
)
def test_slices_have_the_hosts_of_their_type(kind, hosts):
    assert host_count({"acceleratorType": kind}) == hosts


def test_a_queued_resource_goes_on_each_time_it_is_asked_for_and_has_nodes_at_the_end():
    tpu = Tpu(STEP_BY_STEP)
    create(tpu, "a", slices=2)
    seen = [tpu.answer("GET", f"{PLACE}/queuedResources/a", {}, None)["state"]["state"] for _ in range(5)]
    assert seen == [*STEP_BY_STEP[1:], "ACTIVE"]
    assert [name.rpartition("/")[2] for name in tpu.nodes_of("a")] == ["a-0", "a-1"]
    assert tpu.addresses("a-1") == [address(3), address(4)]


def test_the_server_refuses_what_the_real_one_refuses():
    tpu = Tpu()
    create(tpu, "a")
    tpu.set_state("a", "ACTIVE")
    with pytest.raises(Refused) as again:
        create(tpu, "a")
    with pytest.raises(Refused) as nodes:
        tpu.answer("DELETE", f"{PLACE}/queuedResources/a", {}, None)
    tpu.fault("GET .*/nodes", 503, times=1)
    with pytest.raises(Refused) as fault:
        tpu.answer("GET", f"{PLACE}/nodes", {}, None)
    assert [again.value.status, nodes.value.status, fault.value.status] == [409, 400, 503]
    assert tpu.answer("GET", f"{PLACE}/nodes", {}, None)["nodes"][0]["state"] == "READY"


def test_a_preempted_host_loses_its_processes_and_answers_no_more(rehearsal, two):
    started = ssh(rehearsal, two[1], "setsid sleep 300 </dev/null >/dev/null 2>&1 & echo $HOME")
    assert started.stdout.strip() == str(rehearsal.home(two[1]))
    until(lambda: [*rehearsal.processes(two[1]).values()] == ["sleep 300"])
    assert not rehearsal.processes(two[0])
    with pytest.raises(AssertionError, match="left on the server"):
        rehearsal.require_clean()
    rehearsal.preempt("two")
    assert rehearsal.processes(two[1]) == {}
    assert ssh(rehearsal, two[1], "true").returncode == 255
    delete(rehearsal.tpu, "two")
    rehearsal.require_clean()
    create(rehearsal.tpu, "two")
    rehearsal.tpu.set_state("two", "ACTIVE")
    assert not set(rehearsal.hosts("two")) & set(two)


def test_a_command_survives_a_lost_connection(rehearsal, two):
    rehearsal.drop(two[0], 0.2)
    lost = ssh(rehearsal, two[0], "sleep 1; echo done > marker")
    assert lost.returncode == 255 and "Broken pipe" in lost.stderr
    until((rehearsal.home(two[0]) / "marker").exists)


def test_every_host_learns_its_own_number(rehearsal, two):
    ask = "curl -s -H Metadata-Flavor:Google http://$GCE_METADATA_HOST/computeMetadata/v1/instance/"
    number = "attributes/agent-worker-number"
    assert [ssh(rehearsal, host, ask + number).stdout for host in two] == ["0", "1"]
    rehearsal.metadata.announce(two[1])
    assert [ssh(rehearsal, host, f"{ask}preempted").stdout for host in two] == ["FALSE", "TRUE"]


@needs_gcloud
def test_gcloud_lists_the_nodes_of_its_project(rehearsal, two):
    assert rehearsal.gcloud("tpu-vm", "list", "--format=value(name,state)", check=False).stdout.split() == []
    named = rehearsal.run(
        *("gcloud", "compute", "tpus", "tpu-vm", "list", "--zone=us-central2-b", "--project=p"),
        "--format=value(name,state)",
    )
    assert named.stdout.split() == ["two", "READY"]
