"""What a sweep can vary: meshes, microbatches, remat and moments that go together with a configuration."""

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


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    """What a sweep varies. The global batch stays as it is configured unless `rows_per_device` cannot make it up."""

    meshes: tuple[dict[str, int], ...] | None = None  # axes left out have size 1; None: all that training would accept
    rows_per_device: tuple[int, ...] | None = None  # of a microbatch; None: all that make up the global batch
    remat: tuple[str, ...] = ("none", "dots", "full", "offload")
    moments: tuple[str, ...] = ("float32", "bfloat16")


class InputsCache:
    """`find_inputs`, once for each batch: with data at hand it lays out the rows of an epoch."""

    def __init__(self, count: int):
        self.count, self.known = count, {}

    def __call__(self, config: RunConfig) -> Inputs:
        sizes = meshes.MeshShape(**config.mesh.model_dump()).resolve(self.count)
        rules = meshes.merge_rules(config.sharding)
        key = config.batch.model_dump_json(), *(getattr(sizes, axis) for axis in rules["batch"])
        if key not in self.known:
            self.known[key] = find_inputs(config, self.count)
        return self.known[key]


def batches(
    config: RunConfig, split: int, wanted: tuple[int, ...] | None, inputs: Callable[[RunConfig], Inputs]
) -> Iterator[dict[str, Any]]:
    """Microbatches, and rows where those wanted on a device do not make up the configured number.

    Args:
        split: how many ways rows are split.
        wanted: rows on a device; None: any.
        inputs: of a configuration on this mesh; asked where a batch is a number of examples.
    """
    rows, examples = config.batch.rows, config.batch.examples
    if config.compat.token_mean == "per_microbatch":  # they decide what is computed
        if wanted is None or inputs(config).shape.rows / split in wanted:
            yield {"batch.microbatches": config.batch.microbatches}
        return
    if rows is not None and wanted is not None:
        for each in wanted:
            micro = max(1, round(rows / (each * split)))
            yield {"batch.rows": each * split * micro, "batch.microbatches": micro}
    elif rows is not None:
        for micro in range(1, rows // split + 1):
            if rows % (micro * split) == 0:
                yield {"batch.microbatches": micro}
    elif examples is not None:
        whole = None
        for micro in (2**power for power in range(examples.bit_length())):
            changes = {"batch.microbatches": micro}
            shape = inputs(changed(config, changes)).shape
            whole = whole or shape.rows
            if shape.rows * micro > whole:  # rows would lie empty
                break
            if wanted is None or shape.rows / split in wanted:
                yield changes


def choices(
    config: RunConfig, count: int, num_slices: int, axes: SearchSpace, inputs: InputsCache
) -> Iterator[dict[str, Any]]:
    """Values of all keys that a sweep sets; training need not accept them all."""
    for given in axes.meshes or mesh_shapes(count, num_slices):
        mesh = dict.fromkeys(meshes.AXES, 1) | given
        sizes = {f"mesh.{axis}": size for axis, size in mesh.items()}
        here = changed(config, sizes)
        split = math.prod(mesh[axis] for axis in meshes.merge_rules(config.sharding)["batch"])
        for batch in batches(here, split, axes.rows_per_device, inputs):
            for remat, moments in itertools.product(axes.remat, axes.moments):
                yield sizes | batch | {"remat": remat, "optimizer.moments": moments}


def mesh_shapes(count: int, num_slices: int = 1) -> Iterator[dict[str, int]]:
    """All ways to lay devices out; over several slices only the first axis may go."""
    divisors = [size for size in range(1, count + 1) if count % size == 0]
    for some in itertools.product(divisors, repeat=len(meshes.AXES) - 1):
        rest = functools.reduce(lambda left, size: left // size if left % size == 0 else 0, some, count)
        if rest and rest % num_slices == 0:
            yield dict(zip(meshes.AXES, (rest, *some), strict=True))
