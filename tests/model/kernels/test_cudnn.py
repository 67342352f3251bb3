"""cuDNN's kernel on the CPU, plain JAX in the place of its one call, which needs a GPU: outputs and all gradients."""

import functools
import json
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_jax.model.attention import Slots
from janus_jax.model.kernels import cudnn
from janus_jax.model.kernels.cudnn import Cudnn, unsupported_reason
from janus_jax.parallel.mesh import DEFAULT_RULES, NOWHERE, MeshShape, Placement, build_mesh, merge_rules
from tests.support.attention_rows import APART, PAIRS, REWARD, assert_equals_the_rule, layout_of
from tests.support.cudnn import packed_attention
from tests.support.kernels import need

LENGTH, HEAD_DIM = 256, 16
FOLDED = Cudnn(copies=128, sequences=12, longest=128, packed=packed_attention)  # memory of 3 rows of 128 slots
LONG = Cudnn(copies=100, sequences=4, longest=LENGTH, packed=packed_attention)  # memory of one row of 384


@functools.cache
def attend(kernel, window=None, place=NOWHERE):
    """One function for all rows, so that it is compiled once."""
    return functools.partial(kernel, window=window, place=place)


def check(rows, form=PAIRS, *, kernel=FOLDED, window=None, heads=(4, 2), place=NOWHERE):
    slots = layout_of(rows, form, LENGTH)
    assert_equals_the_rule(attend(kernel, window, place), slots, window=window, heads=heads, head_dim=HEAD_DIM)


@pytest.mark.parametrize(
    ("rows", "form"),
    [
        ([[(40, 30, 35), (1, 50, 20), (5, 3, 30)], [(29, 70, 99), (19, 1, 1)]], PAIRS),
        ([[(40, 30, 35), (1, 50, 20)], [(20, 90, 80)]], REWARD),
        ([[(30, 0, 40), (30, 40, 0), (30, 0, 0), (20, 9, 9)], [(1, 0, 0), (1, 0, 7), (1, 7, 0)]], PAIRS),
        ([[(2, 1, 1)] * 6, [(1, 21, 21)] * 5 + [(1, 23, 23)]], PAIRS),
        ([[(65, 64, 64), (33, 16, 16)], [(129, 0, 0), (129, 0, 0)]], PAIRS),
        ([[], [(50, 70, None), (60, 20, 30), (4, 1, None)]], PAIRS),
        ([[(1, 128, 128)], [(20, 10, 30), (1, 9, 40)]], APART),
        ([[(28, 101, None), (28, 101, None)], [(1, 1, None)] * 12], PAIRS),
    ],
    ids=["pairs", "reward", "empty branches", "most sequences", "full rows", "empty row", "prompts apart", "responses"],
)
def test_sequences_of_their_own_equal_the_rule(rows, form):
    check(rows, form)


@pytest.mark.parametrize("rows", [[[(100, 157, 0)], [(1, 256, None)]], [[(30, 100, 127)], [(99, 1, 157)]]])
def test_a_sequence_may_be_as_long_as_a_row(rows):
    check(rows, kernel=LONG)


SIZES = st.tuples(st.integers(1, 60), st.integers(0, 60), st.none() | st.integers(0, 60))


@given(rows=st.lists(st.lists(SIZES, max_size=6), min_size=2, max_size=2), reward=st.booleans())
@settings(max_examples=12, deadline=None)
def test_sequences_of_their_own_equal_the_rule_on_any_rows(rows, reward):
    form = REWARD if reward else PAIRS
    fitting = []
    for row in rows:
        while row and not _fits(row, form):
            row = row[:-1]
        fitting.append(row)
    check(fitting, form)


def _fits(row, form):
    slots = sum(p - 1 + (1 + (r is not None)) * (form.head == "value") + c + 1 + (r or 0) + 1 for p, c, r in row)
    return slots <= LENGTH and sum(p - 1 for p, _, _ in row) <= FOLDED.copies


