"""Built data sets and mixtures for trainers that use seqio: a Task whose source reads token ids by example number.

`seqio.Mixture` draws at random and has a state that must be saved. A `Mixture` of this package is a source like any
other: seed and epoch alone decide which example comes where (mixture.py), on any number of shards.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from janus_jax.data.dataset import Dataset
from janus_jax.data.example import token_features
from janus_jax.data.seqio_task import random_access_source, token_task
from janus_jax.data.tensorflow_quietly import import_seqio

_EXAMPLES_AT_ONCE = 64


def cached_task(dataset: Dataset) -> Any:
    """An unregistered `seqio.Task` over one split of a built data set, or over a mixture.

    Its features are int32 ids of any length: `prompt`, `chosen` (the response, for sft) and, for pairs, `rejected`; BOS
    and EOS are in them. Pairs also have `margin`, a float32. With `shuffle`, the order of an epoch is a function of
    seed (None: 0) and epoch; shard i of n reads every n-th example of that order. Each further iteration of the data
    set reads the next epoch.
    """
    tokenizer = dataset.parts[0].manifest.tokenizer
    return token_task(
        "janus_examples",
        kind=dataset.kind,
        vocab_size=tokenizer["vocab_size"],
        eos_id=tokenizer["eos"],
        source=_source(dataset),
        preprocessors=[],
        shuffle_buffer_size=1,  # the source shuffles; a larger buffer would mix epochs
    )


def _source(dataset: Dataset) -> Any:
    import_seqio()  # keeps TensorFlow quiet
    import tensorflow as tf

    names = token_features(dataset.kind)
    everything = np.arange(len(dataset))
    signature: dict[str, Any] = {name: tf.TensorSpec((None,), tf.int32) for name in names}  # type: ignore[reportArgumentType]
    if "rejected" in names:
        signature["margin"] = tf.TensorSpec((), tf.float32)  # type: ignore[reportArgumentType]

    def open_split(_split: str, shuffle: bool, seed: int | None, shard: slice, num_epochs: int | None) -> Any:
        epochs = itertools.count()  # shared, because seqio repeats the data set and starts a new generator each time

        def read() -> Iterator[dict[str, Any]]:
            for epoch in itertools.islice(epochs, num_epochs):
                order = dataset.draw(everything, seed or 0, epoch)
                if shuffle:
                    order = order[np.random.default_rng((seed or 0, epoch)).permutation(len(order))]
                order = order[shard]
                for start in range(0, len(order), _EXAMPLES_AT_ONCE):
                    for example in dataset.read(order[start : start + _EXAMPLES_AT_ONCE]):
                        yield {name: getattr(example, name) for name in signature}

        return tf.data.Dataset.from_generator(read, output_signature=signature)

    # without sizes: seqio would keep the first epoch of a small data set and repeat it
    return random_access_source({dataset.split: 1}, None, open_split)
