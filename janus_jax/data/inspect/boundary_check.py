"""Whether tokenizing prompt and response as one text gives the stored ids.

The texts come from the checked records (DIR/tfds) and not from decoded ids, which may lose the very difference.
"""

import dataclasses
from typing import Any

import numpy as np

from janus_jax.data.boundary import encode_example
from janus_jax.data.dataset import TokenizedDataset
from janus_jax.data.inspect.token_text import TokenDecoder, visible
from janus_jax.data.served import conversations_of
from janus_jax.data.texts import read_texts
from janus_jax.errors import DataError
from janus_jax.text.chat_format import ChatFormat
from janus_jax.text.served import check_built
from janus_jax.text.template_fit import template_note

SAMPLE = 200
_NAMED = 2
"""How many differing examples are named for each way to tokenize."""
_CONTEXT = (2, 4)
"""Tokens shown before, and from, the first that differs."""


@dataclasses.dataclass(frozen=True)
class BoundaryDifference:
    """An example whose ids differ, with the texts of the tokens where they do."""

    tokenization: str
    """prompt alone, with space, or without space."""
    example: int
    stored: str
    other: str


@dataclasses.dataclass(frozen=True)
class BoundaryCheck:
    """Counts of sampled examples; a pair counts if either of its texts differs."""

    boundary: str
    """--boundary of the build."""
    checked: int
    examples: int
    skipped_because: str
    """Why nothing could be checked, or empty."""
    not_reproduced: int
    """Examples whose text, tokenized as the manifest says, does not give the stored ids; not counted below."""
    prompt_alone: int
    """The prompt tokenized alone, as a server does, differs."""
    with_space: int
    """One text with a space between, as chat templates of such tokenizers write it, differs."""
    without_space: int
    """One text without a space between, as --boundary joint tokenizes, differs."""
    differences: list[BoundaryDifference]
    """The first few of each tokenization."""
    served: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Counts of `text.served.ServedCheck`: what a server reads from an export."""
    not_served: str = ""
    """Why a server would read an example in another way, or empty."""
    template_note: str = ""
    """Why the template may be the wrong one for the tokenizer, or empty."""


def check_boundary(dataset: TokenizedDataset, index: np.ndarray, sample: int = SAMPLE) -> BoundaryCheck:
    """Checks up to `sample` of the examples `index` (numbers in the split), evenly spaced."""
    sampled = index[np.unique(np.linspace(0, len(index) - 1, min(sample, len(index))).astype(np.int64))]
    manifest, chat = dataset.manifest, dataset.chat_format()
    note = template_note(chat)
    try:
        records = read_texts(dataset, sampled.tolist())
    except DataError as error:
        return BoundaryCheck(manifest.boundary, 0, len(index), str(error), 0, 0, 0, 0, [], template_note=note)
    decoder = TokenDecoder(chat.tokenizer)
    differences: dict[str, list[BoundaryDifference]] = {"prompt alone": [], "with space": [], "without space": []}
    between = {"with space": " ", "without space": ""}
    not_reproduced = 0
    for number, record, example in zip(sampled.tolist(), records, dataset.read(sampled), strict=True):
        stored = [example.chosen] if example.rejected is None else [example.chosen, example.rejected]
        reproduced = [ids for ids in encode_example(chat, record, manifest.kind) if ids is not None]
        if len(reproduced) != 1 + len(stored) or not all(map(np.array_equal, [example.prompt, *stored], reproduced)):
            not_reproduced += 1
            continue
        texts = [text for text in (record.chosen, record.rejected) if text is not None]
        compared = [("prompt alone", example.prompt.tolist(), chat.encode_prompt(record.system, record.prompt))]
        for name, space in between.items():
            for ids, text in zip(stored, texts, strict=True):
                whole = chat.encode_whole(record.system, record.prompt, text, space)
                compared.append((name, [*example.prompt.tolist(), *ids.tolist()], whole))
        for name, ids, others in compared:
            if ids != others and not (differences[name] and differences[name][-1].example == number):
                differences[name].append(_difference(name, number, decoder, ids, others))
    served, not_served = _served(dataset, chat, sampled, not_reproduced)
    return BoundaryCheck(
        manifest.boundary,
        len(sampled),
        len(index),
        "",
        not_reproduced,
        *map(len, differences.values()),
        differences=[difference for named in differences.values() for difference in named[:_NAMED]],
        served=served,
        not_served=not_served,
        template_note=note,
    )


def _served(
    dataset: TokenizedDataset, chat: ChatFormat, sampled: np.ndarray, not_reproduced: int
) -> tuple[dict[str, Any], str]:
    """What a server reads, and why that is not what was trained."""
    if not_reproduced:  # then the texts say nothing of the ids
        return {}, ""
    try:
        conversations = conversations_of(dataset, sampled)
        return dataclasses.asdict(check_built(chat, conversations, whole=dataset.kind == "rm")), ""
    except DataError as error:
        return {}, str(error)


def _difference(
    tokenization: str, example: int, decoder: TokenDecoder, stored: list[int], other: list[int]
) -> BoundaryDifference:
    pairs = zip(stored, other, strict=False)
    first = next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(stored), len(other)))
    span = slice(max(0, first - _CONTEXT[0]), first + _CONTEXT[1])
    texts = ("|".join(map(visible, decoder.tokens(ids[span]))) for ids in (stored, other))
    return BoundaryDifference(tokenization, example, *texts)
