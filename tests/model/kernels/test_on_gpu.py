"""The kernels on an NVIDIA GPU: equal to plain JAX, alone and in a training step. Without a GPU all of it skips.

JAX_PLATFORMS=cuda,cpu XLA_FLAGS= pytest -n 0 tests/model/kernels/test_on_gpu.py
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.data.example import Example
from janus_jax.data.rows import pack
from janus_jax.model.attention import Slots, attention
from janus_jax.model.config import ModelConfig
from janus_jax.model.kernels.choice import choose
from janus_jax.model.mistral import Compute, init_params
from janus_jax.objectives.dpo import DPO
from janus_jax.objectives.sft import SFT
from janus_jax.parallel.mesh import DEFAULT_RULES, MeshShape, Placement, build_mesh
from tests.support.kernels import need
from tests.support.packed import in_microbatches, step_functions, with_reference

MODEL = ModelConfig(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=96,
    num_layers=2,
    num_heads=8,
    num_kv_heads=2,
    head_dim=64,
    initializer_range=0.1,
)
LENGTH = 512


@pytest.fixture(scope="module", autouse=True)
def gpu():
    if jax.default_backend() != "gpu":
        pytest.skip("no NVIDIA GPU, or JAX_PLATFORMS leaves it out")


def packed(branches):
    """Two rows, one nearly full and one with a long segment and padding."""
    rng = np.random.default_rng(0)

    def ids(count):
        return rng.integers(3, MODEL.vocab_size, count).astype(np.int32)

    def example(prompt, response):
        return Example(ids(prompt), ids(response), ids(response + 7) if branches == 2 else None)

    rows = [[example(1, 60), example(30, 50), example(60, 70)], [example(100, 130)]]
    return pack(rows, row_length=LENGTH, max_segments=4)


def kernel(name, branches, place):
    wanted = need(
        heads=MODEL.num_heads,
        kv_heads=MODEL.num_kv_heads,
        head_dim=MODEL.head_dim,
        row_length=LENGTH,
        longest=LENGTH,
        copies=128 if branches == 2 else 0,
        segments=4,
        branches=branches,
        place=place,
    )
    return choose(name, wanted)[0]


def here():
    return Placement(build_mesh(MeshShape(), jax.devices()[:1]), DEFAULT_RULES)


def apart(a, b):
    a, b = (np.asarray(x, np.float32) for x in (a, b))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("name", ["cudnn", "triton"])
@pytest.mark.parametrize("branches", [1, 2])
def test_a_kernel_computes_the_rule(name, branches):
    batch, place = packed(branches), here()
    slots = Slots(*(jnp.asarray(getattr(batch, field)) for field in Slots._fields))
    real = jnp.asarray(batch.segment > 0)[..., None, None]
    heads = (MODEL.num_heads, MODEL.num_kv_heads, MODEL.num_kv_heads, MODEL.num_heads)
    q, k, v, cotangent = (
        jax.random.normal(jax.random.key(seed), (2, LENGTH, count, MODEL.head_dim), jnp.bfloat16)
        for seed, count in enumerate(heads)
    )
    cotangent = jnp.where(real, cotangent, 0)
    chosen = kernel(name, branches, place)

    def run(attend, *arrays):
        out, pull = jax.vjp(attend, *arrays[:3])
        return jnp.where(real, out, 0), *pull(arrays[3])

    ours = jax.jit(lambda *x: run(lambda *qkv: chosen(*qkv, slots, window=None, place=place), *x))(q, k, v, cotangent)
    with jax.default_matmul_precision("highest"):
        wide = [x.astype(jnp.float32) for x in (q, k, v, cotangent)]
        exact = jax.jit(lambda *x: run(lambda *qkv: attention(*qkv, slots), *x))(*wide)
    assert all(apart(a, b) < 1e-2 for a, b in zip(ours, exact, strict=True))


@pytest.mark.parametrize("name", ["cudnn", "triton"])
@pytest.mark.parametrize(("objective", "branches"), [(SFT(), 1), (DPO(), 2)], ids=["sft", "dpo"])
def test_a_training_step_with_a_kernel_is_that_of_plain_jax(name, objective, branches):
    """The kernel under checkpoint and scan. The gradients differ by what bfloat16 rounds, so plain JAX in float32 is
    the truth and plain JAX in bfloat16 the yardstick."""
    batch, place = packed(branches), here()
    batch = jax.tree.map(jnp.asarray, in_microbatches(with_reference(batch)))
    params = init_params(MODEL, jax.random.key(0))
    plain = Compute(dtype=jnp.bfloat16, remat="full", place=place)

    def loss_and_gradients(compute):
        functions = step_functions(objective, MODEL, compute)
        loss, gradients, _ = jax.jit(functions.gradients)(params, batch)
        flat = [jnp.ravel(leaf).astype(jnp.float32) for leaf in jax.tree.leaves(gradients)]
        return float(loss), jnp.concatenate(flat)

    exact_loss, exact = loss_and_gradients(dataclasses.replace(plain, dtype=jnp.float32))
    _, rounded = loss_and_gradients(plain)
    loss, gradients = loss_and_gradients(dataclasses.replace(plain, kernel=kernel(name, branches, place)))
    assert abs(loss - exact_loss) < 2e-2 * abs(exact_loss)
    assert apart(gradients, exact) < max(2e-2, 2 * apart(rounded, exact))