@pytest.mark.parametrize("window", [pytest.param(1, marks=pytest.mark.slow), 20])
def test_a_window_is_one_in_the_sequence_also_for_rejected_branches(window):
    check([[(40, 30, 35), (1, 50, 20)], [(29, 70, 99)]], window=window)


def test_a_window_that_no_sequence_fills_is_left_out():
    windows = []

    def packed(q, *rest, window):
        windows.append(window)
        return q

    q, k = jnp.ones((1, LENGTH, 2, 8)), jnp.ones((1, LENGTH, 1, 8))
    slots = layout_of([[(40, 30, 35)]], PAIRS, LENGTH)
    for longest, expected in ((75, None), (76, 75)):
        kernel, windows[:] = Cudnn(copies=50, sequences=2, longest=longest, packed=packed), []
        jax.eval_shape(attend(kernel, 75), q, k, k, slots)
        assert windows == [expected]


@pytest.mark.parametrize("heads", [pytest.param((2, 2), marks=pytest.mark.slow), (4, 1)], ids=str)
def test_any_number_of_queries_share_a_key(heads):
    check([[(40, 30, 35), (5, 3, 30)], [(29, 70, 99)]], heads=heads)


@pytest.mark.parametrize(
    ("shape", "heads", "overrides"),
    [((1, 2, 2, 2), (4, 2), {"length": None}), ((1, 2, 4, 1), (8, 2), {"kv_heads": None})],
    ids=["rows and heads", "key heads whole"],
)
def test_rows_and_heads_on_a_mesh_change_nothing(shape, heads, overrides):
    place = Placement(build_mesh(MeshShape(*shape)), merge_rules(overrides))
    check([[(40, 30, 35), (1, 50, 20)], [(29, 70, 99)]], heads=heads, place=place)


def test_rows_go_in_parts_where_their_elements_are_more_than_an_int32_counts(monkeypatch):
    """Three rows of memory for 384 slots; two of them go at once."""
    monkeypatch.setattr(cudnn, "_MOST_ELEMENTS", 2 * 384 * 4 * HEAD_DIM)
    shapes = []

    def packed(q, *rest, window):
        shapes.append(q.shape)
        return q

    slots = layout_of([[(40, 30, 35)], [(29, 70, 99)], [(20, 10, 30), (1, 9, 40)]], PAIRS, LENGTH)
    q = jnp.asarray(np.random.default_rng(0).normal(size=(3, LENGTH, 4, HEAD_DIM)))
    kernel = Cudnn(copies=128, sequences=12, longest=128, packed=packed)
    out = jax.jit(attend(kernel))(q, q, q, slots)
    assert shapes == [(6, 128, 4, HEAD_DIM), (3, 128, 4, HEAD_DIM)]
    np.testing.assert_array_equal(out, jnp.where((slots.segment > 0)[:, :, None, None], q, 0))


@pytest.mark.parametrize(
    "changes",
    [{"copies": 0, "longest": 256}, {"sequences": 3}, {"longest": 100}],
    ids=["copies", "sequences", "longest"],
)
def test_rows_that_break_a_limit_say_so(changes):
    """The first row does, the others not; the answer would look right and be wrong."""
    kernel = Cudnn(**{"copies": 128, "sequences": 12, "longest": 128, "packed": packed_attention, **changes})
    slots = layout_of([[(60, 60, 60), (20, 20, 30)], [], [(20, 50, None)]], PAIRS, LENGTH)
    q, k, v = (jnp.ones((3, LENGTH, heads, 8)) for heads in (2, 1, 1))
    out = jax.jit(attend(kernel))(q, k, v, slots)
    assert np.isnan(out[0]).all() and np.isfinite(out[1:]).all()


def test_rows_that_are_not_laid_like_the_packers_say_so():
    """Padding inside, a rejected branch before the chosen one, a segment that comes back."""
    segment = np.ones((4, LENGTH), np.int32)
    branch = np.zeros((4, LENGTH), np.int32)
    segment[0, 5], branch[1, :9], branch[1, 9:], segment[2, 8:20] = 0, 2, 1, 2
    q, k, v = (jnp.ones((4, LENGTH, heads, 8)) for heads in (2, 1, 1))
    out = jax.jit(attend(LONG))(q, k, v, Slots(jnp.asarray(segment), jnp.asarray(branch), jnp.asarray(branch)))
    assert np.isnan(out[:3]).all() and np.isfinite(out[3]).all()


