"""What a step will roughly take, by arithmetic: what it is given exactly, the rest by what was seen at compiled peaks.

It is for choosing what to compile, never for saying that something fits. A cell is left out as hopeless only where even
`MARGIN` less than the estimate is more than a device has.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from janus_jax.batch import empty_batch
from janus_jax.config.run import RunConfig
from janus_jax.errors import ConfigError
from janus_jax.model.mistral import param_specs
from janus_jax.parallel import mesh as meshes
from janus_jax.planning.bounds import shards_by_axis, step_bound
from janus_jax.planning.chips import roofline
from janus_jax.planning.chips.slices import Chip, Slice, load_chips
from janus_jax.planning.inputs import Inputs, check_rows, find_inputs, online_reference

MARGIN = 1.15
"""How far an estimate may be above what the compiler finds, and the cell still be compiled."""

_CHUNK_BYTES = 3 * (1 << 24) * 4  # of the head: logits, their softmax, the cotangent


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes on one device, and the least time of a step with collectives guessed from the mesh."""

    arguments: int  # parameters, moments, batch; exact
    temporaries: int
    reference: int
    bound: roofline.Bound | None  # None: a simulated device
    rows_per_device: float  # of a microbatch

    @property
    def bytes(self) -> int:
        """What the step needs; compare with `Memory.needed`."""
        return self.arguments + self.temporaries + self.reference

    def is_hopeless(self, usable: int | None) -> bool:
        return usable is not None and self.bytes / MARGIN > usable


def estimate(
    config: RunConfig, target: Slice, num_slices: int = 1, *, chip: Chip | None = None, found: Inputs | None = None
) -> Estimate:
    """The estimate of one configuration on so many slices; needs no devices and compiles nothing.

    Args:
        chip: figures that differ from the package's.
        found: of `find_inputs`, where the caller has it already.
    Raises:
        ConfigError: a mesh, rows or rules that training would refuse.
        DataError, ConversionError: as training would.
    """
    if chip is None and target.topology is not None:
        chip = load_chips().chips[target.family]
    here = _Shares.of(config, target.devices * num_slices, found)
    reference = here.whole * here.compute if online_reference(config, here.found) else 0
    return Estimate(
        arguments=here.arguments(jnp.dtype(config.optimizer.moments).itemsize),
        temporaries=round(here.temporaries(config.remat)),
        reference=reference,
        bound=None if chip is None else _bound(config, here, target, num_slices, chip),
        rows_per_device=here.rows,
    )


