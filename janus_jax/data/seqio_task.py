"""What the seqio Tasks of `cached_task.py` and `build/task.py` share: token features, and a source with random access.

`seqio.TfdsDataSource` reads tfrecord files only, so the source is written here.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from janus_jax.data.example import token_features
from janus_jax.data.tensorflow_quietly import import_seqio


def token_task(name: str, *, kind: str, vocab_size: int, eos_id: int, **options: Any) -> Any:
    """An unregistered `seqio.Task` with the token features of `kind`.

    The ids hold BOS and EOS already: a converter that adds its own would double them.
    """
    seqio = import_seqio()
    vocabulary = seqio.PassThroughVocabulary(vocab_size, eos_id=eos_id)
    features = {feature: seqio.Feature(vocabulary, add_eos=False) for feature in token_features(kind)}
    return seqio.Task(name, output_features=features, metric_fns=[], **options)


def random_access_source(
    shards: Mapping[str, int],
    sizes: Mapping[str, int] | None,
    open_split: Callable[[str, bool, int | None, slice, int | None], Any],
) -> Any:
    """A `seqio.DataSource` that any number of shards can read.

    Args:
        shards: files of each split.
        sizes: examples of each split; None leaves them unknown to seqio.
        open_split: makes a tf.data.Dataset from split, shuffle, seed, the slice of the order that the shard reads, and
            number of epochs.
    """
    seqio = import_seqio()

    class RandomAccessSource(seqio.DataSource):
        def __init__(self) -> None:
            super().__init__(splits=list(shards), num_input_examples=sizes)

        @property
        def supports_arbitrary_sharding(self) -> bool:
            return True

        def list_shards(self, split: str) -> Sequence[str]:
            return [str(number) for number in range(shards[split])]

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
            part = slice(None) if shard_info is None else slice(shard_info.index, None, shard_info.num_shards)
            return open_split(split, shuffle, seed, part, num_epochs)

    return RandomAccessSource()
