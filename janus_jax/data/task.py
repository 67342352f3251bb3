"""The seqio Task: rows of the TFDS build -> template and tokenizer -> features of token ids."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from janus_jax.data.quiet_imports import import_seqio, import_tfds
from janus_jax.data.schema import Row
from janus_jax.data.template import Boundary, Template, encode_example
from janus_jax.data.tfds_builder import NAME
from janus_jax.data.tokenizer import Tokenizer

_TEXTS = ("system", "prompt", "chosen", "rejected")


def make_task(
    builder: Any, *, kind: str, template: Template, tokenizer: Tokenizer, boundary: Boundary = "separate"
) -> Any:
    """A `seqio.Task` over the splits of a TFDS builder, not registered anywhere.

    Its features are int32 ids of any length: `prompt`, `chosen` (the response, for sft) and, for pairs, `rejected`.
    BOS and EOS are in them already: a converter that adds its own would double them. Beside the features of pairs goes
    `margin`, a float32 that is NaN where the row has none.
    """
    seqio = import_seqio()
    vocabulary = seqio.PassThroughVocabulary(tokenizer.vocab_size, eos_id=tokenizer.eos_id)
    names = ("prompt", "chosen") if kind == "sft" else ("prompt", "chosen", "rejected")

    def encode(*texts: bytes) -> list[np.ndarray]:
        system, prompt, chosen, rejected = (text.decode("utf-8") for text in texts)
        row = Row(system, prompt, chosen, None if kind == "sft" else rejected)
        ids = encode_example(template, tokenizer, row, kind, boundary)
        return [part for part in ids if part is not None]

    return seqio.Task(
        NAME,
        source=_source(builder),
        preprocessors=[lambda dataset: _tokenize(dataset, names, encode)],
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
                for number in order:
                    row = rows[int(number)]
                    yield {name: row[name] for name in (*_TEXTS, "margin")}

            signature: dict[str, Any] = {name: tf.TensorSpec((), tf.string) for name in _TEXTS}  # type: ignore[reportArgumentType]
            signature["margin"] = tf.TensorSpec((), tf.float32)  # type: ignore[reportArgumentType]
            return tf.data.Dataset.from_generator(read, output_signature=signature)

    return ArrayRecordSource()


def _tokenize(dataset: Any, names: tuple[str, ...], encode: Callable[..., list[np.ndarray]]) -> Any:
    import tensorflow as tf

    def encode_tensors(row: dict[str, Any]) -> dict[str, Any]:
        parts = tf.numpy_function(encode, [row[name] for name in _TEXTS], [tf.int32] * len(names))
        ids = {name: tf.ensure_shape(part, (None,)) for name, part in zip(names, parts, strict=True)}
        return ids | ({"margin": row["margin"]} if "rejected" in names else {})

    return dataset.map(encode_tensors, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
