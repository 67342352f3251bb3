"""What is asked of an engine, and what it answers."""

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

from janus_jax.errors import DataError, named
from janus_jax.generation.sampling import SamplingOptions
from janus_jax.generation.stopping import StoppingOptions
from janus_jax.model.config import ModelConfig

Reason = Literal["stop", "length"]
"""Why a text ends: a stop id or a stop string came, or it has as many tokens as it may have."""


MOST_TOP = 20


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt, and how to go on with it."""

    ids: Sequence[int]
    """Of the prompt, at least one."""
    samples: int = 1
    """Texts to make. They share the computation of the prompt."""
    stopping: StoppingOptions = StoppingOptions()  # noqa: RUF009 (frozen)
    """Where each text ends. The model's longest text (`max_position_embeddings`) limits it too."""
    sampling: SamplingOptions = SamplingOptions(temperature=0)  # noqa: RUF009 (frozen)
    """How tokens are chosen; by default always the most probable one."""
    seed: int = 0
    top: int = 0
    """How many of the most probable ids are told for each new token: 0 to `MOST_TOP`."""
    continues: bool = False
    """The text goes on where the prompt's ends, so a blank at its beginning stays; an answer is a text of its own."""
    name: int | str | None = None
    """Of the prompt; None: its place among the requests. Random numbers depend on seed, name, number of the sample and
    number of the token, and on nothing else."""


@dataclasses.dataclass(frozen=True)
class AnswerOptions:
    """How many prompts are answered."""

    sampling: SamplingOptions
    stopping: StoppingOptions
    n: int = 1
    """Answers to each prompt."""
    seed: int = 0
    log_probs: bool = False
    """Also write ids and log-probs of tokens."""
    rows: int = 32
    """Answers that grow at the same time."""
    cache_dtype: str | None = None
    """As `Engine` has it."""
    continues: bool = False
    """A prompt is a text to go on with, without a template; otherwise a conversation to answer."""

    def request(self, number: int, ids: Sequence[int]) -> Request:
        """For the prompt of a row."""
        return Request(ids, self.n, self.stopping, self.sampling, self.seed, continues=self.continues, name=number)


class Event(NamedTuple):
    """New tokens of a text."""

    request: int
    """Place of the request, from 0 on."""
    sample: int
    ids: tuple[int, ...]
    """The stop id included."""
    logps: tuple[float, ...]
    """Log-probs of `ids` under the model, before temperature and the like."""
    text: str
    """What is new of the text: whole characters, without stop ids and stop strings. Empty if the engine has no
    tokenizer."""
    reason: Reason | None
    """Why the text ends with these; None: it goes on."""
    top: tuple[tuple[tuple[int, float], ...], ...] = ()
    """For each of `ids`: pairs of an id and its log-prob under the model, the most probable first. Of equally probable
    ids the smaller comes first. Empty if the request asks for none."""


class LogProbs(NamedTuple):
    """How probable a continuation is."""

    tokens: tuple[float, ...]
    """Log-prob of each of its tokens."""
    total: float
    """Their sum."""
    is_greedy: bool
    """Whether each token is a most probable one after those before it."""
    top: tuple[tuple[tuple[int, float], ...], ...] = ()
    """At each token's place the most probable ids with their log-probs, most probable first; () if none are asked
    for."""


def check(config: ModelConfig, name: str, request: Request) -> None:
    """Raises DataError or ConfigError, which begin with `name`, if a model cannot answer a request."""
    require_ids(config, name, request.ids, room=1)
    if request.samples < 1:
        raise DataError(name, f"samples={request.samples}: allowed: 1 or more")
    if not 0 <= request.top <= MOST_TOP:
        raise DataError(name, f"top={request.top}: allowed: 0 to {MOST_TOP}")
    with named(name):
        request.stopping.require_ids_below(config.vocab_size)


def require_ids(config: ModelConfig, name: str, ids: Sequence[int], room: int = 0) -> None:
    """Raises DataError if ids are none, unknown, or more than a text may have, `room` left free."""
    longest = config.max_position_embeddings
    if not len(ids):
        raise DataError(name, "is empty; at least one token is needed")
    if len(ids) > longest - room:
        raise DataError(
            name,
            f"has {len(ids):,} tokens; allowed: at most {longest - room:,} (the model's longest text is {longest:,})",
        )
    if unknown := [i for i in ids if not 0 <= i < config.vocab_size]:
        raise DataError(name, f"holds the id {unknown[0]}; allowed: 0 to {config.vocab_size - 1}")
