"""Rows to token ids, many at a time, in this process or in several. No TensorFlow, no JAX: a worker takes 60 MB."""

import concurrent.futures
import contextlib
import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from janus_jax.data.schema import Row
from janus_jax.data.template import Boundary, Template, encode_example
from janus_jax.data.tokenizer import Tokenizer, load_tokenizer
from janus_jax.errors import JanusError

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
            row = Row(system, prompt, chosen, None if self.kind == "sft" else rejected)
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
    # spawned: TensorFlow's threads do not survive a fork
    pool = concurrent.futures.ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(encoder.kind, encoder.template, encoder.boundary, tokenizer_directory),
    )
    try:

        def encode(texts: Texts) -> Encoded:
            try:
                return pool.submit(_encode, texts).result()
            except concurrent.futures.BrokenExecutor as error:
                raise JanusError(
                    "a tokenizing process ended on its own (killed for memory?); fewer of them take less"
                ) from error

        yield encode
    finally:
        pool.shutdown(cancel_futures=True)


_worker: Encoder | None = None


def _begin(kind: str, template: Template, boundary: Boundary, tokenizer_directory: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    global _worker
    _worker = Encoder(kind, template, boundary, load_tokenizer(tokenizer_directory))


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for ever: it holds both ends of its queue."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _encode(texts: Texts) -> Encoded:
    assert _worker is not None
    return _worker(texts)
