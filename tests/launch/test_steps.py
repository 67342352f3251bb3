"""What hosts say of their run, as `watch` takes it."""

import contextlib
from types import SimpleNamespace

import pytest

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
