"""What compilers log becomes findings: re-sharding through full copies is said nowhere else."""

import os
import subprocess
import sys

import pytest

from janus_jax.planning.compiler_log import compiler_log
from tests.support.compilers import needs_libtpu
from tests.support.repository import ROOT

RESHARD = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from janus_jax.planning.hlo.findings import warnings
from janus_jax.planning.compiler_log import compiler_log
from janus_jax.planning.chips.slices import devices, find_slice

mesh = Mesh(np.asarray(devices(find_slice(sys.argv[1]))).reshape(4, 2), ("a", "b"))
def on(spec):
    return NamedSharding(mesh, spec)
for target in (P(None, ("a", "b"), None), P("b", None, "a")):
    def step(x):
        y = jax.lax.with_sharding_constraint(jnp.sin(x), on(P("b", None, "a")))
        return jax.lax.with_sharding_constraint(jnp.cos(y), on(target)) * 2
    x = jax.ShapeDtypeStruct((64, 4096, 512), jnp.float32, sharding=on(P("b", None, "a")))
    with compiler_log() as log:
        text = jax.jit(step).lower(x).compile().as_text()
    for each in warnings(text, log()):
        print(each.kind, each.bytes, each.op_name, each.text)
    print("end")
"""


@pytest.mark.parametrize("where", ["cpu:8", pytest.param("v5litepod-8", marks=needs_libtpu)])
def test_a_full_copy_is_found_and_not_printed(where):
    """In a process of its own: XLA reads once whether it shall say anything."""
    env = {key: value for key, value in os.environ.items() if key not in ("TF_CPP_MIN_LOG_LEVEL", "TPU_LOG_DIR")}
    command = [sys.executable, "-c", RESHARD, where]
    done = subprocess.run(command, cwd=ROOT, env=env | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    first, *rest = done.stdout.splitlines()
    kind, size, name, text = first.split(" ", 3)
    assert (
        kind == "rematerialization" and int(size) >= 4 * 64 * 4096 * 512 // 8 and name.endswith("sharding_constraint")
    )
    assert "is resharded from {" in text and text.endswith("} through a full copy")
    assert rest == ["end", "end"]


def test_other_lines_are_printed_afterwards(capfd):
    with compiler_log() as log:
        os.write(2, b"of another library\n")
        assert capfd.readouterr().err == ""
    assert log() == capfd.readouterr().err == "of another library\n"


def test_stderr_is_back_after_an_error(capfd):
    with pytest.raises(ValueError, match="no"), compiler_log():
        os.write(2, b"why\n")
        raise ValueError("no")
    os.write(2, b"heard\n")
    assert capfd.readouterr().err == "why\nheard\n"
