"""Built data sets with known texts, and ones of given token ids with the embedded tokenizer."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from janus_jax.data.example import Example
from janus_jax.text.tokenizer import Tokenizer, load_tokenizer
from tests.support.training_examples import write_dataset

BOS, EOS = 1, 2


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return load_tokenizer(None)


@pytest.fixture
def write(tmp_path, tokenizer) -> Callable[..., Path]:
    """Writes a data set of texts, (prompt, chosen[, rejected]) each, or of lists of ids as they are."""

    def ids(text: str | list[int], *, prompt: bool) -> np.ndarray:
        if isinstance(text, str):
            text = [BOS, *tokenizer.encode(text)] if prompt else [*tokenizer.encode(text), EOS]
        return np.asarray(text, np.int32)

    def example(texts: Sequence[str | list[int]]) -> Example:
        prompt, *responses = texts
        return Example(ids(prompt, prompt=True), *(ids(response, prompt=False) for response in responses))

    def write(kind: str, name: str = "data", **splits: list[Sequence[str | list[int]]]) -> Path:
        examples = {split: [example(texts) for texts in rows] for split, rows in splits.items()}
        return write_dataset(tmp_path / name, examples, kind=kind, vocab=tokenizer.vocab_size)

    return write
