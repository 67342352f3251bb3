"""Parses the text of a compiled program into computations and instructions, and counts how often its loops run."""

import dataclasses
import functools
import math
import operator
import re
from collections.abc import Callable, Iterator
from typing import Any

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-<>]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-<>]+) = ")
_END = re.compile(r"^\}(, execution_thread=.*)?$")
"""The end of a computation. Kernel metadata has line breaks, and its lines may begin with a brace too."""
_ARRAY = re.compile(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,<= ]*)\]")
_LAYOUT = re.compile(r"^\w+\[([\d,<= ]*)\]\{([\d,]*)(?::T\(([\d,]+)\))?")
_MOST_ITERATIONS = 1 << 16
_SAME = ("copy", "bitcast", "convert", "reshape", "copy-start", "copy-done", "optimization-barrier")
_ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "maximum": max,
    "minimum": min,
    "and": operator.and_,
    "or": operator.or_,
}

Environment = Callable[[int, tuple[int, ...]], int | None]
"""Maps a parameter's number and a path inside it to its value; None if unknown."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    inner: str  # the text between the parentheses
    attributes: str  # the text after them
    is_root: bool

    @property
    def bytes(self) -> int:
        """Bytes of the result, all elements of a tuple together."""
        return shape_bytes(self.shape)

    @property
    def op_name(self) -> str:
        """Its place in the traced program; empty if the compiler does not say."""
        match = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.attributes)
        return match.group(1) if match else ""

    def attribute(self, name: str) -> str | None:
        """The value of `name=value` after the operands, up to the next comma outside braces, brackets and quotes."""
        match = re.search(rf"(?:^|[,{{] ?){re.escape(name)}=", self.attributes)
        return None if match is None else next(_parts(self.attributes[match.end() :]))

    def called(self, name: str) -> list[str]:
        """Names of the computations that attribute `name` refers to."""
        value = self.attribute(name)
        return [] if value is None else re.findall(r"[\w.\-<>]+", value)


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name, in the order of the text."""

    name: str
    instructions: dict[str, Instruction]

    @functools.cached_property
    def root(self) -> Instruction:
        return next(instruction for instruction in reversed(self.instructions.values()) if instruction.is_root)

    @functools.cached_property
    def parameters(self) -> dict[int, str]:
        """Names of the parameters by their numbers."""
        return {
            int(instruction.inner): instruction.name
            for instruction in self.instructions.values()
            if instruction.opcode == "parameter"
        }

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """The instructions that read each instruction's result."""
        readers: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for operand in set(instruction.operands):
                if operand in readers:
                    readers[operand].append(instruction)
        return readers


@dataclasses.dataclass(frozen=True)
class HloModule:
    """A compiled program."""

    computations: dict[str, Computation]
    entry: Computation
    partitions: int  # number of devices that its ids count

    def of_opcode(self, opcode: str) -> list[Instruction]:
        """All instructions with this opcode."""
        everywhere = (
            instruction for where in self.computations.values() for instruction in where.instructions.values()
        )
        return [instruction for instruction in everywhere if instruction.opcode == opcode]

    def resolve(self, where: Computation, name: str, known: Environment, path: tuple[int, ...] = ()) -> int | None:
        """The value of a scalar; None if it depends on data. Follows constants and arithmetic on them through tuples,
        fusions and loops."""
        instruction = where.instructions.get(name)
        if instruction is None:
            return None
        code, operands = instruction.opcode, instruction.operands
        if code == "constant":
            return int(instruction.inner) if re.fullmatch(r"-?\d+", instruction.inner) else None
        if code == "parameter":
            return known(int(instruction.inner), path)
        if code == "get-tuple-element":
            return self.resolve(where, operands[0], known, (int(instruction.attribute("index") or 0), *path))
        if code == "tuple":
            return self.resolve(where, operands[path[0]], known, path[1:]) if path else None
        if code in _SAME:
            return self.resolve(where, operands[0], known, path)
        if code in ("fusion", "call"):
            inner = self.computations[instruction.called("calls" if code == "fusion" else "to_apply")[0]]
            return self.resolve(inner, inner.root.name, lambda k, p: self.resolve(where, operands[k], known, p), path)
        if code == "while":
            body = self.computations[instruction.called("body")[0]]
            return self.resolve(where, operands[0], known, path) if path and _unchanged(body, path[0]) else None
        if code == "compare" or code in _ARITHMETIC:
            values = [self.resolve(where, operand, known) for operand in operands]
            if len(values) != 2 or values[0] is None or values[1] is None:
                return None
            if code == "compare":
                direction = instruction.attribute("direction") or ""  # LT, LE, ...: as in `operator`
                return int(getattr(operator, direction.lower())(values[0], values[1]))
            return _ARITHMETIC[code](values[0], values[1])
        return None

    def trips(self, where: Computation, loop: Instruction, known: Environment) -> tuple[int, bool]:
        """How often a loop's body runs, and whether that is certain.

        The count is the compiler's `known_trip_count`, or comes from running the loop's counter: TPU programs peel
        first iterations off and have counters that advance by two. If the counter depends on data, the count is the
        largest constant of the condition, and uncertain.
        """
        stated = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if stated:
            return int(stated.group(1)), True
        condition = self.computations[loop.called("condition")[0]]
        body = self.computations[loop.called("body")[0]]
        values: dict[tuple[int, tuple[int, ...]], int | None] = {}

        def value(iteration: int, path: tuple[int, ...]) -> int | None:
            key = (iteration, path)
            if key not in values:
                if iteration == 0 or (path and _unchanged(body, path[0])):
                    values[key] = self.resolve(where, loop.operands[0], known, path)
                else:
                    before: Environment = lambda _, p: value(iteration - 1, p)  # noqa: E731
                    values[key] = self.resolve(body, body.root.name, before, path)
            return values[key]

        for iteration in range(_MOST_ITERATIONS):
            goes_on = self.resolve(condition, condition.root.name, lambda _, p, i=iteration: value(i, p))
            if goes_on is None:
                break
            if not goes_on:
                return iteration, True
        constants = [one.inner for one in condition.instructions.values() if one.opcode == "constant"]
        return max([1, *(int(text) for text in constants if re.fullmatch(r"\d+", text))]), False

    def inside(self, where: Computation, loop: Instruction, known: Environment) -> Environment:
        """Known values of parameters inside a loop's body: those that no iteration changes."""
        body = self.computations[loop.called("body")[0]]

        def environment(_: int, path: tuple[int, ...]) -> int | None:
            return self.resolve(where, loop.operands[0], known, path) if path and _unchanged(body, path[0]) else None

        return environment


