"""The prompts of the section `samples`, read and checked before any device is used."""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from janus_jax.config.run import RunConfig
from janus_jax.config.samples import SamplesSection
from janus_jax.data.dataset import Dataset
from janus_jax.errors import DataError, counted, named
from janus_jax.generation import prompt_file
from janus_jax.generation.prompt_file import PromptRow, read_prompts
from janus_jax.generation.prompts import PromptFormat, trained_format
from janus_jax.generation.requests import Request, check
from janus_jax.generation.sampling import SamplingOptions
from janus_jax.generation.stopping import StoppingOptions
from janus_jax.model.config import ModelConfig

WRITTEN = ("step", "system", "messages", "prompt_tokens", "answers")
"""Keys of a line of samples; columns of a prompt's row that have these names are left out."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """One prompt under one system message."""

    prompt: int
    """Number of its row, from 0 on."""
    system: str
    """Empty: none."""
    messages: tuple[dict[str, str], ...]
    rest: dict[str, Any]
    """Columns of the row that are no part of the prompt."""
    request: Request


@dataclasses.dataclass(frozen=True)
class SamplePrompts:
    """What is asked at every sampling."""

    section: SamplesSection
    written: PromptFormat
    asked: tuple[Asked, ...]
    """Prompt by prompt, each under all its system messages."""
    notes: tuple[str, ...]
    """What of the file is used otherwise than one may think, one sentence each."""

    @property
    def prompts(self) -> int:
        """Number of prompts."""
        return self.asked[-1].prompt + 1

    @property
    def rows(self) -> int:
        """Answers that grow at the same time."""
        return min(self.section.rows, self.section.n * len(self.asked))

    @property
    def longest_prompt(self) -> int:
        """Its tokens."""
        return max(len(one.request.ids) for one in self.asked)

    @property
    def fingerprint(self) -> str:
        """The same for equal prompts."""
        ids = [[list(one.request.ids), one.messages, one.rest] for one in self.asked]
        return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]


def open_sample_prompts(config: RunConfig, model: ModelConfig, dataset: Dataset) -> SamplePrompts | None:
    """Reads the prompts of `samples`, as the data writes prompts; None without the section.

    Raises:
        ConfigError: options of sampling that are not allowed.
        DataError: "samples.prompts: FILE:LINE: ..." for a row that cannot be answered; also for one that is as long as
            the rows of training or the model's longest text.
        StorageError: the URL of the prompts cannot be read.
    """
    section = config.samples
    if section is None:
        return None
    with named("samples"):
        sampling = SamplingOptions(
            section.temperature, section.top_k, section.top_p, section.min_p, section.repetition_penalty
        )
        stopping = StoppingOptions(section.max_new_tokens, section.min_new_tokens, tuple(section.stop))
    unread: Counter[str] = Counter()
    written, asked = trained_format(dataset.chat_format()), []
    with named("samples.prompts"):
        rows = read_prompts(section.prompts, unread=unread)
        for number, row in enumerate(rows):
            for system, messages in _variants(row, section.systems):
                with named(row.place):
                    ids = written.encode(messages)
                request = Request(ids, section.n, stopping, sampling, section.seed, name=number)
                check(model, row.place, request)
                if len(ids) >= config.batch.row_length:
                    most = f"at most {config.batch.row_length - 1:,}, for batch.row_length = {config.batch.row_length}"
                    raise DataError(row.place, f"has {len(ids):,} tokens; allowed: {most}")
                rest = {name: value for name, value in row.rest.items() if name not in WRITTEN}
                asked.append(Asked(number, system, tuple(messages), rest, request))
    prompts = SamplePrompts(section, written, tuple(asked), ())
    return dataclasses.replace(prompts, notes=tuple(_notes(prompts, rows, unread, model)))


def _variants(row: PromptRow, systems: Sequence[str] | None) -> list[tuple[str, list[dict[str, str]]]]:
    """Each system message, and the conversation under it."""
    own = row.messages[0]["content"] if row.messages[0]["role"] == "system" else ""
    turns = [message for message in row.messages if message["role"] != "system"]
    return [
        (system, [*([{"role": "system", "content": system}] if system else []), *turns])
        for system in ([own] if systems is None else systems)
    ]


def _notes(prompts: SamplePrompts, rows: Sequence[PromptRow], unread: Counter[str], model: ModelConfig) -> list[str]:
    section, notes = prompts.section, []
    notes += (f"{section.prompts}: {note}" for note in prompt_file.notes(rows, unread, left_out=WRITTEN))
    own = sum(row.messages[0]["role"] == "system" for row in rows)
    if own and section.systems is not None:
        whose = counted(own, "row")
        notes.append(f"samples.systems replaces the system message of {whose} of {section.prompts}")
    room = (window := model.max_position_embeddings) - prompts.longest_prompt
    if room < section.max_new_tokens:
        notes.append(
            f"samples.max_new_tokens = {section.max_new_tokens}: the longest prompt leaves room for {room:,} tokens, "
            f"as the model's longest text is {window:,}"
        )
    return notes
