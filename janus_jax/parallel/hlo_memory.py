"""What lies in device memory when a compiled program needs most of it: an estimate from its text.

The compiler says how much memory a program takes, and not for what. Its text is in the order of execution, so one can
play through it: a result takes memory from the instruction that makes it to the last that reads it. Updates in place,
loops' state and donated arguments share memory here as they do in the plain cases; where the compiler shares more, or
pads and fragments, the sum is off. The compiler's own figure is the one to trust.
"""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

from janus_jax.parallel.hlo_text import Computation, Instruction, Program, parse, shape_bytes

_OTHER_MEMORY = re.compile(r"S\([1-9]\d*\)")
"""In a layout: on-chip memory, or the host's."""

_IN_PLACE = ("add", "multiply", "subtract", "divide", "select", "maximum", "negate", "copy")


@dataclasses.dataclass(frozen=True)
class Buffer:
    """A result in device memory."""

    bytes: int
    shape: str
    op_name: str


@dataclasses.dataclass(frozen=True)
class Peak:
    """The moment of most memory beside the arguments."""

    bytes: int
    op_name: str  # what runs then
    buffers: tuple[Buffer, ...]  # largest first


Tree = Any
"""A buffer's number, or a tuple of trees."""


def peak(hlo_text: str) -> Peak:
    """Plays a program through.

    Raises:
        ValueError: there is no program in the text.
    """
    program = parse(hlo_text)
    play = _Play(program)
    entry = program.entry
    arguments = [play.new(entry.instructions[name], counted=False) for _, name in sorted(entry.parameters.items())]
    play.run(entry, arguments, _donated(hlo_text.split("\n", 1)[0]))
    held = sorted((play.buffers[number] for number in play.at_peak), key=lambda each: -each.bytes)
    return Peak(play.most, play.running, tuple(held))


def _donated(header: str) -> list[tuple[int, ...]]:
    """Paths of results that take an argument's memory over."""
    start = header.find("input_output_alias={")
    found = re.findall(r"\{([\d, ]*)\}: \(\d+, \{[\d, ]*\}", header[start:]) if start >= 0 else []
    return [tuple(int(part) for part in path.split(",") if part.strip()) for path in found]