def test_memory_is_full_and_each_sequence_begins_where_the_one_before_it_ends():
    """Some of cuDNN's engines add up lengths instead of reading begins; none gets memory that nobody wrote."""
    slots = layout_of([[(40, 30, 35), (1, 50, 20)], [], [(129, 0, 0), (2, 1, 1)]], PAIRS, LENGTH)
    sizes = {"sequences": 12, "longest": 128, "rows": 3, "length": 128}
    pack = jax.jit(functools.partial(cudnn._pack, **sizes))(slots.segment, slots.branch)
    lengths, begins = np.asarray(pack.lengths), np.asarray(pack.begins)
    assert pack.fits.all() and begins.shape[-1] == lengths.shape[-1] + 1 and (begins[..., -1] == -1).all()
    assert ((lengths > 0) == (begins[..., :-1] >= 0)).all() and (lengths[lengths < 0] == -1).all()
    assert lengths.max() <= 128  # a folded row
    absolute = begins[..., :-1] + 128 * np.arange(9).reshape(3, 3, 1)
    flat = lengths[lengths > 0]
    np.testing.assert_array_equal(absolute[lengths > 0], np.cumsum(flat) - flat)
    assert flat.sum() == 3 * 3 * 128


# What JAX hands to cuDNN, in the program for a GPU; none is needed to lower it.


@pytest.fixture
def with_a_gpu(monkeypatch):
    from jax._src.cudnn import fused_attention_stablehlo as lowering

    monkeypatch.setattr(lowering, "check_cudnn_version", lambda: 91300)
    monkeypatch.setattr(lowering, "check_compute_capability", lambda _: True)
    monkeypatch.setattr(lowering, "is_cuda_compute_capability_equal", lambda _: False)


def calls(text):
    """Name -> (backend_config, types of operands) of each call of cuDNN."""
    pattern = r'custom_call @(__cudnn\$\w+)\(.*?backend_config = "(.*?)", .*? : \((.*?)\) ->'
    return {
        name: (json.loads(config.replace("\\22", '"'))["cudnn_fmha_backend_config"], re.findall("tensor<(.*?)>", types))
        for name, config, types in re.findall(pattern, text)
    }


@pytest.mark.parametrize(
    ("window", "binding", "mesh"),
    [(None, 0, None), (4096, 0, None), (1000, 1000, None), (None, 0, MeshShape(1, 2, 4, 1))],
    ids=["no window", "window of no sequence", "window", "rows and heads on 8 devices"],
)
def test_cudnn_gets_packed_sequences(with_a_gpu, window, binding, mesh):
    """Rows of 8192 slots with 1,000 copies, folded into 4 rows of 18 x 128 slots that hold 8 sequences."""
    kernel = Cudnn(copies=1000, sequences=27, longest=2048)
    place = NOWHERE if mesh is None else Placement(build_mesh(mesh), DEFAULT_RULES)
    rows, queries, keys = (2, 32, 8) if mesh is None else (1, 8, 2)

    def forward(q, k, v, *slots):
        return kernel(q, k, v, Slots(*slots), window=window, place=place)

    def step(q, k, v, cotangent, *slots):
        out, pull = jax.vjp(lambda *qkv: forward(*qkv, *slots), q, k, v)
        return out, *pull(cotangent)

    q, k = (jax.ShapeDtypeStruct((2, 8192, heads, 128), jnp.bfloat16) for heads in (32, 8))
    slots = (jax.ShapeDtypeStruct((2, 8192), jnp.int32),) * 3
    alone, trained = (
        calls(jax.jit(f).trace(*arrays, *slots).lower(lowering_platforms=("cuda",)).as_text())
        for f, arrays in ((forward, (q, k, k)), (step, (q, k, k, q)))
    )
    out, back = "__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"
    assert set(alone) == {out} and set(trained) == {out, back}
    keys = keys if cudnn._GROUPED else queries
    q, k = (f"{4 * rows}x2304x{heads}x128xbf16" for heads in (queries, keys))
    ids = [f"{4 * rows}x{table}xi32" for table in (8, 8, 9, 9)]
    assert alone[out][1] == trained[out][1] == [q, k, k, *ids]
    assert trained[back][1] == [q, k, k, f"{32 * rows}x{queries}x2304xf32", q, q, *ids]
    for config, _ in (alone[out], trained[out], trained[back]):
        assert config["mask_type"] == "PADDING_CAUSAL" and config["max_seg_per_batch"] == 8
        assert config["sliding_window_length"] == binding and config["dropout_rate"] == 0
        assert config["fmha_scale"] == pytest.approx(128**-0.5)


