"""Estimates what lies in device memory at a program's peak, from the program's text.

The compiler reports how much memory a program takes, but not for what. The text is in order of execution, so it can be
simulated: a result takes memory from the instruction that makes it to the last one that reads it. Results of the whole
program have their memory from start to end, or reuse an argument's. Until such a result is made, the compiler puts
other buffers in its place. The estimate ignores gaps, and memory inside kernels. TPU compilers note which results reuse
an operand's memory.

The compiler's `peak_memory_in_bytes` is arguments + `fixed` + the most that any *one* memory (device, on-chip or host)
holds besides; with offloaded blocks that can be the host's. This module simulates each memory separately.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import reduce
from operator import getitem
from typing import Any

from janus_jax.planning.hlo import text
from janus_jax.planning.hlo.text import Computation, HloModule, Instruction

DEVICE, ON_CHIP, HOST = 0, 1, 5
"""Numbers of memories, as in S(number) of layouts."""

_WRITES = ("dynamic-update-slice", "scatter")  # into the first operand
_SAME = ("bitcast", "optimization-barrier", "while", "async-update", "add-dependency", *_WRITES)
_DONE = {"copy-done": 0, "send-done": 2}  # index of the result in a start's tuple; otherwise 1
_ALIASED = re.compile(r"\{([\d, ]*)\}: \((\d+), \{([\d, ]*)\}")


Tree = Any
"""A buffer's number, or a tuple of trees."""


@dataclasses.dataclass(frozen=True)
class Buffer:
    """An instruction's result in memory."""

    bytes: int
    shape: str
    op_name: str


@dataclasses.dataclass(frozen=True)
class Peak:
    """The moment at which memory besides the arguments is largest."""

    bytes: int
    fixed: int  # the part that is live throughout: constants, and results that reuse no argument's memory
    op_name: str  # the operation that runs then
    buffers: tuple[Buffer, ...]  # largest first


def peak(hlo_text: str, memory: int = DEVICE) -> Peak:
    """Simulates a program.

    Raises:
        ValueError: the text holds no program.
    """
    module = text.parse(hlo_text)
    simulation, entry = _Simulation(module, memory), module.entry
    for constant in module.of_opcode("constant"):
        simulation.hold(_leaves(simulation.new(constant)), constant)
    constants = simulation.bytes
    parameters = [entry.instructions[name] for _, name in sorted(entry.parameters.items())]
    arguments = [simulation.new(parameter, counted=False) for parameter in parameters]
    donated = [result for result, _, _ in _aliased(hlo_text.split("\n", 1)[0], "input_output_alias")]
    fixed = constants + simulation.run(entry, arguments, donated)
    held = sorted((simulation.buffers[number] for number in simulation.at_peak), key=lambda buffer: -buffer.bytes)
    return Peak(simulation.most, fixed, simulation.running, tuple(buffer for buffer in held if buffer.bytes))


