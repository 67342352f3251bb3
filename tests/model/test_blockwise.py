"""Attention block by block: equal to the rule on packed rows, and chosen for long rows on one CPU device."""

import functools
import itertools

import jax
import pytest

from janus_jax.data.padding import Padding
from janus_jax.data.rows import RowFormat
from janus_jax.model import blockwise
from janus_jax.parallel.axes import MeshShape
from janus_jax.parallel.mesh import NOWHERE, Placement, build_mesh
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


def test_long_rows_on_one_cpu_device_alone():
    one = Placement(build_mesh(MeshShape(), jax.devices()[:1]))
    assert blockwise.suits(4096, one)
    assert not blockwise.suits(512, one)
    assert not blockwise.suits(4096, NOWHERE)
    assert not blockwise.suits(4096, Placement(build_mesh(MeshShape(), jax.devices()[:2])))