def test_keys_are_repeated_where_jax_counts_their_begins_in_query_heads(monkeypatch):
    shapes = []

    def packed(q, k, v, *rest, window):
        shapes.append((q.shape, k.shape, v.shape))
        return q

    q, k = jnp.ones((1, LENGTH, 4, 8)), jnp.ones((1, LENGTH, 2, 8))
    slots = layout_of([[(40, 30, 35)]], PAIRS, LENGTH)
    for grouped in (True, False):
        monkeypatch.setattr(cudnn, "_GROUPED", grouped)
        kernel = Cudnn(copies=128, sequences=2, longest=128, packed=packed)
        jax.eval_shape(functools.partial(kernel, window=None), q, k, k, slots)
    assert [k[2] for _, k, _ in shapes] == [2, 4] and all(k == v for _, k, v in shapes)


FITTING = {"window": 5, "copies": 9}


def mesh_of(platform="gpu", capability="9.0", kind="NVIDIA H100 80GB HBM3", here=True):
    """One device of a GPU's kind, of this host's client or of none."""
    client = jax.local_devices()[0].client if here else None
    device = types.SimpleNamespace(platform=platform, compute_capability=capability, device_kind=kind, client=client)
    return types.SimpleNamespace(devices=np.array([device]), shape={"data": 1, "fsdp": 1, "tensor": 1, "context": 1})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"place": Placement(mesh_of())}, None),
        ({"place": Placement(mesh_of(capability="12.0"))}, None),
        ({"dtype": "float32"}, "activations are float32, and the kernel takes bfloat16"),
        ({"head_dim": 264}, "head_dim 264 is no multiple of 8 up to 256"),
        ({"head_dim": 100}, "head_dim 100 is no multiple of 8"),
        ({"place": Placement(build_mesh(MeshShape(1, 8, 1, 1)))}, "devices are cpu"),
        ({"place": Placement(mesh_of(capability="8.0", kind="A100"))}, "A100 has compute capability 8.0, and .* 9.0"),
        ({"place": Placement(mesh_of(capability="gfx942", kind="AMD MI300"))}, "AMD MI300 is no NVIDIA GPU"),
        ({"place": Placement(mesh_of(here=False))}, "only where the GPU is"),
    ],
)
def test_what_the_kernel_cannot_do_is_said_in_words(changes, words):
    reason = unsupported_reason(need(**{**FITTING, **changes}))
    assert (reason is None) == (words is None), reason
    assert words is None or re.search(words, reason)


@pytest.mark.parametrize(
    ("shape", "rules", "words"),
    [
        ({"context": 2}, {}, "a row is split over 2 devices"),
        ({"tensor": 2, "context": 4}, {"q_heads": "context", "kv_heads": "tensor", "length": None}, "8 key heads on 2"),
        ({"tensor": 8}, {}, None),
    ],
)
def test_rows_are_not_split_and_queries_have_their_keys(shape, rules, words):
    mesh = mesh_of()
    mesh.shape.update(shape)
    reason = unsupported_reason(need(**FITTING, place=Placement(mesh, merge_rules(rules))))
    assert (reason is None) == (words is None), reason
    assert words is None or words in reason
