"""Which compilers are installed. With JANUS_TPU_COMPILER=required, tests that need libtpu fail without it.

Those that need JAX's CUDA plugin need no GPU: `pip install 'janus_jax[cuda13]'`, or only four packages of it, see
docs/planning.md."""

import importlib.util
import os

import pytest

from janus_jax.planning.chips.gpus import PLUGINS

_ABSENT = importlib.util.find_spec("libtpu") is None and os.environ.get("JANUS_TPU_COMPILER") != "required"
needs_libtpu = pytest.mark.skipif(_ABSENT, reason="libtpu is not installed: pip install 'janus_jax[tpu]'")
needs_cuda_plugin = pytest.mark.skipif(
    not any(map(importlib.util.find_spec, PLUGINS)), reason="no CUDA plugin for JAX: pip install 'janus_jax[cuda13]'"
)
