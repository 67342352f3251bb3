"""Errors of JAX that mean too little memory, and those that do not."""

import jax
import numpy as np
import pytest

from janus_jax.errors import OutOfMemoryError
from janus_jax.parallel.processes import memory_for

JaxError = jax.errors.JaxRuntimeError
TOO_LITTLE = [
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory in memory space hbm. Used 20.5G of 15.75G hbm.",
    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 85899345920 bytes.",
    "RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.\nand a list",
    "INTERNAL: Failed to load in-memory CUBIN: CUDA_ERROR_OUT_OF_MEMORY: out of memory",
    "INTERNAL: CUDNN_STATUS_ALLOC_FAILED",
]
OTHERS = [
    "RESOURCE_EXHAUSTED: Shared memory size limit exceeded: requested 303104, available: 232448",
    "RESOURCE_EXHAUSTED: Received message larger than max (5000000 vs. 4194304)",
    "INTERNAL: something else",
]


@pytest.mark.parametrize("message", TOO_LITTLE)
def test_it_names_what_needed_it_and_what_to_do(message):
    with pytest.raises(OutOfMemoryError) as caught, memory_for("training", "do this"):
        raise JaxError(message)
    assert str(caught.value) == f"training: {message.splitlines()[0]}; do this" and caught.value.exit_code == 11


def test_memory_of_the_machine_counts():
    with pytest.raises(OutOfMemoryError, match="training: Unable to allocate"), memory_for("training"):
        np.ones(1 << 60, np.int8)


@pytest.mark.parametrize("message", OTHERS)
def test_other_errors_pass(message):
    with pytest.raises(JaxError), memory_for("training"):
        raise JaxError(message)