class _Play:
    def __init__(self, program: Program):
        self.program = program
        self.buffers: list[Buffer] = []
        self.live: set[int] = set()
        self.bytes = self.most = 0
        self.at_peak: list[int] = []
        self.running = ""

    def new(self, each: Instruction, *, counted: bool = True) -> Tree:
        """Buffers for a result, as the tree of its shape."""

        def make(shape: Any) -> Tree:
            if isinstance(shape, tuple):
                return tuple(map(make, shape))
            size = shape_bytes(shape) if counted and not _OTHER_MEMORY.search(shape) else 0
            self.buffers.append(Buffer(size, shape.partition("{")[0], each.op_name))
            return len(self.buffers) - 1

        return make(_shape_tree(each.shape))

    def run(self, where: Computation, parameters: list[Tree], donated: list[tuple[int, ...]]) -> None:
        """Plays a computation. What it made is gone afterwards: its results lie where its caller has room for them.

        Args:
            parameters: buffers of the caller.
            donated: paths of the result that share a caller's buffer; in a loop's body all.
        """
        order = list(where.instructions.values())
        values: dict[str, Tree] = {}
        made: dict[str, list[int]] = {}
        until: dict[int, int] = {}
        before = len(self.buffers)  # numbers below are the caller's
        for at, each in enumerate(order):
            first = len(self.buffers)
            values[each.name] = self._value(each, values, parameters)
            made[each.name] = list(range(first, len(self.buffers)))
            read = [values.get(operand, ()) for operand in each.operands]
            if each.opcode == "get-tuple-element":  # of the tuple no more than this
                read = [values[each.name]]
            until |= dict.fromkeys(_leaves(tuple(read)), at)
        result = values[where.root.name]
        for path in donated:
            for number in _leaves(_at(result, path)):
                if number >= before:
                    self.buffers[number] = dataclasses.replace(self.buffers[number], bytes=0)
        until |= dict.fromkeys(_leaves(result), len(order))
        ending: dict[int, list[int]] = {}
        for number, at in until.items():
            ending.setdefault(at, []).append(number)
        mine = {number for numbers in made.values() for number in numbers}
        for at, each in enumerate(order):
            dying = [number for number in ending.get(at, ()) if number in mine]
            if each.opcode in _IN_PLACE or (each.opcode == "fusion" and each.attribute("kind") == "kLoop"):
                self._free(self._reused(dying, made[each.name]))
            self._hold(made[each.name], each)
            for name, inner in self._called(each, values):
                self.run(self.program.computations[name], inner, [()] if each.opcode == "while" else [])
            self._free(dying)
        self._free(list(mine))

    def _value(self, each: Instruction, values: dict[str, Tree], parameters: list[Tree]) -> Tree:
        operands = [values[name] for name in each.operands if name in values]
        match each.opcode:
            case "parameter":
                return parameters[int(each.inner)]
            case "tuple":
                return tuple(operands)
            case "get-tuple-element":
                return operands[0][int(each.attribute("index") or 0)]
            case "bitcast" | "optimization-barrier" | "while" | "async-update":
                return operands[0]
            case "constant" | "iota" | "partition-id" | "after-all":
                return self.new(each, counted=each.opcode == "iota")
            case "dynamic-update-slice":
                return operands[0]
            case "fusion":
                return self._fusion(each, operands)
            case code if code.endswith("-done"):
                return operands[0][1] if code.startswith("copy") and isinstance(operands[0], tuple) else self.new(each)
            case _:
                return self.new(each)

    def _fusion(self, each: Instruction, operands: list[Tree]) -> Tree:
        """A fusion that updates a slice of an operand writes into it."""
        inner = self.program.computations[each.called("calls")[0]]

        def target(name: str) -> Tree | None:
            found = inner.instructions[name]
            while found.opcode in ("bitcast", "copy", "dynamic-update-slice") and found.opcode != "parameter":
                updates = found.opcode == "dynamic-update-slice"
                found = inner.instructions[found.operands[0]]
                if updates and found.opcode == "parameter":
                    return operands[int(found.inner)]
            return None

        root = inner.root
        fresh = self.new(each)
        if root.opcode == "tuple" and isinstance(fresh, tuple):
            found = [target(name) for name in root.operands]
            return tuple(new if old is None else self._instead(new, old) for new, old in zip(fresh, found, strict=True))
        old = target(root.name)
        return fresh if old is None else self._instead(fresh, old)

    def _instead(self, new: Tree, old: Tree) -> Tree:
        for number in _leaves(new):
            self.buffers[number] = dataclasses.replace(self.buffers[number], bytes=0)
        return old

    def _called(self, each: Instruction, values: dict[str, Tree]) -> Iterator[tuple[str, list[Tree]]]:
        operands = [values[name] for name in each.operands if name in values]
        if each.opcode == "while":
            yield each.called("body")[0], operands
        elif each.opcode == "call":
            yield each.called("to_apply")[0], operands
        elif each.opcode == "conditional":
            for name, operand in zip(each.called("branch_computations"), operands[1:], strict=False):
                yield name, [operand]

    def _reused(self, dying: list[int], made: list[int]) -> list[int]:
        """Operands in whose place results of their size are written."""
        sizes = [self.buffers[number].bytes for number in made]
        found = []
        for number in dying:
            if self.buffers[number].bytes in sizes:
                sizes.remove(self.buffers[number].bytes)
                found.append(number)
        return found

    def _hold(self, numbers: list[int], each: Instruction) -> None:
        self.live.update(numbers)
        self.bytes += sum(self.buffers[number].bytes for number in numbers)
        if self.bytes > self.most:
            self.most, self.at_peak, self.running = self.bytes, list(self.live), each.op_name or each.name

    def _free(self, numbers: list[int]) -> None:
        for number in self.live.intersection(numbers):
            self.bytes -= self.buffers[number].bytes
            self.live.remove(number)


def _leaves(tree: Tree) -> list[int]:
    return [leaf for part in tree for leaf in _leaves(part)] if isinstance(tree, tuple) else [tree]


def _at(tree: Tree, path: tuple[int, ...]) -> Tree:
    for index in path:
        tree = tree[index]
    return tree


def _shape_tree(shape: str) -> Any:
    """A shape like (f32[2]{0}, (s32[], f32[3]{0})) as nested tuples of texts."""
    if not shape.startswith("("):
        return shape
    parts, depth, start = [], 0, 1
    for index, letter in enumerate(shape):
        if letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        if (letter == "," and depth == 1) or (depth == 0 and index == len(shape) - 1):
            part = re.sub(r"/\*.*?\*/", "", shape[start:index]).strip()
            parts += [_shape_tree(part)] if part else []
            start = index + 1
    return tuple(parts)
