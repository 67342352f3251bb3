"""Fixtures of several tests of launch."""

from collections.abc import Iterator

import pytest

from launch.cloud import gcloud, objects
from launch.context import Context
from tests.support.launch_hosts import ScratchHosts
from tests.support.launches import FakeSteps, Store
from tests.support.started import two_hosts, workstation, write_config


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


@pytest.fixture
def context(tmp_path, monkeypatch) -> Context:
    """A workstation with a bucket in memory."""
    return workstation(tmp_path, monkeypatch)


@pytest.fixture
def config(tmp_path) -> str:
    """A configuration with its data, in the folder of the workstation."""
    return write_config(tmp_path)


@pytest.fixture
def hosts(tmp_path) -> Iterator[ScratchHosts]:
    """Two hosts that were set up."""
    with two_hosts(tmp_path) as made:
        yield made
