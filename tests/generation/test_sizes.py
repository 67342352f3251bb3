"""Sizes that programs are compiled for."""

from janus_jax.generation.sizes import bucket, prompts_per_call, slots, top_bucket


def test_sizes_are_the_smallest_that_hold_what_is_asked():
    assert [bucket(n) for n in (1, 64, 65, 97, 129, 2048, 2049)] == [64, 64, 96, 128, 192, 2048, 3072]
    assert [top_bucket(n) for n in (0, 1, 2, 5, 6, 20)] == [0, 1, 5, 5, 20, 20]


def test_a_call_computes_as_many_prompts_as_wait_and_as_its_slots_allow():
    assert [prompts_per_call(64, n) for n in (0, 1, 3, 4, 15, 16, 99)] == [1, 1, 1, 4, 4, 16, 16]
    assert [prompts_per_call(width, 99) for width in (128, 192, 512, 768, 8192)] == [16, 4, 4, 1, 1]


def test_a_row_has_room_for_its_text_and_no_more():
    """The last token of a text needs no slot, so the longest text of a power of two fits into as many."""
    assert [slots(prompt, 10_000, 8, 4096) for prompt in (1, 2048, 4095)] == [4096] * 3
    assert [slots(*sizes, 512) for sizes in ((65, 1, 8), (1, 64, 8), (1, 65, 8), (1, 1, 100))] == [96, 64, 96, 128]
