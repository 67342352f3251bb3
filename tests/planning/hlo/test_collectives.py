"""Collectives read from compiled programs are those that the programs were written to have.

Programs for TPUs need libtpu, `pip install 'janus_jax[tpu]'`, and are skipped without it:
`python -m pytest tests/planning/hlo/test_collectives.py`.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from janus_jax.planning.chips.slices import devices, find_slice
from janus_jax.planning.hlo.collectives import MeshPositions, collectives
from janus_jax.planning.hlo.findings import warnings
from tests.support.compilers import needs_cuda_plugin, needs_libtpu
from tests.support.hlo import compiled_shard_map

BLOCK = (128, 256)
BYTES = 4 * math.prod(BLOCK)


def on(slice_name, shape, axes=("data", "fsdp", "tensor"), num_slices=1):
    actual = np.asarray(devices(find_slice(slice_name), num_slices))
    return Mesh(actual.reshape(shape), axes)


ROWS = P(("data", "fsdp"), "tensor")


def read(f, mesh, spec=ROWS, shape=None, out_spec=None):
    if shape is None:
        rows, columns = mesh.shape["data"] * mesh.shape["fsdp"], mesh.shape["tensor"]
        shape = (BLOCK[0] * rows, BLOCK[1] * columns)
    return collectives(compiled_shard_map(f, mesh, spec, shape, out_spec).as_text(), MeshPositions.of(mesh))


def table(actual):
    """(kind, axes, over DCN) -> count, result bytes, wire bytes."""
    rows = {}
    for each in actual:
        row = rows.setdefault((each.kind, each.axes, each.over_dcn), [0, 0, 0])
        for index, value in enumerate((each.count, each.result_bytes, each.wire_bytes)):
            row[index] += value
        assert each.count_is_certain
    return rows


def all_kinds(x):
    """Every kind of collective, in loops of 5 and 5 x 3 iterations; each keeps the block's size."""

    def gather_and_scatter(c, _):
        return lax.psum_scatter(jnp.sin(lax.all_gather(c, "fsdp", tiled=True)), "fsdp", tiled=True), None

    def outer(c, _):
        c, _ = lax.scan(gather_and_scatter, lax.psum(c, "tensor") * 0.5, None, length=3)
        size = lax.axis_size("fsdp")
        c = lax.ppermute(c, "fsdp", [(i, (i + 1) % size) for i in range(size)])
        return jnp.cos(lax.all_to_all(c, "tensor", 1, 0, tiled=True).reshape(c.shape)), None

    return lax.psum(lax.scan(outer, x, None, length=5)[0], ("data", "fsdp"))


MESHES = [
    pytest.param("cpu:8", (1, 4, 2)),
    pytest.param("cpu:8", (1, 2, 4)),
    pytest.param("v5e-4", (1, 2, 2), marks=needs_libtpu),
    pytest.param("v5e-16", (1, 4, 4), marks=needs_libtpu),
    pytest.param("v4-16", (1, 4, 2), marks=needs_libtpu),
    pytest.param("v5p-16", (1, 2, 4), marks=needs_libtpu),
    pytest.param("v6e-16", (1, 8, 2), marks=needs_libtpu),
    pytest.param("v3-8", (1, 4, 2), marks=needs_libtpu),
    pytest.param("tpu7x-8", (1, 4, 2), marks=needs_libtpu),
    pytest.param("h100:8", (1, 4, 2), marks=needs_cuda_plugin),
]


