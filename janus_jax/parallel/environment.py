"""The process-wide state that this package sets: environment variables, JAX's platform and devices, malloc.

Everything here must be set before JAX, libtpu or TensorFlow starts. Importing this module imports none of them. The
table in docs/design.md says who calls what.
"""

import atexit
import contextlib
import ctypes
import functools
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator

from janus_jax.errors import ConfigError

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # malloc.h of glibc

COORDINATOR_PORT = 8476
"""Where processes meet, unless a port is given."""

_KERAS = "TF_USE_LEGACY_KERAS"

_GPU_MEMORY_SHARE = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
"""JAX's name and its older one. JAX refuses to start with both."""

_TALKATIVE = ("orbax", "tensorflow", "tensorflow_datasets", "seqio", "transformers", "huggingface_hub", "matplotlib")
_TALKATIVE += ("google", "urllib3")  # the storage client: of an idle connection too many, of a project without a name
"""Packages whose remarks are about themselves, not about the run."""


def use_cpu_only() -> None:
    """Keeps JAX off this machine's accelerators, which another process may be training on."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    for name in ("JAX_PLATFORM_NAME", "JAX_DEFAULT_DEVICE"):  # of a platform that is to be preferred
        os.environ.pop(name, None)


def uses_cpu_only() -> bool:
    """Whether JAX, which may have started, is kept off this machine's accelerators."""
    import jax

    return jax.config.jax_platforms == "cpu"  # pyright: ignore[reportAttributeAccessIssue] (made at run time)


def use_open_coordinator_port() -> None:
    """Has the hosts of a TPU slice meet at port 8476, as JAX long did. Many firewalls close its newer default."""
    os.environ.setdefault("JAX_COORDINATOR_PORT", str(COORDINATOR_PORT))


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


def use_most_of_gpu_memory() -> None:
    """Has JAX take 90 % of a GPU's memory, not 75 %. A share that the user has set stays.

    The rest is for what CUDA, cuBLAS, cuDNN and NCCL allocate themselves. Other devices do not read this.
    """
    if not any(name in os.environ for name in _GPU_MEMORY_SHARE):
        os.environ[_GPU_MEMORY_SHARE[0]] = "0.9"


def gpu_memory_share() -> float:
    """The share of a GPU's memory that a run started in this environment gets.

    Raises:
        ConfigError: the user's value is no share.
    """
    for name in _GPU_MEMORY_SHARE:
        if text := os.environ.get(name):
            with contextlib.suppress(ValueError):
                if 0 < float(text) <= 1:
                    return float(text)
            raise ConfigError(f"{name}={text}: allowed: a number above 0, at most 1")
    return 0.9


def simulate_devices(count: int) -> None:
    """Has JAX simulate CPU devices in this process.

    Raises:
        RuntimeError: JAX has already started.
    """
    import jax

    keep_freed_memory()
    flags = os.environ.get("XLA_FLAGS", "")
    if "--xla_cpu_collective_call_terminate_timeout_seconds" not in flags:
        # Many simulated devices share few cores: a slow peer is late, not lost.
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_collective_call_terminate_timeout_seconds=600".strip()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)


def use_gloo_on_cpu() -> None:
    """Has CPU devices of several processes talk through gloo; without it they cannot."""
    import jax

    if uses_cpu_only():
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        _keep_stdout_for_python()


def silence_tensorflow() -> None:
    """Keeps TensorFlow and gRPC from logging below errors. Values that the user has set stay."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")


@contextlib.contextmanager
def without_keras() -> Iterator[None]:
    """Within this context TensorFlow is imported without Keras, which takes as long as all the rest.

    The variable has TensorFlow look for an older Keras, and do without one that is not installed. TensorFlow asks
    again when somebody uses `tf.keras`, which therefore still works. A value that the user has set stays.
    """
    if _KERAS in os.environ:
        yield
        return
    os.environ[_KERAS] = "1"
    try:
        yield
    finally:
        del os.environ[_KERAS]


def quiet_libraries() -> None:
    """Keeps remarks of libraries off the console; their errors stay, and so does what JAX says of its devices.

    Values that the user has set stay. Loads absl, whose logger must be of its own class.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import absl.logging  # noqa: F401  pyright: ignore[reportUnusedImport]

    for name in ("absl", *_TALKATIVE):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=rf"({'|'.join(_TALKATIVE)})\b")


def _keep_stdout_for_python() -> None:
    """Has gloo's C++ code, which reports each connection on file descriptor 1, talk to nobody.

    Python's own stdout goes on where it went.
    """
    sys.stdout.flush()
    sys.stdout = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)
    nobody = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nobody, 1)
    os.close(nobody)


def keep_freed_memory() -> None:
    """Has glibc keep freed memory for the next allocation, in one heap for all threads.

    XLA's CPU devices ask for their temporary buffers anew at every step. By default the kernel maps and zeroes them
    page by page and takes them back afterwards, a fifth of a small step (tests/benchmarks/simulated_step.py).
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1)):
            mallopt(parameter, value)


@functools.cache
def _log_directory() -> str:
    directory = tempfile.mkdtemp(prefix="janus_jax_libtpu_")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory
