"""For commands that generate or score in this process."""

import jax
import pytest

from janus_jax.parallel import preflight


@pytest.fixture
def one_device(monkeypatch):
    """They run on one device, which compiles fastest. What meshes change: tests/generation and test_on_hosts.py."""
    monkeypatch.setattr(preflight, "devices", lambda: jax.devices()[:1])
