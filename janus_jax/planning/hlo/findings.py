"""Finds waste of memory or time in a compiled program."""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any, Literal

import jax

from janus_jax.planning.hlo.text import Computation, HloModule, Instruction, parse, shape_bytes

LARGE_BYTES = 16 << 20
"""Smaller findings are not reported."""

_VIEWS = ("get-tuple-element", "bitcast", "copy", "convert", "reshape")
_REMATERIALIZATION = re.compile(
    r"Involuntary full rematerialization\..*? go from sharding (?P<source>\{.*?\}) to (?P<target>\{.*?\}) "
    r"(?:efficiently|without)(?:.*?for HLO operation:? ?(?P<operation>.*))?"
)


@dataclasses.dataclass(frozen=True)
class Finding:
    """One waste of memory or time."""

    kind: Literal["rematerialization", "replicated", "all-reduce", "padding"]
    bytes: int  # of the value on one device, or of the padding alone; 0 if unknown
    op_name: str  # of the traced program, or the argument's name; empty if the compiler does not say
    text: str


def warnings(hlo_text: str, log: str = "", arguments: Any = None, large_bytes: int = LARGE_BYTES) -> list[Finding]:
    """Findings, largest first within each kind. Identical findings are merged.

    - rematerialization: the compiler warns that it reshards a value through a full copy on every device. The warning
      is in the compiler's log (stderr), not in the program.
    - replicated: an argument lies whole on each of several devices. Some versions of JAX leave this out of programs.
    - all-reduce: every reader of an all-reduce takes only a slice of it. A reduce-scatter would need half the traffic
      and a fraction of the memory.
    - padding: a dimension that does not divide by its shards was padded.

    Args:
        hlo_text: `compiled.as_text()`.
        log: what the compiler wrote while compiling.
        arguments: the arguments that the program was lowered with: a tree of arrays or shapes with shardings.
        large_bytes: smaller findings are left out.
    """
    module = parse(hlo_text)
    findings = [*_rematerialized(log, large_bytes), *_replicated(arguments, large_bytes)]
    for where in module.computations.values():
        findings += _padded(where, large_bytes)
        findings += _sliced_reductions(module, where, large_bytes)
    return sorted(set(findings), key=lambda finding: (finding.kind, -finding.bytes, finding.op_name))


def _rematerialized(log: str, large_bytes: int) -> Iterator[Finding]:
    for match in _REMATERIALIZATION.finditer(log):
        operation = match.group("operation") or ""
        head, _, rest = operation.partition(" = ")
        shape = rest.split(" ", 1)[0] if head else ""
        size = shape_bytes(shape)
        if size and size < large_bytes:
            continue
        name = re.search(r'op_name="([^"]*)"', operation)
        subject = f"a value {shape}" if shape else "a value"
        text = f"{subject} is resharded from {match.group('source')} to {match.group('target')} through a full copy"
        yield Finding("rematerialization", size, name.group(1) if name else "", text)


def _replicated(arguments: Any, large_bytes: int) -> Iterator[Finding]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(arguments):
        sharding = getattr(leaf, "sharding", None)
        size = math.prod(leaf.shape) * leaf.dtype.itemsize
        if sharding is not None and sharding.is_fully_replicated and sharding.num_devices > 1 and size >= large_bytes:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            text = f"argument {leaf.dtype}{list(leaf.shape)} lies whole on each of {sharding.num_devices} devices"
            yield Finding("replicated", size, name, text)


def _padded(where: Computation, large_bytes: int) -> Iterator[Finding]:
    pads = [instruction for instruction in where.instructions.values() if instruction.opcode == "pad"]
    # The compiler may write a concatenation as the sum or maximum of one value padded behind and one padded in front.
    halves = {_dims(instruction) for instruction in pads if not _only_behind(instruction)}
    for instruction in pads:
        name = instruction.op_name.rsplit("/", 1)[-1]
        source = where.instructions.get(instruction.operands[0])
        if instruction.bytes < large_bytes or name in ("", "pad"):  # padding by the model or by the compiler
            continue
        if source is None or _dims(instruction) in halves or not _only_behind(instruction):
            continue
        sizes = [shape_bytes(re.sub(r"^\w+", "s8", one.shape)) for one in (source, instruction)]  # dtypes may differ
        added = instruction.bytes * (sizes[1] - sizes[0]) // sizes[1]
        yield Finding("padding", added, instruction.op_name, f"{source.shape} is padded to {instruction.shape}")


def _only_behind(instruction: Instruction) -> bool:
    edges = [part.split("_") for part in (instruction.attribute("padding") or "").split("x")]
    return all(edge[0] == "0" and len(edge) == 2 for edge in edges)


def _dims(instruction: Instruction) -> str:
    return instruction.shape.split("{")[0]


def _sliced_reductions(module: HloModule, where: Computation, large_bytes: int) -> Iterator[Finding]:
    for instruction in where.instructions.values():
        if instruction.opcode not in ("all-reduce", "all-reduce-done") or instruction.bytes < large_bytes:
            continue
        sliced = None if instruction.is_root else _read_sizes(module, where, instruction)
        if sliced is not None and sliced * 2 <= instruction.bytes:
            text = (
                f"all-reduce of {instruction.shape}, but only {sliced} bytes are read; a reduce-scatter would suffice"
            )
            yield Finding("all-reduce", instruction.bytes, instruction.op_name, text)


def _read_sizes(module: HloModule, where: Computation, instruction: Instruction, outer: Any = None) -> int | None:
    """Bytes that readers slice out of a value; None if a reader takes all of it.

    Args:
        outer: inside a fusion, the place of the fusion: (computation, instruction, its own outer).
    """
    users = where.users[instruction.name]
    if instruction.is_root:
        if outer is None or instruction.opcode not in _VIEWS:
            return None
        return _read_sizes(module, *outer)
    total = 0 if users else None
    for user in users:
        inner = None
        if user.opcode == "dynamic-slice" and user.operands[0] == instruction.name:
            inner = user.bytes
        elif user.opcode in _VIEWS:
            inner = _read_sizes(module, where, user, outer)
        elif user.opcode == "fusion" and user.operands.count(instruction.name) == 1:
            called = module.computations[user.called("calls")[0]]
            parameter = called.instructions[called.parameters[user.operands.index(instruction.name)]]
            inner = _read_sizes(module, called, parameter, (where, user, outer))
        if inner is None or total is None:
            return None
        total += inner
    return total
