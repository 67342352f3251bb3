"""Which compilers are installed. With JANUS_TPU_COMPILER=required, tests that need libtpu fail without it."""

import importlib.util
import os

import pytest

_ABSENT = importlib.util.find_spec("libtpu") is None and os.environ.get("JANUS_TPU_COMPILER") != "required"
needs_libtpu = pytest.mark.skipif(_ABSENT, reason="libtpu is not installed: pip install 'janus_jax[tpu]'")
