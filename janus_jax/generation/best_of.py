"""The best of several answers: all are generated, the language model makes room, and a reward model scores them.

Both steps have a journal, so a command that was stopped goes on where it was.
"""

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from janus_jax.errors import DataError, named
from janus_jax.generation.journal import Journal
from janus_jax.generation.prompt_file import PromptRow
from janus_jax.generation.requests import require_ids
from janus_jax.generation.response_file import Response
from janus_jax.generation.scores import RewardScorer, score
from janus_jax.generation.scoring import Pair
from janus_jax.parallel import processes
from janus_jax.storage.local import write_json


def expected_best(rewards: Sequence[float]) -> list[float]:
    """For n = 1 .. N the expected reward of the best of n answers that are drawn from these N without replacement.

    It is an unbiased estimate of what n new answers would give.
    """
    return (_weights(len(rewards)) @ np.sort(np.asarray(rewards, np.float64))).tolist()


@functools.lru_cache(maxsize=1)
def _weights(count: int) -> np.ndarray:
    """[n - 1, i - 1]: how probable it is that the best of n is the i-th smallest, C(i - 1, n - 1) / C(N, n)."""
    n = np.arange(1, count + 1)
    weights = np.zeros((count, count))
    weights[:, -1] = n / count
    for i in range(count, 1, -1):
        weights[:, i - 2] = weights[:, i - 1] * np.maximum(i - n, 0) / (i - 1)
    return weights


def require_readable(scorer: RewardScorer, rows: Sequence[PromptRow]) -> None:
    """Raises DataError for a prompt that the reward model cannot read, or that leaves no room for an answer."""
    for row in rows:
        with named(row.place):
            prompt, shortest = scorer.encode(row.messages, Response("x"))
            require_ids(
                scorer.stored.config, "the prompt with a short answer, for the reward model", [*prompt, *shortest]
            )


def choose(
    scorer: RewardScorer, answered: Journal | None, scored: Journal | None, *, rows: int, tell: Callable[[str], None]
) -> list[str]:
    """Scores all answers, and puts the best one of each prompt first. The journals become the output.

    Several processes call it alike.

    Args:
        answered, scored: the journals of both steps; None in other processes than 0.
        rows: their number.

    Returns:
        The curve of rewards, in lines.
    """
    pairs: list[list[Pair | None]] = []
    if answered is not None:
        pairs = [_pairs(scorer, answered.done[number]) for number in range(rows)]
    pairs = processes.broadcast_large("answers", pairs)
    readable = [[pair for pair in own if pair is not None] for own in pairs]

    def record(number: int, rewards: list[float]) -> list[float | None]:
        left = iter(rewards)
        return [None if pair is None else next(left) for pair in pairs[number]]

    score(scorer.open, readable, scored, record, tell=tell)
    lines: list[str] = []
    with processes.agreement("output"):
        if answered is not None and scored is not None:
            lines = _finish(scorer, answered, scored)
    return lines


def _pairs(scorer: RewardScorer, record: dict[str, Any]) -> list[Pair | None]:
    """Ids of each answer with its prompt; None for one that the reward model cannot read."""
    pairs: list[Pair | None] = []
    for answer in record["answers"]:
        try:
            prompt, ids = scorer.encode(record["messages"], Response(answer["text"]))
            require_ids(scorer.stored.config, "the answer", [*prompt, *ids])
            pairs.append((prompt, ids))
        except DataError:  # too long, or the template refuses it
            pairs.append(None)
    return pairs


def _finish(scorer: RewardScorer, answered: Journal, scored: Journal) -> list[str]:
    curves, unread = [], 0
    for number, rewards in scored.done.items():
        record = answered.done[number]
        known = [reward for reward in rewards if reward is not None]
        unread += len(rewards) - len(known)
        if len(known) == len(rewards):
            curves.append(expected_best(known))
        answers = [
            {**answer, "sample": sample, scorer.key: reward}
            for sample, (answer, reward) in enumerate(zip(record["answers"], rewards, strict=True))
        ]
        answers.sort(key=lambda one: -math.inf if one[scorer.key] is None else one[scorer.key], reverse=True)  # stable
        answered.done[number] = {**record, "answers": answers}
    mean = np.mean(curves, 0).tolist() if curves else []
    error = (np.std(curves, 0, ddof=1) / len(curves) ** 0.5).tolist() if len(curves) > 1 else None
    write_json(
        sidecar(answered.out),
        {
            "reward_model": scorer.stored.path,
            "step": scorer.stored.step,
            "prompts": len(curves),
            "prompts_left_out": len(scored.done) - len(curves),
            "answers_unread": unread,
            "n": list(range(1, len(mean) + 1)),
            "expected_reward": mean,
            "standard_error": error,
        },
    )
    answered.finish()
    scored.discard()
    lines = [f"expected reward of the best of n answers, mean of {len(curves):,} prompts:"] if curves else []
    shown = [n for n in range(1, len(mean) + 1) if n & (n - 1) == 0 or n == len(mean)]
    lines += [f"  n = {n:<5} {mean[n - 1]:.4f}" for n in shown]
    if unread:
        left_out = f"{len(scored.done) - len(curves):,} prompts are not in the curve"
        lines.append(f"note: the reward model cannot read {unread:,} answers; they stand last, and {left_out}")
    return lines


def sidecar(out: Path) -> Path:
    """Where the curve is written."""
    return out.with_name(f"{out.name}.rewards.json")
