"""Pairs from the SFT collection, where each instruction has several system messages and responses.

The paper's rule: draw one system message of an instruction; its response is chosen, and the response to one of the
others is rejected. The draw depends on the seed, the instruction and the contents of its records, not on the order of
the records.
"""

import array
import dataclasses
import functools
import hashlib
import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from janus_jax.data.schema import KINDS, Record, RecordError
from janus_jax.data.tally import note, summary
from janus_jax.errors import DataError

PAIR_KINDS = tuple(kind for kind in KINDS if kind != "sft")

_DIGEST_BYTES = 16


@dataclasses.dataclass(frozen=True)
class Derivation:
    """How pairs are drawn from the records of an instruction."""

    seed: int = 0
    all_pairs: bool = False
    """Every ordered pair of responses to different system messages, instead of one drawn pair per instruction."""


def for_pairs(records: Iterator[Record]) -> Iterator[Record]:
    """The records; an error about one says that pairs are drawn from single responses."""
    try:
        yield from records
    except RecordError as error:
        if error.reason == "missing_field":
            hint = "--derive draws pairs from records of kind sft; if these are pairs already, use --kind instead"
            error.args = (*error.places, f"{error.args[-1]}; {hint}")
        raise


def derive_pairs(
    records: Iterable[Record], kind: str, *, seed: int, all_pairs: bool, scratch: Path, dropped: Counter[str]
) -> Iterator[Record]:
    """Draws pairs from checked records of kind sft, in the order of each instruction's first record.

    Memory holds digests only (about 100 bytes per record, 200 per instruction); a file holds the records. The pairs of
    an instruction are neighbours, ordered by content. System message, preferences and sources come from the chosen
    side; the prompt of a reward model joins system message and instruction.

    Args:
        records: In any order; records with the same instruction, system message and response count once.
        kind: dpo, orpo or rm.
        scratch: An existing directory for the file, which is deleted when the iterator ends.
        dropped: Counts by reason: repeated records, and instructions without two system messages whose responses
            differ.

    Raises:
        DataError: `kind` is not a kind of pairs, or no instruction gives a pair.
    """
    if kind not in PAIR_KINDS:
        raise DataError(f"kind {kind!r}: cannot be derived; allowed: {', '.join(PAIR_KINDS)}")
    return _derive(records, kind, Derivation(seed, all_pairs), scratch, dropped)


def _derive(
    records: Iterable[Record], kind: str, derivation: Derivation, scratch: Path, dropped: Counter[str]
) -> Iterator[Record]:
    from array_record.python.array_record_module import ArrayRecordReader

    with tempfile.TemporaryDirectory(dir=scratch, prefix="derive.") as directory:
        path = Path(directory) / "records.array_record"
        instructions = _spool(records, path)
        reader = ArrayRecordReader(str(path))
        # an instruction has few records, and each is in several of its ordered pairs
        read = functools.lru_cache(maxsize=4)(lambda number: load_record(reader.read([number])[0]))
        pairs = 0
        try:
            for instruction, digests in instructions:
                for chosen, rejected in draw(instruction, digests, derivation, dropped, lambda n: read(n).place):
                    pairs += 1
                    yield pair_of(read(chosen), read(rejected), kind)
        finally:
            reader.close()
    if not pairs:
        raise no_pair(dropped)


def no_pair(dropped: Counter[str]) -> DataError:
    """The error about records of which no pair can be drawn."""
    what = f"no pair can be derived: {summary(dropped)}; an instruction needs responses to two system messages"
    return DataError(what)


@dataclasses.dataclass(frozen=True, order=True)
class Digests:
    """A record as digests; `number` is its place in the file."""

    system: bytes
    response: bytes
    whole: bytes
    number: int = dataclasses.field(compare=False)


def _spool(records: Iterable[Record], path: Path) -> Iterator[tuple[bytes, list[Digests]]]:
    """Writes the records into `path`; returns the digest of each instruction with the digests of its records."""
    from array_record.python.array_record_module import ArrayRecordWriter

    first: dict[bytes, int] = {}  # digest of an instruction -> its rank by first record
    places, digests = array.array("q"), bytearray()
    writer = ArrayRecordWriter(str(path), "group_size:1,snappy")  # groups of one for random access
    try:
        for record in records:
            instruction, digest = digests_of(record)
            places.append(first.setdefault(instruction, len(first)))
            digests += digest
            writer.write(dump_record(record))
    finally:
        writer.close()
    return _by_instruction(list(first), places, bytes(digests))


