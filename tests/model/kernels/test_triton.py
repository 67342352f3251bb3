"""Our kernel for NVIDIA GPUs, its programs run by XLA on the CPU, against the attention rule: outputs and gradients."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, use_abstract_mesh

from janus_jax.data.rows import RowFormat
from janus_jax.model.attention import Slots, attention, visible
from janus_jax.model.kernels import triton
from janus_jax.model.kernels.triton import Tile, Tiles, Triton, unsupported_reason
from janus_jax.parallel.mesh import NOWHERE, MeshShape, Placement, build_mesh, merge_rules
from tests.support.attention_rows import (
    APART,
    PAIRS,
    REWARD,
    assert_equals_the_rule,
    layout_of,
    output_and_gradients,
    rule,
)
from tests.support.kernels import need
from tests.support.tolerances import float32_bound

LENGTH = 250  # no multiple of a tile
SMALL = Triton(Tiles(Tile(32, 16, 4, 2), Tile(16, 32, 4, 2), Tile(32, 16, 4, 2)), interpret=True)
WINDOWS = (None, 60)


@functools.cache
def calling(kernel, window, place):
    """One function for all rows, so that it is compiled once."""
    return functools.partial(kernel, window=window, place=place)


def check(layout, *, window=None, heads=(4, 2), head_dim=16, kernel=SMALL, place=NOWHERE):
    attend = calling(kernel, window, place)
    assert_equals_the_rule(attend, layout, window=window, heads=heads, head_dim=head_dim)


def random_inputs(layout, heads=(4, 2), head_dim=16):
    """q, k, v and a gradient of the output."""
    rng = np.random.default_rng(0)
    numbers = (heads[0], heads[1], heads[1], heads[0])
    return [jnp.asarray(rng.normal(size=(*layout.segment.shape, n, head_dim)), jnp.float32) for n in numbers]


ROWS = {
    "pairs": (PAIRS, [[(20, 30, 25), (1, 1, 20), (9, 40, 41)], [(60, 50, 60)], []]),
    "prompts apart": (APART, [[(20, 30, 25), (1, 1, 20), (5, 30, 31)], [(60, 30, 40)], []]),
    "reward": (REWARD, [[(20, 30, 25), (1, 1, 20), (9, 30, 31)], [(60, 50, 60)], [(1, 0, 1)]]),
    "responses": (RowFormat(), [[(20, 100, None), (1, 60, None), (28, 40, None)], [(1, 250, None)], [(1, 1, None)]]),
    "empty branches": (
        PAIRS,
        [[(30, 0, 40), (30, 40, 0), (30, 0, 0)], [(1, 0, 0), (1, 0, 7), (1, 7, 0)], [(240, 1, 1)]],
    ),
    "tiles fit": (PAIRS, [[(33, 31, 32)], [(65, 63, 64)], [(97, 31, 96)]]),
    "many": (PAIRS, [[(2, 1, 1)] * 60, [(3, 4, 5)] * 20, [(2, 30, 1)] * 7]),
}


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("window", [*WINDOWS, pytest.param(5, marks=pytest.mark.slow)])
def test_the_kernel_equals_the_rule(rows, window):
    form, rows = ROWS[rows]
    check(layout_of(rows, form, LENGTH), window=window)


def test_padding_may_stand_anywhere():
    layout = layout_of([[(20, 30, 25), (9, 40, 41)], [(60, 50, 60)], []], PAIRS, LENGTH)
    check(Slots(*(jnp.roll(field, 37, axis=1) for field in layout)))


SIZES = st.tuples(st.integers(1, 70), st.integers(0, 90), st.none() | st.integers(0, 90))


@given(
    rows=st.lists(st.lists(SIZES, max_size=8), min_size=3, max_size=3),
    form=st.sampled_from([PAIRS, APART, REWARD]),
    window=st.sampled_from(WINDOWS),
)
@settings(max_examples=10)
def test_the_kernel_equals_the_rule_on_any_rows(rows, form, window):
    def slots(row):
        return form.slots(np.array([(p, c, r or 0) for p, c, r in row], np.int32).reshape(-1, 3)).sum()

    fitting = [row[: sum(slots(row[: n + 1]) <= LENGTH for n in range(len(row)))] for row in rows]
    check(layout_of(fitting, form, LENGTH), window=window)


@pytest.mark.parametrize(
    ("heads", "head_dim"),
    [
        pytest.param((2, 2), 64, marks=pytest.mark.slow),
        ((4, 1), 128),
        pytest.param((32, 8), 16, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_any_number_of_queries_share_a_key(heads, head_dim):
    check(layout_of([[(20, 30, 25), (9, 20, 1)]], PAIRS, 128), heads=heads, head_dim=head_dim, window=50)


def test_a_row_shorter_than_a_tile_and_a_window_known_beforehand():
    check(layout_of([[(9, 10, 11), (1, 2, 3)]], PAIRS, 48), kernel=Triton(interpret=True), window=7)


@pytest.mark.parametrize(
    ("shape", "heads", "overrides"),
    [((2, 2, 2, 1), (4, 2), {}), ((1, 2, 4, 1), (8, 2), {"kv_heads": None})],
    ids=["rows and heads", "key heads whole"],
)
def test_rows_and_heads_on_a_mesh_change_nothing(shape, heads, overrides):
    place = Placement(build_mesh(MeshShape(*shape)), merge_rules(overrides))
    layout = layout_of([[(20, 30, 25)], [(9, 20, 1), (1, 2, 60)], [], [(1, 120, None)]], PAIRS, 128)
    check(layout, heads=heads, place=place, window=40)


def test_padding_sees_nothing_and_its_gradient_goes_nowhere():
    layout = layout_of(ROWS["pairs"][1], PAIRS, LENGTH)
    real = (layout.segment > 0)[:, :, None, None]
    q, k, v, cotangent = random_inputs(layout)
    run = output_and_gradients(calling(SMALL, None, NOWHERE))
    ours, theirs = run(q, k, v, cotangent, layout), run(q, k, v, real * cotangent, layout)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.any(ours[0] * ~real)


def test_rematerialized_layers_in_a_scan_have_the_same_gradients():
    layout = layout_of(ROWS["pairs"][1], PAIRS, LENGTH)
    q, k, v, cotangent = random_inputs(layout)

    def gradients(attend):
        @jax.checkpoint
        def layer(q, scale):
            return attend(q, scale * k, v, layout, window=60), None

        def loss(q, scales):
            return jnp.sum(jax.lax.scan(layer, q, scales)[0] * cotangent * (layout.segment > 0)[:, :, None, None])

        return jax.jit(jax.grad(loss, (0, 1)))(q, jnp.array([1.0, 0.5, 2.0]))

    for ours, theirs in zip(gradients(SMALL), gradients(attention), strict=True):
        # Three layers follow each other; a change of the first reaches the last through every score.
        bound = float32_bound(3 * LENGTH * 2, condition=3) * np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=bound)


def test_bfloat16_is_as_near_to_float32_as_the_rule_is():
    """Scores, softmax and sums stay float32. The kernel rounds the gradients of scores, which the rule does not: one
    error more, as large as the one that both make before, so up to sqrt(2) times the error."""
    layout = layout_of(ROWS["pairs"][1], PAIRS, LENGTH)
    real = (layout.segment > 0)[:, :, None, None]
    inputs = random_inputs(layout)
    inputs[3] *= real
    half = [x.astype(jnp.bfloat16) for x in inputs]
    ours, theirs = (
        output_and_gradients(attend)(*half, layout) for attend in (calling(SMALL, None, NOWHERE), rule(None))
    )
    exact = output_and_gradients(rule(None))(*(x.astype(jnp.float32) for x in half), layout)
    for name, a, b, c in zip(("output", "q", "k", "v"), ours, theirs, exact, strict=True):
        assert a.dtype == jnp.bfloat16 and np.isfinite(a.astype(jnp.float32)).all()
        near, far = (float(jnp.sqrt(jnp.mean(jnp.square((x.astype(jnp.float32) - c) * real)))) for x in (a, b))
        assert near <= far * (2**0.5 if name in ("q", "k") else 1.01), name


@pytest.mark.parametrize("window", [None, 48])
def test_a_tile_is_visited_if_somebody_sees_something_and_masked_unless_everybody_sees_everything(window):
    layout = layout_of([[(33, 64, 64), (17, 40, 24)], [(1, 249, None)]], PAIRS, 256)
    tile = Tile(32, 16, 4, 1)
    seen = np.asarray(visible(layout, layout, window)).reshape(2, 8, 32, 16, 16).swapaxes(2, 3)
    for by_keys in (False, True):

        @jax.jit
        def rule_of(layout, by_keys=by_keys):
            return triton._rule(*triton._limits(layout, window), tile, by_keys=by_keys)

        tiles_of = jax.device_get(rule_of(layout))
        for row, block in np.ndindex(*tiles_of.counts.shape[:2]):
            tiles = seen[row, :, block] if by_keys else seen[row, block]
            order, (whole, busy) = tiles_of.order[row, block], tiles_of.counts[row, block]
            assert sorted(order[:whole]) == list(np.flatnonzero(tiles.all((1, 2))))
            assert sorted(order[:busy]) == list(np.flatnonzero(tiles.any((1, 2))))


def lowered_for_a_gpu(q, kv, dtype, window=None):
    """The program of outputs and gradients for an H100, which need not be here, as text."""

    def run(q, k, v, gradient, layout):
        out, pull = jax.vjp(lambda *qkv: Triton()(*qkv, layout, window=window), q, k, v)
        return out, pull(gradient)

    arrays = [jax.ShapeDtypeStruct(shape, dtype) for shape in (q, kv, kv, q)]
    slots = jax.ShapeDtypeStruct(q[:2], jnp.int32)
    device = AbstractDevice(device_kind="NVIDIA H100", num_cores=None, platform="gpu")
    mesh = AbstractMesh((1,), ("one",), axis_types=(AxisType.Auto,), abstract_device=device)
    with use_abstract_mesh(mesh):
        traced = jax.jit(run).trace(*arrays, Slots(slots, slots, slots))
        return traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize(
    ("head_dim", "dtype"),
    [
        (64, "float32"),
        (128, "bfloat16"),
        pytest.param(64, "bfloat16", marks=pytest.mark.slow),
        pytest.param(128, "float32", marks=pytest.mark.slow),
    ],
)
def test_triton_takes_the_kernels(head_dim, dtype):
    """Pallas makes Triton's program of them, which refuses unknown operations and sizes that are no power of two."""
    text = lowered_for_a_gpu((2, 8192, 32, head_dim), (2, 8192, 8, head_dim), dtype, window=4096)
    assert text.count("__gpu$xla.gpu.triton") == 3
    for kernel in ("outputs", "query_gradients", "key_gradients"):
        assert f'name = "{kernel}"' in text


