"""`up` and `down`: whatever goes wrong, one message, the right exit code, and nothing left that costs money."""

import json
import os
import signal
import sys

import pytest

import launch.context
from launch.__main__ import main
from launch.context import Context
from tests.support.fake_machines import PARENT, FakeMachines, Fault
from tests.support.repository import ROOT

RECORDED = json.loads((ROOT / "tests/launch/recordings/errors.json").read_text())
WORDS = ["--name=janus", "--project=p", "--zone=us-central2-b", "--type=v4-16"]
STOCK_OUT = {"code": 8, "message": 'There is no more capacity in the zone "us-central2-b"'}
REGION = (
    "ERROR: (gcloud.x) RESOURCE_EXHAUSTED: Quota limit 'TPUV6EPreemptiblePerProjectPerRegionForTPUAPI' has been "
    "exceeded. Limit: 0 in region us-central2."
)
UNAVAILABLE = RECORDED["err_503_forever"]["stderr"]
EXISTS = RECORDED["qr_create_exists"]["stderr"]


@pytest.fixture
def cloud(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # no launch/tpu.yaml
    fake = FakeMachines()
    fake.keep_time(monkeypatch)

    def context(settings, dry_run):
        return Context(settings, dry_run, say=fake.lines.append, runner=fake.run)

    monkeypatch.setattr(launch.context, "Context", context)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield fake
    for number, handler in before.items():
        signal.signal(number, handler)


def test_up_says_what_it_costs_waits_and_can_be_repeated(cloud, capsys):
    assert main(["up", *WORDS]) == 0
    shown = "\n".join(cloud.lines)
    for part in (
        "8 chips, 2 hosts, tpu-ubuntu2204-base",
        "price: on-demand $25.76 an hour; list prices as of 2025-11",
        "quotas: TPUV4sPodPerProjectPerZoneForTPUAPI in us-central2-b and TPUV4sPodPerProjectPerRegionForTPUAPI in us-",
        "janus: PROVISIONING",
        "janus: ready: 2 hosts",
    ):
        assert part in shown
    commands = len(cloud.commands)
    assert main(["up", *WORDS]) == 0
    assert cloud.lines[-1].startswith("janus: ready") and not any("create" in c for c in cloud.commands[commands:])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (
            Fault("create", "ERROR: (gcloud.x) NOT_FOUND: Location us-central2-b is not found"),
            ["does us-central2-b have"],
        ),
        (Fault("create", RECORDED["err_403"]["stderr"]), ["tpu.nodes.create", "roles/tpu.admin"]),
        (Fault(".", RECORDED["err_403_service_disabled"]["stderr"], 99), ["services enable tpu.googleapis.com"]),
        (Fault(".", RECORDED["err_no_credentials"]["stderr"], 99), ["gcloud auth login"]),
        (
            Fault("create", RECORDED["err_429_once_on_post"]["stderr"]),
            [
                "Limit: 8 in zone us-central2-b; look at two quotas",
                "TPUV4sPreemptiblePerProjectPerZoneForTPUAPI in us-central2-b",
                "TPUV4sPreemptiblePerProjectPerRegionForTPUAPI in us-central2 ",
            ],
        ),
        (Fault("create", REGION), ["Limit: 0", "TPUV6EPreemptiblePerProjectPerZoneForTPUAPI in us-central2-b"]),
        (Fault("create", f"ERROR: (gcloud.x) RESOURCE_EXHAUSTED: {STOCK_OUT['message']}"), ["no more capacity"]),
        (
            Fault("create", f"ERROR: (gcloud.x) {json.dumps(STOCK_OUT)}", lands=True),
            ["no more capacity", "another zone"],
        ),
        (
            Fault("create", RECORDED["qr_create_lro_error"]["stderr"], lands=True),
            ["Quota limit exceeded", "two quotas"],
        ),
        (Fault("create", RECORDED["qr_create_type_v6e_ga"]["stderr"]), ["Invalid choice"]),
        (Fault(".", UNAVAILABLE, 10_000), ["unavailable"]),
        (Fault("create", UNAVAILABLE, 10_000), ["unavailable"]),
    ],
)
def test_refusals_leave_nothing(cloud, capsys, fault, text):
    cloud.faults = [fault]
    assert main(["up", *WORDS]) == 16
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and error[0].startswith("error: janus: ")
    assert [part for part in text if part not in error[0]] == []
    assert (cloud.queued, cloud.nodes) == ({}, {}) and cloud.now_s < 3600


