"""Answers of runs and of answer files, put side by side: the same question under several system messages."""

import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from janus_jax.storage import parts
from janus_jax.storage.bucket import BucketPath
from janus_jax.storage.local import Place

QUESTIONS, SYSTEMS, STEPS, ANSWERS = 12, 4, 5, 2
"""How many of these are shown of a question, a row, a run. The rest are counted."""
_FILE = re.compile(r"([0-9]{1,15})\.jsonl")


@dataclasses.dataclass(frozen=True)
class Sample:
    """Answers of one model to one question under one system message."""

    source: str
    """Label of the run or answer file."""
    step: int | None
    """None for an answer file."""
    system: str
    question: str
    """All turns but the system message."""
    answers: tuple[tuple[str, str], ...]
    """Text, and how it ended."""


@dataclasses.dataclass(frozen=True)
class Row:
    """Answers of one model at one step, a cell for each system message of the question."""

    source: str
    step: int | None
    cells: tuple[tuple[tuple[str, str], ...], ...]


@dataclasses.dataclass(frozen=True)
class Question:
    """A question, its system messages side by side, and how the answers change below each other."""

    text: str
    systems: tuple[str, ...]
    rows: tuple[Row, ...]
    left_out: int
    """Answers that are not shown."""


def sample_of(record: Any, source: str) -> Sample:
    """The answers in a line of samples, or of what `janus generate` writes.

    Raises:
        ValueError: the line is no such record.
    """
    if not isinstance(record, dict) or not isinstance(record.get("answers"), list):
        raise ValueError("has no answers")
    messages = record.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
        raise ValueError("has no messages")
    turns = [(str(one.get("role", "")), _text(one.get("content"))) for one in messages]
    system = "\n".join(text for role, text in turns if role == "system")
    rest = [(role, text) for role, text in turns if role != "system"]
    question = rest[0][1] if len(rest) == 1 else "\n\n".join(f"{role}: {text}" for role, text in rest)
    answers = tuple(
        (_text(one.get("text")), _ending(one)) if isinstance(one, dict) else (_text(one), "")
        for one in record["answers"]
    )
    step = record.get("step")
    return Sample(source, step if isinstance(step, int) else None, system, question, answers)


def read_lines(content: bytes, source: str, name: str) -> tuple[list[Sample], list[str]]:
    """Samples in lines of JSON, and a sentence for those that are none."""
    samples, bad = [], []
    for number, line in enumerate(content.decode("utf-8", "replace").split("\n"), 1):
        if line.strip():
            try:
                samples.append(sample_of(json.loads(line), source))
            except (ValueError, RecursionError):
                bad.append(number)
    more = f" and {len(bad) - 1:,} more lines" if len(bad) > 1 else ""
    return samples, [f"{name}:{bad[0]}{more}: no answers to messages, or cut short; left out"] if bad else []


def read_samples(folder: Path | Place, source: str) -> tuple[tuple[Sample, ...], list[str]]:
    """The samples of a run: of its first and newest step and of some between, and what cannot be read.

    Raises:
        StorageError: the folder cannot be read.
    """
    names = sorted((int(match[1]), name) for name in parts.names(folder) if (match := _FILE.fullmatch(name)))
    samples, missing = [], []
    for step, name in spread(names, STEPS):
        of_step, unread = read_lines(parts.content(folder / name) or b"", source, f"samples/{name}")
        samples += [dataclasses.replace(one, step=step) for one in of_step]
        missing += unread
    if len(names) > STEPS:
        where = folder.url if isinstance(folder, BucketPath) else folder
        missing.append(f"samples of {len(names) - STEPS:,} more steps are in {where}")
    return tuple(samples), missing


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """The first item, the last one, and some between, evenly."""
    if len(items) <= most:
        return list(items)
    return [items[round(number * (len(items) - 1) / (most - 1))] for number in range(most)]


def questions(samples: Iterable[Sample]) -> tuple[list[Question], int]:
    """Questions with their answers, those with the most system messages first; and how many more questions are left."""
    by_question: dict[str, list[Sample]] = {}
    for sample in samples:
        by_question.setdefault(sample.question, []).append(sample)
    grids = [_grid(text, own) for text, own in by_question.items()]
    grids.sort(key=lambda grid: -min(len(grid.systems), 2))  # sorting keeps the order of files otherwise
    return grids[:QUESTIONS], len(grids) - len(grids[:QUESTIONS])


def _grid(text: str, samples: list[Sample]) -> Question:
    systems = list(dict.fromkeys(sample.system for sample in samples))[:SYSTEMS]
    cells: dict[tuple[str, int | None], dict[str, list[tuple[str, str]]]] = {}
    for sample in samples:
        of_row = cells.setdefault((sample.source, sample.step), {})
        if sample.system in systems:
            of_row.setdefault(sample.system, []).extend(sample.answers)
    rows = tuple(
        Row(source, step, tuple(tuple(own.get(system, ())[:ANSWERS]) for system in systems))
        for (source, step), own in cells.items()
        if own
    )
    shown = sum(len(cell) for row in rows for cell in row.cells)
    return Question(text, tuple(systems), rows, sum(len(sample.answers) for sample in samples) - shown)


def _ending(answer: dict[str, Any]) -> str:
    tokens, reason = answer.get("tokens"), answer.get("finish_reason")
    counted = f"{tokens:,} tokens" if isinstance(tokens, int) else ""
    why = {"stop": "ended by itself", "length": "cut at the limit"}.get(str(reason), "")
    return ", ".join(part for part in (counted, why) if part)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
