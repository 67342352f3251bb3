"""For runs in this process."""

import pytest

from tests.support.programs import shared_programs


@pytest.fixture(scope="module")
def programs():
    """Runs of the module share their programs; a module that changes what is traced must not ask for it."""
    with shared_programs():
        yield
