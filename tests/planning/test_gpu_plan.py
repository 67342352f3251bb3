"""Plans for GPUs by XLA's own compiler for them, on a machine without one.

They need JAX's CUDA plugin (docs/planning.md), and are skipped without it:
`python -m pytest -n 0 -m slow tests/planning/test_gpu_plan.py`.
"""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from janus_jax.planning import plan
from janus_jax.planning.chips import gpus
from janus_jax.planning.chips.slices import devices, find_slice
from janus_jax.planning.compile import ProgramRefused, compile_step
from tests.support.compilers import needs_cuda_plugin
from tests.support.run_configs import recipe, run_config

pytestmark = [needs_cuda_plugin, pytest.mark.slow]

MODEL = {"preset": "mistral-7b", "num_layers": 2, "hidden_size": 512, "intermediate_size": 1024, "vocab_size": 2048}
MODEL |= {"num_heads": 4, "num_kv_heads": 2, "head_dim": 128}


def test_memory_and_collectives_of_a_small_model(tmp_path):
    result = plan(
        run_config(
            tmp_path,
            tmp_path / "run",
            model=MODEL,
            batch={"rows": 8, "row_length": 1024, "max_sequence_length": 512, "microbatches": 1},
            mesh={"data": 1, "fsdp": 4, "tensor": 2},
            precision={"compute": "bfloat16", "attention": "reference"},
            eval={"every_steps": None},
        ),
        "h100:8",
    )
    assert result.fits and result.memory.usable == round(0.9 * 79.1 * 2**30)
    held = sum(result.memory.arguments.values())
    assert result.memory.peak - held == pytest.approx(result.memory.estimated_temporaries, rel=0.1)
    over_tensor = [each for each in result.collectives if each.axes == ("tensor",) and each.kind == "all-reduce"]
    slots = 2 * 1024 * 512 * 2  # bytes of what two rows of a device pass on
    loops = [each for each in over_tensor if each.count == 2 and each.wire_bytes == 2 * slots]
    assert len(loops) == 4  # after attention and after the MLP, of two layers, forward and backward
    assert result.bound.ici_s > 0 and result.bound.dcn_s == 0


def test_one_gpu_holds_a_7b_model_in_bfloat16():
    """7.24 B weights and two moments of two bytes each, their gradients, and the inputs of 32 layers."""
    changes = ("batch.rows=1", "batch.microbatches=1", "mesh.fsdp=1", "precision.attention=reference")
    half = ("compat.bfloat16_weights=true", "optimizer.moments=bfloat16", "remat=full")
    result = plan(recipe("sft_65k", *changes, *half), "h100:1")
    weights = 2 * 7_241_732_096
    assert sum(result.memory.arguments.values()) == pytest.approx(3 * weights, rel=1e-4)
    inputs = 2 * 32 * 8192 * 4096
    assert weights + inputs < result.memory.peak - 3 * weights < weights + inputs + 3 * 2**30
    assert result.fits and not result.collectives


def lowered(block):
    """A kernel whose blocks are `block` wide, for an H100."""

    def multiply(x, y, out):
        out[...] = jnp.dot(x[...], y[...]).astype(out.dtype)

    from jax.experimental.pallas import triton

    whole = pl.BlockSpec((block, block), lambda i: (i, 0))
    kernel = pl.pallas_call(
        multiply,
        out_shape=jax.ShapeDtypeStruct((2 * block, block), jnp.bfloat16),
        grid=(2,),
        in_specs=[whole, whole],
        out_specs=whole,
        compiler_params=triton.CompilerParams(),
    )
    (device,) = devices(find_slice("h100:1"))
    x = jax.ShapeDtypeStruct((2 * block, block), jnp.bfloat16, sharding=jax.sharding.SingleDeviceSharding(device))
    with gpus.lowering_for(device):
        return compile_step(jax.jit(kernel), (x, x), "h100:1", on_tpu=False)


def test_a_kernel_is_compiled_for_the_gpu_and_refused_if_its_cores_have_too_little_memory():
    assert "triton" in lowered(64).hlo
    with pytest.raises(ProgramRefused, match=r"h100:1: XLA refuses the program: .*Shared memory size limit exceeded"):
        lowered(1024)
