"""The programs of generation, lowered for devices that need not exist here."""

from typing import Any

import jax
import jax.numpy as jnp

from janus_jax.generation import placement, programs, sampling
from janus_jax.generation.sizes import bucket
from janus_jax.model.cache import AXES, Cache
from janus_jax.model.config import ModelConfig
from janus_jax.model.mistral import Compute, param_specs


def lowered(
    config: ModelConfig, compute: Compute, *, rows: int, length: int, prompt: int, steps: int = 16
) -> dict[str, Any]:
    """`decode`, `prefill` and `fill` as a session calls them at most: name -> what `compile` takes.

    Args:
        rows: a multiple of the mesh's `data`.
        length, prompt: slots of the cache and tokens of a prompt, rounded up to buckets. All slots are read.
        steps: tokens of a decoding call.
    """
    place, length, prompt = compute.place, bucket(length), bucket(prompt)

    def array(shape: tuple[int, ...], dtype: Any = jnp.int32, axes: Any = None) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place.sharding(axes or (None,) * len(shape)))

    def cache(rows: int, length: int) -> Cache:
        shape = (config.num_layers, rows, config.num_kv_heads, length, config.head_dim)
        return Cache(*[array(shape, compute.dtype, AXES)] * 2)

    params = jax.tree.map(
        lambda spec, sharding: jax.ShapeDtypeStruct(spec.shape, compute.dtype, sharding=sharding),
        param_specs(config),
        placement.shardings(config, place),
    )
    seen, prompts = array((rows, config.vocab_size), jnp.bool_, ("batch", None)), place.shards("batch")
    settings = sampling.Settings.of([sampling.SamplingOptions()])
    asked = programs.Rows(
        *[array((rows,))] * 5,
        stop=array((rows, 4)),
        seed=array((rows, 2), jnp.uint32),
        prompt=array((rows, 2), jnp.uint32),
        sample=array((rows,)),
        settings=jax.tree.map(lambda x: array((rows,), x.dtype), settings),
    )
    static = {"config": config, "compute": compute}
    full, tokens = cache(rows, length), array((prompts, prompt))
    return {
        "decode": programs.decode.lower(params, full, seen, asked, attended=length, steps=steps, **static),
        "prefill": programs.prefill.lower(params, tokens, array((prompts,)), **static),
        "fill": programs.fill.lower(
            full, seen, cache(prompts, prompt), tokens, array((rows,)), array((rows,)), compute=compute
        ),
    }
