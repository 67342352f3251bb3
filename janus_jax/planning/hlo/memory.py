"""What lies in device memory when a compiled program needs most of it: an estimate from its text.

The compiler says how much memory a program takes, and not for what. Its text is in the order of execution, so one can
play through it: a result takes memory from the instruction that makes it to the last that reads it. Results of the
whole program have theirs from beginning to end, or an argument's; that the compiler may put others there until then is
left out, as are gaps and what a kernel keeps to itself. Compilers for TPUs note which results take an operand's place.

That figure, `peak_memory_in_bytes`, is arguments + `fixed` + the most that any *one* memory holds beside these, be it
the device's, the chip's or the host's: where blocks are offloaded it can be the host's. Here each is played by itself.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping
from functools import reduce
from operator import getitem
from typing import Any

from janus_jax.planning.hlo.text import (
    Computation,
    HloModule,
    Instruction,
    parse,
    shape_memory,
    shape_tree,
    tiled_bytes,
)

DEVICE, ON_CHIP, HOST = 0, 1, 5
"""Memories, as S(number) in layouts names them."""

_WRITES = ("dynamic-update-slice", "scatter")  # into the first operand
_SAME = ("bitcast", "optimization-barrier", "while", "async-update", "add-dependency", *_WRITES)
_DONE = {"copy-done": 0, "send-done": 2}  # where in a start's tuple the result is; elsewhere it is the second
_ALIASED = re.compile(r"\{([\d, ]*)\}: \((\d+), \{([\d, ]*)\}")


Tree = Any
"""A buffer's number, or a tuple of trees."""


@dataclasses.dataclass(frozen=True)
class Buffer:
    """A result in memory."""

    bytes: int
    shape: str
    op_name: str


@dataclasses.dataclass(frozen=True)
class Peak:
    """The moment of most memory beside the arguments."""

    bytes: int
    fixed: int  # of them from beginning to end: constants, and results that take no argument's memory over
    op_name: str  # what runs then
    buffers: tuple[Buffer, ...]  # largest first


def peak(hlo_text: str, memory: int = DEVICE) -> Peak:
    """Plays a program through.

    Raises:
        ValueError: there is no program in the text.
    """
    play = _Play(parse(hlo_text), memory)
    entry, everywhere = play.program.entry, play.program.computations.values()
    for each in (each for where in everywhere for each in where.instructions.values() if each.opcode == "constant"):
        play.hold(_leaves(play.new(each)), each)
    constants = play.bytes
    arguments = [play.new(entry.instructions[name], counted=False) for _, name in sorted(entry.parameters.items())]
    donated = [result for result, _, _ in _aliased(hlo_text.split("\n", 1)[0], "input_output_alias")]
    fixed = constants + play.run(entry, arguments, donated)
    held = sorted((play.buffers[number] for number in play.at_peak), key=lambda each: -each.bytes)
    return Peak(play.most, fixed, play.running, tuple(each for each in held if each.bytes))


