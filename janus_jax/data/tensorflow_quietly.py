"""Imports TensorFlow, TFDS and seqio on demand and without noise, and keeps them off accelerators, which JAX uses."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from janus_jax.parallel.environment import silence_tensorflow


def import_tfds() -> Any:
    """The `tensorflow_datasets` module, without progress bars."""
    silence_tensorflow()
    with _stderr_kept_back("tensorflow_datasets"):
        import tensorflow as tf
        import tensorflow_datasets as tfds

        for platform in ("GPU", "TPU"):  # this looks for devices and complains about missing drivers
            with contextlib.suppress(
                ValueError, RuntimeError
            ):  # TensorFlow is already running: its caller chose devices
                tf.config.set_visible_devices([], platform)
    tf.get_logger().setLevel("ERROR")
    tfds.disable_progress_bar()
    return tfds


def import_seqio() -> Any:
    """The `seqio` module."""
    import_tfds()
    with _stderr_kept_back("seqio"):
        import seqio
    return seqio


@contextlib.contextmanager
def _stderr_kept_back(module: str) -> Iterator[None]:
    """Holds back what is written to file descriptor 2 while a module loads, and shows it only if the block fails.

    While they load, TensorFlow's C++ parts write lines about missing CUDA drivers before they read any log level. The
    descriptor is that of all threads, so nothing is held back once the module is here.
    """
    if module in sys.modules:
        yield
        return
    with tempfile.TemporaryFile() as kept:
        sys.stderr.flush()
        original = os.dup(2)
        os.dup2(kept.fileno(), 2)
        failed = True
        try:
            yield
            failed = False
        finally:
            sys.stderr.flush()
            os.dup2(original, 2)
            os.close(original)
            if failed:
                kept.seek(0)
                sys.stderr.write(kept.read().decode("utf-8", "replace"))
