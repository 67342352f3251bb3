"""One small model for all tests of chats."""

import jax
import pytest

from janus_jax.chat.conversation import Chat
from janus_jax.checkpoint.stored_model import open_model
from janus_jax.generation.opened import open_engine
from janus_jax.generation.prompts import prompt_format
from janus_jax.generation.sampling import SamplingOptions
from janus_jax.generation.stopping import StoppingOptions
from tests.support.chat_models import chat_model


@pytest.fixture(scope="session")
def opened(tmp_path_factory):
    """Engine and format."""
    model = open_model(chat_model(tmp_path_factory.mktemp("chat"), max_position_embeddings=128))
    written = prompt_format(model)
    return open_engine(model, written, devices=jax.devices()[:1], rows=2, steps_per_call=4), written


@pytest.fixture
def chat(opened):
    """Of answers with exactly 8 tokens, drawn at random."""
    talk = Chat(*opened, sampling=SamplingOptions(), stopping=StoppingOptions(8, 8))
    yield talk
    talk.close()