class _Simulation:
    def __init__(self, module: HloModule, memory: int):
        self.module, self.memory = module, memory
        self.buffers: list[Buffer] = []
        self.live: set[int] = set()
        self.bytes = self.most = 0
        self.at_peak: list[int] = []
        self.running = ""

    def new(self, instruction: Instruction, aliases: Mapping[int, Tree] | None = None, *, counted: bool = True) -> Tree:
        """Buffers for a result, in the tree of its shape. `aliases` maps n to the buffer that its n-th array reuses."""
        numbers = itertools.count()

        def make(shape: Any) -> Tree:
            if isinstance(shape, tuple):
                return tuple(map(make, shape))
            alias = (aliases or {}).get(next(numbers))
            if alias is not None:
                return alias
            size = text.tiled_bytes(shape) if counted and text.shape_memory(shape) == self.memory else 0
            self.buffers.append(Buffer(size, shape.partition("{")[0], instruction.op_name))
            return len(self.buffers) - 1

        return make(text.shape_tree(instruction.shape))

    def run(self, where: Computation, parameters: list[Tree], donated: list[tuple[int, ...]]) -> int:
        """Simulates a computation and frees its buffers afterwards.

        Args:
            parameters: buffers of the caller.
            donated: paths of the result that reuse the caller's memory. For a body or branch it is the whole result,
                because the loop or conditional already holds it.

        Returns:
            Bytes of the results that are not donated.
        """
        order = list(where.instructions.values())
        values: dict[str, Tree] = {}
        made: list[list[int]] = []
        until: dict[int, int] = {}
        before = len(self.buffers)  # lower numbers belong to the caller
        for at, instruction in enumerate(order):
            first = len(self.buffers)
            values[instruction.name] = self._value(instruction, values, parameters)
            made.append(list(range(first, len(self.buffers))))
            until |= dict.fromkeys(made[at], at)
            # get-tuple-element reads only its part of the tuple.
            read = [instruction.name] if instruction.opcode == "get-tuple-element" else instruction.operands
            until |= dict.fromkeys(_leaves(tuple(values[name] for name in read)), at)
        mine = range(before, len(self.buffers))
        result = values[where.root.name]
        for number in (leaf for path in donated for leaf in _leaves(reduce(getitem, path, result)) if leaf in mine):
            self.buffers[number] = dataclasses.replace(self.buffers[number], bytes=0)
        results = [number for number in dict.fromkeys(_leaves(result)) if number in mine]
        self._share(results, {number: (at, until[number]) for at, numbers in enumerate(made) for number in numbers})
        self.hold(results, where.root)
        until |= dict.fromkeys(results, len(order))
        ending: list[list[int]] = [[] for _ in range(len(order) + 1)]
        for number in mine:
            ending[until[number]].append(number)
        for at, instruction in enumerate(order):
            self.hold(made[at], instruction)
            for name, inner in self._called(instruction, values):
                self.run(self.module.computations[name], inner, [()])
            self._free(ending[at])
        self._free(list(mine))
        return sum(self.buffers[number].bytes for number in results)

    def _share(self, results: list[int], lifetimes: dict[int, tuple[int, int]]) -> None:
        """Puts buffers in the place of a result that is made after their last use: they take no memory of their own."""

        def by_size(numbers: Iterable[int]) -> list[int]:
            return sorted(numbers, key=lambda number: -self.buffers[number].bytes)

        others = by_size(number for number in lifetimes.keys() - results if self.buffers[number].bytes)
        for result in by_size(results):
            taken = [(lifetimes[result][0], len(lifetimes))]
            for number in others:
                first, last = lifetimes[number]
                size = self.buffers[number].bytes
                if 0 < size <= self.buffers[result].bytes and all(last < a or b < first for a, b in taken):
                    taken.append((first, last))
                    self.buffers[number] = dataclasses.replace(self.buffers[number], bytes=0)

    def _value(self, instruction: Instruction, values: dict[str, Tree], parameters: list[Tree]) -> Tree:
        code, operands = instruction.opcode, [values[name] for name in instruction.operands]
        if code == "parameter":
            return parameters[int(instruction.inner)]
        if code == "tuple" or 'custom_call_target="ConcatBitcast"' in instruction.attributes:  # adjacent pieces
            return tuple(operands)
        if code == "get-tuple-element":
            return operands[0][int(instruction.attribute("index") or 0)]
        if code in _SAME or (code.endswith("-done") and not isinstance(operands[0], tuple)):
            return operands[0]
        if code == "recv-done":
            return operands[0][0], operands[0][2]
        if code.endswith("-done"):
            return operands[0][_DONE.get(code, 1)]
        return self.new(instruction, self._aliases(instruction, operands), counted=code != "constant")

    def _aliases(self, instruction: Instruction, operands: list[Tree]) -> dict[int, Tree]:
        """Maps the number of an array of a result to the operand whose memory it reuses."""
        code, count = instruction.opcode, len(operands)
        if code == "copy-start":  # (copy, original, context)
            return {1: operands[0]}
        if code == "send" or (code.endswith("-start") and code != "all-reduce-start"):
            target = {count: operands[0]} if code.startswith("dynamic-update-slice") else {}
            return dict(enumerate(operands)) | target  # ((operands), result, context)
        aliases: dict[int, Tree] = {}
        for path, operand, inner in _aliased(instruction.attributes, "output_to_operand_aliasing"):
            aliases[path[0] if path else 0] = reduce(getitem, inner, operands[operand])
        if code == "fusion":
            aliases |= self._updated(self.module.computations[instruction.called("calls")[0]], operands)
        for same in re.findall(r'"indices":\[([^]]*)\]', instruction.attributes.partition('"aliasing_operands"')[2]):
            numbers = sorted(int(number) for number in re.findall(r"\d+", same))  # operands, then arrays of the result
            if numbers and numbers[0] < count:
                aliases |= {number - count: operands[numbers[0]] for number in numbers if number >= count}
        return aliases

    def _updated(self, fused: Computation, operands: list[Tree]) -> dict[int, Tree]:
        """Results of a fusion that updates slices of an operand in place."""
        updated: dict[int, Tree] = {}
        for number, name in enumerate(fused.root.operands if fused.root.opcode == "tuple" else [fused.root.name]):
            instruction, updates = fused.instructions[name], False
            while instruction.opcode in ("bitcast", "copy", *_WRITES):
                updates |= instruction.opcode in _WRITES
                instruction = fused.instructions[instruction.operands[0]]
            if updates and instruction.opcode == "parameter":
                updated[number] = operands[int(instruction.inner)]
        return updated

    def _called(self, instruction: Instruction, values: dict[str, Tree]) -> Iterator[tuple[str, list[Tree]]]:
        operands = [values[name] for name in instruction.operands]
        if instruction.opcode in ("while", "call"):
            yield instruction.called("body" if instruction.opcode == "while" else "to_apply")[0], operands
        elif instruction.opcode == "conditional":
            by_truth = [*instruction.called("true_computation"), *instruction.called("false_computation")]
            for name, operand in zip(instruction.called("branch_computations") or by_truth, operands[1:], strict=True):
                yield name, [operand]

    def hold(self, numbers: list[int], instruction: Instruction) -> None:
        fresh = [number for number in numbers if number not in self.live]
        self.live.update(fresh)
        self.bytes += sum(self.buffers[number].bytes for number in fresh)
        if self.bytes > self.most:
            self.most, self.at_peak, self.running = self.bytes, list(self.live), instruction.op_name or instruction.name

    def _free(self, numbers: list[int]) -> None:
        for number in self.live.intersection(numbers):
            self.bytes -= self.buffers[number].bytes
            self.live.remove(number)


def _aliased(line: str, attribute: str) -> list[tuple[tuple[int, ...], int, tuple[int, ...]]]:
    """Parses `attribute={ {0}: (1, {}), ...}`: paths of results, numbers of operands or arguments, paths in these."""

    def path(numbers: str) -> tuple[int, ...]:
        return tuple(map(int, re.findall(r"\d+", numbers)))

    aliases = _ALIASED.findall(line.partition(f"{attribute}={{")[2])
    return [(path(result), int(number), path(inner)) for result, number, inner in aliases]


def _leaves(tree: Tree) -> list[int]:
    return [leaf for part in tree for leaf in _leaves(part)] if isinstance(tree, tuple) else [tree]
