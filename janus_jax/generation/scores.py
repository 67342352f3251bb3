"""Scores of responses under a stored model, many at a time; a command that was stopped goes on where it was."""

import abc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from janus_jax.checkpoint.stored_model import StoredModel
from janus_jax.errors import named
from janus_jax.generation import memory
from janus_jax.generation.engine import Engine
from janus_jax.generation.journal import Journal, begin
from janus_jax.generation.progress import Progress
from janus_jax.generation.prompts import Messages, PromptFormat, own_format
from janus_jax.generation.requests import LogProbs, require_ids
from janus_jax.generation.response_file import Response, ResponseRow
from janus_jax.generation.rewards import RewardModel, reward_format
from janus_jax.generation.scoring import Pair

_TOKENS_AT_ONCE = 1 << 16
"""Of texts that are packed together: enough for full rows, few enough that a kill costs little."""

Scores = Callable[[Sequence[Pair]], list[Any]]
"""Ids of prompts and responses -> a JSON value for each, the same in all processes."""


class Scorer(abc.ABC):
    """How a stored model gives scores. It reads text with its own template and tokenizer."""

    key: str
    """What scores are written under, if the user names nothing else."""
    kind: str
    """What they are, for messages."""
    written: PromptFormat

    def __init__(self, stored: StoredModel):
        self.stored = stored

    @abc.abstractmethod
    def encode(self, messages: Messages, response: Response) -> Pair:
        """Ids of a conversation and of a response. Raises DataError if the template refuses them."""

    @abc.abstractmethod
    def open(self) -> tuple[Scores, list[str]]:
        """Loads the weights. Gives what scores, and what to tell of the mesh.

        Raises:
            ConfigError: the devices have no room.
        """

    def pairs(self, row: ResponseRow) -> list[Pair]:
        """Ids of a row's conversation with each of its responses.

        Raises:
            DataError: the model cannot read one; it begins with the row's place.
        """
        with named(row.place):
            pairs = [self.encode(row.messages, response) for response in row.responses]
            for number, (prompt, response) in enumerate(pairs, 1):
                which = "the response" if len(pairs) == 1 else f"response {number}"
                require_ids(self.stored.config, f"{which} with its prompt", [*prompt, *response])
        return pairs


class RewardScorer(Scorer):
    """Rewards: numbers. Every response is read with its end, also where a model was stopped before."""

    key, kind = "reward", "rewards of a reward model"

    def __init__(self, stored: StoredModel, template: str | None = None):
        super().__init__(stored)
        self._format = reward_format(stored, template)
        self.written = self._format.written

    def encode(self, messages: Messages, response: Response) -> Pair:
        return self._format.encode(messages, response.text)

    def open(self) -> tuple[Scores, list[str]]:
        memory.require_to_score(self.stored.config, self.stored.path)
        model = RewardModel.stored(self.stored)
        return model.rewards, model.notes


class LogProbScorer(Scorer):
    """Log-probs: objects with `sum`, `mean`, `tokens` and `is_greedy`. They count the first token that ends a response,
    unless a model was stopped before it."""

    key, kind = "log_prob", "log-probs under a language model"

    def __init__(self, stored: StoredModel, template: str | None = None):
        super().__init__(stored)
        self.written = own_format(stored, template)

    def encode(self, messages: Messages, response: Response) -> Pair:
        prompt, ids = self.written.encode_answer(messages, response.text)
        end = next((at for at, one in enumerate(ids) if one in self.written.stop_ids), len(ids))
        return prompt, ids[:end] if response.is_cut else ids[: end + 1]

    def open(self) -> tuple[Scores, list[str]]:
        memory.require_to_score(self.stored.config, self.stored.path)
        engine = Engine.stored(self.stored)
        return lambda pairs: [_as_json(one) for one in engine.log_probs(pairs)], engine.notes


def _as_json(scores: LogProbs) -> dict[str, Any]:
    count = len(scores.tokens)
    mean = scores.total / count if count else None
    return {"sum": scores.total, "mean": mean, "tokens": count, "is_greedy": scores.is_greedy}


def scorer(stored: StoredModel, template: str | None = None) -> Scorer:
    """Rewards of a reward model, log-probs of any other.

    Args:
        template: a name of `TEMPLATES`, for a model whose files name none.

    Raises:
        ConversionError: it has no tokenizer or no template, or its own template is another one.
    """
    return {"value": RewardScorer, "lm": LogProbScorer}[stored.config.head](stored, template)


def score(
    open_scorer: Callable[[], tuple[Scores, list[str]]],
    pairs: Sequence[Sequence[Pair]],
    journal: Journal | None,
    record: Callable[[int, list[Any]], Any],
    *,
    tell: Callable[[str], None],
) -> None:
    """Scores what the journal does not hold yet. Several processes call it alike, and process 0 keeps the journal.

    Args:
        open_scorer: as `Scorer.open`.
        pairs: of each row.
        journal: None in other processes than 0.
        record: number of a row and its scores -> its line of the output.
        tell: gets a line of progress now and then.
    """
    left = begin(journal, len(pairs), "rows are scored", tell)
    if not left:
        return
    scores, notes = open_scorer()
    for note in notes:
        tell(f"note: {note}")
    finished, responses, progress = 0, 0, Progress(len(left), "rows", "responses", tell)
    for numbers in _portions(pairs, left):
        results = iter(scores([pair for number in numbers for pair in pairs[number]]))
        for number in numbers:
            own = [next(results) for _ in pairs[number]]
            responses += len(own)
            if journal is not None:
                journal.add(number, record(number, own))
        finished += len(numbers)
        progress(finished, responses)


def _portions(pairs: Sequence[Sequence[Pair]], numbers: Sequence[int]) -> Iterator[list[int]]:
    """Rows that are packed together."""
    portion, tokens = [], 0
    for number in numbers:
        portion.append(number)
        tokens += sum(len(prompt) + len(response) for prompt, response in pairs[number])
        if tokens >= _TOKENS_AT_ONCE:
            yield portion
            portion, tokens = [], 0
    if portion:
        yield portion
