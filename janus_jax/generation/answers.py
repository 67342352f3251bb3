"""Answers to a file of prompts, many at a time; a command that was stopped goes on where it was."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from janus_jax.generation.engine import Engine
from janus_jax.generation.journal import Journal
from janus_jax.generation.memory import longest_row
from janus_jax.generation.progress import Progress
from janus_jax.generation.prompt_file import PromptRow
from janus_jax.generation.requests import Event, Request

WRITTEN = ("messages", "prompt_tokens", "answers")
"""Columns of the output, beside those of the row."""


@dataclasses.dataclass
class _Answer:
    text: str = ""
    ids: list[int] = dataclasses.field(default_factory=list)
    logps: list[float] = dataclasses.field(default_factory=list)
    reason: str | None = None

    def add(self, event: Event) -> None:
        self.text += event.text
        self.ids += event.ids
        self.logps += event.logps
        self.reason = event.reason

    def record(self, log_probs: bool) -> dict[str, Any]:
        scores = {"log_prob": sum(self.logps), "token_ids": self.ids, "token_log_probs": self.logps}
        return {"text": self.text, "finish_reason": self.reason, "tokens": len(self.ids)} | (
            scores if log_probs else {}
        )


def answer(
    engine: Engine,
    rows: Sequence[PromptRow],
    requests: Sequence[Request],
    left: Sequence[int],
    journal: Journal | None,
    *,
    log_probs: bool,
    tell: Callable[[str], None],
) -> None:
    """Answers some prompts. Several processes call it alike, and process 0 keeps the journal.

    Args:
        rows: None of them in other processes than 0.
        requests: one for each row, named by its number.
        left: numbers of the rows to answer (`begin`).
        journal: None in other processes than 0.
        log_probs: also write ids and log-probs of tokens.
        tell: gets a line of progress now and then.
    """
    for number, answers in _finished(engine, requests, left, tell):
        if journal is None:
            continue
        row, request = rows[number], requests[number]
        journal.add(
            number,
            {
                **row.rest,
                "messages": list(row.messages),
                "prompt_tokens": len(request.ids),
                "answers": [one.record(log_probs) for one in answers],
            },
        )


def _finished(
    engine: Engine, requests: Sequence[Request], left: Sequence[int], tell: Callable[[str], None]
) -> Iterator[tuple[int, list[_Answer]]]:
    """(number, answers) of requests whose samples all ended."""
    growing: dict[int, list[_Answer]] = {}
    tokens, finished, progress = 0, 0, Progress(len(left), "prompts", "tokens", tell)
    # Of all requests, so that a command that goes on runs the same programs.
    length = longest_row(engine.config, requests, engine.steps_per_call)
    for event in engine.generate((requests[number] for number in left), length=length):
        number = left[event.request]
        answers = growing.setdefault(number, [_Answer() for _ in range(requests[number].samples)])
        answers[event.sample].add(event)
        tokens += len(event.ids)
        if all(one.reason for one in answers):
            finished += 1
            yield number, growing.pop(number)
        progress(finished, tokens)
