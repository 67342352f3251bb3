"""Operations of a step and the least time that they need, of what a run does besides as well."""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from janus_jax.config.run import RunConfig
from janus_jax.parallel import mesh as meshes
from janus_jax.planning.chips import roofline
from janus_jax.planning.chips.slices import Chip, Slice
from janus_jax.planning.inputs import Inputs, online_reference


def workload(config: RunConfig, found: Inputs) -> roofline.Workload:
    """What a step computes."""
    return roofline.Workload(
        model=found.model,
        rows=found.shape.rows * found.shape.microbatches,
        length=found.shape.row_length,
        microbatches=found.shape.microbatches,
        recompute=roofline.REMAT[config.remat],
        segment=round(found.segment),
    )


def step_flops(config: RunConfig, found: Inputs, *, scores: bool = True) -> roofline.StepFlops:
    """Operations of the whole mesh.

    Args:
        scores: whether an online reference scores the batch of each step, as it does in training.
    """
    work = workload(config, found)
    flops = roofline.training_flops(work)
    if scores and online_reference(config, found):
        return roofline.StepFlops(flops.model, flops.recomputed, roofline.inference_flops(work).model)
    return flops


def step_bound(
    config: RunConfig,
    found: Inputs,
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
        parameter_shards: pieces of a weight of the layers.
        devices: of the mesh.
        ici_bytes, dcn_bytes: sent by a device in the training step alone.
        scores: as for `step_flops`.
    """
    work = workload(config, found)
    sharding = roofline.Sharding(
        devices=devices,
        parameter_shards=parameter_shards,
        tensor=shards["mlp"],
        parameter_bytes=jnp.dtype(config.params_dtype).itemsize,
        compute_bytes=jnp.dtype(config.precision.compute).itemsize,
        moment_bytes=2 * jnp.dtype(config.optimizer.moments).itemsize,
    )
    traffic = roofline.training_hbm_traffic(work, sharding).total
    if scores and online_reference(config, found):
        traffic += roofline.inference_hbm_traffic(work, sharding).total
    shares = math.prod(shards[axis] for axis in ("batch", "length", "mlp"))
    return roofline.bound(
        step_flops(config, found, scores=scores),
        traffic,
        ici_bytes,
        dcn_bytes,
        tokens=round(found.tokens_per_step),
        target=target,
        chip=chip,
        num_slices=num_slices,
        repeated=devices / shares,
    )


def shards_by_axis(mesh: Any, rules: meshes.Rules) -> dict[str, int]:
    """Into how many parts each logical axis is split."""
    return {axis: meshes.shards(mesh, rules, axis) for axis in meshes.DEFAULT_RULES}