def _by_instruction(
    instructions: list[bytes], places: "array.array[int]", digests: bytes
) -> Iterator[tuple[bytes, list[Digests]]]:
    def of_record(number: int) -> Digests:
        size = 3 * _DIGEST_BYTES
        return split_digest(digests[number * size : (number + 1) * size], number)

    by_place = sorted(range(len(places)), key=places.__getitem__)
    for place, numbers in itertools.groupby(by_place, key=places.__getitem__):
        yield instructions[place], [of_record(number) for number in numbers]


def digests_of(record: Record) -> tuple[bytes, bytes]:
    """The digest of a record's instruction, and those of `Digests` one after another."""
    content = {name: value for name, value in vars(record).items() if name != "place"}
    # responses that differ only in outer blanks are equal, as in `schema.pair`
    parts = (record.system, record.chosen.strip(), json.dumps(content, ensure_ascii=False))
    return _digest(record.prompt), b"".join(map(_digest, parts))


def split_digest(digest: bytes, number: int) -> Digests:
    """Digests of the record `number`, from what `digests_of` returns."""
    system, response, whole = (digest[start : start + _DIGEST_BYTES] for start in range(0, len(digest), _DIGEST_BYTES))
    return Digests(system, response, whole, number)


def draw(
    instruction: bytes,
    records: list[Digests],
    derivation: Derivation,
    dropped: Counter[str],
    place_of: Callable[[int], str],
) -> Iterator[tuple[int, int]]:
    """(chosen, rejected) record numbers of an instruction's pairs; counts reasons for dropping.

    Args:
        place_of: the place of a record in the source, by its number.
    """
    # of records that repeat each other, the same one stays in any order
    distinct = sorted({(record.system, record.response): record for record in sorted(records, reverse=True)}.values())
    kept = {record.number for record in distinct}
    for record in records:
        if record.number not in kept:
            note(dropped, "repeated_record", functools.partial(place_of, record.number))
    systems = Counter(record.system for record in distinct)
    responses = Counter(record.response for record in distinct)
    # a partner shares neither system message nor response; the record itself is in both counts
    paired = [one for one in distinct if systems[one.system] + responses[one.response] - 1 < len(distinct)]

    def partners(chosen: Digests) -> list[Digests]:
        return [one for one in distinct if one.system != chosen.system and one.response != chosen.response]

    if not paired:
        if len(distinct) == 1:
            reason = "instruction_with_one_response"
        elif len(responses) == 1:
            reason = "instruction_with_equal_responses"
        else:
            reason = "instruction_with_one_system"
        note(dropped, reason, lambda: place_of(records[0].number))
    elif derivation.all_pairs:
        yield from ((chosen.number, rejected.number) for chosen in paired for rejected in partners(chosen))
    else:
        # two choices use a few of 256 bits, so the bias of the remainders is negligible
        number = int.from_bytes(hashlib.sha256(f"{derivation.seed} ".encode() + instruction).digest())
        number, place = divmod(number, len(paired))
        rejected = partners(paired[place])
        yield paired[place].number, rejected[number % len(rejected)].number


def pair_of(chosen: Record, rejected: Record, kind: str) -> Record:
    """The pair of two records of kind sft."""
    pair = dataclasses.replace(chosen, rejected=rejected.chosen)
    if kind != "rm":
        return pair
    return dataclasses.replace(pair, system="", prompt=f"{pair.system}\n{pair.prompt}" if pair.system else pair.prompt)


def dump_record(record: Record) -> bytes:
    """A record as JSON, with its place."""
    return json.dumps(vars(record), ensure_ascii=False).encode()


def load_record(stored: bytes) -> Record:
    """The record of `dump_record`."""
    values = json.loads(stored)
    return Record(**values | {"preference_set": tuple(values["preference_set"])})


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES).digest()
