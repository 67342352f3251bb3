"""Whether prompt and response, tokenized as one text, would be cut as they are stored.

Looked at are texts from the checked rows (DIR/tfds), not texts decoded from ids: decoding may lose what is asked for.
"""

import dataclasses

import numpy as np

from janus_jax.data.boundary import encode_example
from janus_jax.data.dataset import TokenizedDataset
from janus_jax.data.inspect.texts import read_texts
from janus_jax.data.inspect.token_text import Pieces, visible
from janus_jax.errors import DataError

SAMPLE = 200
_SHOWN = 2
_AROUND = 4


@dataclasses.dataclass(frozen=True)
class Difference:
    """An example that would be cut otherwise: pieces where the ids part, at the border of prompt and response."""

    form: str
    """How it was tokenized: with space, without space, prompt alone."""
    example: int
    stored: str
    otherwise: str


@dataclasses.dataclass(frozen=True)
class Borders:
    """Counts of sampled examples; a pair counts if any of its two texts differs."""

    boundary: str
    """As it was built."""
    checked: int
    of: int
    why_not: str
    """Reason if nothing could be checked."""
    other_rows: int
    """Examples whose row, tokenized as the manifest says, does not give the stored ids; not counted below."""
    prompt_alone: int
    """The prompt tokenized alone, as a server does it, gives other ids than those of the row."""
    with_space: int
    """Differ as one text with a space between, as chat templates of such tokenizers write it."""
    without_space: int
    """Differ as one text without a space between, as --boundary joint tokenizes."""
    shown: list[Difference]
    """The first few of each form."""


def check_borders(dataset: TokenizedDataset, index: np.ndarray, sample: int = SAMPLE) -> Borders:
    """Takes up to `sample` of the examples `index` (numbers in the split), evenly spread."""
    taken = index[np.unique(np.linspace(0, len(index) - 1, min(sample, len(index))).astype(np.int64))]
    try:
        rows = read_texts(dataset, taken.tolist())
    except DataError as error:
        return Borders(dataset.manifest.boundary, 0, len(index), str(error), 0, 0, 0, 0, [])
    tokenizer, form, manifest = dataset.tokenizer(), dataset.template(), dataset.manifest
    pieces = Pieces(tokenizer)
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    differ: dict[str, list[Difference]] = {"prompt alone": [], "with space": [], "without space": []}
    between = {"with space": " ", "without space": ""}
    other = 0
    for number, row, example in zip(taken.tolist(), rows, dataset.read(taken), strict=True):
        stored = [example.chosen] if example.rejected is None else [example.chosen, example.rejected]
        made = encode_example(form, tokenizer, row, manifest.kind, manifest.boundary)
        ours = [example.prompt, *stored]
        theirs = [ids for ids in made if ids is not None]
        if len(ours) != len(theirs) or not all(map(np.array_equal, ours, theirs)):
            other += 1
            continue
        prompt = form.prompt_text(row.system, row.prompt)
        texts = [form.response_text(text) for text in (row.chosen, row.rejected) if text is not None]
        cuts = [("prompt alone", example.prompt.tolist(), [*bos, *tokenizer.encode(prompt)])]
        for name, space in between.items():
            for ids, text in zip(stored, texts, strict=True):
                whole = [*bos, *tokenizer.encode(prompt + space + text), tokenizer.eos_id]
                cuts.append((name, [*example.prompt.tolist(), *ids.tolist()], whole))
        for name, here, there in cuts:
            if here != there and not (differ[name] and differ[name][-1].example == number):
                differ[name].append(_difference(name, number, pieces, here, there))
    counts = [len(found) for found in differ.values()]
    return Borders(
        manifest.boundary,
        len(taken),
        len(index),
        "",
        other,
        *counts,
        shown=[one for found in differ.values() for one in found[:_SHOWN]],
    )


def _difference(form: str, number: int, pieces: Pieces, stored: list[int], there: list[int]) -> Difference:
    pairs = zip(stored, there, strict=False)
    at = next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(stored), len(there)))
    span = slice(max(0, at - 2), at + _AROUND)
    shown = ("|".join(visible(piece) for piece in pieces.run(ids[span])) for ids in (stored, there))
    return Difference(form, number, *shown)
