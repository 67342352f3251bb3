"""Operations, bytes and bounds against closed forms, parameter trees and XLA's own count of programs without loops."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from janus_jax.model.attention import Slots
from janus_jax.model.config import PRESETS, ModelConfig
from janus_jax.model.mistral import Compute, one_layer, param_specs
from janus_jax.model.remat import policy
from janus_jax.planning.chips.roofline import (
    REMAT,
    Sharding,
    StepFlops,
    Workload,
    bound,
    forward_flops,
    ici_bytes_per_s,
    inference_flops,
    inference_hbm_traffic,
    keys_per_query,
    parameters,
    recompute,
    repeated_projections,
    training_flops,
    training_hbm_traffic,
)
from janus_jax.planning.chips.slices import find_slice, load_chips

MISTRAL = PRESETS["mistral-7b"]
CHIPS = load_chips().chips


@pytest.mark.parametrize(
    "model",
    [
        MISTRAL,
        PRESETS["tiny"],
        dataclasses.replace(PRESETS["tiny"], tie_embeddings=True),
        dataclasses.replace(PRESETS["tiny"], head="value"),
    ],
)
def test_parameters_are_those_of_the_model(model):
    leaves = jax.tree.leaves(param_specs(model))
    assert parameters(model) == sum(math.prod(leaf.shape) for leaf in leaves)


@pytest.mark.parametrize(("length", "window"), [(1, None), (7, None), (7, 3), (7, 7), (7, 9), (8, 1)])
def test_keys_are_counted(length, window):
    seen = [min(position, window or length) for position in range(1, length + 1)]
    assert keys_per_query(length, window) == pytest.approx(sum(seen) / length, rel=1e-12)


def test_a_step_is_six_times_the_parameters_and_attention():
    """6 N of Kaplan and Chinchilla, with N all weights of products, and half of PaLM's 12 L H Q T for a causal mask."""
    work = Workload(MISTRAL, rows=16, length=8192)
    norms = (2 * MISTRAL.num_layers + 1) * MISTRAL.hidden_size
    products = parameters(MISTRAL) - MISTRAL.vocab_size * MISTRAL.hidden_size - norms
    whole_row = 12 * MISTRAL.num_layers * MISTRAL.num_heads * MISTRAL.head_dim * work.length
    expected = work.tokens * (6 * products + whole_row * (work.length + 1) / (2 * work.length))
    assert training_flops(work).model == pytest.approx(expected, rel=1e-12)
    assert inference_flops(work).model == pytest.approx(expected / 3, rel=1e-12)
    assert inference_flops(work).recomputed == 0


def test_what_full_recomputation_repeats():
    work = Workload(MISTRAL, rows=2, length=128, recompute=REMAT["full"])
    once = forward_flops(work)
    repeated = once.projections + 2 * once.scores + once.values + once.head
    assert training_flops(work).recomputed == pytest.approx(repeated, rel=1e-12)
    kept = dataclasses.replace(work, recompute=REMAT["none"])
    assert training_flops(kept).recomputed == pytest.approx(once.scores + once.head, rel=1e-12)
    assert training_flops(kept).model == training_flops(work).model


@pytest.mark.parametrize(("remat", "products"), [("none", 0), ("dots", 0), ("full", 1), ("offload", 1)])
def test_what_policies_repeat(remat, products):
    work = Workload(MISTRAL, rows=2, length=128, recompute=REMAT[remat])
    once = forward_flops(work)
    attention = once.scores if remat == "none" else 2 * once.scores + once.values
    repeated = products * once.projections + attention + once.head
    assert training_flops(work).recomputed == pytest.approx(repeated, rel=1e-12)


def test_examples_that_do_not_see_each_other_cost_less():
    row, packed = Workload(MISTRAL, 4, 4096), Workload(MISTRAL, 4, 4096, segment=512)
    assert forward_flops(packed).scores / forward_flops(row).scores == pytest.approx(513 / 4097, rel=1e-12)
    assert forward_flops(packed).projections == forward_flops(row).projections


