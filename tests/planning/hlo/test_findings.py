"""Waste that programs were written to have is found, and where they have none nothing is."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from janus_jax.planning.hlo.findings import warnings
from tests.support.hlo import all_reduce_text, compiled_shard_map, module_text


def test_a_reduction_of_which_only_slices_are_read_is_found():
    mesh = Mesh(np.asarray(jax.devices()), ("x",))

    def sliced(x):
        whole = lax.psum(jnp.sin(x), "x")
        return lax.dynamic_slice_in_dim(whole * 1, lax.axis_index("x") * 64, 64, 0)

    text = compiled_shard_map(sliced, mesh, P(), (512, 1024), P("x")).as_text()
    (result,) = [each for each in warnings(text, large_bytes=1 << 20) if each.kind == "all-reduce"]
    assert result.bytes == 4 * 512 * 1024 and result.op_name.endswith("psum")
    whole = compiled_shard_map(lambda x: lax.psum(jnp.sin(x), "x"), mesh, P("x"), (4096, 1024), P()).as_text()
    assert warnings(whole, large_bytes=1 << 20) == []


def test_padding_and_replicated_arguments_are_found():
    mesh = Mesh(np.asarray(jax.devices()), ("x",))
    whole = NamedSharding(mesh, P())

    def uneven(x, w):
        return lax.with_sharding_constraint(x @ w, NamedSharding(mesh, P("x")))

    x = jax.ShapeDtypeStruct((1022, 2048), jnp.float32, sharding=whole)
    w = jax.ShapeDtypeStruct((2048, 1024), jnp.float32, sharding=NamedSharding(mesh, P(None, "x")))
    text = jax.jit(uneven, out_shardings=whole).lower(x, w).compile().as_text()
    result = {each.kind: each for each in warnings(text, arguments={"x": x, "w": w}, large_bytes=1 << 20)}
    assert set(result) == {"padding", "replicated"}
    assert (result["replicated"].bytes, result["replicated"].op_name) == (4 * 1022 * 2048, "x")
    assert result["padding"].bytes == 4 * 2 * 2048
    assert "1024" in result["padding"].text
    assert warnings(text, arguments={"x": x, "w": w}, large_bytes=1 << 30) == []


LOG = (
    "E0531 10:54:04.832 spmd_partitioner.cc:569] [spmd] Involuntary full rematerialization. The compiler was not able "
    "to go from sharding {devices=[2,1,4]<=[4,2]T(1,0)} to {devices=[1,8,1]<=[8]} without doing a full "
    "rematerialization of the tensor for HLO operation: %dot = bf16[4096,8192]{1,0} dot(%a, %b), "
    'metadata={op_name="jit(train)/mlp/dot_general"}. You probably want to enrich the sharding annotations.\n'
)


def test_the_compilers_warning_of_full_copies_is_read_from_its_log():
    (result,) = warnings(module_text(all_reduce_text("{}")), LOG + LOG)
    assert (result.kind, result.bytes, result.op_name) == (
        "rematerialization",
        2 * 4096 * 8192,
        "jit(train)/mlp/dot_general",
    )
    assert "{devices=[1,8,1]<=[8]}" in result.text
    assert warnings(module_text(all_reduce_text("{}")), LOG, large_bytes=1 << 30) == []