def parse(text: str) -> HloModule:
    """Parses `compiled.as_text()`.

    Raises:
        ValueError: the text holds no program.
    """
    computations: dict[str, Computation] = {}
    entry, name = None, ""
    current: list[str] | None = None  # instructions, with their continuation lines joined
    for line in text.splitlines():
        opening = _COMPUTATION.match(line) if line and not line[0].isspace() else None
        if opening:
            name, current = opening.group(2), []
            entry = name if opening.group(1) else entry
        elif _END.match(line) and current is not None:
            computations[name] = Computation(name, {made.name: made for made in map(_instruction, current)})
            current = None
        elif current is not None and _INSTRUCTION.match(line):
            current.append(line)
        elif current:
            current[-1] += f"\n{line}"
    if entry is None or entry not in computations:
        raise ValueError("not the text of a compiled program: no ENTRY computation")
    counts = re.findall(r"(?:num_partitions|replica_count)=(\d+)", text.split("\n", 1)[0])
    return HloModule(computations, computations[entry], math.prod(map(int, counts)))


def shape_bytes(shape: str) -> int:
    """Bytes of an array, or of all arrays of a tuple, without tile padding."""
    total = 0
    for kind, dims in _ARRAY.findall(shape):
        sizes = [int(dim.strip().lstrip("<=")) for dim in dims.split(",") if dim.strip()]
        total += -(-math.prod(sizes) * _bits(kind) // 8)
    return total


def tiled_bytes(shape: str) -> int:
    """Bytes of an array whose last dimensions in memory are padded to whole tiles."""
    match = _LAYOUT.match(shape)
    plain = shape_bytes(shape)
    if plain == 0 or match is None or not match.group(3):
        return plain
    sizes = [int(size.strip().lstrip("<=")) for size in match.group(1).split(",") if size.strip()]
    tile = [int(side) for side in match.group(3).split(",")]
    physical = [1] * len(tile) + [sizes[int(axis)] for axis in reversed(match.group(2).split(",")) if axis]
    last = physical[-len(tile) :]
    filled = math.prod(-(-size // side) * side for size, side in zip(last, tile, strict=True))
    return plain * filled // math.prod(last)


def shape_memory(shape: str) -> int:
    """The number of the memory that holds an array: 0 device, 1 on-chip, 5 host."""
    match = re.search(r"S\((\d+)\)", shape)
    return int(match.group(1)) if match else 0


def shape_tree(shape: str) -> Any:
    """A shape like (f32[2]{0}, (s32[], f32[3]{0})) as nested tuples of strings."""
    if not shape.startswith("("):
        return shape
    parts = (re.sub(r"/\*.*?\*/", "", part).strip() for part in _parts(shape[1:]))
    return tuple(shape_tree(part) for part in parts if part)


def _bits(kind: str) -> int:
    if kind == "pred":
        return 8
    match = re.match(r"(?:bf|[sufc])(\d+)", kind)
    return int(match.group(1)) if match else 0  # tokens and opaque values have no size


def _instruction(line: str) -> Instruction:
    head = _INSTRUCTION.match(line)
    assert head is not None
    rest = line[head.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    inner = rest[opening + 1 : closing]
    named = re.findall(r"%([\w.\-<>]+)", inner)
    opcode = rest[:opening]
    if not named and opcode not in ("constant", "parameter"):
        named = [part.split()[-1] for part in inner.split(",") if part.strip()]
    attributes = rest[closing + 1 :].removeprefix(", ")
    return Instruction(head.group(2), shape, opcode, tuple(named), inner.strip(), attributes, bool(head.group(1)))


def _closing(text: str, start: int) -> int:
    depth = 0
    for bracket in re.finditer(r"[()]", text[start:]):
        depth += 1 if bracket.group() == "(" else -1
        if depth == 0:
            return start + bracket.start()
    return len(text) - 1


def _parts(text: str) -> Iterator[str]:
    """Splits at commas outside braces, brackets and quotes, up to the first bracket that `text` does not open."""
    depth, start, quoted = 0, 0, False
    for index, letter in enumerate(text):
        if letter == '"' and text[index - 1 : index] != "\\":
            quoted = not quoted
        elif quoted:
            continue
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
            if depth < 0:
                yield text[start:index]
                return
        elif letter == "," and depth == 0:
            yield text[start:index]
            start = index + 1
    yield text[start:]


def _unchanged(body: Computation, index: int) -> bool:
    """Whether an iteration leaves this element of the loop's state unchanged."""
    root = body.root
    if root.opcode != "tuple" or index >= len(root.operands):
        return False
    instruction = body.instructions.get(root.operands[index])
    while instruction is not None and instruction.opcode in _SAME:
        instruction = body.instructions.get(instruction.operands[0])
    if instruction is None or instruction.opcode != "get-tuple-element" or instruction.attribute("index") != str(index):
        return False
    return body.instructions[instruction.operands[0]].opcode == "parameter"