LAYER = ModelConfig(
    vocab_size=64, hidden_size=512, intermediate_size=1536, num_layers=1, num_heads=8, num_kv_heads=2, head_dim=64
)


def xla_flops(f, *arguments):
    return jax.jit(f).lower(*arguments).compile().cost_analysis()["flops"]


def layer_of(kind, rows, length):
    """One layer under a policy, and the shapes of what it takes."""
    weights = jax.tree.map(lambda spec: jax.ShapeDtypeStruct(spec.shape[1:], jnp.float32), param_specs(LAYER)["layers"])
    x = jax.ShapeDtypeStruct((rows, length, LAYER.hidden_size), jnp.float32)
    at = jax.ShapeDtypeStruct((rows, length), jnp.int32)

    def layer(weights, x, at):
        return one_layer(LAYER, weights, x, Slots(at, at, at), Compute(dtype=jnp.float32))

    policies = {"dots": policy("dots"), "full": None, "offload": None}
    return jax.checkpoint(layer, policy=policies[kind]) if kind in policies else layer, (weights, x, at)


def test_what_is_repeated_is_what_is_not_kept():
    """Of a layer's products, in elements of their matrices; attention is one product less of two, and values none."""
    model = MISTRAL
    width, queries, keys, wide = model.hidden_size, 32 * 128, 8 * 128, model.intermediate_size
    whole = 2 * queries + 2 * keys + 2 * wide
    work = Workload(model, rows=2, length=128, recompute=recompute(("query", "attention", "gate")))
    once = forward_flops(work)
    repeated = once.projections * (whole - queries - wide) / whole + once.scores + once.head
    assert training_flops(work).recomputed == pytest.approx(repeated, rel=1e-12)
    traffic = training_hbm_traffic(work, Sharding(devices=1, parameter_shards=1))
    assert traffic.activations == 2 * 2 * work.tokens * model.num_layers * (width + 2 * queries + wide)


@pytest.mark.parametrize("kind", ["dots", "full"])
def test_what_a_policy_keeps_of_a_layer_is_what_jax_keeps(kind):
    rows, length = 2, 256
    layer, arguments = layer_of(kind, rows, length)
    residuals = jax.tree.leaves(jax.eval_shape(lambda *given: jax.vjp(layer, *given)[1], *arguments))
    kept = [leaf for leaf in residuals if leaf.shape[:2] == (rows, length) and leaf.dtype == jnp.float32]
    work = Workload(LAYER, rows, length, recompute=REMAT[kind])
    traffic = training_hbm_traffic(work, Sharding(devices=1, parameter_shards=1, compute_bytes=4))
    assert traffic.activations == 2 * sum(4 * leaf.size for leaf in kept)


@pytest.mark.parametrize("kind", ["forward", "none", "dots", "full", "offload"])
def test_a_layer_costs_what_xla_counts(kind):
    """One layer, unrolled. Its attention fits one block: the mask leaves nothing out and nothing is recomputed. XLA
    also counts elementwise work, under 4 % at this width. In one layer it sees that scores of kept queries and keys are
    those of the forward pass; in a loop over layers it cannot."""
    rows, length = 2, 256
    recompute = dataclasses.replace(REMAT["none"] if kind == "forward" else REMAT[kind], head=0)
    recompute = dataclasses.replace(recompute, scores=recompute.scores - (2 if kind == "dots" else 1))
    layer, (weights, x, at) = layer_of(kind, rows, length)

    def loss(weights, x, at):
        return jnp.square(layer(weights, x, at)).sum()

    counted = xla_flops(layer if kind == "forward" else jax.grad(loss, argnums=(0, 1)), weights, x, at)
    work = Workload(LAYER, rows, length, recompute=recompute)
    once = forward_flops(work)
    whole = dataclasses.replace(once, scores=once.scores * length / work.keys, values=once.values * length / work.keys)
    expected = dataclasses.replace(whole, head=0).total
    if kind != "forward":
        recompute = dataclasses.replace(recompute, projections=repeated_projections(LAYER, recompute))
        expected = 3 * expected + sum(flops * getattr(recompute, part) for part, flops in vars(whole).items())
    assert expected <= counted <= 1.04 * expected


def test_a_head_costs_what_xla_counts():
    work = Workload(LAYER, 2, 256)
    x, head = jnp.zeros((work.tokens, LAYER.hidden_size)), jnp.zeros((LAYER.hidden_size, LAYER.vocab_size))
    assert xla_flops(jnp.matmul, x, head) == forward_flops(work).head
    assert forward_flops(Workload(dataclasses.replace(LAYER, head="value"), 2, 256)).head == 2 * 512 * work.tokens


def test_traffic_of_a_step():
    model = dataclasses.replace(LAYER, num_layers=3)
    layers, head = 3 * 512 * (2 + 20 * 64 + 3 * 1536), 512 * 64
    total = layers + 2 * head + 512
    sharding = Sharding(devices=8, parameter_shards=4, tensor=2)  # bfloat16 gradients of the layers and the final norm
    work = Workload(model, rows=8, length=128, microbatches=2, recompute=REMAT["full"])
    traffic = training_hbm_traffic(work, sharding)
    assert traffic.weights == 2 * (3 * layers + 3 * head) * 2 / 2
    assert traffic.gradients == total / 4 * 4 * 2 * 2
    assert traffic.optimizer == total / 4 * (2 * 4 + 2 * 8)
    tokens = 8 * 128 / (8 / 2)
    assert traffic.activations == 2 * tokens * 3 * 512 * 2
    kept = training_hbm_traffic(dataclasses.replace(work, recompute=REMAT["none"]), sharding)
    assert kept.activations == 2 * tokens * 3 * (4 * 512 + (20 * 64 + 3 * 1536) / 2) * 2
    assert kept.weights == 2 * (2 * layers + 3 * head) * 2 / 2
    assert traffic.total == traffic.weights + traffic.gradients + traffic.optimizer + traffic.activations
    once = training_hbm_traffic(dataclasses.replace(work, microbatches=1), sharding)
    assert once.gradients == 2 * (2 * (layers + 512) + 4 * 2 * head) / 4
    wide = dataclasses.replace(sharding, compute_bytes=4)
    assert training_hbm_traffic(dataclasses.replace(work, microbatches=1), wide).gradients == 2 * 4 * total / 4
    narrow = dataclasses.replace(sharding, parameter_bytes=2, compute_bytes=4)
    assert training_hbm_traffic(dataclasses.replace(work, microbatches=1), narrow).gradients == 2 * 2 * total / 4
    stated = dataclasses.replace(sharding, gradient_bytes=4)
    assert training_hbm_traffic(dataclasses.replace(work, microbatches=1), stated).gradients == 2 * 4 * total / 4
    dots = training_hbm_traffic(dataclasses.replace(work, recompute=REMAT["dots"]), sharding)
    assert dots.activations == 2 * tokens * 3 * (2 * 512 + (12 * 64 + 2 * 1536) / 2) * 2
    assert (dots.weights, dots.host) == (kept.weights, 0)
    offload = training_hbm_traffic(dataclasses.replace(work, recompute=REMAT["offload"]), sharding)
    assert (offload.activations, offload.host) == (2 * traffic.activations, traffic.activations)
    assert offload.total == traffic.total + traffic.activations  # the way to the host is none of HBM
    scoring = inference_hbm_traffic(work, sharding)
    assert (scoring.weights, scoring.total) == (2 * (layers + head), 2 * (layers + head))


@pytest.mark.parametrize(
    ("name", "links"),
    [("v5e-1", 0), ("v5e-4", 2), ("v5e-8", 3), ("v5e-16", 4), ("v4-16", 3), ("v4-32", 4), ("v5p-128", 6)],
)
def test_links_are_those_that_lead_somewhere(name, links):
    target = find_slice(name)
    assert ici_bytes_per_s(target, CHIPS[target.family]) == links * CHIPS[target.family].ici_bytes_per_s_per_link


