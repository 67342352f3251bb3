"""Random tiny models and examples shared by tests."""

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
