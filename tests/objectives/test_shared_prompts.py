"""A prompt stored once for both branches gives what two whole sequences give, for every objective over pairs.

More objectives and meshes: `pytest -n 0 -m slow tests/objectives/test_shared_prompts.py`.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_jax.data.rows import RowFormat, pack
from janus_jax.model.mistral import Compute, param_specs
from janus_jax.objectives.dpo import DPO
from janus_jax.objectives.orpo import ORPO
from janus_jax.objectives.reward import RewardModel
from janus_jax.objectives.simpo import SimPO
from janus_jax.parallel import mesh as meshes
from tests.support.packed import in_microbatches, initial_params, rows_of, step_functions, with_reference
from tests.support.tolerances import assert_within
from tests.support.training_examples import TINY, random_examples

OBJECTIVES = {
    "dpo": DPO(beta=0.5),
    "ipo with sft": DPO(beta=0.5, loss="ipo", sft_weight=0.5),
    "simpo": SimPO(sft_weight=0.2),
    "orpo": ORPO(beta=0.5),
    "orpo of prompts": ORPO(beta=0.5, nll="prompt_and_response"),
    "rm": RewardModel(center_weight=0.1),
}


def some(quick):
    """Names of objectives, of which those that are not quick are slow."""
    return [pytest.param(name, marks=[] if name in quick else pytest.mark.slow) for name in OBJECTIVES]


ROW = 192
APART = 16
"""Rows of whole sequences, more than any test has pairs: one shape to compile."""


@functools.cache
def params_of(config):
    params = initial_params(config, jax.random.key(0))
    if config.head == "value":  # larger than at first, so that errors show
        params["value_head"] = 10 * params["value_head"]
    return params


@functools.cache
def compiled(objective, config):
    return jax.jit(step_functions(objective, config).gradients)


def model_of(objective, **changes):
    return dataclasses.replace(TINY, head=objective.head, **changes)


def packed(objective, examples, rows, *, shared, microbatches=1):
    form = RowFormat(objective.head, 2, share_prompts=shared)
    batch = pack(rows_of(examples, rows), row_length=ROW, max_segments=8, form=form)
    return in_microbatches(with_reference(batch), microbatches)


def loss_and_gradients(objective, examples, rows, *, shared, microbatches=1, config=None):
    config = config or model_of(objective)
    batch = packed(objective, examples, rows, shared=shared, microbatches=microbatches)
    loss, grads, _ = compiled(objective, config)(params_of(config), batch)
    return loss, grads


def with_margins(examples):
    return [dataclasses.replace(e, margin=0.1 * e.example_id) for e in examples]


@pytest.mark.parametrize(
    ("name", "window"),
    [
        *((name, None) for name in ("dpo", "orpo of prompts")),
        ("rm", 5),
        *(pytest.param(name, None, marks=pytest.mark.slow) for name in ("ipo with sft", "simpo", "orpo", "rm")),
        *(pytest.param(name, 5, marks=pytest.mark.slow) for name in ("dpo", "orpo of prompts")),
    ],
)
def test_shared_prompts_equal_whole_sequences_under_packing(name, window):
    objective = OBJECTIVES[name]
    examples = with_margins(random_examples(6, pairs=True, seed=1))
    assert window is None or max(len(e.prompt) + len(e.chosen) for e in examples) > 2 * window
    config = model_of(objective, sliding_window=window)
    shared = loss_and_gradients(objective, examples, rows=2, shared=True, config=config)
    apart = loss_and_gradients(objective, examples, rows=APART, shared=False, config=config)
    assert_within(shared, apart)


@pytest.mark.parametrize("name", some(["dpo"]))
def test_shared_prompts_equal_whole_sequences_under_accumulation_and_mesh(name):
    objective = OBJECTIVES[name]
    examples = with_margins(random_examples(APART, pairs=True, seed=2))
    config = model_of(objective)
    apart = loss_and_gradients(objective, examples, rows=APART, shared=False)
    accumulated = loss_and_gradients(objective, examples, rows=8, shared=True, microbatches=4)
    assert_within(accumulated, apart)

    mesh, rules = meshes.build_mesh(meshes.MeshShape(data=2, fsdp=2, tensor=2)), meshes.DEFAULT_RULES
    step = step_functions(objective, config, Compute(dtype=jnp.float32, place=meshes.Placement(mesh, rules)))
    shardings = meshes.param_shardings(param_specs(config), mesh, rules)
    placed = jax.tree.map(jax.device_put, params_of(config), shardings)
    batch = packed(objective, examples, rows=8, shared=True, microbatches=2)
    slots = meshes.batch_sharding(mesh, rules, (None, "batch", "length"))
    batch = jax.tree.map(lambda x: jax.device_put(x, slots if x.shape[-1] == ROW else None), batch)
    loss, grads, _ = jax.jit(step.gradients)(placed, batch)
    assert_within((loss, grads), apart)


@settings(max_examples=8)
@given(st.integers(0, 1000), st.permutations(range(6)), st.sampled_from([(8, 4, True), (APART, 1, False)]))
@pytest.mark.parametrize("name", some(["orpo of prompts"]))
def test_order_padding_rows_and_microbatches_change_nothing(name, seed, order, split):
    rows, microbatches, shared = split
    objective = OBJECTIVES[name]
    examples = with_margins(random_examples(6, pairs=True, seed=seed))
    expected = loss_and_gradients(objective, examples, rows=2, shared=True)
    moved = [examples[i] for i in order]
    assert_within(loss_and_gradients(objective, moved, rows, shared=shared, microbatches=microbatches), expected)


@pytest.mark.parametrize("name", some(["dpo", "simpo", "orpo of prompts"]))
def test_swapping_chosen_and_rejected_flips_the_margin(name):
    objective = OBJECTIVES[name]
    config = model_of(objective)
    examples = random_examples(4, pairs=True, seed=3)
    swapped = [dataclasses.replace(e, chosen=e.rejected, rejected=e.chosen) for e in examples]
    one, other = (packed(objective, pairs, 2, shared=True) for pairs in (examples, swapped))
    other = dataclasses.replace(other, reference_logps=one.reference_logps[..., ::-1])
    result = []
    for batch in (one, other):
        metrics = compiled(objective, config)(params_of(config), batch)[2]
        result.append(metrics)
    ours, theirs = (m["rewards/margins"][0] for m in result)
    assert abs(float(ours)) > 1e-2
    np.testing.assert_allclose(ours, -theirs, rtol=1e-5, atol=1e-6)
    accuracies = [float(m["rewards/accuracies"][0]) for m in result]
    assert sum(accuracies) == 4
    np.testing.assert_allclose(result[0]["rewards/chosen"][0], result[1]["rewards/rejected"][0], rtol=1e-5)


@pytest.mark.parametrize("objective", [DPO(beta=1e-9), SimPO(beta=1e-9, gamma=0.0)], ids=["dpo", "simpo"])
def test_without_a_scale_every_pair_costs_log_2(objective):
    examples = random_examples(4, pairs=True, seed=4)
    loss, grads = loss_and_gradients(objective, examples, rows=2, shared=True)
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-6)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grads)) < 1e-6


@pytest.mark.parametrize("name", [one for one in some(["dpo", "simpo", "orpo of prompts"]) if one.values != ("rm",)])
def test_an_empty_branch_counts_and_carries_no_gradient(name):
    """A pair without responses adds its loss at a margin of zero to the mean and nothing to the gradient; one without
    the rejected response still learns from the chosen one."""
    objective = OBJECTIVES[name]
    full = random_examples(3, pairs=True, seed=5)
    nothing = np.zeros(0, np.int32)
    empty = dataclasses.replace(full[0], prompt=full[0].prompt[:1], chosen=nothing, rejected=nothing, example_id=9)

    def parts(examples):
        batch = packed(objective, examples, 2, shared=True)
        keep = (batch.example_id != 9)[..., None]  # under the reference, too, nothing has log-prob 0
        batch = dataclasses.replace(batch, reference_logps=batch.reference_logps * keep)
        loss, grads, metrics = compiled(objective, model_of(objective))(params_of(model_of(objective)), batch)
        return float(loss), grads, {k: (float(t), float(n)) for k, (t, n) in metrics.items()}

    _, grads, metrics = parts(full)
    loss, more_grads, more = parts([*full, empty])
    assert np.isfinite(loss) and more["preference_loss"][1] == 4
    at_zero = more["preference_loss"][0] - metrics["preference_loss"][0]
    gamma = getattr(objective, "gamma", 0)
    expected = (1 / (2 * objective.beta)) ** 2 if getattr(objective, "loss", "") == "ipo" else np.log1p(np.exp(gamma))
    np.testing.assert_allclose(at_zero, expected, rtol=1e-4)
    preference = objective.loss_terms.get("nll_loss") is None
    if preference:  # the mean over four of which three have a gradient
        assert_within(more_grads, jax.tree.map(lambda g: 0.75 * g, grads))
    half = dataclasses.replace(full[1], rejected=nothing, example_id=9)
    loss, grads, _ = parts([half])
    assert np.isfinite(loss)
    norms = [float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grads)]
    assert all(np.isfinite(norms)) and max(norms) > 1e-4


def test_a_pad_id_that_is_eos_loses_no_eos():
    """Nothing asks a token for its id: responses may hold and end in whatever fills the rest of a row."""
    examples = [
        dataclasses.replace(e, chosen=np.append(e.chosen, 0).astype(np.int32), rejected=np.append(e.rejected, 0))
        for e in random_examples(4, pairs=True, seed=6)
    ]  # 0 is what empty slots hold
    batch = pack(rows_of(examples, 2), row_length=ROW, max_segments=8)
    assert batch.weights.sum() == sum(len(e.chosen) + len(e.rejected) for e in examples)
    changed = dataclasses.replace(batch, tokens=np.where(batch.segment > 0, batch.tokens, 77))
    objective = OBJECTIVES["dpo"]
    result, expected = (compiled(objective, TINY)(params_of(TINY), in_microbatches(b))[:2] for b in (changed, batch))
    jax.tree.map(np.testing.assert_array_equal, result, expected)


def test_a_reward_is_read_at_the_last_token_and_margins_are_used():
    objective = RewardModel()
    examples = random_examples(2, pairs=True, seed=7)
    batch = pack([examples], row_length=ROW, max_segments=4, form=RowFormat("value", 2))
    for number, example in enumerate(examples, start=1):
        for branch, response in ((1, example.chosen), (2, example.rejected)):
            mine = (batch.segment[0] == number) & (batch.branch[0] == branch)
            assert batch.tokens[0][mine].tolist() == [example.prompt[-1], *response]
            assert batch.weights[0][mine].tolist() == [0] * len(response) + [1]
    plain = loss_and_gradients(objective, examples, rows=1, shared=True)[0]
    harder = [dataclasses.replace(e, margin=2.0) for e in examples]
    assert loss_and_gradients(objective, harder, rows=1, shared=True)[0] > plain + 0.1
