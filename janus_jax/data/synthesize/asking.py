"""Asks a model for many texts, until each passes its gates or has been asked for often enough."""

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from janus_jax.data.synthesize.files import UNANSWERED
from janus_jax.storage.endpoint import Endpoint
from janus_jax.storage.endpoint_errors import RefusedOptionError
from janus_jax.storage.endpoint_requests import Messages, Reply, Wanted

CHUNK = 1024
"""Requests that are built at a time, so that memory does not grow with the collection."""
_AHEAD = 8
"""For each request at the same time, items that may be begun before the first of them is done: outcomes are in order,
and one that waits for a slow answer holds up no other."""
_NO_NOTE = (("", ""),)


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
    noted: str = ""
    """The gate that the note of the last request names; empty: it had none."""

    @property
    def reason(self) -> str:
        """Why there is no value."""
        return UNANSWERED if self.unanswered else self.rejections[-1][0] if self.rejections else UNANSWERED

    def provenance(self, prompts: str, seed: int | None, repair: str) -> dict[str, Any]:
        """Where the accepted answer comes from.

        Args:
            prompts, repair: digests of the prompt, empty without a file, and of that of notes. Rows name the first if
                it is not empty, and the second if their request had a note.
        """
        assert self.reply is not None
        sample = self.reply.sample
        return {
            "model": self.reply.model,
            **({"prompts": prompts} if prompts else {}),
            "time": self.reply.time,
            "seed": None if seed is None else seed + sample,
            "answer": sample + 1,
        } | ({"repair": repair, "repaired_gate": self.noted} if self.noted else {})


Reader = Callable[[Item, Reply], Any]
Compare = Callable[[Sequence[Outcome]], Iterable[tuple[int, str]]]
"""Of the accepted outcomes of a group, those that are too alike: (number, detail); the later one of two."""
Notes = Callable[[str, str], Sequence[tuple[str, str]]]
"""Of a gate and the detail of what it rejected: what the next request says about it, as (gate, text), both empty for
nothing. The first one is sent. Others are what older versions sent: if a journal answers one of them, that counts."""


def ask(
    endpoint: Endpoint,
    items: Iterable[Item],
    read: Reader,
    *,
    asks: int,
    options: dict[str, Any],
    formats: Sequence[dict[str, Any]] = ({},),
    compare: Compare | None = None,
    notes: Notes = lambda gate, detail: _NO_NOTE,
) -> Iterator[Outcome]:
    """The outcome of each item, in order. Answer k of an item is sample k of its request, so a later call gets the same
    ones. Groups go on by themselves, so a slow answer or one that does not pass holds up only its own group. A further
    request ends with a note on the answer before.

    Args:
        read: what is in an answer; raises `Rejected`.
        formats: options that ask for a form, the first one first; if the endpoint refuses it, the next. What was asked
            with any of them is not asked again.
        compare: sees the accepted outcomes of a group after each round. What it rejects is asked for again.
        notes: say to the model what was wrong.

    Raises:
        ConfigError, StorageError: of the endpoint. What it has answered is in its journal.
    """
    begun = _Begun(items, read, asks, compare, notes, max(CHUNK, _AHEAD * endpoint.concurrent))
    for number, form in enumerate(formats):
        others = [{**options, **other} for other in formats if other is not form]
        try:
            for reply in endpoint.stream(begun.following, others=others, **options, **form):
                begun.take(reply)
                yield from begun.done()
            return
        except RefusedOptionError as error:
            if error.option not in form or number + 1 == len(formats):
                raise
            begun.ask_again()


class _Group:
    """Items whose answers are compared with each other, in rounds."""

    def __init__(self, items: Iterable[Item]):
        self.outcomes = [Outcome(item) for item in items]
        self.attempt = 0
        self.asked = set(range(len(self.outcomes)))
        """Numbers of the items of this round."""
        self.missing = len(self.asked)
        """Replies of this round that have not come yet."""


class _Begun:
    """The items that were asked for and are not given out yet."""

    def __init__(
        self, items: Iterable[Item], read: Reader, asks: int, compare: Compare | None, notes: Notes, most: int
    ):
        self._groups = itertools.groupby(items, key=lambda item: item.group or item.id)
        self._read, self._asks, self._compare, self._notes, self._most = read, asks, compare, notes, most
        self._begun: deque[_Group] = deque()
        self._items = 0  # in those groups
        self._ready: deque[tuple[_Group, int]] = deque()
        self._asked: dict[int, tuple[_Group, int, Sequence[tuple[str, str]]]] = {}
        self._places = itertools.count()

    def following(self) -> Wanted | None:
        """The next to ask for: answers that did not pass come before new items."""
        if not self._ready and self._items < self._most and (new := next(self._groups, None)) is not None:
            group = _Group(new[1])
            self._begun.append(group)
            self._items += len(group.outcomes)
            self._ready.extend((group, number) for number in group.asked)
        if not self._ready:
            return None
        group, number = self._ready.popleft()
        place, outcome = next(self._places), group.outcomes[number]
        notes = self._notes(*outcome.rejections[-1]) if outcome.rejections else _NO_NOTE
        self._asked[place] = group, number, notes
        messages, *others = (_noted(outcome.item.messages, text) for _, text in notes)
        return Wanted(place, messages, group.attempt, others)

    def take(self, reply: Reply) -> None:
        group, number, notes = self._asked.pop(reply.place)
        group.outcomes[number].noted = notes[reply.other][0]
        if reply.waiting:
            group.outcomes[number].waiting = True
        else:
            _take(group.outcomes[number], reply, self._read)
        group.missing -= 1
        if group.missing:
            return
        if self._compare is not None:
            _compare(group, self._compare)
        group.attempt += 1
        again = (
            {one for one in group.asked if _again(group.outcomes[one])} if group.attempt < self._asks else set[int]()
        )
        group.asked, group.missing = again, len(again)
        self._ready.extend((group, one) for one in sorted(again))

    def done(self) -> Iterator[Outcome]:
        """Outcomes of the groups at the front that need no further answer."""
        while self._begun and not self._begun[0].missing:
            group = self._begun.popleft()
            self._items -= len(group.outcomes)
            yield from group.outcomes

    def ask_again(self) -> None:
        """For the next form, what was asked for and not answered."""
        self._ready.extendleft((group, number) for group, number, _ in reversed(self._asked.values()))
        self._asked.clear()


def _noted(messages: Messages, note: str) -> Messages:
    *before, last = messages
    return [*before, {**last, "content": f"{last['content']}\n\n{note}"}] if note else messages


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


def _compare(group: _Group, compare: Compare) -> None:
    """Rejects those of this round that are too alike. Of two older ones, none is: they were compared before."""
    numbers = [number for number, one in enumerate(group.outcomes) if one.value is not None]
    numbers.sort(key=lambda one: one in group.asked)  # so that the later one of two is new
    if len(numbers) > 1 and group.asked.intersection(numbers):
        for place, detail in compare([group.outcomes[one] for one in numbers]):
            rejected = group.outcomes[numbers[place]]
            rejected.value = rejected.reply = None
            rejected.rejections.append(("alike", detail))
