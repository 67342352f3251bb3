"""The seqio Task: records of the TFDS build -> template and tokenizer -> features of token ids."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from janus_jax.data.build.encode import Encode, Encoded
from janus_jax.data.build.tfds_builder import NAME, TEXTS
from janus_jax.data.example import token_features
from janus_jax.data.seqio_task import random_access_source, token_task
from janus_jax.text.tokenizer import Tokenizer

_RECORDS_AT_ONCE = 64
"""Records that go from Python to TensorFlow, and from there to a worker, at a time."""


def make_task(builder: Any, *, kind: str, tokenizer: Tokenizer, encode: Encode, parallel: int = 1) -> Any:
    """An unregistered `seqio.Task` over the splits of a TFDS builder.

    Its features are int32 ids of any length: `prompt`, `chosen` (the response, for sft) and, for pairs, `rejected`; BOS
    and EOS are in them. Pairs also have `margin`, a float32 that is NaN where the record has none.

    Args:
        encode: applies template and tokenizer (encode.py); TensorFlow wraps the errors that it raises.
        parallel: concurrent calls of `encode`.
    """
    return token_task(
        NAME,
        kind=kind,
        vocab_size=tokenizer.vocab_size,
        eos_id=tokenizer.eos_id,
        source=_source(builder),
        preprocessors=[lambda dataset: _tokenize(dataset, token_features(kind), encode, parallel)],
    )


def _source(builder: Any) -> Any:
    """A seqio DataSource over the ArrayRecord files of a TFDS builder."""
    import tensorflow as tf

    records_of = {split: builder.as_data_source(split) for split in builder.info.splits}
    signature: dict[str, Any] = {name: tf.TensorSpec((None,), tf.string) for name in TEXTS}  # type: ignore[reportArgumentType]
    signature["margin"] = tf.TensorSpec((None,), tf.float32)  # type: ignore[reportArgumentType]

    def open_split(split: str, shuffle: bool, seed: int | None, shard: slice, _num_epochs: int | None) -> Any:
        stored = records_of[split]
        order = np.random.default_rng(seed).permutation(len(stored)) if shuffle else np.arange(len(stored))
        order = order[shard]

        def read() -> Iterator[dict[str, np.ndarray]]:
            for start in range(0, len(order), _RECORDS_AT_ONCE):
                records = stored.__getitems__(order[start : start + _RECORDS_AT_ONCE].tolist())
                texts = {name: np.array([record[name] for record in records], object) for name in TEXTS}
                yield texts | {"margin": np.array([record["margin"] for record in records], np.float32)}

        # many at a time: each call from TensorFlow into Python costs more than a record
        return tf.data.Dataset.from_generator(read, output_signature=signature).unbatch()

    shards = {split: builder.info.splits[split].num_shards for split in records_of}
    return random_access_source(shards, {split: len(records) for split, records in records_of.items()}, open_split)


def _tokenize(dataset: Any, names: tuple[str, ...], encode: Encode, parallel: int) -> Any:
    import tensorflow as tf

    def encode_arrays(*columns: np.ndarray) -> Encoded:
        return encode([tuple(text.decode("utf-8") for text in texts) for texts in zip(*columns, strict=True)])

    def encode_tensors(records: dict[str, Any]) -> dict[str, Any]:
        lengths, ids = tf.numpy_function(encode_arrays, [records[name] for name in TEXTS], [tf.int32, tf.int32])
        lengths = tf.ensure_shape(lengths, (None, len(names)))
        parts = tf.RaggedTensor.from_nested_row_lengths(  # pyright: ignore[reportAttributeAccessIssue] (made at import)
            tf.ensure_shape(ids, (None,)), [tf.fill([tf.shape(lengths)[0]], len(names)), tf.reshape(lengths, [-1])]
        )
        return {"parts": parts} | ({"margin": records["margin"]} if "rejected" in names else {})

    def features(example: dict[str, Any]) -> dict[str, Any]:
        return {name: example["parts"][number] for number, name in enumerate(names)} | {
            name: value for name, value in example.items() if name != "parts"
        }

    encoded = dataset.batch(_RECORDS_AT_ONCE).map(encode_tensors, num_parallel_calls=parallel, deterministic=True)
    return encoded.unbatch().map(features)
