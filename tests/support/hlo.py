"""Compiled programs, and texts of programs made for the purpose."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding


def compiled_shard_map(f, mesh, spec, shape, out_spec=None):
    """`f` compiled for one float32 array, sharded by `spec`."""
    x = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
    out = spec if out_spec is None else out_spec
    return jax.jit(jax.shard_map(f, mesh=mesh, in_specs=spec, out_specs=out, check_vma=False)).lower(x).compile()


def module_text(body, *, computations="", partitions=8):
    """Text of a module with a given ENTRY."""
    head = f"HloModule m, is_scheduled=true, num_partitions={partitions}\n\n"
    return (
        f"{head}{computations}\nENTRY %main (p: f32[64]) -> f32[64] {{\n  %p = f32[64]{{0}} parameter(0)\n{body}\n}}\n"
    )


def all_reduce_text(groups, name="r", root=True):
    start = "ROOT " if root else ""
    return f"  {start}%{name} = f32[64]{{0}} all-reduce(%p), channel_id=1, replica_groups={groups}, to_apply=%add"
