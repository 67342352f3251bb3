"""The collectives that one run of a compiled program executes: kind, mesh axes, count and bytes.

Bytes are of one device. With g devices in a group, `operand` what one device puts in, and ring algorithms:

| kind | result_bytes | wire_bytes, sent by each device |
|---|---|---|
| all-gather | g * operand | (g - 1) * operand |
| reduce-scatter | operand / g | (g - 1) / g * operand |
| all-reduce | operand | 2 * (g - 1) / g * operand |
| all-to-all | operand | (g - 1) / g * operand |
| ragged-all-to-all | its output buffer | operand, at most |
| collective-permute, collective-broadcast | operand | operand |

Between slices the same holds with g slices. A transfer between slices (`send` and `recv` of megascale) is one
collective of the kind that it names; what follows inside each slice is listed by itself.
"""

import dataclasses
import functools
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
    r"(?:, device_ids=\(([^)]*(?:\([^)]*\))?)\))?"  # order of devices, if it is not plain
    r" \{(.*?)\}"  # axes of a group
)
_START = "async-collective-start"
_CHAIN = "async_collective_fusion"
_SLICE_ID = 100_000  # megascale numbers devices slice * 100000 + position, slices from 1


@dataclasses.dataclass(frozen=True)
class MeshPositions:
    """Mesh axes in order, with the slice of each position of the flattened mesh (empty: one slice)."""

    axes: Mapping[str, int]
    slices: tuple[int, ...] = ()

    @classmethod
    def of(cls, mesh: Any) -> "MeshPositions":
        """Of a `jax.sharding.Mesh`."""
        slices = tuple(getattr(device, "slice_index", 0) or 0 for device in mesh.devices.flat)
        return cls(dict(mesh.shape), slices if len(set(slices)) > 1 else ())

    @functools.cached_property
    def by_slice(self) -> list[list[int]]:
        """Positions of each slice, in the order in which a program of several slices numbers them."""
        if not self.slices:
            return [list(range(math.prod(self.axes.values())))]
        return [[i for i, at in enumerate(self.slices) if at == each] for each in sorted(set(self.slices))]

    def along(self, groups: Iterable[Iterable[int]]) -> tuple[str, ...]:
        """The axes along which the positions of a group differ."""
        sizes = tuple(self.axes.values())
        moving = np.zeros(len(sizes), bool)
        for group in groups:
            places = np.stack(np.unravel_index(np.asarray(list(group), int), sizes)) if sizes else np.zeros((0, 1))
            moving |= (places != places[:, :1]).any(axis=1)
        return tuple(axis for axis, moves in zip(self.axes, moving, strict=True) if moves)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the program, or several alike, over a whole run of it."""

    kind: str
    axes: tuple[str, ...]  # mesh axes over which data moves
    count: int  # executions
    result_bytes: int  # of all executions together, on one device
    wire_bytes: int
    is_async: bool  # started and awaited apart, so that other work may run meanwhile
    over_dcn: bool
    op_name: str  # of the traced program; empty where the compiler dropped it
    count_is_certain: bool = True  # false: in a loop whose length, or a branch whose choice, depends on data


def collectives(hlo_text: str, layout: MeshPositions) -> list[Collective]:
    """What a run of the program executes, loops multiplied out, largest first.

    Of a conditional the branch that sends most counts. Copies of an instruction in several executed computations (first
    iterations peeled off a loop) all count; the parts of one asynchronous collective count once.

    Args:
        hlo_text: `compiled.as_text()` for TPU or CPU.
        layout: of the mesh that the program was compiled for.

    Raises:
        ValueError: the text is no program, or of another number of devices than the mesh.
    """
    program = parse(hlo_text)
    devices = len(layout.by_slice[0]) if layout.slices else math.prod(layout.axes.values())
    if program.partitions not in (devices, devices * len(layout.by_slice)):
        raise ValueError(f"a program for {program.partitions} devices does not belong to a mesh {dict(layout.axes)}")
    found = _Walk(program, layout).walk(program.entry, lambda _, __: None)
    merged: dict[tuple[Any, ...], list[Collective]] = {}
    for each in found:
        size = (each.result_bytes // max(each.count, 1), each.wire_bytes // max(each.count, 1))
        key = (each.kind, each.axes, each.is_async, each.over_dcn, each.op_name, each.count_is_certain, size)
        merged.setdefault(key, []).append(each)
    sums = [
        dataclasses.replace(
            same[0],
            count=sum(each.count for each in same),
            result_bytes=sum(each.result_bytes for each in same),
            wire_bytes=sum(each.wire_bytes for each in same),
        )
        for same in merged.values()
    ]
    return sorted(sums, key=lambda each: (-each.wire_bytes, each.kind, each.op_name))


@dataclasses.dataclass(frozen=True)
class _Walk:
    program: HloModule
    layout: MeshPositions

    @functools.cached_property
    def started(self) -> set[tuple[str | None, ...]]:
        """Chains of asynchronous collectives that have a start."""
        program = self.program.computations
        fusions = [
            each for where in program.values() for each in where.instructions.values() if each.opcode == "fusion"
        ]
        starts = [each.called("calls")[0] for each in fusions if each.name.startswith(_START)]
        inside = [one for name in starts for one in program[name].instructions.values()]
        return {_chain(one) for one in inside if one.opcode in KINDS}

    def walk(self, where: Computation, known: Environment) -> list[Collective]:
        """The collectives of one execution of a computation."""
        found: list[Collective] = []
        chains: set[tuple[Any, ...]] = set()
        for each in where.instructions.values():
            found += self._instruction(where, each, known, chains)
        return found

    def _instruction(
        self, where: Computation, each: Instruction, known: Environment, chains: set[tuple[Any, ...]]
    ) -> list[Collective]:
        code = each.opcode
        if code.endswith(("-done", "-update")):
            return []
        if code.removesuffix("-start") in KINDS:
            return [self._collective(where, each, code.removesuffix("-start"))]
        if code == "send":
            return self._between_slices(where, each)
        if code == "while":
            trips, certain = self.program.trips(where, each, known)
            body = self.program.computations[each.called("body")[0]]
            inner = self.walk(body, self.program.inside(where, each, known))
            return [_times(one, trips, certain) for one in inner]
        if code == "conditional":
            names = [*each.called("branch_computations"), *each.called("true_computation")]
            branches = [self._inner(name, None) for name in [*names, *each.called("false_computation")]]
            most = max(branches, key=lambda inner: sum(one.wire_bytes for one in inner), default=[])
            sent = {tuple(sorted((one.kind, one.axes, one.wire_bytes) for one in inner)) for inner in branches}
            return [_times(one, 1, len(sent) < 2) for one in most]
        if code == "fusion":
            return self._fusion(where, each, known, chains)
        if code in ("call", "call-start", "async-start", "custom-call"):
            names = [*each.called("calls"), *each.called("called_computations")]
            names += each.called("to_apply") if code != "custom-call" else []
            inner = [one for name in names for one in self._inner(name, (where, each, known))]
            return [dataclasses.replace(one, is_async=True) for one in inner] if code.endswith("-start") else inner
        return []

    def _inner(self, name: str, caller: tuple[Computation, Instruction, Environment] | None) -> list[Collective]:
        def known(k: int, path: tuple[int, ...]) -> int | None:
            if caller is None:
                return None
            where, each, outer = caller
            return self.program.resolve(where, each.operands[k], outer, path) if k < len(each.operands) else None

        return self.walk(self.program.computations[name], known)

    def _fusion(
        self, where: Computation, each: Instruction, known: Environment, chains: set[tuple[Any, ...]]
    ) -> list[Collective]:
        called = self.program.computations[each.called("calls")[0]]
        inside = [one for one in called.instructions.values() if one.opcode in KINDS]
        if not inside:
            return self._inner(called.name, (where, each, known))
        # One asynchronous collective is a chain of fusions, each of which repeats it: its start, products that run
        # meanwhile, also those of a loop within, and its end. The start counts; where a chain has none of that name,
        # its first part in each computation does.
        is_start = each.name.startswith(_START)
        is_chain = is_start or each.name.startswith("async-collective") or called.name.startswith(_CHAIN)
        found = []
        for one in inside:
            kind = one.opcode
            if kind == "all-reduce" and called.name.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"  # an all-reduce that is sliced in the same fusion is carried out as this
            made = dataclasses.replace(self._collective(called, one, kind), is_async=is_chain)
            key = _chain(one)
            if not is_chain or is_start or (key not in self.started and key not in chains):
                found.append(made)
            chains.update([key] if is_chain else [])
        return found

    def _collective(self, where: Computation, each: Instruction, kind: str) -> Collective:
        operands = [where.instructions[name] for name in each.operands if name in where.instructions]
        operand = sum(one.bytes for one in operands)
        result = None
        if kind == "ragged-all-to-all":  # data, output buffer, then offsets and sizes
            operand, result = operands[0].bytes, operands[1].bytes
        pairs = each.attribute("source_target_pairs")
        if pairs is not None:
            numbers = [int(number) for number in re.findall(r"\d+", pairs)]
            groups = [list(pair) for pair in zip(numbers[::2], numbers[1::2], strict=True) if pair[0] != pair[1]]
            size = 2 if groups else 1
        else:
            groups = _groups(each.attribute("replica_groups") or "{}", each.attributes, self.program.partitions)
            size = max(map(len, groups))
        return self._made(each, kind, operand, groups, size, is_async=each.opcode.endswith("-start"), result=result)

    def _between_slices(self, where: Computation, each: Instruction) -> list[Collective]:
        transfer = re.search(r'_xla_megascale_transfer_type="(\w+)"', each.attributes)
        if transfer is None:  # to the host
            return []
        groups, size = _megascale_groups(each.attributes)
        operand = where.instructions[each.operands[0]].bytes
        made = self._made(each, _MEGASCALE[transfer.group(1)], operand, [], size, is_async=True)
        places = [[self._place(device) for device in group] for group in groups]
        return [dataclasses.replace(made, axes=self.layout.along(places), over_dcn=True)]

    def _place(self, device: int) -> int:
        """Mesh position of a device as megascale numbers it."""
        return self.layout.by_slice[device // _SLICE_ID - 1][device % _SLICE_ID]

    def _made(
        self,
        each: Instruction,
        kind: str,
        operand: int,
        groups: list[list[int]],
        size: int,
        *,
        is_async: bool,
        result: int | None = None,
    ) -> Collective:
        if self.layout.slices and self.program.partitions == len(self.layout.by_slice[0]):
            groups = [[self.layout.by_slice[0][i] for i in group] for group in groups]
        slices = self.layout.slices
        over_dcn = bool(slices) and any(len({slices[i] for i in group}) > 1 for group in groups)
        results, wires = _bytes(kind, operand, size)
        axes = self.layout.along(groups)
        return Collective(kind, axes, 1, results if result is None else result, wires, is_async, over_dcn, each.op_name)


def _bytes(kind: str, operand: int, size: int) -> tuple[int, int]:
    """Result and wire bytes, by the table above."""
    if kind == "all-gather":
        return operand * size, operand * (size - 1)
    if kind == "reduce-scatter":
        return operand // size, operand * (size - 1) // size
    if kind == "all-reduce":
        return operand, 2 * operand * (size - 1) // size
    if kind == "all-to-all":
        return operand, operand * (size - 1) // size
    return operand, operand if size > 1 else 0


def _chain(each: Instruction) -> tuple[str | None, ...]:
    """What the parts of one asynchronous collective have in common."""
    chain = re.search(r'chain_id="([^"]*)"', each.attributes)
    return each.opcode, each.attribute("channel_id"), each.attribute("replica_groups"), chain and chain.group(1)


def _times(each: Collective, trips: int, certain: bool) -> Collective:
    return dataclasses.replace(
        each,
        count=each.count * trips,
        result_bytes=each.result_bytes * trips,
        wire_bytes=each.wire_bytes * trips,
        count_is_certain=each.count_is_certain and certain,
    )


def _groups(text: str, attributes: str, devices: int) -> list[list[int]]:
    """Groups of device ids from `replica_groups`: a list of lists, an iota, or axes of a mesh."""
    if text.startswith("{"):
        groups = [[int(i) for i in re.findall(r"\d+", part)] for part in re.findall(r"\{([\d, ]+)\}", text[1:])]
        return groups or [list(range(devices))]
    if text.startswith("["):
        return _iota(text).tolist()
    found = _MESH_GROUPS.search(attributes)
    if found is None:
        raise ValueError(f"replica_groups of a form that is not known: {text}")
    sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", found.group(1))}
    listed = found.group(2) or ""
    ids = np.arange(math.prod(sizes.values()))
    if listed:
        ids = _listed(listed)
    # An axis may be used in part, 'x':(4)2 being its factor 2 above which there are 4: every axis falls into factors.
    used = re.findall(r"'([^']*)'(?::\((\d+)\)(\d+))?", found.group(3))
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
    if found := re.match(r"\[([\d,]+)\]T\(([\d,]+)\)", text):
        shape, order = ([int(i) for i in part.split(",")] for part in found.groups())
        return np.arange(math.prod(shape)).reshape(shape).transpose(order).reshape(-1)
    return np.array([int(i) for i in re.findall(r"\d+", text)])


def _iota(text: str) -> np.ndarray:
    """`[a,b]<=[c,d]T(1,0)`: numbers from 0 in shape [c,d], transposed, in shape [a,b]."""
    found = re.match(r"\(?\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if found is None:
        raise ValueError(f"replica_groups of a form that is not known: {text}")
    shape, source, order = ([int(i) for i in part.split(",")] if part else None for part in found.groups())
    assert shape is not None and source is not None
    ids = np.arange(math.prod(source)).reshape(source)
    return (ids if order is None else ids.transpose(order)).reshape(shape)


def _megascale_groups(attributes: str) -> tuple[list[list[int]], int]:
    """Groups of devices in megascale's numbers, and how many slices each spans."""
    found = re.search(r"_xla_megascale_target=\"?(\{.*?\})\"?,_xla_megascale_transfer_type", attributes)
    text = found.group(1) if found else ""
    product = re.fullmatch(r"\{([\d,]+)\}x\{(\d+)(?::(\d+))?\}", text)
    if product:
        slices = [int(i) for i in product.group(1).split(",")]
        first, last = int(product.group(2)), int(product.group(3) or product.group(2))
        return [[each * _SLICE_ID + i for each in slices] for i in range(first, last + 1)], len(slices)
    groups = [[int(i) for i in re.findall(r"\d+", part)] for part in re.findall(r"\{([\d,\->]+)\}", text)]
    return groups, max(map(len, groups), default=1)


__all__ = ["KINDS", "Collective", "MeshPositions", "collectives"]
