"""What a plan's many buffers and collectives are for, a handful of groups each.

A buffer is recognised by its shape and by the name of the operation that made it, which compilers drop or mix up now
and then: the groups are an estimate, as the buffers themselves are.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Sequence

from janus_jax.parallel.mesh import DEFAULT_RULES
from janus_jax.planning.hlo.memory import Buffer
from janus_jax.planning.result import Plan

_DTYPES = {"bf16": "bfloat16", "f32": "float32", "f16": "float16"}
_FETCHED = re.compile("dynamic_index_in_dim|all_gather")
_SCOPES = re.compile(r"jvp\(\w*\)")  # the scope in which a derivative begins, whatever follows


@dataclasses.dataclass(frozen=True)
class BufferGroup:
    """Buffers that are alive at the peak for the same purpose."""

    label: str
    bytes: int
    count: int
    largest: str  # shape of the largest of them


@dataclasses.dataclass(frozen=True)
class CollectiveTraffic:
    """Collectives of a kind along the same axes, in a step."""

    kind: str
    axes: tuple[str, ...]
    over_dcn: bool
    count: int
    wire_bytes: int
    async_bytes: int  # of these: started and awaited apart
    is_certain: bool

    @property
    def network(self) -> str:
        return "DCN" if self.over_dcn else "ICI"


def buffer_groups(plan: Plan) -> list[BufferGroup]:
    """Largest first."""
    known = _Known.of(plan)
    members: dict[str, list[Buffer]] = {}
    for each in plan.memory.temporaries:
        if each.bytes:
            members.setdefault(known.label(each), []).append(each)
    groups = [
        BufferGroup(label, sum(each.bytes for each in same), len(same), max(same, key=lambda each: each.bytes).shape)
        for label, same in members.items()
    ]
    return sorted(groups, key=lambda group: -group.bytes)


def collective_traffic(plan: Plan) -> list[CollectiveTraffic]:
    """Most bytes first."""
    members: dict[tuple, list] = {}
    for each in plan.collectives:
        members.setdefault((each.kind, each.axes, each.over_dcn), []).append(each)
    groups = [
        CollectiveTraffic(
            *key,
            count=sum(each.count for each in same),
            wire_bytes=sum(each.wire_bytes for each in same),
            async_bytes=sum(each.wire_bytes for each in same if each.is_async),
            is_certain=all(each.count_is_certain for each in same),
        )
        for key, same in members.items()
    ]
    return sorted(groups, key=lambda group: (-group.wire_bytes, group.kind, group.axes))


@dataclasses.dataclass(frozen=True)
class _Known:
    """Shapes by which a buffer is recognised; dimensions in order of size, those of one left out."""

    layers: int
    weights: set[tuple[int, ...]]  # all layers of a parameter, as it lies on a device
    gathered: set[tuple[int, ...]]  # one layer of it, or the vocabulary's matrix, from all devices
    vocabulary: set[int]
    feed_forward: set[int]
    hidden: int
    lengths: set[int]  # of rows, whole or split
    remat: str

    @classmethod
    def of(cls, plan: Plan) -> "_Known":
        known = plan.parameters
        stacked = {name for name in known if name.startswith("layers.")}
        weights = {_sorted(each.on_device) for each in known.values()}
        gathered = set()
        for name, each in known.items():
            first = 1 if name in stacked else 0
            sizes = zip(each.shape[first:], each.on_device[first:], strict=True)
            gathered |= {_sorted(dims) for dims in itertools.product(*sizes)}

        def of(name: str, axis: int) -> set[int]:
            return {known[name].shape[axis], known[name].on_device[axis]} if name in known else set()

        return cls(
            known[min(stacked)].shape[0] if stacked else 0,
            weights,
            {shape for shape in gathered if len(shape) > 1} - weights,
            of("embedding", 0),
            of("layers.mlp.gate", -1),
            known["final_norm"].shape[0] if "final_norm" in known else 0,
            {plan.row_length, plan.row_length // math.prod(plan.mesh.get(axis, 1) for axis in DEFAULT_RULES["length"])},
            plan.remat,
        )

    def label(self, each: Buffer) -> str:
        dtype, dims = _parse(each.shape)
        name = _SCOPES.sub("jvp()", each.op_name)
        shape = _sorted(dims)
        if shape in self.weights and len(shape) > 1:
            if "params" in name or name.endswith("convert_element_type"):
                return f"{_DTYPES.get(dtype, dtype)} copy of the weights"
            return f"gradients, {_DTYPES.get(dtype, dtype)}"
        if self.layers > 1 and len(shape) > 2 and dims[0] == self.layers:
            if self.remat not in ("full", "offload"):
                return "saved activations of all layers"
            if self.hidden in dims[1:]:  # else its first dimension is one of heads, as many as layers
                return "saved block inputs"
        # Where rows are as long as a weight is wide, activations have the shapes of weights.
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
