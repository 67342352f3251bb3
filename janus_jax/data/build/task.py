"""The seqio Task: rows of the TFDS build -> template and tokenizer -> features of token ids."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from janus_jax.data.build.encode import Encode, Encoded
from janus_jax.data.build.tfds_builder import NAME
from janus_jax.data.tensorflow_quietly import import_seqio, import_tfds
from janus_jax.text.tokenizer import Tokenizer

_TEXTS = ("system", "prompt", "chosen", "rejected")
_ROWS_AT_ONCE = 64
"""Rows that go from Python to TensorFlow, and from there to a worker, at a time."""


def make_task(builder: Any, *, kind: str, tokenizer: Tokenizer, encode: Encode, parallel: int = 1) -> Any:
    """A `seqio.Task` over the splits of a TFDS builder, not registered anywhere.

    Its features are int32 ids of any length: `prompt`, `chosen` (the response, for sft) and, for pairs, `rejected`.
    BOS and EOS are in them already: a converter that adds its own would double them. Beside the features of pairs goes
    `margin`, a float32 that is NaN where the row has none.

    Args:
        encode: template and tokenizer (encode.py); errors that it raises come out of the data set as TensorFlow's.
        parallel: calls of `encode` at a time.
    """
    seqio = import_seqio()
    vocabulary = seqio.PassThroughVocabulary(tokenizer.vocab_size, eos_id=tokenizer.eos_id)
    names = ("prompt", "chosen") if kind == "sft" else ("prompt", "chosen", "rejected")
    return seqio.Task(
        NAME,
        source=_source(builder),
        preprocessors=[lambda dataset: _tokenize(dataset, names, encode, parallel)],
        output_features={name: seqio.Feature(vocabulary, add_eos=False) for name in names},
        metric_fns=[],
    )


def _source(builder: Any) -> Any:
    """A seqio DataSource over ArrayRecord files; `seqio.TfdsDataSource` reads tfrecord only."""
    seqio, tfds = import_seqio(), import_tfds()
    import tensorflow as tf

    class ArrayRecordSource(seqio.DataSource):
        def __init__(self) -> None:
            self._rows = {name: builder.as_data_source(name) for name in builder.info.splits}
            super().__init__(splits=self._rows, num_input_examples={name: len(r) for name, r in self._rows.items()})

        @property
        def supports_arbitrary_sharding(self) -> bool:
            return True  # rows are read by number

        def list_shards(self, split: str) -> Sequence[str]:
            return [str(number) for number in range(builder.info.splits[split].num_shards)]

        def get_dataset(
            self,
            split: str = tfds.Split.TRAIN,
            shuffle: bool = True,
            seed: int | None = None,
            shard_info: Any = None,
            *,
            sequence_length: Any = None,
            use_cached: bool = False,
            num_epochs: int | None = 1,
        ) -> Any:
            rows = self._rows[split]
            order = np.random.default_rng(seed).permutation(len(rows)) if shuffle else np.arange(len(rows))
            if shard_info is not None:
                order = order[shard_info.index :: shard_info.num_shards]

            def read() -> Any:
                for start in range(0, len(order), _ROWS_AT_ONCE):
                    found = rows.__getitems__(order[start : start + _ROWS_AT_ONCE].tolist())
                    texts = {name: np.array([row[name] for row in found], object) for name in _TEXTS}
                    yield texts | {"margin": np.array([row["margin"] for row in found], np.float32)}

            # many at a time, because what TensorFlow asks of Python costs more than the row
            signature: dict[str, Any] = {name: tf.TensorSpec((None,), tf.string) for name in _TEXTS}  # type: ignore[reportArgumentType]
            signature["margin"] = tf.TensorSpec((None,), tf.float32)  # type: ignore[reportArgumentType]
            return tf.data.Dataset.from_generator(read, output_signature=signature).unbatch()

    return ArrayRecordSource()


def _tokenize(dataset: Any, names: tuple[str, ...], encode: Encode, parallel: int) -> Any:
    import tensorflow as tf

    def encode_arrays(*columns: np.ndarray) -> Encoded:
        return encode([tuple(text.decode("utf-8") for text in row) for row in zip(*columns, strict=True)])

    def encode_tensors(rows: dict[str, Any]) -> dict[str, Any]:
        lengths, ids = tf.numpy_function(encode_arrays, [rows[name] for name in _TEXTS], [tf.int32, tf.int32])
        lengths = tf.ensure_shape(lengths, (None, len(names)))
        parts = tf.RaggedTensor.from_nested_row_lengths(  # pyright: ignore[reportAttributeAccessIssue] (made at import)
            tf.ensure_shape(ids, (None,)), [tf.fill([tf.shape(lengths)[0]], len(names)), tf.reshape(lengths, [-1])]
        )
        return {"parts": parts} | ({"margin": rows["margin"]} if "rejected" in names else {})

    def features(row: dict[str, Any]) -> dict[str, Any]:
        return {name: row["parts"][number] for number, name in enumerate(names)} | {
            name: value for name, value in row.items() if name != "parts"
        }

    encoded = dataset.batch(_ROWS_AT_ONCE).map(encode_tensors, num_parallel_calls=parallel, deterministic=True)
    return encoded.unbatch().map(features)
