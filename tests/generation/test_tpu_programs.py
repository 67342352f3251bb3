"""The decoding step of the 7B by the real TPU compiler: nothing copies the cache, and no weights travel.

Slow; wants libtpu (pip install 'janus_jax[tpu]'):

    pytest -n 0 -m slow tests/generation/test_tpu_programs.py -s
"""

import math
import re

import jax
import jax.numpy as jnp
import pytest

from janus_jax.generation import placement, programs, sampling
from janus_jax.model import cache as kv
from janus_jax.model.cache import Cache
from janus_jax.model.config import PRESETS
from janus_jax.model.mistral import Compute, param_specs
from janus_jax.parallel.environment import use_libtpu_as_compiler
from janus_jax.planning.chips.slices import devices, find_slice
from tests.support.compilers import needs_libtpu

pytestmark = [pytest.mark.slow, needs_libtpu]

MODEL = PRESETS["mistral-7b"]
LENGTH, PROMPT, STEPS = 2560, 512, 16


@pytest.mark.parametrize(("name", "rows"), [("v5litepod-8", 256), ("v6e-8", 256), ("v5litepod-16", 256)])
def test_a_decoding_call_fits_and_gathers_no_weights(name, rows):
    use_libtpu_as_compiler()
    place, notes = placement.generation_place(MODEL, devices(find_slice(name)))
    assert notes == [] and place.mesh is not None and place.mesh.shape["tensor"] == 8
    compute = Compute(dtype=jnp.bfloat16, place=place)

    def array(shape, dtype=jnp.int32, axes=None):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place.sharding(axes or (None,) * len(shape)))

    def cache(rows, length):
        shape = (MODEL.num_layers, rows, MODEL.num_kv_heads, length, MODEL.head_dim)
        return Cache(*[array(shape, jnp.bfloat16, kv.AXES)] * 2)

    params = jax.tree.map(
        lambda spec, sharding: jax.ShapeDtypeStruct(spec.shape, jnp.bfloat16, sharding=sharding),
        param_specs(MODEL),
        placement.shardings(MODEL, place),
    )
    seen, prompts = array((rows, MODEL.vocab_size), jnp.bool_, ("batch", None)), place.shards("batch")
    settings = sampling.Settings.of([sampling.SamplingOptions()])
    asked = programs.Rows(
        *[array((rows,))] * 5,
        stop=array((rows, 4)),
        seed=array((rows, 2), jnp.uint32),
        prompt=array((rows, 2), jnp.uint32),
        sample=array((rows,)),
        settings=jax.tree.map(lambda x: array((rows,), x.dtype), settings),
    )
    static = {"config": MODEL, "compute": compute}
    full = cache(rows, LENGTH)
    decode = programs.decode.lower(params, full, seen, asked, attended=LENGTH, steps=STEPS, **static).compile()
    held = sum(math.prod(part.sharding.shard_shape(part.shape)) * 2 for part in jax.tree.leaves(full))
    memory = decode.memory_analysis()
    print(f"{name}: cache {held / 2**30:.2f} GiB a chip, temporaries {memory.temp_size_in_bytes / 2**30:.2f} GiB")
    assert memory.temp_size_in_bytes < 0.05 * held
    assert memory.alias_size_in_bytes >= held
    sizes = [
        math.prod(map(int, shape.split(",")))
        for shape in re.findall(r"= \w+\[([\d,]+)\]\S* all-gather\(", decode.as_text())
    ]
    assert all(size <= rows * MODEL.vocab_size for size in sizes), sizes  # which ids a row has seen, and no weights

    fill = programs.fill.lower(
        full, seen, cache(prompts, PROMPT), array((prompts, PROMPT)), array((rows,)), array((rows,)), compute=compute
    ).compile()
    assert fill.memory_analysis().temp_size_in_bytes < 0.01 * held
    programs.prefill.lower(params, array((prompts, PROMPT)), array((prompts,)), **static).compile()
