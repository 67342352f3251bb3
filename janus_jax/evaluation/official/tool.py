"""What an official tool reads: its questions, how they are answered by default, and its file of answers."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from janus_jax.data.columns import Columns
from janus_jax.evaluation.official.questions import Question


@dataclasses.dataclass(frozen=True)
class Answered:
    """A question and the answers to its turns."""

    question: Question
    answers: tuple[str, ...]
    tokens: tuple[int, ...]
    """Of the answers, in the model's own tokenizer."""
    time: float
    """When they were written, in seconds since 1970."""


@dataclasses.dataclass(frozen=True)
class Tool:
    """An official tool. The defaults are those with which it makes answers itself."""

    name: str
    release: str
    read: Callable[[Columns, str], Question]
    """A question of a row's columns and its place; raises RecordError."""
    path: Callable[[Path, str], Path]
    """The file of answers below a directory, of a model of that name."""
    write: Callable[[str, Sequence[Answered]], str]
    """The text of that file, of a model of that name."""
    references: tuple[Path, Callable[[Iterable[Mapping[str, Any]]], str]] | None
    """Where the tool reads reference answers, below a directory, and that file's text. None: questions have none."""
    same: tuple[str, ...]
    """Columns that all rows of questions have, or none."""
    turns: int
    temperature: float
    max_new_tokens: int
    temperatures: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """By category, where it does not use `temperature`."""

    def temperature_of(self, category: str) -> float:
        return self.temperatures.get(category, self.temperature)


def answer_id(name: str, answered: Answered) -> str:
    """22 characters that name an answer: the same for the same answer of a model to a question."""
    what = json.dumps([name, answered.question.id, answered.answers])
    return hashlib.sha256(what.encode()).hexdigest()[:22]


def lines(records: Iterable[Any]) -> str:
    """JSONL in ASCII: the tools read it in the encoding of the machine."""
    return "".join(json.dumps(record) + "\n" for record in records)
