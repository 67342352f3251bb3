"""Groups a plan's buffers by purpose and its collectives by kind, mesh axes and network.

A buffer is recognised by its shape and by the name of the operation that made it. Compilers sometimes drop or mix up
these names, so the groups are an estimate, as the buffers themselves are.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Sequence

from janus_jax.parallel.mesh import DEFAULT_RULES
from janus_jax.planning.hlo.collectives import Collective
from janus_jax.planning.hlo.memory import Buffer
from janus_jax.planning.result import Plan

_DTYPES = {"bf16": "bfloat16", "f32": "float32", "f16": "float16"}
_FETCHED = re.compile("dynamic_index_in_dim|all_gather")
_SCOPES = re.compile(r"jvp\(\w*\)")  # the scope in which a derivative begins


@dataclasses.dataclass(frozen=True)
class BufferGroup:
    """Buffers with one purpose that are live at the peak."""

    label: str
    bytes: int
    count: int
    largest: str  # shape of the largest buffer


@dataclasses.dataclass(frozen=True)
class CollectiveTraffic:
    """What one device sends per step in collectives of one kind along the same mesh axes."""

    kind: str
    axes: tuple[str, ...]
    over_dcn: bool
    network: str
    count: int
    wire_bytes: int
    async_bytes: int  # the part that is started and awaited separately
    is_certain: bool


def buffer_groups(plan: Plan) -> list[BufferGroup]:
    """Largest first."""
    known = _KnownShapes.of(plan)
    members: dict[str, list[Buffer]] = {}
    for buffer in plan.memory.temporaries:
        if buffer.bytes:
            members.setdefault(known.label(buffer), []).append(buffer)
    groups = [
        BufferGroup(label, sum(b.bytes for b in buffers), len(buffers), max(buffers, key=lambda b: b.bytes).shape)
        for label, buffers in members.items()
    ]
    return sorted(groups, key=lambda group: -group.bytes)


def collective_traffic(plan: Plan) -> list[CollectiveTraffic]:
    """Most bytes first."""
    members: dict[tuple, list[Collective]] = {}
    for collective in plan.collectives:
        members.setdefault((collective.kind, collective.axes, collective.over_dcn), []).append(collective)
    groups = [
        CollectiveTraffic(
            *key,
            network="DCN" if collectives[0].over_dcn else plan.target.network,
            count=sum(c.count for c in collectives),
            wire_bytes=sum(c.wire_bytes for c in collectives),
            async_bytes=sum(c.wire_bytes for c in collectives if c.is_async),
            is_certain=all(c.count_is_certain for c in collectives),
        )
        for key, collectives in members.items()
    ]
    return sorted(groups, key=lambda group: (-group.wire_bytes, group.kind, group.axes))


@dataclasses.dataclass(frozen=True)
class _KnownShapes:
    """Shapes by which a buffer is recognised: dimensions in order of size, without those of size 1."""

    layers: int
    weights: set[tuple[int, ...]]  # shards of parameters, all layers together
    gathered: set[tuple[int, ...]]  # one layer of a parameter, or the vocabulary's matrix, gathered from all devices
    vocabulary: set[int]
    feed_forward: set[int]
    hidden: int
    lengths: set[int]  # row lengths, whole and sharded
    remat: str

    @classmethod
    def of(cls, plan: Plan) -> "_KnownShapes":
        known = plan.parameters
        stacked = {name for name in known if name.startswith("layers.")}
        weights = {_sorted(parameter.on_device) for parameter in known.values()}
        gathered = set()
        for name, parameter in known.items():
            first = 1 if name in stacked else 0
            sizes = zip(parameter.shape[first:], parameter.on_device[first:], strict=True)
            gathered |= {_sorted(dims) for dims in itertools.product(*sizes)}

        def sizes_of(name: str, axis: int) -> set[int]:
            return {known[name].shape[axis], known[name].on_device[axis]} if name in known else set()

        return cls(
            known[min(stacked)].shape[0] if stacked else 0,
            weights,
            {shape for shape in gathered if len(shape) > 1} - weights,
            sizes_of("embedding", 0),
            sizes_of("layers.mlp.gate", -1),
            known["final_norm"].shape[0] if "final_norm" in known else 0,
            {plan.row_length, plan.row_length // math.prod(plan.mesh.get(axis, 1) for axis in DEFAULT_RULES["length"])},
            plan.remat,
        )

    def label(self, buffer: Buffer) -> str:
        dtype, dims = _parse(buffer.shape)
        name = _SCOPES.sub("jvp()", buffer.op_name)
        shape = _sorted(dims)
        if shape in self.weights and len(shape) > 1:
            if "params" in name or name.endswith("convert_element_type"):
                return f"{_DTYPES.get(dtype, dtype)} copy of the weights"
            return f"gradients, {_DTYPES.get(dtype, dtype)}"
        if self.layers > 1 and len(shape) > 2 and dims[0] == self.layers:
            if self.remat not in ("full", "offload"):
                return "saved activations of all layers"
            if self.hidden in dims[1:]:  # otherwise the first dimension counts heads, as many as layers
                return "saved block inputs"
        # If rows are as long as a weight is wide, activations have the shapes of weights.
        if shape in self.gathered and (not self.lengths.intersection(shape) or _FETCHED.search(name)):
            return "gathered weights"
        if self.vocabulary.intersection(dims):
            return "embedding, logits and head"
        if "/mlp/" in name or self.feed_forward.intersection(dims):
            return "MLP activations"
        if "/attention/" in name:
            return "attention activations"
        return "other"


def _parse(shape: str) -> tuple[str, list[int]]:
    dtype, _, rest = shape.partition("[")
    return dtype, [int(size) for size in re.findall(r"\d+", rest.partition("]")[0])]


def _sorted(dims: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(size for size in dims if size != 1))
