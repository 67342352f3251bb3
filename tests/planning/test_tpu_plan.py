"""Plans of small models by the real TPU compiler: the kernel, memory, collectives, two slices, what does not fit.

They need libtpu (pip install 'janus_jax[tpu]'), and are skipped without it.
"""

import contextlib

import pytest

from janus_jax.errors import ConfigError
from janus_jax.model.remat import TENSORS
from janus_jax.planning import plan
from janus_jax.planning.chips.slices import find_slice
from janus_jax.planning.search.estimate import estimate
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
    result = plan(run(tmp_path), "v5litepod-4")
    assert result.attention == "splash kernel" and result.fits and result.reason is None
    memory = result.memory
    assert memory.usable == round(15.75 * 2**30)
    held = sum(memory.arguments.values())
    assert held < memory.peak < memory.usable
    assert memory.temporaries and memory.estimated_temporaries == sum(each.bytes for each in memory.temporaries)
    moved = {(each.kind, each.axes) for each in result.collectives if each.wire_bytes}
    assert moved and all(axes == ("fsdp",) for _, axes in moved if axes)
    assert not [each for each in result.findings if each.kind == "all-reduce" and "head" in each.op_name]
    assert 0 < result.bound.seconds < 1 and 0 < result.bound.mfu <= 1


@pytest.mark.parametrize("name", ["v2-8", "v3-8", "v4-8"])
def test_attention_is_the_kernels_where_the_chip_has_one(name, tmp_path):
    result = plan(run(tmp_path, mesh={"data": 1, "fsdp": -1, "tensor": 1}), name)
    old = name != "v4-8"
    assert result.fits and result.attention.startswith("plain JAX (kernels of a TPU v" if old else "splash kernel")
    assert result.bound.tokens_per_s > 0
    with contextlib.nullcontext() if not old else pytest.raises(ConfigError, match="multiply no bfloat16; allowed"):
        settings = {"compute": "bfloat16", "attention": "splash"}
        plan(run(tmp_path, mesh={"data": 1, "fsdp": -1, "tensor": 1}, precision=settings), name)


@pytest.mark.slow
def test_tensors_that_are_kept_take_the_memory_that_the_search_counts_with(tmp_path):
    """Beside the program that keeps none. The compiler stores some of them more tightly, so up to a tenth less."""
    batch = {"rows": 8, "row_length": 4096, "max_sequence_length": 512, "microbatches": 1}
    needs = []
    for remat in ("full", ["gate", "up"], list(TENSORS)):
        config = run(tmp_path, remat=remat, batch=batch, model=MODEL | {"num_layers": 8})
        needs.append((plan(config, "v5litepod-4").memory.needed, estimate(config, find_slice("v5litepod-4")).bytes))
    (none, of_none), *kept = needs
    for needed, of_needed in kept:
        assert needed - none == pytest.approx(of_needed - of_none, rel=0.12)
    assert kept[0][0] - none > 200 * 2**20 and kept[1][0] - kept[0][0] > 200 * 2**20


def test_pairs_on_two_slices_send_their_gradients_over_the_network(tmp_path):
    settings = {"mesh": {"data": 2, "fsdp": 2, "tensor": 2}, "remat": "full"}
    result = plan(run(tmp_path, "dpo", **settings), "v5litepod-4", num_slices=2)
    assert result.attention.startswith("splash kernel, ") and "copies of shared prompt slots" in result.attention
    over = [each for each in result.collectives if each.over_dcn]
    assert over and all(each.axes == ("data",) for each in over)
    assert result.bound.dcn_s > 0
    # Every slice holds the gradients of its 4 devices' parts: bfloat16 of the blocks, float32 of the rest.
    assert result.memory.arguments["parameters"] / 4 < sum(each.wire_bytes for each in over)


def test_what_does_not_fit_says_by_how_much(tmp_path):
    large = MODEL | {"num_layers": 32, "hidden_size": 4096, "intermediate_size": 14336, "num_heads": 32}
    result = plan(run(tmp_path, model=large | {"num_kv_heads": 8}), "v5litepod-4")
    assert not result.fits and result.memory.peak is None and result.bound is None
    assert "only 15.75G is usable" in result.reason
    assert sum(result.memory.arguments.values()) > result.memory.usable
