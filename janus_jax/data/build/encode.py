"""Rows to token ids, many at a time, in this process or in several. No TensorFlow, no JAX: a worker takes 60 MB."""

import contextlib
import dataclasses
import multiprocessing
import queue
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from janus_jax.data.boundary import Boundary, encode_example
from janus_jax.data.schema import Record
from janus_jax.errors import JanusError
from janus_jax.text.template import Template
from janus_jax.text.tokenizer import Tokenizer, load_tokenizer

Texts = Sequence[tuple[str, str, str, str]]
"""system, prompt, chosen, rejected of each row."""

Encoded = tuple[np.ndarray, np.ndarray]
"""[rows, parts] int32 lengths of prompt, chosen and, for pairs, rejected; and all ids, one after the other, int32."""

Encode = Callable[[Texts], Encoded]


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Token ids of rows of one kind."""

    kind: str
    template: Template
    boundary: Boundary
    tokenizer: Tokenizer

    def __call__(self, texts: Texts) -> Encoded:
        """Raises DataError where prompt and response cannot be told apart (boundary joint)."""
        parts: list[np.ndarray] = []
        for system, prompt, chosen, rejected in texts:
            row = Record(system, prompt, chosen, None if self.kind == "sft" else rejected)
            encoded = encode_example(self.template, self.tokenizer, row, self.kind, self.boundary)
            parts += [part for part in encoded if part is not None]
        lengths = np.asarray([len(part) for part in parts], np.int32).reshape(len(texts), -1)
        return lengths, np.concatenate(parts).astype(np.int32)


@contextlib.contextmanager
def encoding(encoder: Encoder, tokenizer_directory: Path, processes: int) -> Iterator[Encode]:
    """Yields what encodes rows: here with one process, otherwise in workers; callers on several threads keep them busy.

    Args:
        tokenizer_directory: where the encoder's tokenizer lies, for the workers.
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
    """A process with a pipe of its own, of which it alone has the other end: whichever side dies, the other sees it at
    once. (Workers of an executor share a pipe; one that is killed while it writes leaves all waiting for the rest.)"""

    def __init__(self, encoder: Encoder, tokenizer_directory: Path):
        context = multiprocessing.get_context("spawn")  # TensorFlow's threads do not survive a fork
        self._connection, theirs = context.Pipe()
        settings = (encoder.kind, encoder.template, encoder.boundary)
        self._process = context.Process(target=_serve, args=(theirs, settings, tokenizer_directory), daemon=True)
        self._process.start()
        theirs.close()

    def encode(self, texts: Texts) -> Encoded:
        try:
            self._connection.send(texts)
            found = self._connection.recv()
        except (EOFError, OSError) as error:
            raise JanusError("a tokenizing process ended on its own (killed for memory?); fewer take less") from error
        if isinstance(found, Exception):
            raise found
        return found

    def close(self) -> None:
        self._connection.close()
        self._process.terminate()
        self._process.join()


def _serve(connection: Connection, settings: tuple[str, Template, Boundary], tokenizer_directory: Path) -> None:
    """Answers with what texts are encoded to, or why they cannot be, until nobody asks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    encoder = Encoder(*settings, load_tokenizer(tokenizer_directory))
    with contextlib.suppress(EOFError, OSError):
        while True:
            texts = connection.recv()
            try:
                found: Encoded | Exception = encoder(texts)
            except Exception as error:
                found = error if isinstance(error, JanusError) else RuntimeError(f"{type(error).__name__}: {error}")
            connection.send(found)
