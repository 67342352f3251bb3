"""Preference rows from rows of the SFT collection, whose instructions each have several system messages and responses.

The paper's rule: of each instruction one system message is chosen, its response is the chosen one, and the response to
one of the others is rejected. What is drawn depends on the seed, the instruction and the contents of its rows, not on
where the rows stand.
"""

import array
import dataclasses
import hashlib
import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from janus_jax.data.build.readers import read_records
from janus_jax.data.schema import KINDS, Record
from janus_jax.errors import DataError

PAIR_KINDS = tuple(kind for kind in KINDS if kind != "sft")

_DIGEST_BYTES = 16


@dataclasses.dataclass(frozen=True)
class Derivation:
    """How pairs are drawn from the rows of an instruction."""

    seed: int = 0
    all_pairs: bool = False
    """Every ordered pair of responses to different system messages, instead of one drawn pair an instruction."""


def read_kind(
    files: Sequence[Path], kind: str, *, derive: Derivation | None, scratch: Path, skip_bad: bool, dropped: Counter[str]
) -> Iterator[Record]:
    """Checked rows of a kind, read as they stand or, with `derive`, drawn from rows of kind sft."""
    if derive is None:
        return read_records(files, kind, skip_bad=skip_bad, dropped=dropped)
    rows = read_records(files, "sft", skip_bad=skip_bad, dropped=dropped)
    return derive_pairs(rows, kind, seed=derive.seed, all_pairs=derive.all_pairs, scratch=scratch, dropped=dropped)


def derive_pairs(
    rows: Iterable[Record], kind: str, *, seed: int, all_pairs: bool, scratch: Path, dropped: Counter[str]
) -> Iterator[Record]:
    """Pairs from checked rows of kind sft, in the order of the first row of each instruction.

    Memory holds digests alone (about 100 bytes a row, 200 an instruction); the rows wait in a file. The pairs of an
    instruction are neighbours, ordered by content. System message, preferences and sources are those of the chosen
    side; a reward model's prompt is system message and instruction in one text.

    Args:
        rows: In any order; a row that repeats another's system message and response counts once.
        kind: dpo, orpo or rm.
        scratch: A directory that exists; the file in it is gone when the iterator ends.
        dropped: Counts repeated rows, and instructions without two system messages of different responses, by reason.

    Raises:
        DataError: `kind` is not one of pairs, or no instruction gives a pair.
    """
    if kind not in PAIR_KINDS:
        raise DataError(f"kind {kind!r}: cannot be derived; allowed: {', '.join(PAIR_KINDS)}")
    return _derive(rows, kind, Derivation(seed, all_pairs), scratch, dropped)


def _derive(
    rows: Iterable[Record], kind: str, how: Derivation, scratch: Path, dropped: Counter[str]
) -> Iterator[Record]:
    from array_record.python.array_record_module import ArrayRecordReader

    before = dropped.copy()
    with tempfile.TemporaryDirectory(dir=scratch, prefix="derive.") as directory:
        path = Path(directory) / "rows.array_record"
        instructions = _spool(rows, path)
        reader = ArrayRecordReader(str(path))
        # an instruction has few rows, and each is in several of its ordered pairs
        read = lru_cache(maxsize=4)(lambda number: _load(reader.read([number])[0]))
        given = 0
        try:
            for instruction, lines in instructions:
                for chosen, rejected in _drawn(instruction, lines, how, dropped):
                    given += 1
                    yield _pair(read(chosen), read(rejected), kind)
        finally:
            reader.close()
    if not given:
        reasons = ", ".join(f"{reason} {count}" for reason, count in (dropped - before).items())
        raise DataError(f"no pair can be derived: {reasons}; an instruction needs responses to two system messages")


@dataclasses.dataclass(frozen=True, order=True)
class _Line:
    """A row as digests; `number` says where it waits."""

    system: bytes
    response: bytes
    whole: bytes
    number: int = dataclasses.field(compare=False)


def _spool(rows: Iterable[Record], path: Path) -> Iterator[tuple[bytes, list[_Line]]]:
    """Writes the rows into `path` and returns, for each instruction, its digest and the lines of its rows."""
    from array_record.python.array_record_module import ArrayRecordWriter

    first: dict[bytes, int] = {}  # instruction -> its place
    places, digests = array.array("q"), bytearray()
    writer = ArrayRecordWriter(str(path), "group_size:1,snappy")  # one record a group: random access
    try:
        for row in rows:
            places.append(first.setdefault(_digest(row.prompt), len(first)))
            record = json.dumps(vars(row), ensure_ascii=False)
            # responses that differ in outer blanks alone are equal, as they are where pairs are checked
            digests += _digest(row.system) + _digest(row.chosen.strip()) + _digest(record)
            writer.write(record.encode())
    finally:
        writer.close()
    return _by_instruction(list(first), places, bytes(digests))


def _by_instruction(
    instructions: list[bytes], places: "array.array[int]", digests: bytes
) -> Iterator[tuple[bytes, list[_Line]]]:
    def line(number: int) -> _Line:
        starts = [(3 * number + i) * _DIGEST_BYTES for i in range(3)]
        system, response, whole = (digests[start : start + _DIGEST_BYTES] for start in starts)
        return _Line(system, response, whole, number)

    by_place = sorted(range(len(places)), key=places.__getitem__)
    for place, numbers in itertools.groupby(by_place, key=places.__getitem__):
        yield instructions[place], [line(number) for number in numbers]


def _drawn(instruction: bytes, lines: list[_Line], how: Derivation, dropped: Counter[str]) -> Iterator[tuple[int, int]]:
    """(chosen, rejected) row numbers; reasons for dropping are counted."""
    # of rows that repeat each other, the same one stays wherever they stand
    distinct = sorted({(line.system, line.response): line for line in sorted(lines, reverse=True)}.values())
    if len(distinct) < len(lines):
        dropped["repeated_row"] += len(lines) - len(distinct)
    systems = Counter(line.system for line in distinct)
    responses = Counter(line.response for line in distinct)
    # a line shares its system message or its response with so many, itself among both
    able = [line for line in distinct if systems[line.system] + responses[line.response] - 1 < len(distinct)]

    def others(chosen: _Line) -> list[_Line]:
        return [line for line in distinct if line.system != chosen.system and line.response != chosen.response]

    if not able:
        if len(distinct) == 1:
            reason = "instruction_with_one_response"
        elif len(responses) == 1:
            reason = "instruction_with_equal_responses"
        else:
            reason = "instruction_with_one_system"
        dropped[reason] += 1
    elif how.all_pairs:
        yield from ((chosen.number, rejected.number) for chosen in able for rejected in others(chosen))
    else:
        # from 256 bits, of which two choices take a few: no bias that could be seen
        number = int.from_bytes(hashlib.sha256(f"{how.seed} ".encode() + instruction).digest())
        number, place = divmod(number, len(able))
        rejected = others(able[place])
        yield able[place].number, rejected[number % len(rejected)].number


def _pair(chosen: Record, rejected: Record, kind: str) -> Record:
    row = dataclasses.replace(chosen, rejected=rejected.chosen)
    if kind != "rm":
        return row
    return dataclasses.replace(row, system="", prompt=f"{row.system}\n{row.prompt}" if row.system else row.prompt)


def _load(record: bytes) -> Record:
    values = json.loads(record)
    return Record(**values | {"preference_set": tuple(values["preference_set"])})


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES).digest()
