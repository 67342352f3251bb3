"""Answers to a file of prompts, many at a time; a command that was stopped goes on where it was."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from janus_jax.generation.engine import Engine
from janus_jax.generation.journal import Journal
from janus_jax.generation.memory import longest_row
from janus_jax.generation.progress import Progress
from janus_jax.generation.prompt_file import PromptRow
from janus_jax.generation.requests import Event, Reason, Request

WRITTEN = ("messages", "prompt_tokens", "answers")
"""Columns of the output, beside those of the row."""


@dataclasses.dataclass
class Answer:
    """One answer, as it grows."""

    text: str = ""
    ids: list[int] = dataclasses.field(default_factory=list)
    logps: list[float] = dataclasses.field(default_factory=list)
    finish_reason: Reason | None = None

    @property
    def log_prob(self) -> float:
        """Of all its tokens."""
        return sum(self.logps)

    def add(self, event: Event) -> None:
        self.text += event.text
        self.ids += event.ids
        self.logps += event.logps
        self.finish_reason = event.reason

    def record(self) -> dict[str, Any]:
        """What a line of output says of it."""
        return {"text": self.text, "finish_reason": self.finish_reason, "tokens": len(self.ids)}

    def scores(self) -> dict[str, Any]:
        """Its log-probs, for a line of output."""
        return {"log_prob": self.log_prob, "token_ids": self.ids, "token_log_probs": self.logps}


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
                **({"prompt": row.messages[-1]["content"]} if request.continues else {"messages": list(row.messages)}),
                "prompt_tokens": len(request.ids),
                "answers": [one.record() | (one.scores() if log_probs else {}) for one in answers],
            },
        )


def _finished(
    engine: Engine, requests: Sequence[Request], left: Sequence[int], tell: Callable[[str], None]
) -> Iterator[tuple[int, list[Answer]]]:
    """(number, answers) of requests whose samples all ended."""
    growing: dict[int, list[Answer]] = {}
    tokens, finished, progress = 0, 0, Progress(len(left), "prompts", "tokens", tell)
    # Of all requests, so that a command that goes on runs the same programs.
    length = longest_row(engine.config, requests, engine.steps_per_call)
    for event in engine.generate((requests[number] for number in left), length=length):
        number = left[event.request]
        answers = growing.setdefault(number, [Answer() for _ in range(requests[number].samples)])
        answers[event.sample].add(event)
        tokens += len(event.ids)
        if all(one.finish_reason for one in answers):
            finished += 1
            yield number, growing.pop(number)
        progress(finished, tokens)
