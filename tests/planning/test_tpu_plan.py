"""Plans of small models by the real TPU compiler: the kernel, memory, collectives, two slices, what does not fit.

They need libtpu (pip install 'janus_jax[tpu]'), and are skipped without it.
"""

import contextlib

import pytest

from janus_jax.errors import ConfigError
from janus_jax.planning import plan
from tests.support.compilers import needs_libtpu
from tests.support.run_configs import run_config

pytestmark = needs_libtpu

MODEL = {"preset": "mistral-7b", "num_layers": 2, "hidden_size": 512, "intermediate_size": 1024, "vocab_size": 2048}
MODEL |= {"num_heads": 4, "num_kv_heads": 2, "head_dim": 128}


def run(tmp_path, kind="sft", **changes):
    values = {
        "model": MODEL,
        "batch": {"rows": 8, "row_length": 1024, "max_sequence_length": 512, "microbatches": 1},
        "mesh": {"data": 1, "fsdp": 4, "tensor": 1},
        "precision": {"compute": "bfloat16"},
        "remat": "full",
        "eval": {"every_steps": None},
    }
    return run_config(tmp_path, tmp_path / "run", kind, **{**values, **changes})


def test_a_small_model_on_v5e(tmp_path):
    found = plan(run(tmp_path), "v5litepod-4")
    assert found.attention == "splash kernel" and found.fits and found.reason is None
    memory = found.memory
    assert memory.usable == round(15.75 * 2**30)
    held = sum(memory.arguments.values())
    assert held < memory.peak < memory.usable
    assert memory.temporaries and memory.estimated_temporaries == sum(each.bytes for each in memory.temporaries)
    moved = {(each.kind, each.axes) for each in found.collectives if each.wire_bytes}
    assert moved and all(axes == ("fsdp",) for _, axes in moved if axes)
    assert not [each for each in found.findings if each.kind == "all-reduce" and "head" in each.op_name]
    assert 0 < found.bound.seconds < 1 and 0 < found.bound.mfu <= 1


@pytest.mark.parametrize("name", ["v2-8", "v3-8", "v4-8"])
def test_attention_is_the_kernels_where_the_chip_has_one(name, tmp_path):
    found = plan(run(tmp_path, mesh={"data": 1, "fsdp": -1, "tensor": 1}), name)
    old = name != "v4-8"
    assert found.fits and found.attention.startswith("plain JAX (kernels of a TPU v" if old else "splash kernel")
    assert found.bound.tokens_per_s > 0
    with contextlib.nullcontext() if not old else pytest.raises(ConfigError, match="multiply no bfloat16; allowed"):
        settings = {"compute": "bfloat16", "attention": "splash"}
        plan(run(tmp_path, mesh={"data": 1, "fsdp": -1, "tensor": 1}, precision=settings), name)


def test_pairs_on_two_slices_send_their_gradients_over_the_network(tmp_path):
    settings = {"mesh": {"data": 2, "fsdp": 2, "tensor": 2}, "remat": "full"}
    found = plan(run(tmp_path, "dpo", **settings), "v5litepod-4", num_slices=2)
    assert found.attention.startswith("splash kernel, ") and "copies of shared prompt slots" in found.attention
    over = [each for each in found.collectives if each.over_dcn]
    assert over and all(each.axes == ("data",) for each in over)
    assert found.bound.dcn_s > 0
    # Every slice holds the gradients of its 4 devices' parts: bfloat16 of the blocks, float32 of the rest.
    assert found.memory.arguments["parameters"] / 4 < sum(each.wire_bytes for each in over)


def test_what_does_not_fit_says_by_how_much(tmp_path):
    large = MODEL | {"num_layers": 32, "hidden_size": 4096, "intermediate_size": 14336, "num_heads": 32}
    found = plan(run(tmp_path, model=large | {"num_kv_heads": 8}), "v5litepod-4")
    assert not found.fits and found.memory.peak is None and found.bound is None
    assert "only 15.75G is usable" in found.reason
    assert sum(found.memory.arguments.values()) > found.memory.usable
