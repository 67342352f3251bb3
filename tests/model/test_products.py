"""Products with weights on CPUs: JAX's own gradients, in another order of operands."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.model.attention import _einsum, _scores_on_cpus
from janus_jax.model.products import _on_cpus, product
from janus_jax.parallel.axes import MeshShape
from janus_jax.parallel.mesh import DEFAULT_RULES, NOWHERE, Placement, build_mesh

SHAPES = {
    "bld,df->blf": ((2, 6, 4), (4, 10)),
    "bld,dnh->blnh": ((2, 6, 8), (8, 2, 2)),
    "blnh,nhd->bld": ((2, 6, 3, 2), (3, 2, 5)),
}


def random(*shapes, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [jax.random.normal(key, shape).astype(dtype) for key, shape in zip(keys, shapes, strict=True)]


def gradients(run, a, b):
    return jax.grad(lambda a, b: jnp.sin(run(a, b).astype(jnp.float32)).sum(), (0, 1))(a, b)


def assert_equal(own, other):
    """The same numbers but for the order of sums, in the same dtype: at most a last place of the largest apart."""
    assert own.dtype == other.dtype and own.shape == other.shape
    rtol, place = (1e-5, 1e-5) if own.dtype == jnp.float32 else (0.02, 2**-7 * float(jnp.abs(other).max()))
    np.testing.assert_allclose(own.astype("f4"), other.astype("f4"), rtol=rtol, atol=place)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("form", SHAPES)
def test_values_and_gradients_are_those_of_jax(form, dtype):
    x, weight = random(*SHAPES[form], dtype=dtype)
    einsum = functools.partial(jnp.einsum, form)
    for run in (_on_cpus, functools.partial(product, place=NOWHERE)):
        jax.tree.map(assert_equal, run(x, weight), einsum(x, weight))
        jax.tree.map(assert_equal, gradients(run, x, weight), gradients(einsum, x, weight))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_scores_and_their_gradients_are_those_of_jax(dtype):
    q, k = random((2, 3, 2, 5, 4), (2, 7, 3, 4), dtype=dtype)
    einsum = functools.partial(_einsum, "bkgqh,bskh->bkgqs")
    assert_equal(_scores_on_cpus(q, k), einsum(q, k))
    jax.tree.map(assert_equal, gradients(_scores_on_cpus, q, k), gradients(einsum, q, k))


@pytest.mark.parametrize(("inputs", "outputs", "first"), [(4, 10, 4), (10, 4, 4)])
def test_on_cpus_the_narrower_operand_comes_first_in_the_gradient_of_weights(inputs, outputs, first):
    x, weight = random((2, 6, inputs), (inputs, outputs))
    on_cpu = functools.partial(product, place=Placement(build_mesh(MeshShape(), jax.devices()[:1]), DEFAULT_RULES))

    def first_operands(run):
        program = jax.make_jaxpr(lambda weight: gradients(run, x, weight)[1])(weight)
        dots = [eqn for eqn in program.jaxpr.eqns if eqn.primitive.name == "dot_general"]
        summed = [eqn for eqn in dots if eqn.params["dimension_numbers"][0] == ((0, 1), (0, 1))]
        return [eqn.invars[0].aval.shape[-1] for eqn in summed]

    assert first_operands(on_cpu) == [first]
    assert first_operands(functools.partial(product, place=NOWHERE)) == [outputs]  # JAX's own
