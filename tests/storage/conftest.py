"""What tests of endpoints share."""

import pytest

from janus_jax.storage import pace
from tests.support.endpoint_client import SECRET


@pytest.fixture
def quick_endpoint(monkeypatch):
    """A key, no proxy, and pauses that take no time."""
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(pace, "pause_after", lambda failures, after: 0.001)
