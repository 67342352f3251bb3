"""A conversation with a model, or two side by side. No terminal is needed."""

import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

from janus_jax.errors import DataError
from janus_jax.generation.engine import Engine
from janus_jax.generation.prompts import PromptFormat
from janus_jax.generation.requests import Event, Reason, Request, check
from janus_jax.generation.sampling import SamplingOptions
from janus_jax.generation.stopping import StoppingOptions
from janus_jax.model.config import ModelConfig

T = TypeVar("T")

MOST_SIDES = 2


@dataclasses.dataclass
class Exchange:
    """A question with its answer."""

    question: str
    seed: int
    answer: str = ""
    reason: Reason | Literal["interrupted"] | None = None
    """Why the answer ended; None: it grows."""
    prompt_tokens: int = 0
    tokens: int = 0

    def add(self, event: Event) -> None:
        self.answer += event.text
        self.tokens += len(event.ids)
        self.reason = event.reason


@dataclasses.dataclass
class Side:
    """A conversation under one system message, which may be empty."""

    system: str = ""
    exchanges: list[Exchange] = dataclasses.field(default_factory=list)

    def messages(self, question: str | None = None) -> list[dict[str, str]]:
        """The conversation, and a new question."""
        made = [{"role": "system", "content": self.system}] if self.system else []
        for one in self.exchanges:
            made += [{"role": "user", "content": one.question}, {"role": "assistant", "content": one.answer}]
        return made if question is None else [*made, {"role": "user", "content": question}]


class Piece(NamedTuple):
    """New text of an answer."""

    side: int
    text: str
    tokens: int
    ended: bool


class Chat:
    """Asks a model on behalf of a person.

    The model works in a thread of its own, so that a signal can end the wait for it.

    Args:
        engine: with `MOST_SIDES` rows or more.
        written: how the model reads conversations.
        systems: the system message, or two that are compared; an empty one is none.
        wait: waits for what the thread does; it may raise, and then the answer ends as it is.
    """

    def __init__(
        self,
        engine: Engine,
        written: PromptFormat,
        *,
        systems: Sequence[str] = ("",),
        sampling: SamplingOptions | None = None,
        stopping: StoppingOptions | None = None,
        seed: int = 0,
        wait: Callable[[concurrent.futures.Future[Any]], Any] = concurrent.futures.Future.result,
    ):
        self.sides = [Side(system) for system in systems]
        self.sampling, self.stopping, self.seed = sampling or SamplingOptions(), stopping or StoppingOptions(), seed
        self.wait = wait
        self.config = engine.config
        self._written, self._session = written, engine.session()
        self._pool = concurrent.futures.ThreadPoolExecutor(1)
        self._asked = 0

    @property
    def longest(self) -> int:
        """Tokens of the model's longest text."""
        return self.config.max_position_embeddings

    def ask(self, question: str) -> Iterator[Piece]:
        """The answers of all sides, as they come. Sides with the same messages get the same random numbers.

        However it ends, the answers so far join the conversation, if they have any token.

        Raises:
            DataError: the model cannot read the question; the conversation is as before.
        """
        requests = [self._request(side, question) for side in self.sides]
        answers = [Exchange(question, self.seed, prompt_tokens=len(one.ids)) for one in requests]
        first, self._asked = self._asked, self._asked + len(requests)
        try:
            for place, request in enumerate(requests):
                self._work(self._session.submit, first + place, request)
            while any(one.reason is None for one in answers):
                for event in self._work(self._session.step):
                    place = event.request - first
                    answers[place].add(event)
                    yield Piece(place, event.text, len(event.ids), event.reason is not None)
        finally:
            for place, one in enumerate(answers):
                if one.reason is None:
                    one.reason = "interrupted"
                    self._pool.submit(self._session.cancel, first + place)
            if any(one.tokens for one in answers):
                for side, one in zip(self.sides, answers, strict=True):
                    side.exchanges.append(one)

    def retry(self) -> Iterator[Piece]:
        """Answers the last question again with the next seed, in place of the last answer.

        Raises:
            DataError: no question was asked; or as `ask`.
        """
        have = len(self.sides[0].exchanges)
        if not have:
            raise DataError("/retry: no question was asked yet")
        last = [side.exchanges.pop() for side in self.sides]
        self.seed += 1
        try:
            yield from self.ask(last[0].question)
        finally:
            if len(self.sides[0].exchanges) < have:  # not one token came
                self.seed -= 1
                for side, one in zip(self.sides, last, strict=True):
                    side.exchanges.append(one)

    def warm(self) -> None:
        """Compiles the programs of a first question, without asking one."""
        request = self._request(self.sides[0], "Why?")
        self._work(self._session.submit, -1, request)
        self._work(self._session.step)
        self._work(self._session.cancel, -1)

    def tokens(self, side: Side) -> int:
        """Tokens that the next prompt of a side has at least: those of its last one with the answer."""
        return sum((one.prompt_tokens + one.tokens) for one in side.exchanges[-1:])

    def undo(self) -> str:
        """Removes the last exchange; returns its question.

        Raises:
            DataError: there is none.
        """
        if not self.sides[0].exchanges:
            raise DataError("/undo: no question was asked yet")
        questions = [side.exchanges.pop().question for side in self.sides]
        return questions[0]

    def reset(self) -> None:
        """Forgets all exchanges. System messages and settings stay."""
        for side in self.sides:
            side.exchanges.clear()

    def set_system(self, text: str) -> None:
        """Changes the system message from the next answer on.

        Raises:
            DataError: the model cannot read it.
        """
        if len(self.sides) > 1:
            raise DataError("two system messages are compared; /both A | B changes them, /one ends it")
        require_readable(self.config, self._written, [text])
        self.sides[0].system = text

    def set_both(self, systems: Sequence[str]) -> None:
        """From the next question on, two conversations under two system messages. What was said before is in both."""
        require_readable(self.config, self._written, systems)
        whole = [side.exchanges for side in [*self.sides, *self.sides][: len(systems)]]
        self.sides = [Side(system, list(before)) for system, before in zip(systems, whole, strict=True)]

    def set_one(self, kept: int) -> None:
        """Goes on with one of two conversations."""
        self.sides = [self.sides[kept]]

    def close(self) -> None:
        """Ends the thread after what it does now."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _request(self, side: Side, question: str) -> Request:
        ids = _prompt(self.config, self._written, side, question)
        # The number of the question, so that the same conversation has the same answers.
        request = Request(ids, 1, self.stopping, self.sampling, self.seed, name=len(side.exchanges))
        check(self.config, "the question", request)
        return request

    def _work(self, work: Callable[..., T], *arguments: Any) -> T:
        return self.wait(self._pool.submit(work, *arguments))


def require_readable(config: ModelConfig, written: PromptFormat, systems: Sequence[str]) -> None:
    """Raises DataError if a model cannot read a system message."""
    for system in systems:
        _prompt(config, written, Side(system), "Why?")


def _prompt(config: ModelConfig, written: PromptFormat, side: Side, question: str) -> list[int]:
    """The ids of a conversation with a new question."""
    for text in (side.system, question):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise DataError("bytes that are not UTF-8 text")
    ids = written.encode(side.messages(question))
    most = config.max_position_embeddings - 1
    if len(ids) <= most:
        return ids
    if not side.exchanges:
        raise DataError(f"{len(ids):,} tokens are too many; the model reads at most {most:,}")
    raise DataError(
        f"the conversation has {len(ids):,} tokens with this question, and the model reads at most {most:,}; /undo "
        "removes the last exchange, /reset all of them"
    )