FITTING = {"row_length": 4001, "window": 5, "copies": 9}


def on_gpus(shape=None, rules=None, platform="gpu", capability="9.0", kind="NVIDIA H100 80GB HBM3"):
    device = types.SimpleNamespace(platform=platform, compute_capability=capability, device_kind=kind)
    sizes = {"data": 1, "fsdp": 1, "tensor": 1, "context": 1} | (shape or {})
    return Placement(types.SimpleNamespace(devices=np.array([device]), shape=sizes), merge_rules(rules))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"place": on_gpus({"data": 2, "tensor": 8})}, None),
        ({"place": on_gpus(capability="8.0", kind="NVIDIA A100")}, None),
        ({"place": on_gpus({"tensor": 8}, {"kv_heads": None}), "kv_heads": 1}, None),
        ({"dtype": "float32"}, None),
        ({"dtype": "float16"}, "activations are float16, and the kernel takes bfloat16 and, slowly, float32"),
        ({"head_dim": 96}, "head_dim 96 is not 16, 32, 64, 128 or 256"),
        ({"head_dim": 8}, "head_dim 8 is not"),
        ({"place": on_gpus(platform="cpu", capability=None)}, None),
        ({"place": on_gpus(platform="tpu", capability=None)}, "devices are tpu"),
        ({"place": on_gpus(capability="gfx942", kind="AMD MI300")}, "AMD MI300 is no NVIDIA GPU"),
        ({"place": on_gpus(capability="7.5", kind="Tesla T4")}, "Tesla T4 has compute capability 7.5, and bfloat16"),
        ({"place": on_gpus({"context": 2})}, "a row is split over 2 devices"),
        ({"place": on_gpus({"tensor": 2}, {"kv_heads": None}), "heads": 12, "kv_heads": 3}, "12 query heads on 2"),
    ],
)
def test_what_the_kernel_cannot_do_is_said_in_words(changes, words):
    reason = unsupported_reason(need(**{**FITTING, **changes}))
    assert reason is None if words is None else words in reason
