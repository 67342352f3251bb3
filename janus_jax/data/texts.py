"""Reads the checked records of a data set (DIR/tfds) without TensorFlow.

Each is a serialized tf.train.Example, of which only the texts are read. TFDS brings that message's class along.
"""

from collections.abc import Sequence

from janus_jax.data.build.tfds_builder import NAME, TEXTS, VERSION
from janus_jax.data.dataset import TokenizedDataset
from janus_jax.data.schema import Record
from janus_jax.errors import DataError, first_line


def read_texts(dataset: TokenizedDataset, numbers: Sequence[int]) -> list[Record]:
    """Records of the examples `numbers`, in that order.

    Raises:
        DataError: records are missing, do not match the number of examples, or cannot be read.
    """
    from array_record.python.array_record_module import ArrayRecordReader
    from google.protobuf.message import DecodeError

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
    except (RuntimeError, ValueError, OSError, IndexError, KeyError, DecodeError) as error:
        raise DataError(folder, f"cannot be read: {first_line(error)}") from error


def _record(data: bytes, kind: str) -> Record:
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example.FromString(data)  # type: ignore[reportAttributeAccessIssue]  (made at import)
    features = dict(example.features.feature)  # a missing name is a KeyError
    system, prompt, chosen, rejected = (b"".join(features[name].bytes_list.value).decode("utf-8") for name in TEXTS)
    return Record(system, prompt, chosen, None if kind == "sft" else rejected)
