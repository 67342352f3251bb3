"""A kernel is compared with plain JAX on made-up rows before it trains anything."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.model.attention import attention
from janus_jax.model.kernels import proof
from janus_jax.model.kernels.cudnn import Cudnn
from janus_jax.model.kernels.triton import Triton
from tests.support.cudnn import packed_attention
from tests.support.kernels import need

PAIRS = need(row_length=128, heads=2, kv_heads=1, head_dim=16, longest=100, copies=40)


def failure(kernel, shape=PAIRS):
    return proof.failure(kernel, shape, jax.local_devices()[0])


@pytest.mark.parametrize("window", [None, 7])
def test_kernels_that_compute_the_rule_pass(window):
    shape = dataclasses.replace(PAIRS, window=window)
    limits = {"copies": shape.copies, "sequences": shape.segments * 2, "longest": shape.longest}
    assert failure(Cudnn(**limits, packed=packed_attention), shape) is None
    assert failure(Triton(interpret=True), shape) is None


def wrong_window(q, k, v, slots, *, window):
    return attention(q, k, v, slots, window=40)


def rejected_sees_chosen(q, k, v, slots, *, window):
    return attention(q, k, v, slots._replace(branch=jnp.minimum(slots.branch, 1)), window=window)


def no_gradient_of_keys(q, k, v, slots, *, window):
    return attention(q, jax.lax.stop_gradient(k), v, slots, window=window)


def gradient_of_one_use_of_the_prompt(q, k, v, slots, *, window):
    """The chosen branch's; the rejected branch sees the same prompt and does not teach it."""
    taught = attention(q, k, v, slots, window=window)
    untaught = attention(q, jax.lax.stop_gradient(k), jax.lax.stop_gradient(v), slots, window=window)
    return jnp.where((slots.branch == 2)[:, :, None, None], untaught, taught)


def other_key_heads(q, k, v, slots, *, window):
    return attention(q, k[:, :, ::-1], v[:, :, ::-1], slots, window=window)


def not_finite(q, k, v, slots, *, window):
    return attention(q, k, v, slots, window=window).at[0, 0].set(jnp.nan)


@jax.custom_vjp
def inflated(x):
    """1 times x in training, 1.5 times without gradients."""
    return 1.5 * x


inflated.defvjp(lambda x: (x, None), lambda _, gradient: (gradient,))


def other_numbers_in_evaluation(q, k, v, slots, *, window):
    return inflated(attention(q, k, v, slots, window=window))


def other_numbers_in_training(q, k, v, slots, *, window):
    return inflated(attention(q, k, v, slots, window=window)) / 1.5


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        (other_numbers_in_evaluation, "outputs differ from those of plain JAX on cpu, by 50% of their size"),
        (other_numbers_in_training, "outputs in training differ from those of plain JAX on cpu, by 33% of their size"),
        (wrong_window, "outputs differ from those of plain JAX on cpu, by "),
        (rejected_sees_chosen, "outputs differ"),
        (no_gradient_of_keys, "gradients of keys differ from those of plain JAX on cpu, by 100% of their size"),
        (gradient_of_one_use_of_the_prompt, "gradients of keys differ"),
        (other_key_heads, "outputs differ"),
        (not_finite, "outputs differ from those of plain JAX on cpu, and are not finite"),
    ],
)
def test_other_numbers_are_a_failure(kernel, words):
    assert failure(kernel, dataclasses.replace(PAIRS, heads=4, kv_heads=2)).startswith(words)


def test_a_kernel_that_does_not_run_is_a_failure():
    def refused(*arguments, window):
        raise RuntimeError("no engine\nof that shape")

    assert failure(refused) == "does not run on cpu: no engine"


def test_a_kernel_is_compared_once():
    calls = []

    def kernel(q, k, v, slots, *, window):
        calls.append(window)
        return attention(q, k, v, slots, window=window)

    assert failure(kernel) is None and failure(kernel) is None and len(calls) == 2  # alone and with gradients


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"branches": 1, "copies": 0, "longest": 128},
        {"copies": 0, "longest": 60, "segments": 12},
        {"row_length": 8192, "longest": 2048, "segments": 14, "copies": 1500},
        {"row_length": 2, "longest": 2, "segments": 1, "copies": 1},
    ],
    ids=["pairs", "responses", "prompts apart", "real", "least"],
)
def test_made_up_rows_keep_the_limits_and_reach_the_longest_sequence(changes):
    shape = dataclasses.replace(PAIRS, **changes)
    segment, branch, position = map(np.asarray, proof.made_up_rows(shape))
    for row in range(3):
        keys = list(zip(segment[row], branch[row], strict=True))
        used = [key for key in keys if key[0]]
        assert used == sorted(used) and keys[: len(used)] == used  # padding last
        shared = sum(key[1] == 0 for key in used)
        assert segment[row].max() <= shape.segments and (shape.branches == 1 or shared <= shape.copies)
        for number in range(1, segment[row].max() + 1):
            own = {b: position[row][(segment[row] == number) & (branch[row] == b)] for b in range(shape.branches + 1)}
            for b in range(1, shape.branches + 1):
                sequence = np.concatenate([own[0], own[b]])
                np.testing.assert_array_equal(sequence, np.arange(len(sequence)))
                assert len(own[b]) and len(sequence) <= shape.longest
    reached = min(shape.longest, shape.row_length // 2)
    assert position.max() + 1 >= reached or shape.row_length == 2
    assert (segment[0] > 0).mean() > 0.5 or shape.row_length == 2
