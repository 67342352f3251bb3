"""Absolute judgements: a score from 1 to 5 for each rubric of each answer, several times."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from janus_jax.evaluation.bench import judgements
from janus_jax.evaluation.bench.asking import Item, Outcome, Prompts, ask
from janus_jax.evaluation.bench.rows import SCORES, BenchRow, Rubric, digest
from janus_jax.evaluation.bench.verdicts import score
from janus_jax.storage.endpoint import Endpoint
from janus_jax.storage.endpoint_requests import Estimate, Messages, Reply


@dataclasses.dataclass(frozen=True)
class Judging:
    """How a judge is asked. The defaults are the paper's."""

    judge: str
    base_url: str
    runs: int = 3
    temperature: float = 1.0
    top_p: float = 0.9
    max_tokens: int = 1024
    seed: int = 0
    asks: int = 5
    """Most replies asked for one verdict."""
    show_system: bool = False
    """The judge sees the system message, before the prompt."""

    @property
    def options(self) -> dict[str, Any]:
        """Of requests."""
        return {"temperature": self.temperature, "top_p": self.top_p, "max_tokens": self.max_tokens}

    def settings(self, kind: str, prompts: Prompts, rows: Sequence[BenchRow], **texts: Sequence[str]) -> dict[str, Any]:
        """What decides the verdicts, as settings.json has it. `texts` are answers, by name."""
        return {
            "kind": kind,
            **dataclasses.asdict(self),
            "base_url": self.base_url.rstrip("/"),
            "prompts": prompts.digest,
            "rows": len(rows),
            "rows_digest": digest([dataclasses.asdict(dataclasses.replace(row, place="")) for row in rows]),
            **{f"{name}_digest": digest(list(answers)) for name, answers in texts.items()},
        }

    def instruction(self, row: BenchRow) -> str:
        """What the judge sees of the row's question."""
        return f"{row.system}\n{row.prompt}" if self.show_system and row.system else row.prompt


def conversations(
    rows: Sequence[BenchRow], answers: Sequence[str], prompts: Prompts, judging: Judging
) -> tuple[list[tuple[int, int]], list[Messages]]:
    """(row, rubric) of each question to the judge, and its messages."""
    keys = [(number, rubric) for number, row in enumerate(rows) for rubric in range(len(row.rubrics))]
    asked = [
        prompts.fill(
            instruction=judging.instruction(rows[number]),
            response=answers[number],
            reference_answer=rows[number].reference_answer,
            rubric=rubric_text(rows[number].rubrics[rubric]),
        )
        for number, rubric in keys
    ]
    return keys, asked


def rubric_text(rubric: Rubric) -> str:
    """The JSON of a rubric that a judge reads."""
    scores = {f"score{value}_description": text for value, text in zip(SCORES, rubric.scores, strict=True)}
    return json.dumps({"criteria": rubric.criteria, **scores}, indent=4, ensure_ascii=False)


def estimate(endpoint: Endpoint, asked: Sequence[Messages], judging: Judging) -> Estimate:
    """What `judge` would ask for, if every first reply can be read."""
    return endpoint.estimate(asked, samples=judging.runs, seed=judging.seed, **judging.options)


def judge(
    endpoint: Endpoint,
    directory: Path,
    rows: Sequence[BenchRow],
    answers: Sequence[str],
    prompts: Prompts,
    judging: Judging,
    *,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Mapping[str, Any]]:
    """Judges all answers, and writes the directory's judgements.jsonl, also if an error ends it.

    What was judged before is in the endpoint's journal, and is not asked for again. Verdicts that failed before are
    tried again.

    Returns:
        The lines of judgements.jsonl, one for each row, rubric and run.

    Raises:
        ConfigError, StorageError: as `Endpoint.complete`.
    """
    keys, asked = conversations(rows, answers, prompts, judging)

    def line(place: int, run: int, outcome: Outcome) -> dict[str, Any]:
        row, rubric = keys[place]
        return {"id": rows[row].id, "rubric": rubric, "run": run, "score": outcome.value, **rest(outcome)}

    places = {(rows[row].id, rubric): place for place, (row, rubric) in enumerate(keys)}
    return verdicts(endpoint, directory, asked, read_score, places, line, judging, tell=tell)


def verdicts(
    endpoint: Endpoint,
    directory: Path,
    asked: Sequence[Messages],
    read: Callable[[Reply], Any],
    places: Mapping[tuple[str, int], int],
    line: Callable[[int, int, Outcome], dict[str, Any]],
    judging: Judging,
    *,
    tell: Callable[[str], None],
) -> list[Mapping[str, Any]]:
    """Asks for verdicts, and writes what came of them, also where asking ends with an error.

    Args:
        asked: conversations.
        read: the verdict in a reply; None: ask again.
        places: what judgements.jsonl calls a conversation -> its place in `asked`.
        line: of a place, a run and what came of them, for judgements.jsonl.
    """
    outcomes: dict[Item, Outcome] = {}
    before = {
        (places[row, part], run): count
        for (row, part, run), count in judgements.replies_before(directory).items()
        if (row, part) in places
    }
    how = {"runs": judging.runs, "asks": judging.asks, "seed": judging.seed, "before": before, "tell": tell}
    try:
        ask(endpoint, asked, outcomes, read, **how, **judging.options)
    finally:
        made = [line(*item, outcome) for item, outcome in sorted(outcomes.items())]
        lines = judgements.write_lines(directory, made)
    return lines


def read_score(reply: Reply) -> int | None:
    return score(reply.text or "", is_cut=reply.finish_reason == "length")


def rest(outcome: Outcome) -> dict[str, Any]:
    """What a line of judgements.jsonl has beside its verdict."""
    return {
        "reason": outcome.reason,
        "feedback": outcome.text,
        "asked": outcome.asked,
        "prompt_tokens": outcome.prompt_tokens,
        "completion_tokens": outcome.completion_tokens,
    }
