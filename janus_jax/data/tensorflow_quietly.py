"""Imports TensorFlow, TFDS and seqio on demand and without noise, and keeps them off accelerators, which JAX uses."""

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import tempfile
import types
from collections.abc import Iterator, Sequence
from typing import Any

from janus_jax.parallel.environment import silence_tensorflow, without_keras


def import_tfds() -> Any:
    """The `tensorflow_datasets` module, without progress bars."""
    silence_tensorflow()
    with _stderr_kept_back("tensorflow_datasets"):
        with without_keras():
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
    finder = _Lazy("tensorflow_text.python.keras")  # layers, which load Keras
    sys.meta_path.insert(0, finder)
    try:
        with _stderr_kept_back("seqio"):
            import seqio
    finally:
        sys.meta_path.remove(finder)
    return seqio


class _Lazy(importlib.abc.MetaPathFinder):
    """Finds one module, which is loaded when its attributes are asked for."""

    def __init__(self, name: str):
        self._name = name

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        spec = importlib.machinery.PathFinder.find_spec(fullname, path) if fullname == self._name else None
        if spec is not None and spec.loader is not None:
            spec.loader = importlib.util.LazyLoader(spec.loader)
        return spec


@contextlib.contextmanager
def _stderr_kept_back(module: str) -> Iterator[None]:
    """Holds back what is written to file descriptor 2 while a module loads, and shows it only if that fails.

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
        failed = False
        try:
            yield
        except Exception:  # a signal is no failure
            failed = True
            raise
        finally:
            sys.stderr.flush()
            os.dup2(original, 2)
            os.close(original)
            if failed:
                kept.seek(0)
                sys.stderr.write(kept.read().decode("utf-8", "replace"))
