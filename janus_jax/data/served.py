"""Compares built examples with what a server would read (text/served.py), at the build and for the inspector."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from janus_jax.data.dataset import Manifest, TokenizedDataset
from janus_jax.data.texts import read_texts
from janus_jax.text.chat_format import ChatFormat
from janus_jax.text.served import CONVERSATIONS, SAMPLE, Conversation, check_built, write_conversations
from janus_jax.text.template_fit import replaced_template, template_note


def conversations_of(dataset: TokenizedDataset, numbers: np.ndarray) -> list[Conversation]:
    """Examples with their texts. Raises DataError if the texts cannot be read."""
    records = read_texts(dataset, numbers.tolist())
    return [
        Conversation(
            name=f"{dataset.split} example {number}",
            system=record.system,
            prompt=record.prompt,
            responses=[text for text in (record.chosen, record.rejected) if text is not None],
            prompt_ids=example.prompt.tolist(),
            response_ids=[ids.tolist() for ids in (example.chosen, example.rejected) if ids is not None],
        )
        for number, record, example in zip(numbers.tolist(), records, dataset.read(numbers), strict=True)
    ]


def check_stored(directory: Path, manifest: Manifest, chat: ChatFormat) -> dict[str, Any]:
    """Compares up to `SAMPLE` examples of each split, evenly spaced, and stores them beside the tokenizer.

    Returns:
        The fields of a `ServedCheck`, and the `template_note`, which may be that of `replaced_template`.

    Raises:
        DataError: a server would read one of them in another way; shows both.
    """
    conversations = []
    for split, facts in manifest.splits.items():
        sampled = np.unique(np.linspace(0, facts.examples - 1, min(SAMPLE, facts.examples)).astype(np.int64))
        conversations += conversations_of(TokenizedDataset(directory, split), sampled)
    check = check_built(chat, conversations, whole=manifest.kind == "rm")
    write_conversations(directory / "tokenizer" / CONVERSATIONS, conversations)
    note = template_note(chat) or replaced_template(chat, chat.tokenizer.chat_template, "the tokenizer")
    return dataclasses.asdict(check) | {"template_note": note}
