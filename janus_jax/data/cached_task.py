"""Built data sets and mixtures for those who train with seqio: a Task whose source reads token ids by number.

`seqio.Mixture` draws by chance, and has a state that must be saved. A mixture of ours is a source like any other: which
example comes at which place is a function of seed and epoch alone (mixture.py), on any number of shards.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from janus_jax.data.dataset import Dataset
from janus_jax.data.tensorflow_quietly import import_seqio

_EXAMPLES_AT_ONCE = 64


def cached_task(examples: Dataset) -> Any:
    """A `seqio.Task` over one split of a built data set, or over a mixture; not registered anywhere.

    Its features are int32 ids of any length: `prompt`, `chosen` (the response, for sft) and, for pairs, `rejected`, BOS
    and EOS in them. Beside the features of pairs goes `margin`, a float32. With `shuffle`, an epoch's order is a
    function of seed (None: 0) and epoch; shard i of n reads every n-th example of that order. A data set that is
    iterated once more goes on with the next epoch.
    """
    seqio = import_seqio()
    tokenizer = examples.parts[0].manifest.tokenizer
    vocabulary = seqio.PassThroughVocabulary(tokenizer["vocab_size"], eos_id=tokenizer["eos"])
    names = ("prompt", "chosen") if examples.kind == "sft" else ("prompt", "chosen", "rejected")
    return seqio.Task(
        "janus_examples",
        source=_source(examples, names),
        preprocessors=[],
        output_features={name: seqio.Feature(vocabulary, add_eos=False) for name in names},
        metric_fns=[],
        shuffle_buffer_size=1,  # the source shuffles; a larger buffer would mix epochs
    )


def _source(examples: Dataset, names: tuple[str, ...]) -> Any:
    seqio = import_seqio()
    import tensorflow as tf

    everything = np.arange(len(examples))

    class BuiltSource(seqio.DataSource):
        def __init__(self) -> None:
            # no sizes: of small data sets seqio would keep the first epoch and repeat that
            super().__init__(splits=[examples.split], num_input_examples=None)

        @property
        def supports_arbitrary_sharding(self) -> bool:
            return True  # examples are read by number

        def list_shards(self, split: str) -> Sequence[str]:
            return ["0"]

        def get_dataset(
            self,
            split: str = "train",
            shuffle: bool = True,
            seed: int | None = None,
            shard_info: Any = None,
            *,
            sequence_length: Any = None,
            use_cached: bool = False,
            num_epochs: int | None = 1,
        ) -> Any:
            epochs = itertools.count()  # seqio repeats the data set, and each time begins the generator anew

            def read() -> Any:
                for epoch in itertools.islice(epochs, num_epochs):
                    order = examples.draw(everything, seed or 0, epoch)
                    if shuffle:
                        order = order[np.random.default_rng((seed or 0, epoch)).permutation(len(order))]
                    if shard_info is not None:
                        order = order[shard_info.index :: shard_info.num_shards]
                    for start in range(0, len(order), _EXAMPLES_AT_ONCE):
                        for example in examples.read(order[start : start + _EXAMPLES_AT_ONCE]):
                            features = {name: getattr(example, name) for name in names}
                            yield features if len(names) == 2 else features | {"margin": np.float32(example.margin)}

            signature: dict[str, Any] = {name: tf.TensorSpec((None,), tf.int32) for name in names}  # type: ignore[reportArgumentType]
            if len(names) == 3:
                signature["margin"] = tf.TensorSpec((), tf.float32)  # type: ignore[reportArgumentType]
            return tf.data.Dataset.from_generator(read, output_signature=signature)

    return BuiltSource()
