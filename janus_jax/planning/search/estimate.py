"""Estimates a step's memory and time by arithmetic: its arguments exactly, the rest modelled on compiled peaks.

Estimates choose what to compile; they never say that something fits. A cell is skipped as hopeless only if its estimate
divided by `MARGIN` is more than a device has.
"""

import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp

from janus_jax.batch import row_bytes
from janus_jax.config.run import RunConfig
from janus_jax.errors import ConfigError
from janus_jax.model.config import ModelConfig
from janus_jax.model.head import tiles
from janus_jax.model.mistral import INPUT_AXES, INPUT_OVER, param_specs
from janus_jax.model.remat import INPUT, TENSORS, Remat, in_order, kept
from janus_jax.parallel import mesh as meshes
from janus_jax.planning.bounds import shards_by_axis, step_bound, workload
from janus_jax.planning.chips import roofline
from janus_jax.planning.chips.slices import Chip, Slice, load_chips
from janus_jax.planning.inputs import Inputs, check_rows, find_inputs, online_reference
from janus_jax.training.optimizer import AdamW

MARGIN = 1.15
"""An estimate may exceed the compiler's figure by this factor before a cell is skipped wrongly."""

_CHUNK_BYTES = 3 * (1 << 24) * 4  # logits of the head, their softmax, the cotangent


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes on one device, and the least time of a step with collectives estimated from the mesh."""

    arguments: int  # parameters, moments, batch; exact
    temporaries: int
    reference: int
    bound: roofline.Bound | None  # None: simulated device
    rows_per_device: float  # of a microbatch

    @property
    def bytes(self) -> int:
        """What a device needs; compare with `Memory.needed`."""
        return self.arguments + self.temporaries + self.reference

    def is_hopeless(self, usable: int | None) -> bool:
        return usable is not None and self.bytes / MARGIN > usable


def estimate(
    config: RunConfig, target: Slice, num_slices: int = 1, *, chip: Chip | None = None, inputs: Inputs | None = None
) -> Estimate:
    """Estimates one configuration on `num_slices` slices. Needs no devices and compiles nothing.

    Args:
        chip: figures to use in place of the package's.
        inputs: the result of `find_inputs`, if the caller has it.
    Raises:
        ConfigError: training would refuse mesh, rows or rules.
        DataError, ConversionError: as training would.
    """
    if chip is None and target.topology is not None:  # no table is read for each cell of a sweep
        chip = load_chips().chip(target)
    share = _DeviceShare.of(config, target.devices * num_slices, inputs)
    reference = share.whole * share.compute if online_reference(config, share.inputs) else 0
    return Estimate(
        arguments=share.arguments,
        temporaries=round(share.temporaries(config.remat, update_by_parts=target.is_gpu)),
        reference=reference,
        bound=None if chip is None else _bound(config, share, target, num_slices, chip),
        rows_per_device=share.rows,
    )


@dataclasses.dataclass(frozen=True)
class Choice:
    """Tensors to keep, what they cost and what they save."""

    remat: Remat
    bytes: int  # of a device, as in `Estimate`
    repeated: float  # operations of the backward pass that repeat the forward pass, as a share of the forward pass


def choices_of_kept(
    config: RunConfig, target: Slice, num_slices: int = 1, *, inputs: Inputs | None = None
) -> list[Choice]:
    """What to keep of each block in the memory of devices, by estimate: each choice repeats less than all that need no
    more bytes than it. Least memory first; the first is `full`.

    Raises:
        ConfigError, DataError, ConversionError: as `estimate`.
    """
    share = _DeviceShare.of(config, target.devices * num_slices, inputs)
    reference = share.whole * share.compute if online_reference(config, share.inputs) else 0
    held = share.arguments + reference
    per_row = dataclasses.replace(workload(config, share.inputs), rows=1, microbatches=1)
    every = (
        Choice(remat, round(held + share.temporaries(remat, update_by_parts=target.is_gpu)), repeated)
        for remat, repeated in _repeated(per_row).items()
    )
    best = list[Choice]()
    for choice in sorted(every, key=lambda choice: (choice.bytes, choice.repeated)):
        if not best or choice.repeated < best[-1].repeated:
            best.append(choice)
    return best


@functools.cache
def _repeated(work: roofline.Workload) -> dict[Remat, float]:
    """Of every list: operations that repeat the forward pass, as a share of it. Many cells of a sweep have the same."""
    once, counts = roofline.forward_flops(work).total, range(len(TENSORS) + 1)
    shares = dict[Remat, float]()
    for names in itertools.chain.from_iterable(itertools.combinations(TENSORS, count) for count in counts):
        remat = in_order(names)
        flops = roofline.training_flops(dataclasses.replace(work, recompute=roofline.recompute(remat)))
        shares[remat] = flops.recomputed / once
    return shares


@functools.lru_cache(maxsize=1024)
def _sizes(
    model: ModelConfig, dtype: Any, mesh: Any, rules: tuple[tuple[str, tuple[str, ...]], ...], optimizer: AdamW
) -> tuple[int, int, int]:
    """On one device: elements of all parameters, those of the layers, bytes of the moments. Cells share it."""
    specs = param_specs(model, dtype)
    shardings = meshes.param_shardings(specs, mesh, dict(rules))
    sizes = jax.tree.map(lambda spec, sharding: math.prod(sharding.shard_shape(spec.shape)), specs, shardings)
    whole, layers = sum(jax.tree.leaves(sizes)), sum(jax.tree.leaves(sizes["layers"]))
    return whole, layers, optimizer.moment_bytes(specs, shardings)


@dataclasses.dataclass(frozen=True)
class _DeviceShare:
    """What lies on one device: numbers of elements, and shards of each axis."""

    inputs: Inputs
    devices: int
    shards: dict[str, int]  # logical axis -> shards
    share_count: int  # of the input of a block, if devices keep shares of it
    whole: int  # elements of all parameters at rest
    layers: int  # elements of the layers' parameters
    moments: int  # bytes
    batch: int  # bytes
    parameter: int  # bytes per element at rest
    compute: int  # bytes per element in use

    @classmethod
    def of(cls, config: RunConfig, devices: int, inputs: Inputs | None) -> "_DeviceShare":
        inputs = inputs or find_inputs(config, devices)
        shape = config.mesh.shape.resolve(devices)
        mesh: Any = jax.sharding.AbstractMesh(dataclasses.astuple(shape), meshes.AXES)
        rules = meshes.merge_rules(config.sharding)
        check_rows(config, inputs, mesh, rules)
        if inputs.shape.row_length % meshes.shards(mesh, rules, "length"):
            raise ConfigError(f"batch.row_length={inputs.shape.row_length} does not divide over the shards of length")
        dtype = jnp.dtype(config.params_dtype)
        whole, layers, moments = _sizes(inputs.model, dtype, mesh, tuple(rules.items()), AdamW.of(config))
        shards = shards_by_axis(mesh, rules)
        slots, segments = row_bytes(inputs.shape.row_length, 0), row_bytes(0, inputs.shape.max_segments)
        rows = inputs.shape.rows * inputs.shape.microbatches / shards["batch"]
        return cls(
            inputs,
            devices,
            shards,
            meshes.Placement(mesh, rules).share_count((inputs.model.hidden_size,), INPUT_AXES, INPUT_OVER),
            whole=whole,
            layers=layers,
            moments=moments,
            batch=round(rows * (slots / shards["length"] + segments)),
            parameter=dtype.itemsize,
            compute=jnp.dtype(config.precision.compute).itemsize,
        )

    @property
    def rows(self) -> float:
        return self.inputs.shape.rows / self.shards["batch"]

    @property
    def tokens(self) -> float:
        """Tokens of a microbatch."""
        return self.rows * self.inputs.shape.row_length / self.shards["length"]

    @property
    def arguments(self) -> int:
        return self.whole * self.parameter + self.moments + self.batch

    def temporaries(self, remat: Remat, update_by_parts: bool = False) -> float:
        """The largest of three moments: backward through a block, the head, the update.

        Args:
            update_by_parts: whether the update needs no float32 copy of all gradients at once, as on GPUs.
        """
        model, compute = self.inputs.model, self.compute
        wide = model.intermediate_size / self.shards["mlp"]
        width = model.hidden_size
        kept = model.num_layers * self.tokens * self._kept(remat)
        gradients, summed, copy = (self.whole - self.layers) * self.parameter, 0, 0
        if self.inputs.shape.microbatches == 1:  # those of layers lie over what the layers computed with
            gradients += self.layers * min(self.parameter, compute)
        else:  # those of layers are added to their sums one by one (model/remat_scan.py)
            gradients, summed = gradients + 4 * self.layers / model.num_layers, self.whole * 4
            copy = self.layers * compute if self.parameter > compute else 0
        gathered = 1.5 * self.layers * self.shards["embed"] / model.num_layers * compute
        keys = self.rows * self.inputs.shape.row_length * self._keys() * compute if self.shards["length"] > 1 else 0
        block = self.tokens * (4 * wide + 9 * width) * compute + gathered + keys
        head = 0.0
        if model.head == "lm":
            vocab = model.vocab_size // self.shards["vocab"]
            count = tiles(int(self.tokens), width, vocab)
            head = width * vocab / count * (4 + compute) + _CHUNK_BYTES
            head += self.tokens * width * (compute + (4 if count == 1 else 8))
        update = 0 if update_by_parts else self.whole * 4
        return max(kept + copy + block + gradients + summed, kept + copy + head + summed, update)

    def _keys(self) -> float:
        model = self.inputs.model
        return 2 * model.num_kv_heads * model.head_dim / self.shards["kv_heads"]

    def _kept(self, remat: Remat) -> float:
        """Bytes that are kept per token and layer for the backward pass."""
        model, chosen = self.inputs.model, kept(remat)
        widths = self._widths
        if chosen.everything:  # the rest is elementwise: norms and rotations in float32
            rest = 2 * widths["query"] + 8 * model.hidden_size + 2 * (widths["gate"] + widths["up"])
            return (sum(widths.values()) + rest) * self.compute
        in_transit = 2 * sum(widths[name] for name in chosen.host) / model.num_layers
        shared = widths[INPUT] * (1 - 1 / self.input_shares(remat))
        return (sum(widths[name] for name in chosen.device) - shared + in_transit) * self.compute

    def input_shares(self, remat: Remat) -> int:
        """Devices that keep a share each of a block's input."""
        chosen = kept(remat)
        return self.share_count if INPUT in chosen.device and not chosen.everything else 1

    @functools.cached_property
    def _widths(self) -> dict[str, float]:
        return {name: self._width(name) for name in (INPUT, *TENSORS)}

    def _width(self, name: str) -> float:
        """Elements of a token in a tensor of one block."""
        if name == INPUT:
            return self.inputs.model.hidden_size
        tensor = TENSORS[name]
        sums = 4 * self.inputs.model.num_heads / self.compute if name == "attention" else 0  # of the softmax, float32
        return (tensor.width(self.inputs.model) + sums) / (self.shards[tensor.axis] if tensor.axis else 1)


