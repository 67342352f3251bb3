"""What hosts say of their run, as `watch` takes it."""

import contextlib
from types import SimpleNamespace

import pytest

from launch.cloud import machines
from launch.remote.hosts import Answer, Host
from launch.watching.steps import Steps

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
    monkeypatch.setattr(Steps, "connect", lambda self, there: contextlib.nullcontext(group))
    assert Steps(SimpleNamespace()).states(None)[0]["state"] == state  # type: ignore[arg-type]


@pytest.mark.parametrize(("token", "deleted"), [("a", ["a"]), ("b", []), (None, [])])
def test_machines_that_were_made_since_the_look_are_not_deleted(monkeypatch, token, deleted):
    """A workstation may have slept for a night between looking and deleting."""
    now = None if token is None else SimpleNamespace(token=token)
    monkeypatch.setattr(machines, "look", lambda context, notify: now)
    gone: list[str] = []
    monkeypatch.setattr(machines, "delete", lambda context, there: gone.append(there.token))
    Steps(SimpleNamespace()).delete(SimpleNamespace(token="a"))  # type: ignore[arg-type]
    assert gone == deleted
