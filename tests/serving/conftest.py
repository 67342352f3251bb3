"""One small model for all tests of the server."""

import openai
import pytest

from tests.support import serving


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Its directory, and the model in torch."""
    return serving.directory(tmp_path_factory.mktemp("serving"))


@pytest.fixture(scope="session")
def opened(tiny):
    return serving.opened(tiny[0])


@pytest.fixture(scope="session")
def server(opened):
    with serving.running(*opened) as made:
        yield made


@pytest.fixture(scope="session")
def client(server):
    with openai.OpenAI(base_url=server.url, api_key="any", max_retries=0) as made:
        yield made
