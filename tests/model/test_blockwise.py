"""Attention block by block: equal to the rule on packed rows, and chosen for long rows on one CPU device."""

import functools
import itertools

import jax
import pytest

from janus_jax.data.padding import Padding
from janus_jax.data.rows import RowFormat
from janus_jax.model import blockwise
from janus_jax.parallel.axes import MeshShape
from janus_jax.parallel.mesh import DEFAULT_RULES, NOWHERE, Placement, build_mesh
from tests.support.attention_rows import APART, PAIRS, REWARD, assert_equals_the_rule, layout_of

ROWS = [[(30, 25, 40), (9, 20, 3)], [(50, 70, 41)]]


PADDED = RowFormat("lm", 2, padding=Padding("trl", 2, 140))


@pytest.mark.parametrize(("form", "window"), [*itertools.product([PAIRS, APART, REWARD], [None, 17]), (PADDED, None)])
def test_equals_the_rule(form, window):
    slots = layout_of(ROWS, form, 250 if form.padding is None else 350)  # not a multiple of a block
    attend = functools.partial(blockwise.blockwise, window=window, block=32)
    assert_equals_the_rule(attend, slots, window=window, heads=(4, 2), head_dim=8)


def test_more_segments_than_bits_are_kept_apart():
    slots = layout_of([[(2, 1, 2)] * 40], PAIRS, 192)
    attend = functools.partial(blockwise.blockwise, block=32)
    assert_equals_the_rule(attend, slots, window=None, heads=(2, 2), head_dim=8)


def test_blocks_in_which_nobody_sees_anything_are_not_visited():
    slots = layout_of([[(32, 32, 65), (1, 64, None)]], PAIRS, 320)  # two segments, then padding
    pieces = jax.tree.map(lambda field: field.reshape(-1, 32), slots)
    table = blockwise._may_see(pieces, 1, None)[0]
    seen = blockwise.visible(slots, slots, None).reshape(10, 32, 10, 32).any((1, 3))
    assert not (seen & ~table).any()
    assert (table == seen).all()


@pytest.mark.parametrize("rules", [{}, {"q_heads": (), "kv_heads": (), "head_dim": ("tensor",)}])
def test_devices_have_their_own_rows_and_heads(rules):
    """But all of a head, whatever is split in its weights."""
    slots = layout_of([*ROWS, *ROWS[::-1]], PAIRS, 250)
    place = Placement(build_mesh(MeshShape(data=2, fsdp=1, tensor=2), jax.devices()[:4]), DEFAULT_RULES | rules)
    attend = functools.partial(blockwise.on_devices, place=place)
    assert_equals_the_rule(attend, slots, window=None, heads=(4, 2), head_dim=8)


def test_long_whole_rows_on_cpu_devices():
    def place(devices, rules=DEFAULT_RULES, **sizes):
        return Placement(build_mesh(MeshShape(**sizes), jax.devices()[:devices]), rules)

    assert blockwise.suits(4096, place(1)) and blockwise.suits(4096, place(8, data=2, fsdp=2, tensor=2))
    assert not blockwise.suits(512, place(1))
    assert not blockwise.suits(4096, NOWHERE)
    assert not blockwise.suits(4096, place(2, context=2))
    assert not blockwise.suits(4096, place(2, DEFAULT_RULES | {"kv_heads": ()}, tensor=2))
