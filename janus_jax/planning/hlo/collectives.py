"""The collectives that one run of a compiled program executes: kind, mesh axes, count and bytes.

Bytes are per device. With g devices in a group, `operand` bytes that one device contributes, and ring algorithms:

| kind | result_bytes | wire_bytes, sent by each device |
|---|---|---|
| all-gather | g * operand | (g - 1) * operand |
| reduce-scatter | operand / g | (g - 1) / g * operand |
| all-reduce | operand | 2 * (g - 1) / g * operand |
| all-to-all | operand | (g - 1) / g * operand |
| ragged-all-to-all | its output buffer | operand, at most |
| collective-permute, collective-broadcast | operand | operand |

Between slices the same holds with g slices. A transfer between slices (`send` and `recv` of megascale) counts as one
collective of the kind that it names. Collectives inside the slices that follow it are listed separately.
"""

import collections
import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from janus_jax.planning.hlo.text import Computation, Environment, HloModule, Instruction, parse

KINDS = (
    "all-gather",
    "reduce-scatter",
    "all-reduce",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_MEGASCALE = {
    "ALL_REDUCE": "all-reduce",
    "ALL_GATHER": "all-gather",
    "REDUCE_SCATTER": "reduce-scatter",
    "ALL_TO_ALL": "all-to-all",
    "ONE_TO_ONE": "collective-permute",
}
_MESH_GROUPS = re.compile(
    r"replica_groups=@?mesh\[(.*?)\]"  # sizes of its axes
    r"(?:, device_ids=\(([^)]*(?:\([^)]*\))?)\))?"  # order of devices, if not ascending
    r" \{(.*?)\}"  # axes of a group
)
_START = "async-collective-start"
_CHAIN = "async_collective_fusion"
_SLICE_ID = 100_000  # megascale numbers devices slice * 100000 + position, slices from 1


@dataclasses.dataclass(frozen=True)
class MeshPositions:
    """Mesh axes in order, and the slice of each position of the flattened mesh (empty: one slice)."""

    axes: Mapping[str, int]
    slices: tuple[int, ...] = ()

    @classmethod
    def of(cls, mesh: Any) -> "MeshPositions":
        """The positions of a `jax.sharding.Mesh`."""
        slices = tuple(getattr(device, "slice_index", 0) or 0 for device in mesh.devices.flat)
        return cls(dict(mesh.shape), slices if len(set(slices)) > 1 else ())

    @functools.cached_property
    def by_slice(self) -> list[list[int]]:
        """The positions of each slice, in the order in which a program of several slices numbers them."""
        if not self.slices:
            return [list(range(math.prod(self.axes.values())))]
        return [[i for i, number in enumerate(self.slices) if number == slice_] for slice_ in sorted(set(self.slices))]

    def along(self, groups: Iterable[Iterable[int]]) -> tuple[str, ...]:
        """The mesh axes along which positions of a group differ."""
        sizes = tuple(self.axes.values())
        moving = np.zeros(len(sizes), bool)
        for group in groups:
            places = np.stack(np.unravel_index(np.asarray(list(group), int), sizes)) if sizes else np.zeros((0, 1))
            moving |= (places != places[:, :1]).any(axis=1)
        return tuple(axis for axis, moves in zip(self.axes, moving, strict=True) if moves)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program, or several identical ones, over a whole run."""

    kind: str
    axes: tuple[str, ...]  # mesh axes over which data moves
    count: int  # executions
    result_bytes: int  # all executions together, on one device
    wire_bytes: int
    is_async: bool  # started and awaited separately, so other work may overlap
    over_dcn: bool
    op_name: str  # of the traced program; empty if the compiler dropped it
    count_is_certain: bool = True  # False: inside a loop or branch that depends on data

    def times(self, trips: int, certain: bool = True) -> "Collective":
        """`trips` runs of it, as in a loop."""
        return dataclasses.replace(
            self,
            count=self.count * trips,
            result_bytes=self.result_bytes * trips,
            wire_bytes=self.wire_bytes * trips,
            count_is_certain=self.count_is_certain and certain,
        )

    @property
    def once(self) -> "Collective":
        """One of its executions."""
        count = max(self.count, 1)
        one = {"count": 1, "result_bytes": self.result_bytes // count, "wire_bytes": self.wire_bytes // count}
        return dataclasses.replace(self, **one)


def collectives(hlo_text: str, positions: MeshPositions) -> list[Collective]:
    """All collectives of a run, loops multiplied out, largest first.

    For a conditional, the branch that sends most counts. Copies of an instruction in several executed computations
    (first iterations peeled off a loop) all count. The parts of one asynchronous collective count once.

    Args:
        hlo_text: `compiled.as_text()` for TPU, GPU or CPU.
        positions: positions of the mesh that the program was compiled for.

    Raises:
        ValueError: the text is not a program, or its number of devices is not that of the mesh.
    """
    module = parse(hlo_text)
    devices = len(positions.by_slice[0]) if positions.slices else math.prod(positions.axes.values())
    if module.partitions not in (devices, devices * len(positions.by_slice)):
        raise ValueError(f"a program for {module.partitions} devices does not suit the mesh {dict(positions.axes)}")
    counts: collections.Counter[Collective] = collections.Counter()
    for collective in _Walk(module, positions).walk(module.entry, lambda _, __: None):
        counts[collective.once] += collective.count
    sums = [once.times(count) for once, count in counts.items()]
    return sorted(sums, key=lambda collective: (-collective.wire_bytes, collective.kind, collective.op_name))


@dataclasses.dataclass(frozen=True)
class _Walk:
    module: HloModule
    positions: MeshPositions

    @functools.cached_property
    def started(self) -> set[tuple[str | None, ...]]:
        """Chains of asynchronous collectives with a start instruction."""
        fusions = self.module.of_opcode("fusion")
        starts = [instruction.called("calls")[0] for instruction in fusions if instruction.name.startswith(_START)]
        inside = [one for name in starts for one in self.module.computations[name].instructions.values()]
        return {_chain(one) for one in inside if one.opcode in KINDS}

    def walk(self, where: Computation, known: Environment) -> list[Collective]:
        """The collectives of one execution of a computation."""
        chains: set[tuple[Any, ...]] = set()
        executed = (self._instruction(where, one, known, chains) for one in where.instructions.values())
        return list(itertools.chain.from_iterable(executed))

    def _instruction(
        self, where: Computation, instruction: Instruction, known: Environment, chains: set[tuple[Any, ...]]
    ) -> list[Collective]:
        code = instruction.opcode
        if code.endswith(("-done", "-update")):
            return []
        if code.removesuffix("-start") in KINDS:
            return [self._collective(where, instruction, code.removesuffix("-start"))]
        if code == "send":
            return self._between_slices(where, instruction)
        if code == "while":
            trips, certain = self.module.trips(where, instruction, known)
            body = self.module.computations[instruction.called("body")[0]]
            inner = self.walk(body, self.module.inside(where, instruction, known))
            return [one.times(trips, certain) for one in inner]
        if code == "conditional":
            names = [*instruction.called("branch_computations"), *instruction.called("true_computation")]
            branches = [self._inner(name, None) for name in [*names, *instruction.called("false_computation")]]
            most = max(branches, key=lambda inner: sum(one.wire_bytes for one in inner), default=[])
            sent = {tuple(sorted((one.kind, one.axes, one.wire_bytes) for one in inner)) for inner in branches}
            return [one.times(1, len(sent) < 2) for one in most]
        if code == "fusion":
            return self._fusion(where, instruction, known, chains)
        if code in ("call", "call-start", "async-start", "fusion-start", "custom-call"):
            names = [*instruction.called("calls"), *instruction.called("called_computations")]
            names += instruction.called("to_apply") if code != "custom-call" else []
            inner = [one for name in names for one in self._inner(name, (where, instruction, known))]
            return [dataclasses.replace(one, is_async=True) for one in inner] if code.endswith("-start") else inner
        return []

    def _inner(self, name: str, caller: tuple[Computation, Instruction, Environment] | None) -> list[Collective]:
        def known(k: int, path: tuple[int, ...]) -> int | None:
            if caller is None or k >= len(caller[1].operands):
                return None
            where, instruction, outer = caller
            return self.module.resolve(where, instruction.operands[k], outer, path)

        return self.walk(self.module.computations[name], known)

    def _fusion(
        self, where: Computation, instruction: Instruction, known: Environment, chains: set[tuple[Any, ...]]
    ) -> list[Collective]:
        called = self.module.computations[instruction.called("calls")[0]]
        inside = [one for one in called.instructions.values() if one.opcode in KINDS]
        if not inside:
            return self._inner(called.name, (where, instruction, known))
        # An asynchronous collective is a chain of fusions that each repeat it: its start, products that overlap with
        # it, also inside a loop, and its end. The start counts. If no fusion of a chain is named a start, its first
        # part in each computation counts.
        is_start = instruction.name.startswith(_START)
        is_chain = is_start or instruction.name.startswith("async-collective") or called.name.startswith(_CHAIN)
        counted = []
        for one in inside:
            kind = one.opcode
            if kind == "all-reduce" and called.name.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"  # an all-reduce that is sliced in the same fusion runs as one
            made = dataclasses.replace(self._collective(called, one, kind), is_async=is_chain)
            key = _chain(one)
            if not is_chain or is_start or (key not in self.started and key not in chains):
                counted.append(made)
            chains.update([key] if is_chain else [])
        return counted

    def _collective(self, where: Computation, instruction: Instruction, kind: str) -> Collective:
        operands = [where.instructions[name] for name in instruction.operands if name in where.instructions]
        operand = sum(one.bytes for one in operands)
        result = None
        if kind == "ragged-all-to-all":  # operands: data, output buffer, offsets and sizes
            operand, result = operands[0].bytes, operands[1].bytes
        pairs = instruction.attribute("source_target_pairs")
        if pairs is not None:
            numbers = [int(number) for number in re.findall(r"\d+", pairs)]
            groups = [list(pair) for pair in zip(numbers[::2], numbers[1::2], strict=True) if pair[0] != pair[1]]
            size = 2 if groups else 1
        else:
            text = instruction.attribute("replica_groups") or "{}"
            groups = _groups(text, instruction.attributes, self.module.partitions)
            size = max(map(len, groups))
        is_async = instruction.opcode.endswith("-start")
        return self._made(instruction, kind, operand, groups, size, is_async=is_async, result=result)

    def _between_slices(self, where: Computation, instruction: Instruction) -> list[Collective]:
        transfer = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
        if transfer is None:  # to the host
            return []
        groups, size = _megascale_groups(instruction.attributes)
        operand = where.instructions[instruction.operands[0]].bytes
        made = self._made(instruction, _MEGASCALE[transfer.group(1)], operand, [], size, is_async=True)
        places = [[self._place(device) for device in group] for group in groups]
        return [dataclasses.replace(made, axes=self.positions.along(places), over_dcn=True)]

    def _place(self, device: int) -> int:
        """The mesh position of a megascale device number."""
        return self.positions.by_slice[device // _SLICE_ID - 1][device % _SLICE_ID]

    def _made(
        self,
        instruction: Instruction,
        kind: str,
        operand: int,
        groups: list[list[int]],
        size: int,
        *,
        is_async: bool,
        result: int | None = None,
    ) -> Collective:
        if self.positions.slices and self.module.partitions == len(self.positions.by_slice[0]):
            groups = [[self.positions.by_slice[0][i] for i in group] for group in groups]
        slices = self.positions.slices
        over_dcn = bool(slices) and any(len({slices[i] for i in group}) > 1 for group in groups)
        result_bytes, wires = _bytes(kind, operand, size)
        result_bytes, axes = result_bytes if result is None else result, self.positions.along(groups)
        return Collective(kind, axes, 1, result_bytes, wires, is_async, over_dcn, instruction.op_name)


def _bytes(kind: str, operand: int, size: int) -> tuple[int, int]:
    """Result and wire bytes, from the table above."""
    if kind == "all-gather":
        return operand * size, operand * (size - 1)
    if kind == "reduce-scatter":
        return operand // size, operand * (size - 1) // size
    if kind == "all-reduce":
        return operand, 2 * operand * (size - 1) // size
    if kind == "all-to-all":
        return operand, operand * (size - 1) // size
    return operand, operand if size > 1 else 0


def _chain(instruction: Instruction) -> tuple[str | None, ...]:
    """A key that the parts of one asynchronous collective share."""
    chain = re.search(r'chain_id="([^"]*)"', instruction.attributes)
    channel, groups = instruction.attribute("channel_id"), instruction.attribute("replica_groups")
    return instruction.opcode, channel, groups, chain and chain.group(1)


def _groups(text: str, attributes: str, devices: int) -> list[list[int]]:
    """Groups of device ids from `replica_groups`: a list of lists, an iota, or mesh axes."""
    if text.startswith("{"):
        groups = [[int(i) for i in re.findall(r"\d+", part)] for part in re.findall(r"\{([\d, ]+)\}", text[1:])]
        return groups or [list(range(devices))]
    if text.startswith("["):
        return _iota(text).tolist()
    match = _MESH_GROUPS.search(attributes)
    if match is None:
        raise ValueError(f"replica_groups of an unknown form: {text}")
    sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", match.group(1))}
    ids = _listed(match.group(2)) if match.group(2) else np.arange(math.prod(sizes.values()))
    # A group may use a factor of an axis: 'x':(4)2 is a factor of 2 below a factor of 4. So split axes into factors.
    used = re.findall(r"'([^']*)'(?::\((\d+)\)(\d+))?", match.group(3))
    shape, chosen = [], []
    for name, size in sizes.items():
        parts = sorted((int(before or 1), int(factor or size)) for axis, before, factor in used if axis == name)
        done = 1
        for before, factor in parts:
            shape += [before // done, factor]
            chosen.append(len(shape) - 1)
            done = before * factor
        shape.append(size // done)
    rest = [axis for axis in range(len(shape)) if axis not in chosen]
    grouped = ids.reshape(shape).transpose(rest + chosen)
    return grouped.reshape(-1, math.prod(shape[axis] for axis in chosen)).tolist()


def _listed(text: str) -> np.ndarray:
    """Device ids of a mesh: `[a,b]<=[c,d]T(1,0)`, `[c,d]T(1,0)` (numbers in shape [c,d], transposed), or one by one."""
    if "<=" in text:
        return _iota(text).reshape(-1)
    if match := re.match(r"\[([\d,]+)\]T\(([\d,]+)\)", text):
        shape, order = ([int(i) for i in part.split(",")] for part in match.groups())
        return np.arange(math.prod(shape)).reshape(shape).transpose(order).reshape(-1)
    return np.array([int(i) for i in re.findall(r"\d+", text)])


def _iota(text: str) -> np.ndarray:
    """`[a,b]<=[c,d]T(1,0)`: numbers from 0 in shape [c,d], transposed, in shape [a,b]."""
    match = re.match(r"\(?\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if match is None:
        raise ValueError(f"replica_groups of an unknown form: {text}")
    shape, source, order = ([int(i) for i in part.split(",")] if part else None for part in match.groups())
    assert shape is not None and source is not None
    ids = np.arange(math.prod(source)).reshape(source)
    return (ids if order is None else ids.transpose(order)).reshape(shape)


def _megascale_groups(attributes: str) -> tuple[list[list[int]], int]:
    """Groups of megascale device numbers, and the number of slices that a group spans."""
    match = re.search(r"_xla_megascale_target=\"?(\{.*?\})\"?,_xla_megascale_transfer_type", attributes)
    text = match.group(1) if match else ""
    product = re.fullmatch(r"\{([\d,]+)\}x\{(\d+)(?::(\d+))?\}", text)
    if product:
        slices = [int(i) for i in product.group(1).split(",")]
        first, last = int(product.group(2)), int(product.group(3) or product.group(2))
        return [[slice_ * _SLICE_ID + i for slice_ in slices] for i in range(first, last + 1)], len(slices)
    groups = [[int(i) for i in re.findall(r"\d+", part)] for part in re.findall(r"\{([\d,\->]+)\}", text)]
    return groups, max(map(len, groups), default=1)
