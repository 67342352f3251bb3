"""Fixtures of several tests of launch."""

import pytest

from tests.support.launches import FakeSteps, Store


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    """Nothing is kept in the cache of the person who runs the tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


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
