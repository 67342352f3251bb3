"""Tensors read one ahead, and what becomes of a reader that nobody ends."""

import threading
from types import SimpleNamespace

from janus_jax.checkpoint.digest import tensors
from janus_jax.checkpoint.hf.keys import key_table
from tests.support.models import SMALL


def test_a_reader_that_is_given_up_waits_for_no_thread():
    """The garbage collector may end it where waiting for a thread never ends."""
    first, may_read = key_table(SMALL)[0], threading.Event()
    source = SimpleNamespace(
        config=SMALL, read=lambda entry: entry == first or may_read.wait(60), read_ahead=lambda entry: None
    )
    reader = tensors(source)  # type: ignore[arg-type]
    assert next(reader)[0] == first
    ending = threading.Thread(target=reader.close)
    ending.start()
    ending.join(20)
    stuck = ending.is_alive()
    may_read.set()
    ending.join()
    assert not stuck
