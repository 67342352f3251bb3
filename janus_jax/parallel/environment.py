"""Environment variables that must be set before JAX or libtpu starts. Importing this module does not import JAX."""

import atexit
import functools
import os
import shutil
import sys
import tempfile


def use_cpu_only() -> None:
    """Keeps JAX off this machine's accelerators, which another process may be training on."""
    os.environ["JAX_PLATFORMS"] = "cpu"


def use_libtpu_as_compiler() -> None:
    """Has libtpu compile without a TPU, in several processes at once. Values that the user has set stay.

    Otherwise libtpu looks for a TPU, complains that it has none, and locks other processes out.
    """
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")  # any type works; the compile target may differ
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    if "TPU_LOG_DIR" not in os.environ:
        os.environ["TPU_LOG_DIR"] = _log_directory()
    if "jax" not in sys.modules:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")


@functools.cache
def _log_directory() -> str:
    directory = tempfile.mkdtemp(prefix="janus_jax_libtpu_")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory
