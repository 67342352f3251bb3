"""Layers whose gradients take the place of their weights: the numbers of a plain scan, in less memory."""

import dataclasses
import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.data.rows import RowFormat, pack
from janus_jax.model import mistral
from janus_jax.model.attention import Slots
from janus_jax.model.kernels.cudnn import Cudnn
from janus_jax.model.kernels.splash import Splash
from janus_jax.model.mistral import Compute, hidden_states, init_params, param_specs
from janus_jax.model.remat import TENSORS, policy
from janus_jax.model.remat_scan import rematerialized
from janus_jax.objectives.dpo import DPO
from janus_jax.objectives.reward import RewardModel
from janus_jax.objectives.sft import SFT
from janus_jax.parallel.mesh import (
    DEFAULT_RULES,
    NOWHERE,
    WHOLE,
    MeshShape,
    Placement,
    batch_sharding,
    build_mesh,
    param_shardings,
)
from tests.support.cudnn import packed_attention
from tests.support.packed import ROW_LENGTH, in_microbatches, rows_of, step_functions, with_reference
from tests.support.tolerances import assert_within
from tests.support.training_examples import TINY, random_examples

DEEP = dataclasses.replace(TINY, num_layers=3)
TIED = dataclasses.replace(DEEP, tie_embeddings=True)
VALUE = dataclasses.replace(DEEP, head="value")

CASES = {
    "one device": (SFT(), DEEP, None, 1, "bfloat16"),
    "pairs, tied, microbatches": (DPO(), TIED, None, 2, "float32"),
    "values, rows and heads": (RewardModel(), VALUE, (4, 1, 2, 1), 1, "float32"),
    "rows, widths, microbatches": (SFT(), DEEP, (2, 2, 2, 1), 2, "bfloat16"),
    "pairs, widths, heads, length": (DPO(), DEEP, (1, 2, 2, 2), 1, "bfloat16"),
}

SLOW = ("values, rows and heads",)
"""Cases of which each part is also in another one."""


def plain(block, weights, x, lines):
    """What jax differentiates by itself."""
    return jax.lax.scan(lambda x, layer: (block(layer, x, lines), None), x, weights)[0]


def recomputed(block, weights, x, lines):
    return plain(jax.checkpoint(block, prevent_cse=False), weights, x, lines)


@jax.custom_vjp
def added(weights, sums):
    """The weights; what jax then finds as the gradient of `sums` is the plain sum."""
    return weights


def _sum(sums, gradients):
    return None, jax.tree.map(lambda total, g: total + g.astype(jnp.float32), sums, gradients)


added.defvjp(lambda weights, sums: (weights, sums), _sum)


@pytest.fixture
def by_jax(monkeypatch):
    """A function that calls another with layers that jax differentiates, and makes sure that it has used them."""

    def call(f):
        used = []

        def spied(block, weights, x, lines, *, policy, accumulator, shares):
            used.append(policy)
            if accumulator is not None:
                narrowed = jax.tree.map(lambda leaf: leaf.astype(x.dtype), weights)
                weights = added(narrowed, accumulator)
            return recomputed(block, weights, x, lines)

        with monkeypatch.context() as patch:
            patch.setattr(mistral, "rematerialized", spied)
            result = f()
        assert used
        return result

    return call


def batch_of(objective, microbatches):
    pairs = objective.branches == 2
    examples = random_examples(16, pairs=pairs, seed=3)
    form = RowFormat(objective.head, objective.branches)
    rows = pack(rows_of(examples, 16), row_length=ROW_LENGTH, max_segments=4, form=form)
    return in_microbatches(with_reference(rows), microbatches)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in CASES]
)
def test_values_and_gradients_are_those_that_jax_finds(name, by_jax):
    objective, config, sizes, microbatches, dtype = CASES[name]
    place = NOWHERE if sizes is None else Placement(build_mesh(MeshShape(*sizes)), DEFAULT_RULES)
    params, batch, out = init_params(config, jax.random.key(0)), batch_of(objective, microbatches), None
    if place.mesh is not None:
        shardings = param_shardings(param_specs(config), place.mesh, DEFAULT_RULES)
        params = jax.device_put(params, shardings)
        batch = jax.device_put(batch, batch_sharding(place.mesh, DEFAULT_RULES, (None, "batch")))
        out = (None, shardings, None)

    def gradients():
        step = step_functions(objective, config, Compute(dtype=dtype, remat="full", place=place))
        return jax.jit(step.gradients, out_shardings=out)(params, batch)

    actual, expected = gradients(), by_jax(gradients)
    layers = jax.tree.leaves(actual[1]["layers"])
    assert [leaf.dtype for leaf in layers] == [leaf.dtype for leaf in jax.tree.leaves(expected[1]["layers"])]
    assert all(np.asarray(leaf, np.float32).any(axis=tuple(range(1, leaf.ndim))).all() for leaf in layers)
    assert_within(actual, expected)


@pytest.mark.parametrize(("kept", "compute"), [("float32", "bfloat16"), ("bfloat16", "bfloat16")])
def test_gradients_have_the_dtype_of_the_parameters(kept, compute, by_jax):
    """Differentiated from the parameters themselves, whether or not they are what the blocks multiply with."""
    params = init_params(DEEP, jax.random.key(0), kept)
    batch = jax.tree.map(lambda x: jnp.asarray(x[0]), batch_of(SFT(), 1))
    layout = Slots(batch.segment, batch.branch, batch.position)

    def gradients():
        return jax.jit(jax.value_and_grad(lambda params: loss(params)))(params)

    def loss(params):
        hidden = hidden_states(DEEP, params, batch.tokens, layout, Compute(dtype=compute, remat="full"))
        return jnp.square(hidden.astype(jnp.float32)).mean()

    actual, expected = gradients(), by_jax(gradients)
    assert {leaf.dtype for leaf in jax.tree.leaves(actual[1])} == {jnp.dtype(kept)}
    assert_within(actual, expected)


@pytest.mark.parametrize(
    "kernel",
    [
        Splash(copies=ROW_LENGTH, interpret=True),
        pytest.param(
            Cudnn(copies=ROW_LENGTH, sequences=8, longest=ROW_LENGTH, packed=packed_attention), marks=pytest.mark.slow
        ),
    ],
    ids=["splash", "cudnn"],
)
def test_kernels_run_in_the_backward_loop(by_jax, kernel):
    """On a mesh, where each is a program of its own on each device; splash's steps are constants of the loop's body."""
    config = dataclasses.replace(DEEP, num_heads=2, num_kv_heads=2, head_dim=64)
    place = Placement(build_mesh(MeshShape(2, 2, 2, 1)), DEFAULT_RULES)
    examples = random_examples(8, pairs=True, seed=3)
    batch = in_microbatches(with_reference(pack(rows_of(examples, 4), row_length=ROW_LENGTH, max_segments=4)))
    shardings = param_shardings(param_specs(config), place.mesh, DEFAULT_RULES)
    params = jax.device_put(init_params(config, jax.random.key(0)), shardings)
    compute = Compute(dtype="float32", remat="full", place=place, kernel=kernel)

    def gradients(compute=compute):
        return jax.jit(step_functions(DPO(), config, compute).gradients)(params, batch)

    assert_within(gradients(), by_jax(gradients))
    assert_within(gradients(), gradients(dataclasses.replace(compute, kernel=None)))


def test_without_gradients_it_is_a_plain_scan():
    weights, x = jnp.ones((3, 4, 4)), jnp.ones((2, 4))

    def program(run):
        jitted = jax.jit(lambda weights, x: run(_dense, weights, x, ()))
        return jitted.lower(weights, x).compile().as_text().partition("ENTRY")[2].count("dynamic-update-slice")

    assert program(rematerialized) == program(plain) == 0


def test_gradients_take_the_place_of_weights():
    """Of weights that end with the backward pass, 16 times as many bytes as all activations."""
    weights, x = jnp.ones((64, 128, 128)), jnp.ones((1, 128))

    def temporary(run):
        jitted = jax.jit(jax.grad(lambda weights, x: run(_dense, weights, x, ()).sum()), donate_argnums=0)
        return jitted.lower(weights, x).compile().memory_analysis().temp_size_in_bytes

    assert temporary(recomputed) >= weights.nbytes
    assert temporary(rematerialized) <= weights.nbytes / 8


def summed(run, weights, xs):
    """The sum of the gradients of bfloat16 layers over microbatches, by `run(weights, x, sums)`."""
    zeros = jnp.zeros(weights.shape, jnp.float32)
    return jax.lax.scan(lambda sums, x: (run(weights, x, sums), None), zeros, xs)[0]


def by_accumulator(weights, x, sums, remat="full"):
    def loss(sums):
        out = rematerialized(_dense, weights, x, (), policy=policy(remat), accumulator=sums)
        return jnp.square(out).sum()

    return jax.grad(loss)(sums)


def by_sum(run):
    def add(weights, x, sums):
        gradient = jax.grad(lambda weights: jnp.square(run(_dense, weights, x, ())).sum())(weights)
        return sums + gradient.astype(jnp.float32)

    return add


@pytest.mark.parametrize(("kept", "remat"), [("bfloat16", "full"), ("float32", "full"), ("float32", "none")])
def test_sums_over_microbatches_are_equal_to_the_last_bit(kept, remat):
    """Gradients are bfloat16 numbers, whatever the weights are kept as, and each is added in float32."""
    narrow = jax.random.normal(jax.random.key(0), (5, 8, 8), "bfloat16") / 2
    xs = jax.random.normal(jax.random.key(1), (3, 4, 8), "bfloat16")
    run = functools.partial(by_accumulator, remat=remat)
    sums = jax.jit(functools.partial(summed, run))(narrow.astype(kept), xs)
    expected = jax.jit(functools.partial(summed, by_sum(plain)))(narrow, xs)
    assert sums.dtype == jnp.float32 and np.asarray(sums).any(axis=(1, 2)).all()
    np.testing.assert_array_equal(sums, expected)


def test_microbatches_have_no_gradients_beside_their_sums():
    """And no copy of the weights, which are 16 times as many bytes as all activations."""
    weights, xs = jnp.ones((64, 128, 128)), jnp.ones((2, 1, 128))

    def temporary(run):
        compiled = jax.jit(functools.partial(summed, run)).lower(weights, xs).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert min(temporary(by_sum(recomputed)), temporary(by_sum(rematerialized))) >= weights.nbytes
    assert temporary(by_accumulator) <= weights.nbytes / 8


def _dense(layer, x, lines):
    return jnp.tanh(x @ layer.astype(x.dtype))


@pytest.mark.parametrize("name", [*TENSORS, "none"])
def test_what_is_kept_is_not_computed_again(name):
    """Products and kernels of the whole program, beside one that keeps blocks' inputs alone."""
    config = dataclasses.replace(DEEP, num_heads=2, num_kv_heads=2, head_dim=64)
    batch = jax.tree.map(lambda x: jnp.asarray(x[0]), batch_of(SFT(), 1))
    params, layout = init_params(config, jax.random.key(0)), Slots(batch.segment, batch.branch, batch.position)

    def counts(remat):
        compute = Compute(dtype="float32", remat=remat, kernel=Splash(copies=0, interpret=True))
        gradient = jax.grad(lambda params: hidden_states(config, params, batch.tokens, layout, compute).sum())
        names = [equation.primitive.name for equation in equations(jax.make_jaxpr(gradient)(params).jaxpr)]
        return np.array([names.count("dot_general"), names.count("pallas_call")])

    saved = {"none": (len(TENSORS) - 1, 1), "attention": (0, 1)}.get(name, (1, 0))
    np.testing.assert_array_equal(counts("offload") - counts(name if name == "none" else (name,)), saved)


def equations(jaxpr):
    """Those of inner programs too, but not of kernels."""
    for equation in jaxpr.eqns:
        yield equation
        inner = () if equation.primitive.name == "pallas_call" else tuple(equation.params.values())
        for each in jax.tree.leaves(inner):
            if isinstance(each := getattr(each, "jaxpr", each), jax.extend.core.Jaxpr):
                yield from equations(each)


@pytest.mark.parametrize("remat", ["full", ("query",), ("gate", "up")])
def test_devices_that_hold_one_input_keep_a_share_of_it_each(remat, monkeypatch):
    """Less memory, by what the others keep, for the same values and gradients."""
    config = dataclasses.replace(TINY, num_layers=16, num_heads=4, num_kv_heads=4)
    mesh = build_mesh(MeshShape(1, 2, 4, 1))
    batch = jax.device_put(batch_of(SFT(), 1), batch_sharding(mesh, DEFAULT_RULES, (None, "batch")))
    params = jax.device_put(
        init_params(config, jax.random.key(0)), param_shardings(param_specs(config), mesh, DEFAULT_RULES)
    )

    def run():
        compute = Compute(dtype="float32", remat=remat, place=Placement(mesh, DEFAULT_RULES))
        compiled = jax.jit(step_functions(SFT(), config, compute).gradients).lower(params, batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes, compiled(params, batch)

    memory, actual = run()
    monkeypatch.setattr(Placement, "shares", lambda *_: WHOLE)
    whole, expected = run()
    inputs = config.num_layers * batch.tokens.size // 2 * config.hidden_size * 4
    assert whole - memory >= 0.7 * inputs * 3 / 4
    assert_within(actual, expected)
