"""The estimate of a program's peak beside what the compiler for TPUs says.

Needs libtpu, `pip install 'janus_jax[tpu]'`, and is skipped without it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from janus_jax.planning.chips.slices import devices, find_slice
from janus_jax.planning.hlo.memory import DEVICE, HOST, ON_CHIP, peak
from tests.support.compilers import needs_libtpu

pytestmark = needs_libtpu

ROWS, WIDTH, LAYERS = 8192, 2048, 8


def block(x, w):
    w = w.astype(jnp.bfloat16)
    return x + jnp.tanh(x @ w) @ w.T, None


def loss(w, x, policy=None):
    def body(x, w):
        return block(checkpoint_name(x, "x"), w)

    body = jax.checkpoint(body, policy=policy, prevent_cse=False)
    return jnp.square(lax.scan(body, x, w)[0].astype(jnp.float32)).mean()


def trained(w, x):
    return w - 0.1 * jax.grad(loss)(w, x)


def offloaded(w, x):
    policy = jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[], names_which_can_be_offloaded=["x"], offload_src="device", offload_dst="pinned_host"
    )
    return jax.grad(loss)(w, x, policy)


def branching(w, x):
    return lax.cond(w[0, 0, 0] > 0, lambda: jnp.sin(x @ w[0]) @ w[1], lambda: x + 1)


def looping(w, x):
    def body(_, state):
        x, y = state
        return jnp.roll(y @ w[0], 1, 0), x

    return lax.fori_loop(0, w[0, 0, 0].astype(int), body, (x, x + 1))


def updated(w, x):
    return lax.dynamic_update_slice(w, (x.T @ x)[None], (x[0, 0].astype(int), 0, 0))


def padded(w, x):
    # 4096 x 3 x 40 takes eight times its elements in tiles.
    y = jnp.sin(x[:4096, :120].reshape(4096, 3, 40) * w[0, 0, 0])
    return y, jnp.cumsum(y, 0)


PROGRAMS = {
    "trained": (trained, (jnp.float32, jnp.bfloat16), 0, P(None)),
    "without donation": (trained, (jnp.float32, jnp.bfloat16), (), P(None)),
    "over four devices": (trained, (jnp.float32, jnp.bfloat16), 0, P(None, "fsdp")),
    "offloaded": (offloaded, (jnp.bfloat16, jnp.bfloat16), (), P(None)),
    "branching": (branching, (jnp.float32, jnp.float32), (), P(None)),
    "looping": (looping, (jnp.float32, jnp.float32), (), P(None)),
    "updated": (updated, (jnp.float32, jnp.float32), (), P(None)),
    "padded": (padded, (jnp.float32, jnp.float32), (), P(None)),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_estimate_is_within_a_tenth_of_the_compilers_peak(name):
    f, (weights, values), donated, spec = PROGRAMS[name]
    mesh = Mesh(np.asarray(devices(find_slice("v5e-4"))), ("fsdp",))
    w = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), weights, sharding=NamedSharding(mesh, spec))
    x = jax.ShapeDtypeStruct((ROWS, WIDTH), values, sharding=NamedSharding(mesh, P(*spec[1:])))
    out = NamedSharding(mesh, spec) if f is trained else None
    compiled = jax.jit(f, donate_argnums=donated, out_shardings=out).lower(w, x).compile()
    message = compiled.memory_analysis()
    beside = message.peak_memory_in_bytes - message.argument_size_in_bytes
    text = compiled.as_text()
    result = {memory: peak(text, memory) for memory in (DEVICE, ON_CHIP, HOST)}
    # The compiler takes the largest of the memories, also where that is not the device's.
    fixed = result[DEVICE].fixed
    largest = fixed + max(each.bytes - each.fixed for each in result.values())
    assert largest == pytest.approx(beside, rel=0.1)
    if name == "offloaded":
        assert result[HOST].bytes == LAYERS * ROWS * WIDTH * 2
        assert result[DEVICE].bytes < result[HOST].bytes + fixed == largest
