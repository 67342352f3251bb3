"""Packing changes nothing: packed rows equal each example alone, in logits, loss and every gradient.

Tied embeddings, a sliding window and more policies of remat: `pytest -n 0 -m slow tests/objectives`. The oracles'
recorded runs have the first two.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_jax.data.rows import pack
from janus_jax.model.attention import Slots
from janus_jax.model.mistral import Compute, hidden_states, logits
from janus_jax.objectives.dpo import DPO
from janus_jax.objectives.sft import SFT
from tests.support.packed import (
    FLOAT32,
    ROW_LENGTH,
    in_microbatches,
    initial_params,
    rows_of,
    step_functions,
    with_reference,
)
from tests.support.tolerances import assert_within
from tests.support.training_examples import TINY, random_examples


def loss_and_gradients(objective, examples, rows, config=TINY, compute=FLOAT32, microbatches=1):
    packed = pack(rows_of(examples, rows), row_length=ROW_LENGTH, max_segments=8)
    batch = in_microbatches(with_reference(packed), microbatches)
    loss, grads, _ = compiled(objective, config, compute)(params_of(config), batch)
    return loss, grads


@functools.cache
def compiled(objective, config, compute):
    return jax.jit(step_functions(objective, config, compute).gradients)


@functools.cache
def params_of(config):
    return initial_params(config, jax.random.key(0))


LONGEST = 23
"""Tokens of the longest input: 12 of the prompt and 12 of a response, the last of which is only predicted."""


@functools.cache
def score_alone(config):
    """Log-prob of one response and its gradients: one unpacked, unshared sequence under plain causal attention.

    Slots after the end are ordinary tokens that causality keeps away; no mask of the packed format is relied on.
    """

    def score(params, tokens, targets, counted):
        layout = Slots(jnp.ones((1, LONGEST), jnp.int32), jnp.ones((1, LONGEST), jnp.int32), jnp.arange(LONGEST)[None])
        logp = jax.nn.log_softmax(logits(config, params, tokens[None], layout, FLOAT32)[0])
        return jnp.where(counted, logp[jnp.arange(LONGEST), targets], 0).sum()

    return jax.jit(jax.value_and_grad(score))


def one_at_a_time(objective, examples, config=TINY):
    """The mean over examples, and its gradients by the chain rule from scores of branches that each ran alone."""

    def score(prompt, response):
        tokens = np.concatenate([prompt, response])
        inputs, targets, counted = np.zeros((3, LONGEST), np.int32)
        inputs[: len(tokens) - 1], targets[: len(tokens) - 1] = tokens[:-1], tokens[1:]
        counted[len(prompt) - 1 : len(tokens) - 1] = 1
        return score_alone(config)(params_of(config), jnp.asarray(inputs), targets, counted)

    branches = ["chosen", "rejected"][: objective.branches]
    ran = [score(e.prompt, getattr(e, branch)) for e in examples for branch in branches]

    def loss(scores):
        if isinstance(objective, SFT):
            return -scores.sum() / sum(len(e.chosen) for e in examples)
        ids = np.asarray([e.example_id for e in examples], np.float32)
        ratios = scores.reshape(-1, 2) - np.stack([np.sin(ids), np.cos(ids)], -1)
        return -jax.nn.log_sigmoid(objective.beta * (ratios[:, 0] - ratios[:, 1])).mean()

    value, slopes = jax.value_and_grad(loss)(jnp.stack([s for s, _ in ran]))
    return value, jax.tree.map(lambda *gradients: jnp.tensordot(slopes, jnp.stack(gradients), 1), *(g for _, g in ran))


PAIRS = DPO(beta=0.5)
WINDOWED = dataclasses.replace(TINY, sliding_window=5)
TIED = dataclasses.replace(TINY, tie_embeddings=True)


@pytest.mark.parametrize(
    ("objective", "config"),
    [
        pytest.param(SFT(), TINY, id="sft"),
        pytest.param(PAIRS, TINY, id="dpo"),
        pytest.param(SFT(), TIED, id="sft-tied", marks=pytest.mark.slow),
        pytest.param(PAIRS, WINDOWED, id="dpo-window", marks=pytest.mark.slow),
    ],
)
def test_packed_loss_and_gradients_equal_each_example_alone(objective, config):
    examples = random_examples(4, pairs=objective.branches == 2, seed=1)
    packed = loss_and_gradients(objective, examples, rows=2, config=config)
    assert_within(packed, one_at_a_time(objective, examples, config))


def test_packed_logits_equal_each_example_alone():
    params = initial_params(TINY, jax.random.key(1))
    examples = random_examples(6, pairs=True, seed=2)
    whole = jax.jit(lambda params, tokens, layout: logits(TINY, params, tokens, layout, FLOAT32))

    def run(rows):
        batch = pack(rows, row_length=2 * ROW_LENGTH, max_segments=8)
        layout = Slots(*map(jnp.asarray, (batch.segment, batch.branch, batch.position)))
        return batch, np.asarray(whole(params, jnp.asarray(batch.tokens), layout))

    batch, together = run([examples[:3], examples[3:]])
    for row in range(2):
        for segment in (1, 2, 3):
            single, alone = run([[examples[3 * row + segment - 1]]])
            ours = together[row][batch.segment[row] == segment]
            assert_within(ours, alone[0][single.segment[0] == 1])


@settings(max_examples=12)
@given(st.integers(0, 1000), st.permutations(range(6)), st.sampled_from([(7, 1), (6, 3)]))
def test_order_rows_and_microbatches_change_nothing(seed, order, split):
    rows, microbatches = split
    examples = random_examples(6, pairs=True, seed=seed)
    expected = loss_and_gradients(PAIRS, examples, rows=2)
    shuffled = loss_and_gradients(PAIRS, [examples[i] for i in order], rows=rows, microbatches=microbatches)
    assert_within(shuffled, expected)


@pytest.mark.parametrize("objective", [SFT(), PAIRS], ids=["sft", "dpo"])
def test_padding_rows_change_nothing(objective):
    examples = random_examples(4, pairs=objective.branches == 2, seed=4)
    expected = loss_and_gradients(objective, examples, rows=2)
    assert_within(loss_and_gradients(objective, examples, rows=7), expected)


@pytest.mark.parametrize(
    "remat",
    [
        "full",
        ("attention", "gate@host"),
        *(
            pytest.param(remat, marks=pytest.mark.slow)
            for remat in ("dots", "offload", ("query", "key", "value", "up"))
        ),
    ],
)
def test_remat_changes_nothing(remat):
    examples = random_examples(4, pairs=True, seed=4)
    again = loss_and_gradients(PAIRS, examples, rows=2, compute=Compute(dtype=jnp.float32, remat=remat))
    assert_within(again, loss_and_gradients(PAIRS, examples, rows=2))


@pytest.mark.parametrize("normaliser", ["global", "per_microbatch"])
def test_an_empty_microbatch_changes_neither_the_mean_nor_the_mean_of_means(normaliser):
    examples = random_examples(2, pairs=False, seed=5)
    padded = loss_and_gradients(SFT(normaliser=normaliser), examples, rows=4, microbatches=2)  # rows 3 and 4 are empty
    assert_within(padded, loss_and_gradients(SFT(), examples, rows=1))


def test_per_microbatch_is_the_mean_of_microbatch_means():
    examples = random_examples(6, pairs=False, seed=6)
    loss, grads = loss_and_gradients(SFT(normaliser="per_microbatch"), examples, rows=2, microbatches=2)
    halves = [loss_and_gradients(SFT(), examples[i::2], rows=1) for i in range(2)]
    assert_within(loss, (halves[0][0] + halves[1][0]) / 2)
    assert_within(grads, jax.tree.map(lambda a, b: (a + b) / 2, halves[0][1], halves[1][1]))
    whole = loss_and_gradients(SFT(), examples, rows=2, microbatches=2)[0]
    assert abs(float(whole) - float(loss)) > 1e-4  # unequal token counts: the two normalisers do differ


def test_bfloat16_compute_stays_near_float32_and_scores_stay_float32():
    examples = random_examples(4, pairs=False, seed=8)
    params = initial_params(dataclasses.replace(TINY, initializer_range=0.05), jax.random.key(0))
    batch = jax.tree.map(jnp.asarray, pack(rows_of(examples, 2), row_length=ROW_LENGTH, max_segments=8))
    compute = Compute(dtype=jnp.bfloat16)
    half = jax.jit(step_functions(SFT(), compute=compute).scores)(params, batch)
    full = jax.jit(step_functions(SFT()).scores)(params, batch)
    assert half.sums.dtype == jnp.float32
    np.testing.assert_allclose(half.sums, full.sums, rtol=0.02, atol=0.05)
    layout = Slots(batch.segment, batch.branch, batch.position)
    hidden = jax.eval_shape(lambda params: hidden_states(TINY, params, batch.tokens, layout, compute), params)
    assert hidden.dtype == jnp.bfloat16
