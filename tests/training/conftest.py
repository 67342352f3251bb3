"""For runs in this process."""

import pytest

from tests.support.programs import shared_programs


@pytest.fixture(scope="session")
def known_programs():
    """The programs of all modules that share them."""
    return {}


@pytest.fixture(scope="module")
def programs(known_programs):
    """Runs of all modules that ask for it share their programs; one that changes what is traced must not ask for it."""
    with shared_programs(known_programs):
        yield