@pytest.mark.parametrize(
    ("states", "failed", "words", "text"),
    [
        (["ACCEPTED", "FAILED"], STOCK_OUT, [], ["no capacity", "no more capacity", "another zone"]),
        (["ACCEPTED", "FAILED"], {"code": 8, "message": "Quota 'X' exhausted"}, [], ["quota:", "two quotas"]),
        (["ACCEPTED", "FAILED"], {"code": 7, "message": "no access"}, [], ["permission:", "no access"]),
        (["ACCEPTED", "PROVISIONING", "SUSPENDING", "SUSPENDED"], None, [], ["SUSPENDING", "preempted"]),
        (["WAITING_FOR_RESOURCES"], None, ["--valid-for=30m"], ["not served within valid_for = 30m"]),
    ],
)
def test_requests_that_fail_later_leave_nothing(cloud, capsys, states, failed, words, text):
    cloud.states, cloud.failed = states, failed
    assert main(["up", *WORDS, *words]) == 16
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and [part for part in text if part not in error[0]] == []
    assert (cloud.queued, cloud.nodes) == ({}, {})
    assert any("deleting it" in line for line in cloud.lines)


@pytest.mark.parametrize(
    "faults",
    [
        [Fault("create", UNAVAILABLE, 3)],
        [Fault("create", UNAVAILABLE, lands=True)],
        [Fault("create", EXISTS, lands=True)],  # gcloud has sent it twice
        [Fault("create", "ERROR: (gcloud.x) RESOURCE_EXHAUSTED: Maximum number of CreateNode requests per minute", 2)],
        [Fault("describe", UNAVAILABLE, 2), Fault("list", RECORDED["err_429_retry_after"]["stderr"], 2)],
        [Fault("describe", RECORDED["err_conn_refused"]["stderr"], 5)],
    ],
)
def test_what_passes_is_waited_out(cloud, capsys, faults):
    cloud.faults = faults
    assert main(["up", *WORDS]) == 0
    assert capsys.readouterr().err == "" and list(cloud.queued) == ["janus"]
    assert len(cloud.nodes) == 1


@pytest.mark.parametrize("stage", ["create", "describe", "list", "sleep"])
@pytest.mark.parametrize("ends", ["ctrl-c", "sigterm"])
def test_signals_take_the_request_back(cloud, capsys, stage, ends):
    def end():
        cloud.on.clear()
        if ends == "ctrl-c":
            raise KeyboardInterrupt
        os.kill(os.getpid(), signal.SIGTERM)

    cloud.on = {"create": end} if stage == "create" else {"create": lambda: cloud.on.update({stage: end})}
    assert main(["up", *WORDS]) == (130 if ends == "ctrl-c" else 143)
    assert (cloud.queued, cloud.nodes) == ({}, {})
    assert capsys.readouterr().err == "stopped\n" and "janus: taking the request back" in cloud.lines


def test_a_reader_that_is_gone_leaves_nothing(cloud, monkeypatch):
    """`up | head`"""

    def say(line):
        if "PROVISIONING" in line or "back" in line:
            raise BrokenPipeError

    cloud.lines = type("Lines", (), {"append": staticmethod(say)})()
    monkeypatch.setattr("launch.__main__.os.dup2", lambda *descriptors: None)
    assert main(["up", *WORDS]) == 141
    assert (cloud.queued, cloud.nodes) == ({}, {})


def test_a_request_that_arrives_after_ctrl_c_is_taken_back(cloud):
    late = {}

    def cut_off():
        late.update(cloud.queued)
        cloud.queued.clear()
        cloud.on = {"sleep": lambda: cloud.queued.update(late)}
        raise KeyboardInterrupt

    cloud.on = {"create": cut_off}
    assert main(["up", *WORDS]) == 130
    cloud.on.clear()
    assert cloud.queued == {}


def test_a_second_ctrl_c_says_what_may_be_left(cloud, capsys):
    def again():
        cloud.on = {"describe": cloud.interrupt}
        raise KeyboardInterrupt

    cloud.on = {"create": again}
    assert main(["up", *WORDS]) == 130
    assert "janus: may still be there, and cost money: python -m launch down" in capsys.readouterr().err


def test_what_cannot_be_taken_back_is_named(cloud, capsys):
    cloud.on = {"create": lambda: cloud.faults.append(Fault(".", UNAVAILABLE, 10_000))}
    assert main(["up", *WORDS]) == 16
    warning, error = capsys.readouterr().err.splitlines()
    assert warning.startswith("janus: may still be there, and cost money: python -m launch down; unavailable")
    assert error.startswith("error: janus: unavailable")


def test_waiting_for_machines_of_an_earlier_call_does_not_take_them_back(cloud):
    assert main(["up", *WORDS]) == 0
    cloud.states, cloud.on = ["PROVISIONING"], {"sleep": cloud.interrupt}
    assert main(["up", *WORDS]) == 130
    assert list(cloud.queued) == ["janus"]


@pytest.mark.parametrize("state", ["SUSPENDED", "FAILED"])
def test_what_is_left_of_dead_machines_is_deleted_first(cloud, state):
    assert main(["up", *WORDS]) == 0
    token = cloud.queued["janus"]["tpu"]["nodeSpec"][0]["node"]["labels"]["janus-token"]
    cloud.states, cloud.failed = [state, "ACCEPTED", "ACTIVE"], STOCK_OUT
    assert main(["up", *WORDS]) == 0
    labels = cloud.queued["janus"]["tpu"]["nodeSpec"][0]["node"]["labels"]
    assert labels["janus-token"] != token and list(cloud.nodes) == ["janus"]


def of_others(cloud, kind):
    if kind == "TPU VM":
        cloud.add_node("janus")
    else:
        node = {"acceleratorType": "v4-16", "labels": {"janus-launch": "another"}}
        cloud.queued["janus"] = {
            "name": f"{PARENT}/queuedResources/janus",
            "createTime": "2026-01-01T00:00:00Z",
            "tpu": {"nodeSpec": [{"node": node, "nodeId": "theirs"}]},
        }


@pytest.mark.parametrize("kind", ["TPU VM", "queued resource"])
def test_what_others_made_is_left_alone_until_it_is_adopted(cloud, capsys, kind):
    of_others(cloud, kind)
    for command in ("up", "down"):
        assert main([command, *WORDS]) == 16
        error = capsys.readouterr().err
        assert f"a {kind} of this name is there (v4-16" in error and "--adopt" in error
    assert main(["up", *WORDS, "--adopt"]) == 0 and len(cloud.nodes) == 1
    assert main(["up", *WORDS]) == 0
    assert main(["down", *WORDS]) == 16 and len(cloud.nodes) == 1  # others may still need it
    assert main(["down", *WORDS, "--adopt"]) == 0
    assert (cloud.queued, cloud.nodes) == ({}, {})


def test_a_name_that_others_take_at_the_same_time_is_refused(cloud, capsys):
    cloud.faults = [Fault("create", EXISTS)]
    cloud.on = {"list": lambda: of_others(cloud, "queued resource")}
    assert main(["up", *WORDS]) == 16
    assert "this launch did not make it" in capsys.readouterr().err and list(cloud.queued) == ["janus"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--type=v4-32"], "type: v4-32, but janus has v4-16"),
        (["--slices=2"], "slices: 2, but janus has 1"),
        (["--type=v3-32", "--slices=2"], "slices: 2 x v3-32: v3 supports a single slice only"),
        (["--labels=janus-token=x"], "labels: janus-token: launch sets it"),
        (["--config=c.yaml", "--plan=p.json"], "--config, --plan: allowed: only one of them"),
        (["--force"], "--force: allowed: only with --config or --plan"),
        (["a.b=c"], "a.b=c: allowed: only with --config"),
    ],
)
def test_contradictions_are_bad_input(cloud, capsys, words, text):
    assert main(["up", *WORDS]) == 0
    assert main(["up", *WORDS, *words]) == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "price"),
    [
        (["--type=v4-16"], "spot unknown, on-demand $25.76 an hour"),
        (["--type=v2-8"], "spot $1.35 an hour, on-demand $4.50 an hour"),
    ],
)
def test_spot_prices_are_shown_where_they_are_known(cloud, words, price):
    assert main(["up", *WORDS, *words, "--provisioning=spot", "--dry-run"]) == 0
    assert f"price: {price}; list prices as of" in cloud.lines[1] and "Preemptible" in cloud.lines[2]


def test_a_dry_run_needs_no_credentials(cloud, capsys):
    cloud.faults = [Fault(".", RECORDED["err_no_credentials"]["stderr"], 99)]
    assert main(["up", *WORDS, "--dry-run"]) == 0
    assert cloud.lines[-1].startswith("gcloud compute tpus queued-resources create janus")
    assert "not looked at: janus: no credentials" in capsys.readouterr().err


def test_a_dry_run_shows_the_command_and_runs_none(cloud):
    assert main(["up", *WORDS, "--dry-run"]) == 0
    assert cloud.lines[-1].startswith("gcloud compute tpus queued-resources create janus --node-id=janus")
    assert not any("create" in command for command in cloud.commands)
    assert main(["up", *WORDS]) == 0
    assert main(["down", *WORDS, "--dry-run"]) == 0
    assert cloud.lines[-1] == (
        "gcloud compute tpus queued-resources delete janus --force --quiet --zone=us-central2-b --project=p"
    )
    assert list(cloud.queued) == ["janus"]


def test_dead_machines_of_others_are_theirs_to_delete(cloud, capsys):
    of_others(cloud, "queued resource")
    cloud.states, cloud.failed = ["FAILED"], STOCK_OUT
    assert main(["up", *WORDS, "--adopt"]) == 16
    assert "others made it; delete it: python -m launch down --adopt" in capsys.readouterr().err
    assert list(cloud.queued) == ["janus"]


def test_nodes_that_outlive_their_queued_resource_are_deleted(cloud, monkeypatch):
    assert main(["up", *WORDS, "--slices=2"]) == 0
    monkeypatch.setattr(cloud, "_queued_resources_delete", lambda name, flags: cloud.queued.pop(name))
    assert main(["down", *WORDS]) == 0
    assert (cloud.queued, cloud.nodes) == ({}, {})


def test_a_node_of_another_queued_resource_is_not_deleted_alone(cloud, capsys):
    cloud.add_node("janus", queuedResource=f"{PARENT}/queuedResources/another")
    cloud.faults = [Fault("tpu-vm delete", RECORDED["node_delete_in_qr"]["stderr"], 99)]
    assert main(["down", *WORDS, "--adopt"]) == 16
    assert capsys.readouterr().err.endswith("belongs to a queued resource\n") and cloud.now_s < 60


