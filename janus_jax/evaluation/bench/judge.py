"""Verdicts of a judge on answers: what it is asked, and the absolute kind, a score of 1 to 5 by each rubric."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from janus_jax.evaluation.bench import judgements
from janus_jax.evaluation.bench.asking import Item, Outcome, Prompts, ask
from janus_jax.evaluation.bench.rows import SCORES, BenchRow, Rubric
from janus_jax.evaluation.bench.verdicts import score
from janus_jax.storage.endpoint import Endpoint
from janus_jax.storage.endpoint_requests import Estimate, Messages, Reply


@dataclasses.dataclass(frozen=True)
class Judging:
    """How a judge is asked. The defaults are the paper's. An option that is None is not sent."""

    judge: str
    base_url: str
    runs: int = 3
    temperature: float | None = 1.0
    top_p: float | None = 0.9
    max_tokens: int | None = 1024
    max_completion_tokens: int | None = None
    seed: int | None = 0
    asks: int = 5
    """Most replies asked for one verdict."""
    show_system: bool = False
    """The judge sees the system message, before the prompt."""

    @property
    def options(self) -> dict[str, Any]:
        """Of requests."""
        names = ("temperature", "top_p", "max_tokens", "max_completion_tokens", "seed")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def settings(self, kind: str, prompts: Prompts) -> dict[str, Any]:
        """What decides the verdicts on given answers, as settings.json has it."""
        own = dataclasses.asdict(self) | {"base_url": self.base_url.rstrip("/")}
        return {"kind": kind, **own, "prompts": prompts.digest}

    def instruction(self, row: BenchRow) -> str:
        """What the judge sees of the row's question."""
        return f"{row.system}\n{row.prompt}" if self.show_system and row.system else row.prompt


@dataclasses.dataclass(frozen=True)
class Questions:
    """What a judge is asked."""

    names: Sequence[Mapping[str, Any]]
    """Of each question, as its line in judgements.jsonl has it: id, and the number of the rubric or of the order."""
    conversations: Sequence[Messages]
    verdict: str
    """What judgements.jsonl calls the verdict."""
    read: Callable[[Reply], Any]
    """The verdict in a reply to the question `place`; None: it is in doubt."""


def questions(rows: Sequence[BenchRow], answers: Sequence[str], prompts: Prompts, judging: Judging) -> Questions:
    """One for each rubric of each answer."""
    names, conversations = [], []
    for row, answer in zip(rows, answers, strict=True):
        for number, rubric in enumerate(row.rubrics):
            names.append({"id": row.id, "rubric": number})
            asked = {"instruction": judging.instruction(row), "reference_answer": row.reference_answer}
            conversations.append(prompts.fill(response=answer, rubric=rubric_text(rubric), **asked))
    return Questions(names, conversations, "score", read_score)


def rubric_text(rubric: Rubric) -> str:
    """The JSON of a rubric that a judge reads."""
    scores = {f"score{value}_description": text for value, text in zip(SCORES, rubric.scores, strict=True)}
    return json.dumps({"criteria": rubric.criteria, **scores}, indent=4, ensure_ascii=False)


def read_score(reply: Reply) -> int | None:
    return score(reply.text or "", is_cut=reply.finish_reason == "length")


def estimate(endpoint: Endpoint, questions: Questions, judging: Judging) -> Estimate:
    """What `verdicts` would ask for, if every first reply can be read."""
    return endpoint.estimate(questions.conversations, samples=judging.runs, **judging.options)


def verdicts(
    endpoint: Endpoint,
    directory: Path,
    questions: Questions,
    judging: Judging,
    *,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Mapping[str, Any]]:
    """Asks for all verdicts, and writes the directory's judgements.jsonl, also if an error ends it.

    What was judged before is in the endpoint's journal, and is not asked for again. Verdicts that failed before are
    tried again.

    Returns:
        The lines of judgements.jsonl for these questions, one for each question and run.

    Raises:
        ConfigError, StorageError: as `Endpoint.complete`.
    """
    outcomes: dict[Item, Outcome] = {}
    places = {judgements.key_of({**name, "run": 0})[:2]: place for place, name in enumerate(questions.names)}
    before = {
        (places[id, part], run): count
        for (id, part, run), count in judgements.replies_before(directory).items()
        if (id, part) in places
    }
    how = {"runs": judging.runs, "asks": judging.asks, "before": before, "tell": tell}
    try:
        ask(endpoint, questions.conversations, outcomes, questions.read, **how, **judging.options)
    finally:
        made = [_line(questions, *item, outcome) for item, outcome in sorted(outcomes.items())]
        lines = judgements.write_lines(directory, made)
    return lines


def _line(questions: Questions, place: int, run: int, outcome: Outcome) -> dict[str, Any]:
    return {
        **questions.names[place],
        "run": run,
        questions.verdict: outcome.value,
        "reason": outcome.reason,
        "feedback": outcome.text,
        "asked": outcome.asked,
        "prompt_tokens": outcome.prompt_tokens,
        "completion_tokens": outcome.completion_tokens,
    }
