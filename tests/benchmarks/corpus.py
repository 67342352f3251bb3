"""Rows like those of the Multifaceted Collection in number, columns, bytes and lengths; their words mean nothing.

The published statistics: 196,998 rows of six columns, 1.16 GB, three system messages and responses an instruction,
about 1,000 tokens a row. Lengths in tokens are lognormal: prompt (system message and instruction) with median 330 and
sigma 0.5, response with median 520 and sigma 0.55.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from janus_jax.data.sample import SPLITS, sample_records

_CHARACTERS_A_TOKEN = 3.9
"""Of the words below, in the embedded tokenizer."""

_RESPONSES = 3
_SYSTEM_SHARE = 0.62
"""Of a prompt's tokens: system messages of the Multifaceted Bench have 682 to 1,370 characters."""

_CHUNK = 3000
DIMENSIONS = ("style", "background_knowledge", "informativeness", "harmlessness")


def rows(count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """`count` rows, the responses of an instruction next to each other."""
    rng = np.random.default_rng(seed)
    text = _words(rng)

    def take(tokens: float) -> str:
        size = max(4, int(tokens * _CHARACTERS_A_TOKEN))
        start = int(rng.integers(0, len(text) - size))
        return text[start : start + size].strip() or "word"

    for number in range(count):
        if number % _RESPONSES == 0:
            prompt_tokens = float(rng.lognormal(np.log(330), 0.5))
            instruction = f"{number // _RESPONSES}. {take((1 - _SYSTEM_SHARE) * prompt_tokens)}"
        yield {
            "main_source": "synthetic",
            "original_source": "words",
            "preference_set": [
                {"dimension": name, "subdimension": take(2), "preference": take(6), "description": take(75)}
                for name in DIMENSIONS
            ],
            "system": take(_SYSTEM_SHARE * prompt_tokens),
            "prompt": instruction,
            "output": take(float(rng.lognormal(np.log(520), 0.55))),
        }


def write_parquet(directory: Path, count: int, *, files: int = 3, seed: int = 0) -> int:
    """Writes `train-*.parquet` as the hub has them; returns the bytes of the columns, uncompressed."""
    import pyarrow
    import pyarrow.parquet

    directory.mkdir(parents=True, exist_ok=True)
    source, size = rows(count, seed), 0
    for number in range(files):
        path = directory / f"train-{number:05d}-of-{files:05d}.parquet"
        left = count * (number + 1) // files - count * number // files
        writer = None
        while left:
            chunk = [next(source) for _ in range(min(left, _CHUNK))]
            left -= len(chunk)
            table = pyarrow.Table.from_pylist(chunk)
            size += table.nbytes
            writer = writer or pyarrow.parquet.ParquetWriter(path, table.schema)
            writer.write_table(table)
        if writer is not None:
            writer.close()
    return size


def _words(rng: np.random.Generator) -> str:
    """9 MB of the embedded sample's words in random order."""
    texts = [row[column] for split in SPLITS for row in sample_records(split) for column in ("system", "output")]
    words = np.array(re.findall(r"\S+", " ".join(texts)))
    return " ".join(rng.choice(words, 1_400_000).tolist())