class _Play:
    def __init__(self, program: HloModule, memory: int):
        self.program, self.memory = program, memory
        self.buffers: list[Buffer] = []
        self.live: set[int] = set()
        self.bytes = self.most = 0
        self.at_peak: list[int] = []
        self.running = ""

    def new(self, each: Instruction, instead: Mapping[int, Tree] | None = None, *, counted: bool = True) -> Tree:
        """Buffers for a result, as the tree of its shape; `instead` has what its n-th array is in truth."""
        numbers = itertools.count()

        def make(shape: Any) -> Tree:
            if isinstance(shape, tuple):
                return tuple(map(make, shape))
            old = (instead or {}).get(next(numbers))
            if old is not None:
                return old
            size = tiled_bytes(shape) if counted and shape_memory(shape) == self.memory else 0
            self.buffers.append(Buffer(size, shape.partition("{")[0], each.op_name))
            return len(self.buffers) - 1

        return make(shape_tree(each.shape))

    def run(self, where: Computation, parameters: list[Tree], donated: list[tuple[int, ...]]) -> int:
        """Plays a computation. What it made is gone afterwards.

        Args:
            parameters: buffers of the caller.
            donated: paths of the result that lie in the caller's memory: a body's or a branch's as a whole, because
                the loop or the conditional has room for them.

        Returns:
            Bytes of the other results.
        """
        order = list(where.instructions.values())
        values: dict[str, Tree] = {}
        made: list[list[int]] = []
        until: dict[int, int] = {}
        before = len(self.buffers)  # numbers below are the caller's
        for at, each in enumerate(order):
            first = len(self.buffers)
            values[each.name] = self._value(each, values, parameters)
            made.append(list(range(first, len(self.buffers))))
            until |= dict.fromkeys(made[at], at)
            # Of a tuple no more is read than the part that is got.
            read = [each.name] if each.opcode == "get-tuple-element" else each.operands
            until |= dict.fromkeys(_leaves(tuple(values[name] for name in read)), at)
        mine = range(before, len(self.buffers))
        result = values[where.root.name]
        for number in (leaf for path in donated for leaf in _leaves(reduce(getitem, path, result)) if leaf in mine):
            self.buffers[number] = dataclasses.replace(self.buffers[number], bytes=0)
        results = [number for number in dict.fromkeys(_leaves(result)) if number in mine]
        self.hold(results, where.root)
        until |= dict.fromkeys(results, len(order))
        ending: list[list[int]] = [[] for _ in range(len(order) + 1)]
        for number in mine:
            ending[until[number]].append(number)
        for at, each in enumerate(order):
            self.hold(made[at], each)
            for name, inner in self._called(each, values):
                self.run(self.program.computations[name], inner, [()])
            self._free(ending[at])
        self._free(list(mine))
        return sum(self.buffers[number].bytes for number in results)

    def _value(self, each: Instruction, values: dict[str, Tree], parameters: list[Tree]) -> Tree:
        code, operands = each.opcode, [values[name] for name in each.operands]
        if code == "parameter":
            return parameters[int(each.inner)]
        if code == "tuple" or 'custom_call_target="ConcatBitcast"' in each.attributes:  # pieces that lie side by side
            return tuple(operands)
        if code == "get-tuple-element":
            return operands[0][int(each.attribute("index") or 0)]
        if code in _SAME or (code.endswith("-done") and not isinstance(operands[0], tuple)):
            return operands[0]
        if code == "recv-done":
            return operands[0][0], operands[0][2]
        if code.endswith("-done"):
            return operands[0][_DONE.get(code, 1)]
        return self.new(each, self._instead(each, operands), counted=code != "constant")

    def _instead(self, each: Instruction, operands: list[Tree]) -> dict[int, Tree]:
        """Which arrays of a result are in truth operands: the number of the array, the operand."""
        code, count = each.opcode, len(operands)
        if code == "copy-start":  # (copy, original, context)
            return {1: operands[0]}
        if code == "send" or (code.endswith("-start") and code != "all-reduce-start"):
            target = {count: operands[0]} if code.startswith("dynamic-update-slice") else {}
            return dict(enumerate(operands)) | target  # ((operands), result, context)
        found: dict[int, Tree] = {}
        for path, operand, inner in _aliased(each.attributes, "output_to_operand_aliasing"):
            found[path[0] if path else 0] = reduce(getitem, inner, operands[operand])
        if code == "fusion":
            found |= self._updated(self.program.computations[each.called("calls")[0]], operands)
        for same in re.findall(r'"indices":\[([^]]*)\]', each.attributes.partition('"aliasing_operands"')[2]):
            numbers = sorted(int(number) for number in re.findall(r"\d+", same))  # operands, then arrays of the result
            if numbers and numbers[0] < count:
                found |= {number - count: operands[numbers[0]] for number in numbers if number >= count}
        return found

    def _updated(self, fused: Computation, operands: list[Tree]) -> dict[int, Tree]:
        """A fusion that updates slices of an operand writes into it."""
        found: dict[int, Tree] = {}
        for number, name in enumerate(fused.root.operands if fused.root.opcode == "tuple" else [fused.root.name]):
            each, updates = fused.instructions[name], False
            while each.opcode in ("bitcast", "copy", *_WRITES):
                updates |= each.opcode in _WRITES
                each = fused.instructions[each.operands[0]]
            if updates and each.opcode == "parameter":
                found[number] = operands[int(each.inner)]
        return found

    def _called(self, each: Instruction, values: dict[str, Tree]) -> Iterator[tuple[str, list[Tree]]]:
        operands = [values[name] for name in each.operands]
        if each.opcode in ("while", "call"):
            yield each.called("body" if each.opcode == "while" else "to_apply")[0], operands
        elif each.opcode == "conditional":
            by_truth = [*each.called("true_computation"), *each.called("false_computation")]
            for name, operand in zip(each.called("branch_computations") or by_truth, operands[1:], strict=True):
                yield name, [operand]

    def hold(self, numbers: list[int], each: Instruction) -> None:
        fresh = [number for number in numbers if number not in self.live]
        self.live.update(fresh)
        self.bytes += sum(self.buffers[number].bytes for number in fresh)
        if self.bytes > self.most:
            self.most, self.at_peak, self.running = self.bytes, list(self.live), each.op_name or each.name

    def _free(self, numbers: list[int]) -> None:
        for number in self.live.intersection(numbers):
            self.bytes -= self.buffers[number].bytes
            self.live.remove(number)


def _aliased(text: str, attribute: str) -> list[tuple[tuple[int, ...], int, tuple[int, ...]]]:
    """Of `attribute={ {0}: (1, {}), ...}`: paths of results, numbers of operands or arguments, paths in these."""

    def path(text: str) -> tuple[int, ...]:
        return tuple(map(int, re.findall(r"\d+", text)))

    found = _ALIASED.findall(text.partition(f"{attribute}={{")[2])
    return [(path(result), int(number), path(inner)) for result, number, inner in found]


def _leaves(tree: Tree) -> list[int]:
    return [leaf for part in tree for leaf in _leaves(part)] if isinstance(tree, tuple) else [tree]