def _bound(config: RunConfig, share: _DeviceShare, target: Slice, num_slices: int, chip: Chip) -> roofline.Bound:
    inputs, model, shards, compute = share.inputs, share.inputs.model, share.shards, share.compute
    micro = inputs.shape.microbatches
    split = shards["embed"] * shards["mlp"]
    again = roofline.repeated_projections(model, roofline.recompute(config.remat))
    used = share.layers * shards["embed"] * compute  # all layers, gathered for use
    gathers = (3 + again) * used * _others(shards["embed"])  # forward, backward, gradients
    replicas = share.devices // split
    replica_sums = 2 * share.whole * compute * _others(replicas)
    states = share.tokens * model.hidden_size * compute * model.num_layers
    sums = (4 + again) * 2 * _others(shards["mlp"]) * states
    inputs_again = _others(share.input_shares(config.remat)) * states
    keys = share.rows * inputs.shape.row_length * share._keys() * compute * model.num_layers
    ici = micro * (gathers + replica_sums + sums + inputs_again + (3 + again) * keys * _others(shards["length"]))
    dcn = micro * 2 * share.whole * compute * _others(num_slices)
    return step_bound(
        config,
        inputs,
        shards=shards,
        parameter_shards=split,
        devices=share.devices,
        ici_bytes=ici,
        dcn_bytes=dcn,
        target=target,
        chip=chip,
        num_slices=num_slices,
    )


def _others(parts: int) -> float:
    """The share of all parts but one."""
    return (parts - 1) / parts
