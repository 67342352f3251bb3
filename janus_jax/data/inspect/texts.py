"""Reads the checked records of a data set (DIR/tfds) without TensorFlow.

Each is a serialized tf.train.Example, of which only the texts are read. In protobuf's wire format:
Example { Features 1 { map entry 1 { key 1, Feature 2 { BytesList 1 { value 1 } } } } }.
"""

from collections.abc import Iterator, Sequence

from janus_jax.data.build.tfds_builder import NAME, VERSION
from janus_jax.data.dataset import TokenizedDataset
from janus_jax.data.schema import Record
from janus_jax.errors import DataError, first_line


def read_texts(dataset: TokenizedDataset, numbers: Sequence[int]) -> list[Record]:
    """Records of the examples `numbers`, in that order.

    Raises:
        DataError: records are missing, do not match the number of examples, or cannot be read.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    folder = dataset.directory / "tfds" / NAME / VERSION
    files = sorted(folder.glob(f"{NAME}-{dataset.split}.array_record-*"))
    try:
        readers = [ArrayRecordReader(str(file)) for file in files]
        counts = [reader.num_records() for reader in readers]
        if sum(counts) != len(dataset):
            raise DataError(folder, f"{sum(counts)} records of split {dataset.split} for {len(dataset)} examples")
        records = []
        for number in numbers:
            file = 0
            while number >= counts[file]:
                number -= counts[file]
                file += 1
            records.append(_record(readers[file].read([number])[0], dataset.kind))
        return records
    except (RuntimeError, ValueError, OSError, IndexError, KeyError) as error:
        raise DataError(folder, f"cannot be read: {first_line(error)}") from error


def _record(data: bytes, kind: str) -> Record:
    texts = {}
    for features in _messages(data, 1):
        for entry in _messages(features, 1):
            (key,), values = _messages(entry, 1), _messages(entry, 2)
            lists = [bytes_list for value in values for bytes_list in _messages(value, 1)]
            texts[key.decode()] = [text for bytes_list in lists for text in _messages(bytes_list, 1)]
    system, prompt, chosen, rejected = (
        texts[name][0].decode("utf-8") if texts[name] else "" for name in ("system", "prompt", "chosen", "rejected")
    )
    return Record(system, prompt, chosen, None if kind == "sft" else rejected)


def _messages(data: bytes, field: int) -> list[bytes]:
    """Values of the length-delimited field with that number."""
    return [value for number, value in _fields(data) if number == field]


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(number, value) of every field; values of varints and of fixed width are left empty."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 2:
            size, at = _varint(data, at)
            if at + size > len(data):
                raise ValueError("a field is longer than its record")
            yield number, data[at : at + size]
            at += size
        elif kind == 0:
            _, at = _varint(data, at)
            yield number, b""
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
            yield number, b""
        else:
            raise ValueError(f"wire type {kind} does not occur in tf.train.Example")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