@dataclasses.dataclass(frozen=True)
class _Shares:
    """What lies on one device: numbers of elements, and by how many an axis is split."""

    found: Inputs
    devices: int
    shards: dict[str, int]  # logical axis -> shards
    whole: int  # parameters at rest
    layers: int  # those of layers
    batch: int  # bytes
    parameter: int  # bytes of one
    compute: int

    @classmethod
    def of(cls, config: RunConfig, devices: int, found: Inputs | None) -> "_Shares":
        found = found or find_inputs(config, devices)
        shape = meshes.MeshShape(**config.mesh.model_dump()).resolve(devices)
        mesh: Any = jax.sharding.AbstractMesh(dataclasses.astuple(shape), meshes.AXES)
        rules = meshes.merge_rules(config.sharding)
        check_rows(config, found, mesh, rules)
        if found.shape.row_length % meshes.shards(mesh, rules, "length"):
            raise ConfigError(f"batch.row_length={found.shape.row_length} does not divide over the shards of length")
        specs = param_specs(found.model, jnp.dtype(config.params_dtype))
        shardings = meshes.param_shardings(specs, mesh, rules)
        sizes = jax.tree.map(lambda spec, sharding: math.prod(sharding.shard_shape(spec.shape)), specs, shardings)
        shards = shards_by_axis(mesh, rules)
        row = empty_batch(1, found.shape.row_length, found.shape.max_segments)
        slots = row.tokens.nbytes * sum(leaf.shape == row.tokens.shape for leaf in jax.tree.leaves(row))
        segments = sum(leaf.nbytes for leaf in jax.tree.leaves(row)) - slots
        rows = found.shape.rows * found.shape.microbatches / shards["batch"]
        return cls(
            found,
            devices,
            shards,
            whole=sum(jax.tree.leaves(sizes)),
            layers=sum(jax.tree.leaves(sizes["layers"])),
            batch=round(rows * (slots / shards["length"] + segments)),
            parameter=jnp.dtype(config.params_dtype).itemsize,
            compute=jnp.dtype(config.precision.compute).itemsize,
        )

    @property
    def rows(self) -> float:
        return self.found.shape.rows / self.shards["batch"]

    @property
    def tokens(self) -> float:
        """Of a microbatch."""
        return self.rows * self.found.shape.row_length / self.shards["length"]

    def arguments(self, moment_bytes: int) -> int:
        return self.whole * (self.parameter + 2 * moment_bytes) + self.batch

    def temporaries(self, remat: str) -> float:
        """The most of three moments: backward through a block, the head, the update."""
        model, compute = self.found.model, self.compute
        wide = model.intermediate_size / self.shards["mlp"]
        width = model.hidden_size
        kept = model.num_layers * self.tokens * self._kept(remat)
        copy = self.layers * compute if self.parameter > compute else 0
        if remat == "full" and self.found.shape.microbatches == 1:
            copy = 0  # gradients of layers take the place of what the layers computed with (model/remat_scan.py)
        gradients = self.layers * min(self.parameter, compute) + (self.whole - self.layers) * self.parameter
        summed = self.whole * 4 if self.found.shape.microbatches > 1 else 0
        gathered = 1.5 * self.layers * self.shards["embed"] / model.num_layers * compute
        keys = self.rows * self.found.shape.row_length * self._keys() * compute if self.shards["length"] > 1 else 0
        block = self.tokens * (4 * wide + 9 * width) * compute + gathered + keys
        head = 0.0
        if model.head == "lm":
            head = width * model.vocab_size / self.shards["vocab"] * (4 + compute) + _CHUNK_BYTES
            head += self.tokens * width * (compute + 4)
        return max(kept + copy + block + gradients + summed, kept + copy + head + summed, self.whole * 4)

    def _keys(self) -> float:
        model = self.found.model
        return 2 * model.num_kv_heads * model.head_dim / self.shards["kv_heads"]

    def _kept(self, remat: str) -> float:
        """Bytes of a token and layer that wait for the backward pass."""
        model, width = self.found.model, self.found.model.hidden_size
        heads = model.num_heads * model.head_dim / self.shards["q_heads"]
        wide = model.intermediate_size / self.shards["mlp"]
        if remat == "offload":
            return 2 * width / model.num_layers * self.compute  # on their way
        if remat == "full":
            return width * self.compute
        products = 2 * width + heads + self._keys() + 2 * wide
        if remat == "dots":
            return products * self.compute
        # The rest is elementwise, of norms and rotations in float32.
        return (products + 3 * heads + 8 * width + 4 * wide) * self.compute


def _bound(config: RunConfig, here: _Shares, target: Slice, num_slices: int, chip: Chip) -> roofline.Bound:
    found, model, shards, compute = here.found, here.found.model, here.shards, here.compute
    micro = found.shape.microbatches
    split = shards["embed"] * shards["mlp"]
    again = 1 if roofline.REMAT[config.remat].projections else 0
    used = here.layers * shards["embed"] * compute  # of all layers, where they are used
    gathers = (3 + again) * used * _others(shards["embed"])  # forward, backward, gradients
    replicas = here.devices // split
    alike = 2 * here.whole * compute * _others(replicas)
    sums = (4 + again) * 2 * _others(shards["mlp"]) * here.tokens * model.hidden_size * compute * model.num_layers
    keys = here.rows * found.shape.row_length * here._keys() * compute * model.num_layers
    ici = micro * (gathers + alike + sums + (3 + again) * keys * _others(shards["length"]))
    dcn = micro * 2 * here.whole * compute * _others(num_slices)
    return step_bound(
        config,
        found,
        shards=shards,
        parameter_shards=split,
        devices=here.devices,
        ici_bytes=ici,
        dcn_bytes=dcn,
        target=target,
        chip=chip,
        num_slices=num_slices,
    )


def _others(parts: int) -> float:
    """The share that the others of `parts` have."""
    return (parts - 1) / parts
