"""Blocks in C order, and elements that are no numbers, beside numpy's answers."""

import jax
import ml_dtypes
import numpy as np
import pytest

from janus_jax.checkpoint.hf import blocks
from janus_jax.checkpoint.hf.blocks import all_finite, contiguous

DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)


@pytest.mark.parametrize("panel", [1, 64, 4 << 20])
@pytest.mark.parametrize("shape", [(5,), (6, 7), (3, 4, 5), (1, 7), (0, 3)])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_an_array_in_order_is_the_same_array(shape, dtype, panel, monkeypatch):
    monkeypatch.setattr(blocks, "_PANEL_BYTES", panel)
    whole = np.arange(np.prod(shape), dtype=np.float32).astype(dtype).reshape(shape)
    for array in (whole.transpose(), whole[..., 1:], np.moveaxis(whole, 0, -1)):
        result = contiguous(array)
        assert result.flags.c_contiguous and result.dtype == array.dtype
        np.testing.assert_array_equal(result, array)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_pattern_of_bits_is_judged_as_numpy_judges_it(dtype):
    patterns = np.arange(1 << 16, dtype=np.uint16)
    if np.dtype(dtype).itemsize == 4:
        patterns = np.concatenate([patterns.astype(np.uint32) << 16, (patterns.astype(np.uint32) << 16) + 1])
    values = patterns.view(dtype)
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(values)
    assert all_finite(values[finite])
    others = values[~finite]
    assert len(others) > 100
    for other in others[:: max(1, len(others) // 300)]:
        assert not all_finite(np.array([1, other, -2], dtype))


@pytest.mark.parametrize("place", [0, 9, 10, 24])
def test_one_element_among_many_is_seen(place, monkeypatch):
    monkeypatch.setattr(blocks, "_SEARCHED", 10)
    values = np.ones((5, 5), ml_dtypes.bfloat16)
    assert all_finite(values) and all_finite(values[:, ::2])
    values.flat[place] = -np.inf
    assert not all_finite(values)


@pytest.mark.parametrize("shape", [(3,), (7, 5), (1100, 1000)])
def test_jax_reads_a_block_where_it_lies(shape):
    with blocks.recycled():
        for _ in range(3):  # also in memory of an earlier block
            block = blocks.empty(shape, np.dtype(np.float32))
            placed = jax.device_put(block, blocks.cpu_device())
            assert placed.unsafe_buffer_pointer() == block.ctypes.data
            del block, placed


def test_memory_comes_back_when_the_last_view_is_gone(monkeypatch):
    monkeypatch.setattr(blocks, "_SMALLEST_KEPT", 64)
    source = np.arange(400, dtype=np.float32).reshape(20, 20)
    with blocks.recycled():
        first = contiguous(source.T)
        view, place = first[3:].reshape(-1)[::2].view(np.uint32), first.ctypes.data
        del first
        second = contiguous(2 * source.T)  # the view still needs the memory of the first
        assert second.ctypes.data != place
        np.testing.assert_array_equal(view, source.T[3:].reshape(-1)[::2].view(np.uint32))
        del view
        third = contiguous(3 * source.T)
        assert third.ctypes.data == place
        np.testing.assert_array_equal(third, 3 * source.T)
        np.testing.assert_array_equal(second, 2 * source.T)
    del third
    assert not blocks._kept  # outside of the context nothing is kept
