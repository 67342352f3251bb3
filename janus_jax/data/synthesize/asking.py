"""Asks a model for many texts, until each passes its gates or has been asked for often enough."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from janus_jax.storage.endpoint import Endpoint
from janus_jax.storage.endpoint_requests import Messages, RefusedOptionError, Reply

CHUNK = 1024
"""Requests that are built at a time, so that memory does not grow with the collection."""
UNANSWERED = "no_answer"


class Rejected(Exception):
    """An answer that does not pass a gate.

    Args:
        reason: the gate's short name, under which it is counted.
        detail: what was wrong.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclasses.dataclass(frozen=True)
class Item:
    """One text to ask for."""

    id: str
    messages: Messages
    group: str = ""
    """Items of a group are compared with each other; they are neighbours."""
    about: Any = None
    """Whatever the caller needs to read the answer."""


@dataclasses.dataclass
class Outcome:
    """What came of an item."""

    item: Item
    value: Any = None
    """What was read from the accepted answer; None: there is none."""
    reply: Reply | None = None
    """The accepted answer."""
    rejections: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    """(gate, detail) of the answers that did not pass, in order."""
    unanswered: str = ""
    """Why the endpoint gave no answer; a later run asks again."""
    waiting: bool = False
    """The request is in a batch file, and has no answer yet."""

    @property
    def reason(self) -> str:
        """Why there is no value."""
        return UNANSWERED if self.unanswered else self.rejections[-1][0] if self.rejections else UNANSWERED

    def provenance(self, prompts: str, seed: int | None) -> dict[str, Any]:
        """Where the accepted answer comes from."""
        assert self.reply is not None
        sample = self.reply.sample
        return {
            "model": self.reply.model,
            "prompts": prompts,
            "time": self.reply.time,
            "seed": None if seed is None else seed + sample,
            "answer": sample + 1,
        }


Reader = Callable[[Item, Reply], Any]
Compare = Callable[[Sequence[Outcome]], Iterable[tuple[int, str]]]
"""Of the accepted outcomes of a group, those that are too alike: (number, detail); the later one of two."""


def ask(
    endpoint: Endpoint,
    items: Sequence[Item],
    read: Reader,
    *,
    asks: int,
    options: dict[str, Any],
    formats: Sequence[dict[str, Any]] = ({},),
    compare: Compare | None = None,
) -> list[Outcome]:
    """The outcome of each item. Answer k of an item is sample k of its request, so a later call gets the same ones.

    Args:
        read: what is in an answer; raises `Rejected`.
        formats: options that ask for a form, the first one first; if the endpoint refuses it, the next.
        compare: sees the accepted outcomes of a group after each round. What it rejects is asked for again.

    Raises:
        ConfigError, StorageError: of the endpoint. What it has answered is in its journal.
    """
    for number, form in enumerate(formats):
        try:
            return _ask(endpoint, items, read, asks, options | form, compare)
        except RefusedOptionError as error:
            if error.option not in form or number + 1 == len(formats):
                raise
    raise AssertionError("no format")


def _ask(
    endpoint: Endpoint, items: Sequence[Item], read: Reader, asks: int, options: dict[str, Any], compare: Compare | None
) -> list[Outcome]:
    outcomes = [Outcome(item) for item in items]
    pending = list(range(len(items)))
    for attempt in range(asks):
        answered = set()
        for reply in endpoint.complete([items[one].messages for one in pending], first_sample=attempt, **options):
            number = pending[reply.place]
            answered.add(number)
            _take(outcomes[number], reply, read)
        for number in pending:
            outcomes[number].waiting = number not in answered
        if compare is not None:
            _compare(outcomes, compare, set(pending))
        pending = [one for one in pending if _again(outcomes[one])]
        if not pending:
            break
    return outcomes


def _again(outcome: Outcome) -> bool:
    return outcome.value is None and not outcome.waiting and not outcome.unanswered


def _take(outcome: Outcome, reply: Reply, read: Reader) -> None:
    if reply.text is None and not reply.finish_reason:
        outcome.unanswered = reply.failure or "no answer"
        return
    try:
        if reply.text is None:
            raise Rejected("refusal", reply.failure)
        outcome.value, outcome.reply = read(outcome.item, reply), reply
    except Rejected as rejected:
        outcome.rejections.append((rejected.reason, rejected.detail))


def _compare(outcomes: list[Outcome], compare: Compare, new: set[int]) -> None:
    """Rejects those of this round that are too alike. Of two older ones, none is: they were compared before."""
    start = 0
    while start < len(outcomes):
        end = start + 1
        while end < len(outcomes) and outcomes[end].item.group == outcomes[start].item.group:
            end += 1
        numbers = [one for one in range(start, end) if outcomes[one].value is not None]
        numbers.sort(key=lambda one: one in new)  # so that the later one of two is new
        if len(numbers) > 1 and new.intersection(numbers):
            for place, detail in compare([outcomes[one] for one in numbers]):
                rejected = outcomes[numbers[place]]
                rejected.value = rejected.reply = None
                rejected.rejections.append(("alike", detail))
        start = end