def test_the_slowest_part_is_the_bound():
    target, chip = find_slice("v5e-16"), CHIPS["v5e"]
    flops = StepFlops(model=16 * 197e12, recomputed=16 * 197e12 / 3)  # a second for the model, a third for the rest
    common = {"tokens": 131072, "target": target, "chip": chip}
    result = bound(flops, 819e9, 100e9, 0, **common)
    assert (result.limit, result.seconds) == ("compute", pytest.approx(4 / 3))
    assert (result.hbm_s, result.ici_s, result.dcn_s) == (pytest.approx(1), pytest.approx(0.5), 0)
    assert result.mfu == pytest.approx(0.75)
    assert result.tokens_per_s == pytest.approx(131072 * 3 / 4)
    for part, sent in (("hbm", (2 * 819e9, 0, 0)), ("ici", (0, 400e9, 0)), ("dcn", (0, 0, 2 * 25e9 / 8))):
        slower = bound(flops, *sent, num_slices=1, **common)
        assert (slower.limit, slower.seconds, slower.mfu) == (part, pytest.approx(2), pytest.approx(0.5))


def test_more_slices_and_two_devices_a_chip():
    flops = StepFlops(1e18, 0)
    two = bound(flops, 1, 0, 0, tokens=1, target=find_slice("v6e-8"), chip=CHIPS["v6e"], num_slices=2)
    assert two.compute_s == pytest.approx(1e18 / 16 / 918e12)
    dual = find_slice("tpu7x-8")
    result = bound(flops, 7380e9, 0, 0, tokens=1, target=dual, chip=CHIPS["tpu7x"])
    assert result.compute_s == pytest.approx(1e18 / 4 / 2307e12)
    assert result.hbm_s == pytest.approx(2)  # half the chip's bandwidth each
    assert ici_bytes_per_s(dual, CHIPS["tpu7x"]) == 2 * 100e9 / 2


def test_what_cannot_be_sent_takes_for_ever():
    assert bound(StepFlops(1, 0), 1, 0, 1, tokens=1, target=find_slice("v3-8"), chip=CHIPS["v3"]).dcn_s == math.inf


def test_what_stays_on_a_chip_needs_no_link():
    """Two dies of one chip."""
    result = bound(StepFlops(1e18, 0), 1, 1e12, 0, tokens=1, target=find_slice("tpu7x-2"), chip=CHIPS["tpu7x"])
    assert result.ici_s == 0 and result.tokens_per_s > 0


def test_if_nothing_overlaps_all_parts_add_up():
    result = bound(StepFlops(1e15, 0), 1e9, 1e9, 0, tokens=1, target=find_slice("v5e-16"), chip=CHIPS["v5e"])
    assert result.serial_seconds == pytest.approx(result.compute_s + result.hbm_s + result.ici_s)
    assert result.serial_seconds > result.seconds


def test_mistral_on_sixteen_v5e_is_bound_by_compute():
    """The published recipe's step on a v5e-16: 4.0e14 operations a device with whole rows of attention halved."""
    work = Workload(MISTRAL, rows=16, length=8192, recompute=REMAT["full"])
    per_device = training_flops(work).model / 16
    six_n = 6 * (7_241_732_096 - 32000 * 4096) * 8192 + 6 * 32 * 8192**2 * 4096
    assert per_device == pytest.approx(six_n, rel=1e-3)
    traffic = training_hbm_traffic(work, Sharding(devices=16, parameter_shards=16)).total
    result = bound(
        training_flops(work), traffic, 0, 0, tokens=work.tokens, target=find_slice("v5e-16"), chip=CHIPS["v5e"]
    )
    assert result.limit == "compute" and 0.7 < result.mfu < 0.8
