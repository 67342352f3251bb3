"""The decoding step of the 7B by the real TPU compiler: nothing copies the cache, and no weights travel.

Slow; wants libtpu (pip install 'janus_jax[tpu]'):

    pytest -n 0 -m slow tests/generation/test_tpu_programs.py -s
"""

import math
import re

import jax.numpy as jnp
import pytest

from janus_jax.generation import placement
from janus_jax.generation.memory import needed
from janus_jax.model.config import PRESETS
from janus_jax.model.mistral import Compute
from janus_jax.parallel.environment import use_libtpu_as_compiler
from janus_jax.planning.chips.slices import devices, find_slice
from janus_jax.planning.generation import lowered
from tests.support.compilers import needs_libtpu

pytestmark = [pytest.mark.slow, needs_libtpu]

MODEL = PRESETS["mistral-7b"]
LENGTH, PROMPT, STEPS = 3072, 512, 16


@pytest.mark.parametrize(("name", "rows"), [("v5litepod-8", 256), ("v6e-8", 256), ("v5litepod-16", 256)])
def test_a_decoding_call_fits_and_gathers_no_weights(name, rows):
    use_libtpu_as_compiler()
    place, notes = placement.generation_place(MODEL, devices(find_slice(name)))
    assert notes == [] and place.mesh is not None and place.mesh.shape["tensor"] == 8
    compute = Compute(dtype=jnp.bfloat16, place=place)
    sizes = {"rows": rows, "length": LENGTH, "prompt": PROMPT, "steps": STEPS}
    compiled = {name: program.compile() for name, program in lowered(MODEL, compute, **sizes).items()}
    decode, ours = compiled["decode"], needed(MODEL, place, dtype=jnp.bfloat16, **sizes)
    held = ours.cache
    memory = decode.memory_analysis()
    print(f"{name}: cache {held / 2**30:.2f} GiB a chip, temporaries {memory.temp_size_in_bytes / 2**30:.2f} GiB")
    assert memory.temp_size_in_bytes < 0.05 * held
    assert memory.alias_size_in_bytes >= held
    sizes = [
        math.prod(map(int, shape.split(",")))
        for shape in re.findall(r"= \w+\[([\d,]+)\]\S* all-gather\(", decode.as_text())
    ]
    assert all(size <= rows * MODEL.vocab_size for size in sizes), sizes  # which ids a row has seen, and no weights

    assert compiled["fill"].memory_analysis().temp_size_in_bytes < 0.01 * held

    beside = {"decode": 0, "prefill": ours.cache, "fill": ours.weights}
    peak = max(program.memory_analysis().peak_memory_in_bytes + beside[name] for name, program in compiled.items())
    print(f"{name}: {peak / 2**30:.2f} GiB by XLA, {ours.text()}")
    assert peak <= ours.total <= 1.05 * peak
