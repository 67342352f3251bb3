"""The meshes, microbatches, remat policies and moments that suit a configuration."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

from janus_jax.config.changes import changed
from janus_jax.config.run import RunConfig
from janus_jax.parallel import mesh as meshes
from janus_jax.planning.inputs import Inputs, find_inputs

FITTING = "fitting"
"""Among values of `remat`: for each mesh, batch and moments the list of tensors that fits by estimate."""


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    """What a sweep varies. The global batch stays as configured unless `rows_per_device` cannot add up to it."""

    meshes: tuple[dict[str, int], ...] | None = None  # missing axes have size 1; None: all that training would accept
    rows_per_device: tuple[int, ...] | None = None  # of a microbatch; None: all that add up to the global batch
    remat: tuple[str, ...] = ("none", "dots", "full", "offload", FITTING)
    moments: tuple[str, ...] = ("float32", "bfloat16")


class InputsCache:
    """`find_inputs`, called once per batch because it packs the rows of an epoch if it has data."""

    def __init__(self, devices: int):
        self.devices, self.known = devices, {}

    def __call__(self, config: RunConfig) -> Inputs:
        sizes = config.mesh.shape.resolve(self.devices)
        rules = meshes.merge_rules(config.sharding)
        key = config.batch.model_dump_json(), *(getattr(sizes, axis) for axis in rules["batch"])
        if key not in self.known:
            self.known[key] = find_inputs(config, self.devices)
        return self.known[key]


def batches(
    config: RunConfig,
    row_shards: int,
    rows_per_device: tuple[int, ...] | None,
    inputs_of: Callable[[RunConfig], Inputs],
) -> Iterator[dict[str, Any]]:
    """Changes of microbatches; also of rows, if `rows_per_device` does not add up to the configured number.

    Args:
        row_shards: number of parts that rows are split into.
        rows_per_device: allowed rows per device; None: any.
        inputs_of: returns the inputs of a configuration on this mesh; called if a batch is a number of examples.
    """
    rows, examples = config.batch.rows, config.batch.examples
    if config.compat.token_mean == "per_microbatch":  # microbatches change the result
        if rows_per_device is None or inputs_of(config).shape.rows / row_shards in rows_per_device:
            yield {"batch.microbatches": config.batch.microbatches}
        return
    if rows is not None and rows_per_device is not None:
        for per_device in rows_per_device:
            micro = max(1, round(rows / (per_device * row_shards)))
            yield {"batch.rows": per_device * row_shards * micro, "batch.microbatches": micro}
    elif rows is not None:
        for micro in range(1, rows // row_shards + 1):
            if rows % (micro * row_shards) == 0:
                yield {"batch.microbatches": micro}
    elif examples is not None:
        whole = None
        for micro in (2**power for power in range(examples.bit_length())):
            changes = {"batch.microbatches": micro}
            shape = inputs_of(changed(config, changes)).shape
            whole = whole or shape.rows
            if shape.rows * micro > whole:  # some rows would be empty
                break
            if rows_per_device is None or shape.rows / row_shards in rows_per_device:
                yield changes


def choices(
    config: RunConfig, devices: int, num_slices: int, space: SearchSpace, inputs: InputsCache
) -> Iterator[dict[str, Any]]:
    """Values of the keys that a sweep sets. Training may refuse some of them."""
    for given in space.meshes or mesh_shapes(devices, num_slices):
        mesh = dict.fromkeys(meshes.AXES, 1) | given
        sizes = {f"mesh.{axis}": size for axis, size in mesh.items()}
        on_mesh = changed(config, sizes)
        row_shards = math.prod(mesh[axis] for axis in meshes.merge_rules(config.sharding)["batch"])
        for batch in batches(on_mesh, row_shards, space.rows_per_device, inputs):
            kept = [{}] if config.compat.adamw_8bit else [{"optimizer.moments": one} for one in space.moments]
            for remat, moments in itertools.product(space.remat, kept):
                yield sizes | batch | {"remat": remat} | moments


def mesh_shapes(devices: int, num_slices: int = 1) -> Iterator[dict[str, int]]:
    """All mesh shapes. Only the first axis may span several slices."""
    divisors = [size for size in range(1, devices + 1) if devices % size == 0]
    for some in itertools.product(divisors, repeat=len(meshes.AXES) - 1):
        rest = functools.reduce(lambda left, size: left // size if left % size == 0 else 0, some, devices)
        if rest and rest % num_slices == 0:
            yield dict(zip(meshes.AXES, (rest, *some), strict=True))
