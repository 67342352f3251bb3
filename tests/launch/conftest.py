"""Fixtures of several tests of launch."""

import pytest

from launch.cloud import gcloud, objects
from tests.support.launches import FakeSteps, Store


@pytest.fixture(autouse=True)
def _own(tmp_path, monkeypatch):
    """Nothing is kept in the cache of the person who runs the tests, and no test reaches Google."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(objects, "ENDPOINT", "https://127.0.0.1:9")
    gcloud.interrupted.clear()


@pytest.fixture
def store() -> Store:
    """A bucket in memory."""
    return Store()


@pytest.fixture
def steps(store) -> FakeSteps:
    """What `watch` does with machines that are there."""
    steps = FakeSteps(store)
    steps.machines()
    return steps
