"""`TINY`, the model of training, random examples, and data sets of them."""

from pathlib import Path

import numpy as np

from janus_jax.data.example import Example
from janus_jax.model.config import ModelConfig

TINY = ModelConfig(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rope_theta=1e4,
    initializer_range=0.3,  # large weights: logits far from uniform, so that errors show
)


def random_examples(count: int, *, pairs: bool, seed: int = 0, vocab: int = 96, longest: int = 12) -> list[Example]:
    """Examples of unequal lengths; prompts may have a single token, pad-like ids occur inside."""
    rng = np.random.default_rng(seed)

    def ids(low: int) -> np.ndarray:
        return rng.integers(0, vocab, rng.integers(low, longest + 1)).astype(np.int32)

    return [
        Example(prompt=ids(1), chosen=ids(1), rejected=ids(1) if pairs else None, example_id=i) for i in range(count)
    ]


def write_dataset(directory: Path, splits: dict[str, list[Example]], *, kind: str, vocab: int = 96) -> Path:
    """A built data set with given token ids, without TensorFlow: what `janus data build` leaves for the loader."""
    from array_record.python.array_record_module import ArrayRecordWriter

    from janus_jax.data.dataset import Manifest, Split
    from janus_jax.text.tokenizer import load_tokenizer

    counts = {}
    for name, examples in splits.items():
        (directory / name).mkdir(parents=True)
        parts = [[e.prompt, e.chosen] + ([] if e.rejected is None else [e.rejected]) for e in examples]
        lengths = np.zeros((len(examples), 3), np.int32)
        for row, part in zip(lengths, parts, strict=True):
            row[: len(part)] = [len(ids) for ids in part]
        np.save(directory / name / "lengths.npy", lengths)
        writer = ArrayRecordWriter(str(directory / name / "tokens-00000-of-00001.array_record"), "group_size:1")
        for part in parts:
            writer.write(np.concatenate(part).astype("<i4").tobytes())
        writer.close()
        counts[name] = Split(len(examples), int(lengths.sum()), {})
    tokenizer = load_tokenizer(None)
    tokenizer.save(directory / "tokenizer")
    described = {"fingerprint": tokenizer.fingerprint, "vocab_size": vocab, "bos": 1, "eos": 2}
    Manifest(kind, "chatml", "random", described, counts, fingerprint=f"random-{kind}").save(directory)
    return directory
