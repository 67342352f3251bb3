"""The kernel for TPUs, its program run by XLA on the CPU, against the attention rule: outputs and all gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_jax.model.attention import Slots, attention, visible
from janus_jax.model.kernels import splash
from janus_jax.model.kernels.splash import splash_attention, unsupported_reason
from janus_jax.parallel.mesh import DEFAULT_RULES, NOWHERE, MeshShape, Placement, build_mesh, merge_rules
from tests.support import attention_rows
from tests.support.attention_rows import APART, PAIRS, REWARD
from tests.support.kernels import need
from tests.support.tolerances import float32_bound

LENGTH, COPIES, HEAD_DIM = 384, 128, 128  # three blocks of queries, four of keys

layout_of = functools.partial(attention_rows.layout_of, length=LENGTH)


def gradients(window, copies, place=NOWHERE):
    """(output, gradients of q, k, v) by the kernel; `copies` None: by the rule."""

    def run(q, k, v, weights, layout):
        if copies is None:
            out, pull = jax.vjp(lambda *qkv: attention(*qkv, layout, window=window), q, k, v)
        else:
            options = {"window": window, "copies": copies, "place": place, "interpret": True}
            out, pull = jax.vjp(lambda *qkv: splash_attention(*qkv, layout, **options), q, k, v)
        return out, *pull(weights)

    return jax.jit(run)


on_one_device = functools.cache(gradients)


def check(layout, *, window=None, copies=COPIES, heads=(4, 2), head_dim=HEAD_DIM, place=NOWHERE):
    rows, length = layout.segment.shape
    assert ((layout.branch == 0) & (layout.segment > 0)).sum(1).max() <= copies or not copies
    rng = np.random.default_rng(0)
    real = (layout.segment > 0)[:, :, None, None]
    q, weights = (rng.normal(size=(rows, length, heads[0], head_dim)).astype(np.float32) for _ in range(2))
    k, v = (rng.normal(size=(rows, length, heads[1], head_dim)).astype(np.float32) for _ in range(2))
    layout = Slots(*map(jnp.asarray, layout))
    compiled = on_one_device(window, copies) if place.mesh is None else gradients(window, copies, place)
    ours = compiled(q, k, v, real * weights, layout)
    theirs = on_one_device(window, None)(q, k, v, real * weights, layout)
    # A score is a sum over the head; a key's gradient one over the queries of all heads that share the key.
    tolerance = float32_bound(head_dim + length * heads[0] // heads[1])
    for name, a, b in zip(("output", "q", "k", "v"), ours, theirs, strict=True):
        assert np.isfinite(a).all(), f"{name}: not finite"
        used = real if name == "output" else 1
        error, size = np.abs((a - b) * used).max(), np.abs(b * used).max()
        assert error <= tolerance * size, f"{name}: {error} of {size}"


@pytest.mark.parametrize(
    ("rows", "form"),
    [
        ([[(40, 30, 35), (1, 50, 20), (25, 3, 60), (9, 40, 41)], [(120, 100, 165)]], PAIRS),
        ([[(40, 30, 35), (1, 50, 20), (25, 3, 60)], [(120, 90, 110)]], REWARD),
        ([[(30, 0, 40), (30, 40, 0), (30, 0, 0), (20, 9, 9)], [(1, 0, 0), (1, 0, 7), (1, 7, 0)]], PAIRS),
        ([[(129, 126, 130)], [(65, 60, 60), (65, 60, 9)]], PAIRS),  # 128 shared slots in both rows
        ([[], [(50, 100, None), (60, 20, 30), (4, 5, None)]], PAIRS),
        ([[(100, 150, None), (28, 80, None)], [(1, 200, None), (2, 1, None)]], PAIRS),
        ([[(1, 100, 120), (1, 60, 90)], [(70, 40, 60), (40, 20, 30)]], APART),
    ],
    ids=["pairs", "reward", "empty branches", "exact fit", "empty row", "one branch", "prompts apart"],
)
def test_the_kernel_with_copies_equals_the_rule(rows, form):
    check(layout_of(rows, form))


SIZES = st.tuples(st.integers(1, 70), st.integers(0, 90), st.none() | st.integers(0, 90))


@given(rows=st.lists(st.lists(SIZES, max_size=8), min_size=2, max_size=2), reward=st.booleans())
@settings(max_examples=6)
def test_the_kernel_with_copies_equals_the_rule_on_any_rows(rows, reward):
    form = REWARD if reward else PAIRS
    fitting = []
    for row in rows:
        while row and not _fits(row, form):
            row = row[:-1]
        fitting.append(row)
    check(layout_of(fitting, form))


def _fits(row, form):
    slots = sum(p - 1 + (1 + (r is not None)) * (form.head == "value") + c + 1 + (r or 0) + 1 for p, c, r in row)
    return slots <= LENGTH and sum(p - 1 for p, _, _ in row) <= COPIES


SFT_ROWS = [[(100, 150, None), (1, 60, None), (28, 40, None)], [(1, 370, None)]]
APART_ROWS = [[(60, 60, 90), (1, 20, 30)], [(5, 180, 190)]]


@pytest.mark.parametrize("window", [None, pytest.param(2, marks=pytest.mark.slow), 100])
def test_without_copies_a_window_in_the_row_is_one_in_the_sequence(window):
    """Responses alone, and pairs whose branches carry their own prompts."""
    check(layout_of(SFT_ROWS, PAIRS), copies=0, window=window)
    check(layout_of(APART_ROWS, APART), copies=0, window=window)


def test_with_copies_a_window_as_long_as_the_longest_sequence_changes_nothing():
    layout = layout_of([[(60, 60, 90), (20, 20, 30)], [(40, 130, 140)]], PAIRS)
    longest = int(layout.position.max()) + 1
    assert longest == 179
    check(layout, window=longest)


@pytest.mark.parametrize(("heads", "head_dim"), [((2, 2), 64), ((4, 1), HEAD_DIM)], ids=str)
def test_any_number_of_queries_share_a_key_and_heads_may_be_half_as_wide(heads, head_dim):
    check(layout_of([[(40, 30, 35), (25, 3, 60)], [(120, 100, 110)]], PAIRS), heads=heads, head_dim=head_dim)


LONG_ROWS = [[(40, 30, 35), (1, 50, 20), (25, 130, 60)], [(120, 180, 190)]]


@pytest.mark.parametrize(
    ("shape", "heads", "window", "overrides"),
    [
        ((1, 2, 2, 2), (4, 2), None, {}),
        pytest.param((1, 2, 1, 4), (2, 1), None, {}, marks=pytest.mark.slow),
        ((2, 1, 1, 4), (2, 1), 100, {}),
        pytest.param((2, 1, 4, 1), (8, 2), None, {"kv_heads": None}, marks=pytest.mark.slow),
        ((1, 2, 1, 4), (4, 1), None, {"length": None, "q_heads": "context", "kv_heads": None}),
    ],
    ids=["all axes", "length in 4", "length in 4, window", "key heads whole", "one key head whole"],
)
def test_rows_heads_and_length_on_a_mesh_change_nothing(shape, heads, window, overrides):
    place = Placement(build_mesh(MeshShape(*shape)), merge_rules(overrides))
    copies = 0 if window else COPIES
    rows = [[(60, 200, None), (20, 150, None)], [(5, 490, None)]] if window else LONG_ROWS
    layout = layout_of(rows, PAIRS, length=512)
    numbers = {"heads": heads[0], "kv_heads": heads[1], "head_dim": HEAD_DIM}
    reason = unsupported_reason(need(row_length=512, longest=512, **numbers, window=window, copies=copies, place=place))
    assert reason is None
    check(layout, window=window, copies=copies, heads=heads, place=place)


def test_a_block_is_computed_where_the_rule_lets_a_query_see_a_key_of_it_and_nowhere_else():
    """Of a full row: padding sees padding, which the rule does not say."""
    length, block, copies = 512, 128, 256
    layout = layout_of([[(129, 100, 156), (65, 30, 34)]], PAIRS, length=length)
    assert (layout.segment > 0).all()
    layout = Slots(*map(jnp.asarray, layout))
    seen = np.asarray(visible(layout, layout, None))[0]
    shared, rejected = np.asarray(layout.branch[0] == 0), np.asarray(layout.branch[0] == 2)
    expected = np.zeros((length, copies + length), bool)
    expected[:, copies:] = seen & ~(rejected[:, None] & shared)
    expected[:, : shared.sum()] = (seen & rejected[:, None])[:, shared]
    expected = expected.reshape(length // block, block, -1, block).any((1, 3))
    assert expected.sum() == 9  # of 18 that the order leaves

    leaves, tree = splash._kernel(
        length=length, copies=copies, window=None, heads=2, parts=1, block=block, interpret=True
    )
    _, _, copy_ids, _ = splash._copies(layout.segment, layout.branch, copies)
    ids = splash._ids(layout.segment, layout.branch)
    row = splash._without_idle_blocks(jax.tree.unflatten(tree, leaves), ids[0], jnp.concatenate([copy_ids, ids], 1)[0])
    for info, by_keys in ((row.fwd_mask_info, False), (row.dq_mask_info, False), (row.dkv_mask_info, True)):
        computed = np.zeros_like(expected)
        for at in zip(*np.nonzero(info.block_mask[0]), strict=True):
            brought = int(info.data_next[0][at])
            computed[(brought, at[1]) if by_keys else (at[0], brought)] = True
        np.testing.assert_array_equal(computed, expected)


@pytest.mark.parametrize("copies", [0, 128])
def test_rows_with_more_shared_slots_than_copies_say_so(copies):
    """The first row has too many; the answer would look right and be wrong."""
    layout = Slots(*map(jnp.asarray, layout_of([[(150, 60, 60)], [], [(60, 90, None)]], PAIRS)))
    q, k, v = (jnp.ones((3, LENGTH, heads, HEAD_DIM)) for heads in (4, 2, 2))
    out = splash_attention(q, k, v, layout, window=None, copies=copies, interpret=True)
    assert np.isnan(out[0]).all() and np.isfinite(out[1:]).all()


def test_bfloat16_is_as_near_to_float32_as_the_rule_is():
    """The scale is multiplied in float32 and then rounded, scores and softmax stay float32."""
    rng = np.random.default_rng(0)
    layout = Slots(*map(jnp.asarray, layout_of([[(120, 100, 110)]], PAIRS)))
    real = (layout.segment > 0)[:, :, None, None]
    q, k, v = (jnp.asarray(rng.normal(size=(1, LENGTH, heads, HEAD_DIM)), jnp.bfloat16) for heads in (4, 2, 2))
    exact = attention(*(x.astype(jnp.float32) for x in (q, k, v)), layout)
    rule = attention(q, k, v, layout)
    kernel = functools.partial(splash_attention, slots=layout, window=None, copies=COPIES, interpret=True)
    ours = jax.jit(kernel)(q, k, v)
    assert ours.dtype == jnp.bfloat16

    def error(x):
        return float(jnp.sqrt(jnp.mean(jnp.square((x.astype(jnp.float32) - exact) * real))))

    # Root mean squares of 200,000 roundings to bfloat16: the order of float32 sums hardly moves their ratio, 0.947.
    assert error(ours) <= error(rule)


@pytest.mark.parametrize(
    ("changes", "shape", "overrides", "words"),
    [
        ({}, (2, 2, 2, 1), {}, None),
        ({"window": 2048}, (1, 1, 1, 8), {}, None),
        ({"window": 2047}, (1, 8, 1, 1), {}, "a window of 2047 is shorter than the longest sequence, 2048"),
        ({"window": 5, "copies": 0}, (1, 8, 1, 1), {}, None),
        ({"row_length": 4000}, (1, 8, 1, 1), {}, "rows of 4000 slots are no multiple of 128 "),
        ({"row_length": 4224}, (1, 4, 1, 2), {}, r"rows of 4224 slots are no multiple of 256 \(128 on each of 2"),
        ({"head_dim": 64}, (1, 8, 1, 1), {}, None),
        ({"head_dim": 96}, (1, 8, 1, 1), {}, "head_dim 96 is no multiple of 64"),
        ({}, (1, 1, 8, 1), {"kv_heads": None}, None),
        ({}, (1, 1, 4, 2), {"q_heads": ["tensor", "context"], "length": None}, "on 8 devices and 8 key heads on 4"),
        ({}, (1, 1, 2, 4), {"q_heads": "context", "kv_heads": "tensor", "length": None}, "32 query heads on 4 devices"),
        ({}, (1, 2, 2, 2), {"q_heads": "context", "kv_heads": "tensor", "length": None}, "8 key heads on 2"),
        ({"heads": 24}, (1, 1, 2, 4), {"q_heads": "context", "kv_heads": None, "length": None}, None),
        ({"heads": 12, "kv_heads": 4}, (1, 1, 2, 4), {"kv_heads": None}, None),
        ({"heads": 12, "kv_heads": 3}, (1, 4, 2, 1), {"kv_heads": None}, "12 query heads on 2 devices"),
    ],
)
def test_what_the_kernel_cannot_do_is_said_in_words(changes, shape, overrides, words):
    place = Placement(build_mesh(MeshShape(*shape)), merge_rules(overrides) if overrides else DEFAULT_RULES)
    reason = unsupported_reason(need(**changes, place=place))
    assert (reason is None) == (words is None), reason
    if words is not None:
        with pytest.raises(ValueError, match=words):
            raise ValueError(reason)