@pytest.mark.parametrize(("slice_name", "shape"), MESHES)
def test_counts_and_bytes_are_those_of_the_program(slice_name, shape):
    actual = read(all_kinds, on(slice_name, shape), out_spec=P(None, "tensor"))
    _, n, t = shape
    assert table(actual) == {
        ("all-reduce", ("tensor",), False): [5, 5 * BYTES, 5 * 2 * (t - 1) * BYTES // t],
        ("all-gather", ("fsdp",), False): [15, 15 * n * BYTES, 15 * (n - 1) * BYTES],
        ("reduce-scatter", ("fsdp",), False): [15, 15 * BYTES, 15 * (n - 1) * BYTES],
        ("collective-permute", ("fsdp",), False): [5, 5 * BYTES, 5 * BYTES],
        ("all-to-all", ("tensor",), False): [5, 5 * BYTES, 5 * (t - 1) * BYTES // t],
        ("all-reduce", ("fsdp",), False): [1, BYTES, 2 * (n - 1) * BYTES // n],
    }
    names = {each.kind: each.op_name.rsplit("/", 1)[-1] for each in actual}
    assert (names["all-gather"], names["collective-permute"]) == ("all_gather", "ppermute")
    if slice_name.startswith("v5e"):
        assert {each.kind for each in actual if each.is_async} == {"collective-permute"}


@needs_libtpu
def test_two_slices_reduce_inside_first_and_send_the_shards_over_the_data_center():
    actual = table(read(all_kinds, on("v5e-16", (2, 8, 2), num_slices=2), out_spec=P(None, "tensor")))
    n, t = 8, 2
    shard, around = BYTES // n, 15 * (n - 1) * BYTES + BYTES // n * (n - 1)
    assert actual == {
        ("all-reduce", ("tensor",), False): [5, 5 * BYTES, 5 * 2 * (t - 1) * BYTES // t],
        ("all-gather", ("fsdp",), False): [16, (15 * n + 1) * BYTES, around],
        ("reduce-scatter", ("fsdp",), False): [
            16,
            15 * BYTES + BYTES // n,
            15 * (n - 1) * BYTES + BYTES // n * (n - 1),
        ],
        ("collective-permute", ("fsdp",), False): [5, 5 * BYTES, 5 * BYTES],
        ("all-to-all", ("tensor",), False): [5, 5 * BYTES, 5 * (t - 1) * BYTES // t],
        ("all-reduce", ("data",), True): [1, shard, shard],
    }


BETWEEN = {  # a program over `data`, and what it sends with s slices: kind, result, wire bytes
    "psum": (lambda x: lax.psum(x, "data"), lambda s: ("all-reduce", BYTES, 2 * (s - 1) * BYTES // s)),
    "all_gather": (
        lambda x: lax.all_gather(x, "data", tiled=True)[: BLOCK[0]] * lax.axis_index("data"),
        lambda s: ("all-gather", s * BYTES, (s - 1) * BYTES),
    ),
    "psum_scatter": (
        lambda x: jnp.tile(lax.psum_scatter(x, "data", tiled=True), (lax.axis_size("data"), 1)),
        lambda s: ("reduce-scatter", BYTES // s, (s - 1) * BYTES // s),
    ),
    "all_to_all": (
        lambda x: lax.all_to_all(x, "data", 1, 0, tiled=True).reshape(BLOCK),
        lambda s: ("all-to-all", BYTES, (s - 1) * BYTES // s),
    ),
    "ppermute": (
        lambda x: lax.ppermute(x, "data", [(i, i ^ 1) for i in range(lax.axis_size("data"))]),
        lambda s: ("collective-permute", BYTES, BYTES),
    ),
}


@needs_libtpu
@pytest.mark.parametrize("slices", [2, 4])
@pytest.mark.parametrize("name", BETWEEN)
def test_every_kind_between_slices(name, slices):
    program, expected = BETWEEN[name]
    actual = read(program, on("v5e-4", (slices, 4, 1), num_slices=slices))
    kind, result, wire = expected(slices)
    assert table(actual) == {(kind, ("data",), True): [1, result, wire]}
    assert all(each.is_async for each in actual)


@needs_libtpu
def test_axes_are_right_where_slices_are_not_the_outermost_axis():
    mesh = Mesh(np.asarray(devices(find_slice("v5e-4"), 2)).reshape(2, 2, 2).transpose(1, 0, 2), ("a", "data", "b"))
    actual = read(lambda x: lax.psum(lax.psum(lax.psum(x, "b") + 1, "data") + x, "a"), mesh, P("a"), (256, 256))
    assert set(table(actual)) == {("all-reduce", (axis,), axis == "data") for axis in ("a", "data", "b")}


@needs_libtpu
@pytest.mark.parametrize("num_slices", [1, 2])
def test_gathers_that_run_beside_products_count_once_and_peeled_iterations_too(num_slices):
    """v5e hides gathers in chains of fusions, and of two slices the last reductions overlap the next iteration, whose
    first copy is peeled off the loop."""
    mesh = on("v5e-16", (num_slices, 16, 1), num_slices=num_slices)
    layers, width, wide = 4, 1024, 8192

    def sharding(*spec):
        return NamedSharding(mesh, P(*spec))

    def layer(x, weights):
        h = lax.with_sharding_constraint(jax.nn.silu(x @ weights[0]), sharding(("data", "fsdp")))
        return lax.with_sharding_constraint(x + h @ weights[1], sharding(("data", "fsdp"))), None

    def loss(weights, x):
        return (lax.scan(jax.checkpoint(layer), x, weights)[0].astype(jnp.float32) ** 2).mean()

    def step(weights, x):
        return jax.tree.map(jnp.subtract, weights, jax.grad(loss)(weights, x))

    weights = (
        jax.ShapeDtypeStruct((layers, width, wide), jnp.bfloat16, sharding=sharding(None, "fsdp")),
        jax.ShapeDtypeStruct((layers, wide, width), jnp.bfloat16, sharding=sharding(None, None, "fsdp")),
    )
    x = jax.ShapeDtypeStruct((2 * mesh.size, 512, width), jnp.bfloat16, sharding=sharding(("data", "fsdp")))
    lowered = jax.jit(step, out_shardings=(weights[0].sharding, weights[1].sharding), donate_argnums=0).lower(
        weights, x
    )
    off = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}  # gathers stay gathers
    text = lowered.compile(compiler_options=off).as_text()
    listed = collectives(text, MeshPositions.of(mesh))
    assert any(each.kind == "all-gather" and each.is_async for each in listed)
    actual, weight = table(listed), 2 * width * wide
    # Forward two gathers a layer; backward the first weight again (to recompute) and the second (for its gradient).
    assert actual[("all-gather", ("fsdp",), False)] == [4 * layers, 4 * layers * weight, 4 * layers * weight * 15 // 16]
    reduced = [
        row for (kind, axes, dcn), row in actual.items() if kind == "all-reduce" and axes == ("fsdp",) and not dcn
    ]
    assert reduced == [[layers, 2 * layers * weight, 2 * 2 * layers * weight * 15 // 16]]  # both gradients in one
    assert [finding.kind for finding in warnings(text)] == ["all-reduce"]
    assert warnings(text)[0].bytes == 2 * weight
    if num_slices == 2:
        shard = weight // 16
        assert actual[("all-reduce", ("data",), True)] == [2 * layers, 2 * layers * shard, 2 * layers * shard]
        assert len(actual) == 3


@needs_libtpu
def test_products_in_windows_count_every_step_of_their_rings():
    """The default: a product with a gathered weight as a loop of permutations, two steps an iteration, both ways."""
    mesh = on("v5e-16", (1, 16, 1))
    w = jax.ShapeDtypeStruct((2048, 8192), jnp.bfloat16, sharding=NamedSharding(mesh, P("fsdp")))
    x = jax.ShapeDtypeStruct((32, 512, 2048), jnp.bfloat16, sharding=NamedSharding(mesh, P("fsdp")))
    out = NamedSharding(mesh, P("fsdp"))
    text = jax.jit(lambda x, w: jnp.sin(x @ w), out_shardings=out).lower(x, w).compile().as_text()
    assert "windowed_dot_general" in text
    ((key, (count, result, _)),) = table(collectives(text, MeshPositions.of(mesh))).items()
    assert key == ("collective-permute", ("fsdp",), False)
    shard = 2 * 2048 * 8192 // 16
    # 8 iterations of a step either way, and one shard ahead of them: a ring of 16 needs 15 steps at least.
    assert (count, result) == (17, 17 * shard)


@needs_libtpu
def test_what_comes_after_a_kernel_in_a_loop_counts():
    """Splash attention's kernels have metadata that the compiler writes with line breaks."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    heads, length, width, layers = 2, 512, 128, 3
    mask = masks.MultiHeadMask([masks.CausalMask((length, length))] * heads)
    attend = kernels.make_splash_mha(mask=mask, head_shards=1, q_seq_shards=1)

    def layer(x, _):
        mean = lax.psum(attend(x, x, x), "tensor")
        return lax.all_gather(mean[:1], "fsdp", tiled=True), None

    mesh = on("v5e-4", (1, 2, 2))
    text = compiled_shard_map(
        lambda x: lax.scan(layer, x, None, length=layers)[0], mesh, P(), (heads, length, width)
    ).as_text()
    size = 4 * heads * length * width
    assert "}}, metadata" in "".join(line for line in text.splitlines() if line.startswith("}}"))
    assert table(collectives(text, MeshPositions.of(mesh))) == {
        ("all-reduce", ("tensor",), False): [layers, layers * size, layers * size],
        ("all-gather", ("fsdp",), False): [layers, layers * size, layers * size // 2],
    }


def test_what_a_branch_sends_is_an_upper_bound_and_said_to_be_uncertain():
    def branch(x, other):
        def body(c, i):
            return lax.cond(i % 2 == 0, lambda c: lax.psum(jnp.tanh(c), "fsdp"), other, c), None

        return lax.scan(body, x, jnp.arange(6))[0]

    mesh = on("cpu:8", (1, 4, 2))
    some = read(lambda x: branch(x, jnp.cos), mesh, out_spec=P(None, "tensor"))
    assert [(each.kind, each.count, each.count_is_certain) for each in some if each.wire_bytes] == [
        ("all-reduce", 6, False)
    ]
    both = read(lambda x: branch(x, lambda c: lax.psum(jnp.cos(c), "fsdp")), mesh, out_spec=P(None, "tensor"))
    assert {each.count_is_certain for each in both} == {True} and sum(each.count for each in both) == 6
