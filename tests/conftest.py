"""Set before JAX starts, for every test: eight simulated CPU devices, quick compiling, checked annotations."""

import atexit
import os
import shutil
import tempfile

_FLAGS = (
    "--xla_force_host_platform_device_count=8",
    "--xla_cpu_collective_call_terminate_timeout_seconds=600",
    "--xla_backend_optimization_level=1",  # tests compile more than they run: half the time of the default, 3
)
_COMPILED = tempfile.mkdtemp(prefix="janus_jax_compiled_")  # what one test compiled, the next need not compile again
atexit.register(shutil.rmtree, _COMPILED, ignore_errors=True)

os.environ.setdefault("XLA_FLAGS", " ".join(_FLAGS))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _COMPILED)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from jaxtyping import install_import_hook  # noqa: E402 (reads the environment)

SHAPED = tuple(
    f"janus_jax.{name}"
    for name in ("demo.accuracy", "model", "objectives", "training.fingerprint", "training.optimizer", "training.step")
)
"""Modules whose annotations of shapes are checked at each call."""

install_import_hook(SHAPED, "beartype.beartype")
