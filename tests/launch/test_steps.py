"""What hosts say of their run, as `watch` takes it."""

import contextlib
from types import SimpleNamespace

import pytest

from launch.cloud import machines
from launch.errors import CloudError
from launch.remote.hosts import Answer, Host
from launch.watching.steps import Steps
from tests.support.fake_machines import FakeMachines, Fault

HOST = Host(0, 0, 0, "node", ["ssh"])


@pytest.mark.parametrize(
    ("code", "out", "state"),
    [
        (0, '{"state": "running"}\n', "running"),
        (127, "", "none"),
        (255, "", "unreachable"),
        (124, "", "unreachable"),  # no answer in time
        (1, "", "unreachable"),  # gcloud, through IAP
        (0, '{"error": "OSError"}', "unreachable"),
    ],
)
def test_only_a_host_that_says_so_has_no_run(monkeypatch, code, out, state):
    """A run that is not there is started again, which ends it on the other hosts."""
    group = SimpleNamespace(each=lambda *_, **__: [Answer(HOST, code, out, "", 0.0)])
    monkeypatch.setattr(Steps, "connect", lambda self, place: contextlib.nullcontext(group))
    assert Steps(SimpleNamespace()).states(None)[0]["state"] == state  # type: ignore[arg-type]


@pytest.mark.parametrize(("token", "deleted"), [("a", ["a"]), ("b", []), (None, [])])
def test_machines_that_were_made_since_the_look_are_not_deleted(monkeypatch, token, deleted):
    """A workstation may have slept for a night between looking and deleting."""
    now = None if token is None else SimpleNamespace(token=token)
    monkeypatch.setattr(machines, "look", lambda context, notify: now)
    gone: list[str] = []
    monkeypatch.setattr(machines, "delete", lambda context, left: gone.append(left.token))
    Steps(SimpleNamespace()).delete(SimpleNamespace(token="a"))  # type: ignore[arg-type]
    assert gone == deleted


def test_machines_that_were_just_deleted_are_not_looked_for_again(monkeypatch):
    fake = FakeMachines(["ACTIVE"])
    fake.keep_time(monkeypatch)
    steps = Steps(fake.context())
    first = steps.create(fake.lines.append, patient=True, before=lambda: None)
    steps.delete(first)
    fake.commands.clear()
    assert steps.create(fake.lines.append, patient=True, before=lambda: None).token != first.token
    assert [line.split()[4] for line in fake.commands] == ["create", "describe", "list"]
    fake.commands.clear()
    steps.create(fake.lines.append, patient=True, before=lambda: None)  # this time nobody has just looked
    assert [line.split()[4] for line in fake.commands] == ["describe", "list"]


def test_others_that_take_the_name_right_after_a_deletion_keep_their_machines(monkeypatch):
    fake = FakeMachines(["ACTIVE"])
    fake.keep_time(monkeypatch)
    steps = Steps(fake.context())
    steps.delete(steps.create(fake.lines.append, patient=True, before=lambda: None))
    fake.faults = [Fault("create", "ERROR: (gcloud.x) ALREADY_EXISTS: Resource exists")]
    fake.add_node("janus")
    with pytest.raises(CloudError, match="this launch did not make it"):
        steps.create(fake.lines.append, patient=True, before=lambda: None)
    assert list(fake.nodes) == ["janus"]
