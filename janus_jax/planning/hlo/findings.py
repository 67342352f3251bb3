"""What in a compiled program deserves a look: waste that the compiler left."""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any, Literal

import jax

from janus_jax.planning.hlo.text import Computation, HloModule, Instruction, parse, shape_bytes

LARGE_BYTES = 16 << 20
"""Below this a finding is not worth a line."""

_VIEWS = ("get-tuple-element", "bitcast", "copy", "convert", "reshape")
_REMATERIALIZATION = re.compile(
    r"Involuntary full rematerialization\..*? go from sharding (?P<source>\{.*?\}) to (?P<target>\{.*?\}) "
    r"(?:efficiently|without)(?:.*?for HLO operation:? ?(?P<operation>.*))?"
)


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that costs memory or time without need."""

    kind: Literal["rematerialization", "replicated", "all-reduce", "padding"]
    bytes: int  # of the value on one device; with padding, those that are nothing but padding; 0 if not known
    op_name: str  # of the traced program, or of the argument; empty where the compiler does not say
    text: str


def warnings(hlo_text: str, log: str = "", arguments: Any = None, large_bytes: int = LARGE_BYTES) -> list[Finding]:
    """Findings, largest first within each kind; the same thing at several places is one finding.

    - rematerialization: the compiler's own warning that it re-shards a value through a full copy of it on every device.
      It stands in the log (stderr) of compiling, not in the program.
    - replicated: an argument that lies whole on each of several devices. Not every JAX writes it into programs.
    - all-reduce: every reader of an all-reduce takes a slice of it alone, so that a reduce-scatter would do with half
      the traffic and a fraction of the memory.
    - padding: a dimension that does not divide by its shards was filled up.

    Args:
        hlo_text: `compiled.as_text()`.
        log: what the compiler wrote while compiling.
        arguments: what the program was lowered with, a tree of arrays or shapes with shardings.
        large_bytes: what is smaller is left out.
    """
    program = parse(hlo_text)
    found = [*_rematerialized(log, large_bytes), *_replicated(arguments, large_bytes)]
    for where in program.computations.values():
        found += _padded(where, large_bytes)
        found += _sliced_reductions(program, where, large_bytes)
    return sorted(set(found), key=lambda each: (each.kind, -each.bytes, each.op_name))


def _rematerialized(log: str, large_bytes: int) -> Iterator[Finding]:
    for match in _REMATERIALIZATION.finditer(log):
        operation = match.group("operation") or ""
        head, _, rest = operation.partition(" = ")
        shape = rest.split(" ", 1)[0] if head else ""
        size = shape_bytes(shape)
        if size and size < large_bytes:
            continue
        name = re.search(r'op_name="([^"]*)"', operation)
        what = f"a value {shape}" if shape else "a value"
        text = f"{what} goes from sharding {match.group('source')} to {match.group('target')} through a full copy"
        yield Finding("rematerialization", size, name.group(1) if name else "", text)


def _replicated(arguments: Any, large_bytes: int) -> Iterator[Finding]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(arguments):
        where = getattr(leaf, "sharding", None)
        size = math.prod(leaf.shape) * leaf.dtype.itemsize
        if where is not None and where.is_fully_replicated and where.num_devices > 1 and size >= large_bytes:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            text = f"argument {leaf.dtype}{list(leaf.shape)} lies whole on each of {where.num_devices} devices"
            yield Finding("replicated", size, name, text)


def _padded(where: Computation, large_bytes: int) -> Iterator[Finding]:
    pads = [each for each in where.instructions.values() if each.opcode == "pad"]
    # Two values side by side are also written as the sum or maximum of one padded behind and one padded in front.
    halves = {_dims(each) for each in pads if not _only_behind(each)}
    for each in pads:
        name = each.op_name.rsplit("/", 1)[-1]
        if each.bytes < large_bytes or name in ("", "pad"):  # the model's own, the compiler's
            continue
        if _dims(each) in halves or not _only_behind(each) or each.operands[0] not in where.instructions:
            continue
        source = where.instructions[each.operands[0]]
        sizes = [shape_bytes(re.sub(r"^\w+", "s8", one.shape)) for one in (source, each)]  # dtypes may differ
        added = each.bytes * (sizes[1] - sizes[0]) // sizes[1]
        yield Finding("padding", added, each.op_name, f"{source.shape} is filled up to {each.shape}")


def _only_behind(each: Instruction) -> bool:
    edges = [part.split("_") for part in (each.attribute("padding") or "").split("x")]
    return all(edge[0] == "0" and len(edge) == 2 for edge in edges)


def _dims(each: Instruction) -> str:
    return each.shape.split("{")[0]


def _sliced_reductions(program: HloModule, where: Computation, large_bytes: int) -> Iterator[Finding]:
    for each in where.instructions.values():
        if each.opcode not in ("all-reduce", "all-reduce-done") or each.bytes < large_bytes:
            continue
        sliced = None if each.is_root else _read_sizes(program, where, each)
        if sliced is not None and sliced * 2 <= each.bytes:
            text = f"all-reduce of {each.shape}, of which {sliced} bytes are read: a reduce-scatter would do"
            yield Finding("all-reduce", each.bytes, each.op_name, text)


def _read_sizes(program: HloModule, where: Computation, each: Instruction, outer: Any = None) -> int | None:
    """Bytes that readers slice out of a value, None if one of them reads it whole.

    Args:
        outer: inside a fusion, where that stands: (computation, instruction, its own outer).
    """
    users = where.users[each.name]
    if each.is_root:
        if outer is None or each.opcode not in _VIEWS:
            return None
        return _read_sizes(program, *outer)
    total = 0 if users else None
    for user in users:
        inner = None
        if user.opcode == "dynamic-slice" and user.operands[0] == each.name:
            inner = user.bytes
        elif user.opcode in _VIEWS:
            inner = _read_sizes(program, where, user, outer)
        elif user.opcode == "fusion" and user.operands.count(each.name) == 1:
            called = program.computations[user.called("calls")[0]]
            parameter = called.instructions[called.parameters[user.operands.index(each.name)]]
            inner = _read_sizes(program, called, parameter, (where, user, outer))
        if inner is None or total is None:
            return None
        total += inner
    return total
