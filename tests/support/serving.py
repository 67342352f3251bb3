"""A server in this process, on a real socket, and requests to it without a client library."""

import contextlib
import http.client
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from janus_jax.checkpoint.stored_model import open_model
from janus_jax.generation.engine import Engine
from janus_jax.generation.opened import open_engine
from janus_jax.generation.prompts import PromptFormat, prompt_format
from janus_jax.serving.app import Service
from janus_jax.serving.asks import Served
from janus_jax.serving.server import Listener, serve
from janus_jax.serving.worker import Worker
from janus_jax.text.chat_format import ChatFormat
from janus_jax.text.template import CHATML
from janus_jax.text.tokenizer import load_tokenizer, save_hf_tokenizer
from tests.support import torch_models
from tests.support.tokenizers import byte_level

JSON = {"content-type": "application/json"}


def directory(root: Path) -> tuple[Path, Any]:
    """A Hugging Face directory of a small random model with a chat template, and the model as transformers has it."""
    tokenizer = load_tokenizer(byte_level(root / "tokenizer", ("<|im_start|>", "<|im_end|>"), bos="<s>"))
    model = torch_models.mistral(vocab_size=400, max_position_embeddings=256)
    model.save_pretrained(root / "tiny")
    save_hf_tokenizer(tokenizer, root / "tiny", chat_template=ChatFormat(CHATML, tokenizer).chat_template)
    return root / "tiny", model


def opened(path: Path, rows: int = 4) -> tuple[Engine, PromptFormat]:
    """On one device, in short calls."""
    model = open_model(str(path))
    written = prompt_format(model)
    return open_engine(model, written, devices=jax.devices()[:1], rows=rows, steps_per_call=4), written


class Running:
    """A server that runs."""

    def __init__(self, service: Service, listener: Listener):
        self.service, self.listener = service, listener
        self.url = f"{listener.url}/v1"
        self.port = int(listener.url.rpartition(":")[2])

    def ask(self, path: str, body: Any = None, headers: Mapping[str, str] = JSON) -> tuple[int, Any, Mapping[str, str]]:
        """Status, value of the JSON and headers of one request; `body` is bytes or is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("GET" if body is None else "POST", path, content, dict(headers))
        response = connection.getresponse()
        value = json.loads(response.read())
        connection.close()
        return response.status, value, dict(response.getheaders())


@contextlib.contextmanager
def running(
    engine: Engine,
    written: PromptFormat,
    *,
    window: int = 128,
    queue: int = 64,
    timeout: float = 120,
    grace: float = 30,
    key: str | None = None,
) -> Iterator[Running]:
    """The server until the end of the block."""
    assert engine.detokenizer is not None
    most = engine.rows + queue
    served = Served("tiny", engine.config, written, window, most)
    service = Service(served, Worker(engine, most), engine.detokenizer, timeout)
    listener = Listener("127.0.0.1", 0, {} if key is None else {"JANUS_API_KEY": key})
    stops: list[Any] = []
    ready = threading.Event()

    def tell(stop: Any) -> None:
        stops.append(stop)
        ready.set()

    thread = threading.Thread(target=serve, args=(service, listener), kwargs={"grace": grace, "ready": tell})
    thread.start()
    assert ready.wait(60)
    try:
        made = Running(service, listener)
        made.stop = stops[0]
        yield made
    finally:
        stops[0]()
        thread.join(60)
        assert not thread.is_alive()


def torch_log_probs(model: Any, ids: Any) -> Any:
    """Log-probs [L - 1, V] of all tokens after each but the last of `ids`, as transformers computes them."""
    import torch

    with torch.no_grad():
        logits = model(torch.tensor([list(ids)])).logits[0, :-1].double()
    return np.asarray(torch.log_softmax(logits, -1))