def test_down_deletes_everything_and_has_nothing_to_do_the_second_time(cloud):
    assert main(["up", *WORDS, "--slices=2"]) == 0 and len(cloud.nodes) == 2
    assert main(["down", *WORDS]) == 0
    assert (cloud.queued, cloud.nodes, cloud.lines[-1]) == ({}, {}, "janus: deleted")
    assert main(["down", *WORDS]) == 0
    assert cloud.lines[-1] == "janus: nothing to delete"


PLANNER = """#!{python}
import json, sys
out = next(word for word in sys.argv if word.startswith("--json=")).removeprefix("--json=")
ends = {{"fits.yaml": 0, "large.yaml": 3}}.get(sys.argv[4], 2)
if ends == 2:
    sys.exit(print("error: bad.yaml:1: rows = x: allowed: a whole number", file=sys.stderr) or 2)
assert "--topology=v4-16" in sys.argv and "--slices=1" in sys.argv and "a.b=c" in sys.argv, sys.argv
plan = {{"target": {{"name": "v4-16"}}, "num_slices": 1, "fits": not ends, "reason": "needs 40 GiB of 31 GiB"}}
json.dump(plan, open(out, "w"))
sys.exit(ends)
"""


@pytest.fixture
def planner(tmp_path, monkeypatch):
    script = tmp_path / "python"
    script.write_text(PLANNER.format(python=sys.executable))
    script.chmod(0o755)
    monkeypatch.setattr("launch.cloud.fit.sys.executable", str(script))
    monkeypatch.setattr("launch.cloud.fit.importlib.util.find_spec", lambda name: True)


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--config", "fits.yaml"], 0, "fit: fits.yaml on 1 x v4-16: fits"),
        (["--config", "large.yaml"], 3, "large.yaml on 1 x v4-16: does not fit: needs 40 GiB of 31 GiB"),
        (["--config", "large.yaml", "--force"], 0, "goes on because of --force"),
        (["--config", "bad.yaml"], 2, "bad.yaml:1: rows = x"),
    ],
)
def test_a_configuration_that_does_not_fit_creates_nothing(cloud, planner, capsys, words, code, text):
    assert main(["up", *WORDS, *words, "a.b=c"]) == code
    assert text in capsys.readouterr().err + "\n".join(cloud.lines)
    assert bool(cloud.queued) == (code == 0)


def test_ctrl_c_ends_the_planner(cloud, planner, tmp_path, monkeypatch):
    (tmp_path / "python").write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nkill -TERM $PPID\nexec sleep 60\n")
    assert main(["up", *WORDS, "--config", "fits.yaml"]) == 143
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert cloud.commands == []


@pytest.mark.parametrize(
    ("change", "code", "text"),
    [
        ({}, 0, "fits"),
        ({"fits": False}, 3, "does not fit: why"),
        ({"num_slices": 2}, 2, "is of 2 x v4-16, not of 1 x v4-16"),
        ({"target": {"name": "v5p-16"}}, 2, "is of 1 x v5p-16"),
        ({"target": None}, 2, "is not what `janus plan --json` writes"),
    ],
)
def test_a_stored_plan_is_as_good(cloud, tmp_path, capsys, change, code, text):
    values = {"target": {"name": "v4:2x2x2"}, "num_slices": 1, "fits": True, "reason": "why"} | change
    if change.get("num_slices") == 2:
        values["target"] = {"name": "v4-16"}
    (tmp_path / "plan.json").write_text(json.dumps(values))
    assert main(["up", *WORDS, "--plan", str(tmp_path / "plan.json")]) == code
    assert text in capsys.readouterr().err + "\n".join(cloud.lines)
    assert bool(cloud.queued) == (code == 0)


def test_without_a_planner_it_says_that_nothing_was_checked(cloud, monkeypatch):
    monkeypatch.setattr("launch.cloud.fit.importlib.util.find_spec", lambda name: None if name == "libtpu" else True)
    assert main(["up", *WORDS, "--config", "a b.yaml"]) == 0
    assert any(line.startswith("fit: not checked: libtpu is not installed here") for line in cloud.lines)
