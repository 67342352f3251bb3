"""Operations of a configured step and the least time that it takes, an online reference included."""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from janus_jax.config.run import RunConfig
from janus_jax.parallel import mesh as meshes
from janus_jax.planning.chips import roofline
from janus_jax.planning.chips.slices import Chip, Slice
from janus_jax.planning.inputs import Inputs, online_reference


def workload(config: RunConfig, inputs: Inputs) -> roofline.Workload:
    """The step as the roofline model sees it."""
    return roofline.Workload(
        model=inputs.model,
        rows=inputs.shape.rows * inputs.shape.microbatches,
        length=inputs.shape.row_length,
        microbatches=inputs.shape.microbatches,
        recompute=roofline.recompute(config.remat),
        segment=round(inputs.segment),
    )


def step_flops(config: RunConfig, inputs: Inputs, *, scores: bool = True) -> roofline.StepFlops:
    """Operations of one step on the whole mesh.

    Args:
        scores: whether an online reference scores the batch of each step, as it does in training.
    """
    work = workload(config, inputs)
    flops = roofline.training_flops(work)
    if scores and online_reference(config, inputs):
        return roofline.StepFlops(flops.model, flops.recomputed, roofline.inference_flops(work).model)
    return flops


def step_bound(
    config: RunConfig,
    inputs: Inputs,
    *,
    shards: Mapping[str, int],
    parameter_shards: int,
    devices: int,
    ici_bytes: float,
    dcn_bytes: float,
    target: Slice,
    chip: Chip,
    num_slices: int,
    scores: bool = True,
) -> roofline.Bound:
    """The least time of a step.

    Args:
        shards: number of shards of each logical axis.
        parameter_shards: number of shards of a layer's weight.
        devices: number of devices of the mesh.
        ici_bytes, dcn_bytes: bytes that one device sends in the training step, without the reference.
        scores: as for `step_flops`.
    """
    work = workload(config, inputs)
    sharding = roofline.Sharding(
        devices=devices,
        parameter_shards=parameter_shards,
        tensor=shards["mlp"],
        parameter_bytes=jnp.dtype(config.params_dtype).itemsize,
        compute_bytes=jnp.dtype(config.precision.compute).itemsize,
        moment_bytes=2 * (1 if config.compat.adamw_8bit else jnp.dtype(config.optimizer.moments).itemsize),
    )
    traffic = roofline.training_hbm_traffic(work, sharding).total
    if scores and online_reference(config, inputs):
        traffic += roofline.inference_hbm_traffic(work, sharding).total
    parts = math.prod(shards[axis] for axis in ("batch", "length", "mlp"))
    return roofline.bound(
        step_flops(config, inputs, scores=scores),
        traffic,
        ici_bytes,
        dcn_bytes,
        tokens=round(inputs.tokens_per_step),
        target=target,
        chip=chip,
        num_slices=num_slices,
        repeated=devices / parts,
    )


def shards_by_axis(mesh: Any, rules: meshes.Rules) -> dict[str, int]:
    """Number of shards of each logical axis."""
    return {axis: meshes.shards(mesh, rules, axis) for axis in meshes.DEFAULT_RULES}
