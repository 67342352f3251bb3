"""For every synthesis: no proxy, and pauses between tries that take no time."""

import pytest

from janus_jax.storage import pace


@pytest.fixture(autouse=True)
def quick_endpoint(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(pace, "pause_after", lambda failures, after: 0.001)
