"""Records to token ids, many at a time, in one or several processes. No TensorFlow, no JAX: a worker takes 60 MB."""

import contextlib
import dataclasses
import functools
import multiprocessing
import queue
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from janus_jax.data.boundary import Boundary, PromptError, encode_example
from janus_jax.data.schema import Record
from janus_jax.errors import JanusError
from janus_jax.text.chat_format import ChatFormat
from janus_jax.text.template import Template
from janus_jax.text.tokenizer import Tokenizer, load_tokenizer

Texts = Sequence[tuple[str, str, str, str]]
"""System, prompt, chosen and rejected of each record."""

Encoded = tuple[np.ndarray, np.ndarray]
"""Lengths [records, parts] int32 of prompt, chosen and, for pairs, rejected; then all ids concatenated, int32.

A record that cannot be used has no prompt, and the place of its reason in `UNUSABLE` as its only other id."""

UNUSABLE = (
    ("prompt_without_tokens", "the tokenizer leaves no token of the prompt, or merges all of it with its response"),
    ("response_without_tokens", "the tokenizer leaves no token of a response"),
    ("equal_tokens", "the tokenizer turns both responses into the same tokens; they must differ"),
)
"""Reason, as it is counted, and explanation."""

Encode = Callable[[Texts], Encoded]


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Turns records of one kind into token ids."""

    kind: str
    template: Template
    boundary: Boundary
    tokenizer: Tokenizer
    bos: bool = True

    def __call__(self, texts: Texts) -> Encoded:
        parts: list[np.ndarray] = []
        for system, prompt, chosen, rejected in texts:
            record = Record(system, prompt, chosen, None if self.kind == "sft" else rejected)
            try:
                encoded = [part for part in encode_example(self.chat, record, self.kind) if part is not None]
                reason = self._reason(encoded)
            except PromptError:
                reason = 0
            if reason is not None:
                empty = np.zeros(0, np.int32)
                encoded = [empty, np.asarray([reason], np.int32), *([] if self.kind == "sft" else [empty])]
            parts += encoded
        lengths = np.asarray([len(part) for part in parts], np.int32).reshape(len(texts), -1)
        return lengths, np.concatenate(parts).astype(np.int32)

    @functools.cached_property
    def chat(self) -> ChatFormat:
        return ChatFormat(self.template, self.tokenizer, boundary=self.boundary, bos=self.bos)

    @functools.cached_property
    def _empty(self) -> int:
        """Tokens of a response without text."""
        return 1 if self.boundary == "joint" else len(self.chat.encode_response(""))

    def _reason(self, encoded: list[np.ndarray]) -> int | None:
        """Why an example cannot be used: its number in `UNUSABLE`."""
        if any(len(part) <= self._empty for part in encoded[1:]):
            return 1
        return 2 if len(encoded) == 3 and np.array_equal(encoded[1], encoded[2]) else None


@contextlib.contextmanager
def encoding(encoder: Encoder, tokenizer_directory: Path, processes: int) -> Iterator[Encode]:
    """Yields a function that encodes records: in this process if `processes` is 1, otherwise in that many workers.

    Call it from several threads to keep the workers busy.

    Args:
        tokenizer_directory: from which workers load the encoder's tokenizer.
    """
    if processes == 1:
        yield encoder
        return
    idle: queue.Queue[_Worker] = queue.Queue()
    workers: list[_Worker] = []
    try:
        for _ in range(processes):
            workers.append(_Worker(encoder, tokenizer_directory))
            idle.put(workers[-1])

        def encode(texts: Texts) -> Encoded:
            worker = idle.get()
            try:
                return worker.encode(texts)
            finally:
                idle.put(worker)

        yield encode
    finally:
        for worker in workers:
            worker.close()


class _Worker:
    """A process with its own pipe. If one side dies, the other notices at once.

    The workers of an executor share a pipe: one that is killed while it writes leaves all others waiting.
    """

    def __init__(self, encoder: Encoder, tokenizer_directory: Path):
        context = multiprocessing.get_context("spawn")  # TensorFlow's threads do not survive a fork
        self._connection, theirs = context.Pipe()
        settings = (encoder.kind, encoder.template, encoder.boundary, encoder.bos)
        self._process = context.Process(target=_serve, args=(theirs, settings, tokenizer_directory), daemon=True)
        self._process.start()
        theirs.close()

    def encode(self, texts: Texts) -> Encoded:
        try:
            self._connection.send(texts)
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            raise JanusError(
                "a tokenizing process ended on its own (killed for memory?); use fewer processes"
            ) from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        self._connection.close()
        self._process.terminate()
        self._process.join()


def _serve(connection: Connection, settings: tuple[str, Template, Boundary, bool], tokenizer_directory: Path) -> None:
    """Answers texts with their ids or with an error, until the other side closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    kind, template, boundary, bos = settings
    encoder = Encoder(kind, template, boundary, load_tokenizer(tokenizer_directory), bos)
    with contextlib.suppress(EOFError, OSError):
        while True:
            texts = connection.recv()
            try:
                answer: Encoded | Exception = encoder(texts)
            except Exception as error:
                answer = error if isinstance(error, JanusError) else RuntimeError(f"{type(error).__name__}: {error}")
            connection.send(answer)
