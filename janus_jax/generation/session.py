"""Texts that grow together in the rows of one cache."""

import collections
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from janus_jax.errors import DataError
from janus_jax.generation import memory, placement, programs, sampling
from janus_jax.generation.detokenizer import TextStream
from janus_jax.generation.requests import Event, Request, check
from janus_jax.generation.sizes import TOKENS_PER_STEP, bucket, prompts_per_call, slots, top_bucket
from janus_jax.model.cache import Cache

if TYPE_CHECKING:
    from janus_jax.generation.engine import Engine


class _Keys(NamedTuple):
    """Prompts that were computed together, and their ids, filled with -1."""

    cache: Cache
    tokens: np.ndarray


@dataclasses.dataclass
class _Prompt:
    """A request some of whose samples have no row yet."""

    number: int
    request: Request
    started: int = 0
    keys: tuple[_Keys, int] | None = None
    """After its prefill: prompts, and which of them it is."""


@dataclasses.dataclass
class _Row:
    """A text that grows."""

    number: int
    sample: int
    request: Request
    name: int | str
    stop_ids: tuple[int, ...]
    length: int
    """Slots of the cache that it has."""
    token: int
    limit: int
    """Tokens that it may have."""
    stream: TextStream | None
    made: int = 0


class Session:
    """Requests go in by `submit`; each `step` makes some tokens of every text that has a row.

    Args:
        length: slots that rows have from the start. Where no text needs more (`sizes.slots`), the cache never grows,
            which would take the memory of the old and the new one.
        checked: whether to refuse what by arithmetic does not fit the devices' memory; otherwise XLA decides.
    """

    def __init__(self, engine: "Engine", *, length: int = 0, checked: bool = True):
        self._engine, self._length, self._checked = engine, bucket(length), checked
        self._rows: list[_Row | None] = [None] * engine.rows
        self._waiting: list[_Prompt] = []
        self._cache: Cache | None = None
        self._seen: jax.Array | None = None

    @property
    def busy(self) -> bool:
        """Whether a text grows or waits."""
        return bool(self._waiting) or any(self._rows)

    @property
    def has_room(self) -> bool:
        """Whether another request would get a row at once."""
        wanted = sum(prompt.request.samples - prompt.started for prompt in self._waiting)
        return wanted < self._rows.count(None)

    def submit(self, number: int, request: Request) -> None:
        """Adds a request; `number` names it in events.

        Raises:
            DataError: it cannot be answered.
        """
        engine, name = self._engine, f"request {number + 1}"
        check(engine.config, name, request)
        if request.stopping.stop and engine.detokenizer is None:
            raise DataError(name, f"has the stop string {request.stopping.stop[0]!r}, which needs a tokenizer")
        self._waiting.append(_Prompt(number, request))

    def cancel(self, number: int) -> None:
        """Ends all texts of a request. No more events come of it."""
        self._waiting = [prompt for prompt in self._waiting if prompt.number != number]
        self._rows = [None if row is not None and row.number == number else row for row in self._rows]

    def step(self) -> list[Event]:
        """Gives free rows to waiting texts, and makes up to `steps_per_call` tokens of each."""
        self._admit()
        return self._decode() if any(self._rows) else []

    def _admit(self) -> None:
        free = [i for i, row in enumerate(self._rows) if row is None]
        chosen: list[tuple[int, _Prompt]] = []
        fresh: dict[int, list[_Prompt]] = collections.defaultdict(list)
        left = TOKENS_PER_STEP * self._engine.row_shards
        for prompt in self._waiting:
            if not free or left <= 0:
                break
            if prompt.keys is None:
                width = bucket(len(prompt.request.ids))
                fresh[width].append(prompt)
                left -= width
            count = min(len(free), prompt.request.samples - prompt.started)
            chosen += [(row, prompt) for row in free[:count]]
            free = free[count:]
        self._prefill(sorted(fresh.items()))
        # All prompts of one prefill are copied together.
        copies: dict[int, tuple[_Keys, list[tuple[int, int]]]] = {}
        for row, prompt in chosen:
            assert prompt.keys is not None
            keys, place = prompt.keys
            self._rows[row] = self._start(prompt)
            copies.setdefault(id(keys), (keys, []))[1].append((row, place))
        if chosen:
            needed = max(self._slots(prompt.request) for _, prompt in chosen)
            self._reserve(max(needed, self._length), [keys.cache for keys, _ in copies.values()])
        for keys, pairs in copies.values():
            self._fill(keys, pairs)
        self._waiting = [prompt for prompt in self._waiting if prompt.started < prompt.request.samples]

    def _slots(self, request: Request) -> int:
        """Of the row of one of its texts."""
        engine = self._engine
        longest, new = engine.config.max_position_embeddings, request.stopping.max_new_tokens
        return slots(len(request.ids), new, engine.steps_per_call, longest)

    def _start(self, prompt: _Prompt) -> _Row:
        request, engine = prompt.request, self._engine
        stopping = request.stopping
        sample, prompt.started = prompt.started, prompt.started + 1
        texts = engine.detokenizer
        return _Row(
            number=prompt.number,
            sample=sample,
            request=request,
            name=prompt.number if request.name is None else request.name,
            stop_ids=(*engine.stop_ids, *stopping.stop_ids),
            length=len(request.ids) - 1,  # the last token of the prompt is the first input
            token=request.ids[-1],
            limit=min(stopping.max_new_tokens, engine.config.max_position_embeddings - len(request.ids)),
            stream=None if texts is None else texts.stream(stopping.stop, inside=request.continues),
        )

    def _prefill(self, groups: list[tuple[int, list[_Prompt]]]) -> None:
        """Computes prompts by their widths, as many in one call as there are and as its size allows."""
        shards, left = self._engine.row_shards, []
        for number, (width, prompts) in enumerate(groups):
            prompts = left + prompts
            wider = groups[number + 1][0] if number + 1 < len(groups) else 0
            # A call computes at least one prompt for each shard, so what is left over goes with slightly wider ones.
            extra = len(prompts) % shards if 0 < wider <= 2 * width else 0
            prompts, left = prompts[: len(prompts) - extra], prompts[len(prompts) - extra :]
            while prompts:
                count = shards * prompts_per_call(width, len(prompts) // shards)
                self._prefill_call(width, prompts[:count], count)
                prompts = prompts[count:]

    def _prefill_call(self, width: int, prompts: list[_Prompt], count: int) -> None:
        engine = self._engine
        tokens, lengths = np.full((count, width), -1, np.int32), np.zeros(count, np.int32)
        for i, prompt in enumerate(prompts):
            tokens[i, : len(prompt.request.ids)], lengths[i] = prompt.request.ids, len(prompt.request.ids) - 1
        on_all = placement.on_all((np.maximum(tokens, 0), lengths), engine.compute.place)
        cache = programs.prefill(
            engine.params, *on_all, config=engine.config, compute=engine.compute, dtype=engine.cache_dtype
        )
        keys = _Keys(cache, tokens)
        for i, prompt in enumerate(prompts):
            prompt.keys = (keys, i)

    def _fill(self, keys: _Keys, pairs: list[tuple[int, int]]) -> None:
        engine = self._engine
        targets, sources = np.full(len(self._rows), -1, np.int32), np.zeros(len(self._rows), np.int32)
        targets[: len(pairs)], sources[: len(pairs)] = zip(*pairs, strict=True)
        on_all = placement.on_all((keys.tokens, targets, sources), engine.compute.place)
        assert self._cache is not None
        self._cache, self._seen = programs.fill(self._cache, self._seen, keys.cache, *on_all, compute=engine.compute)

    def _reserve(self, length: int, prompts: list[Cache]) -> None:
        """Makes rows of the cache at least `length` slots long, for prompts that are computed."""
        engine = self._engine
        if self._checked and (self._cache is None or self._cache.length < length):
            self._require_memory(length, prompts)
        if self._cache is None:
            sizes = {"rows": engine.rows, "length": length, "dtype": engine.cache_dtype}
            self._cache, self._seen = programs.empty(config=engine.config, compute=engine.compute, **sizes)
        elif self._cache.length < length:
            self._cache = programs.grow(self._cache, length=length, compute=engine.compute)

    def _require_memory(self, length: int, prompts: list[Cache]) -> None:
        """Raises ConfigError if a cache of this length does not fit beside the weights, and the cache that is there."""
        parts = (part for one in prompts for part in jax.tree.leaves(one))
        held = sum(part.addressable_shards[0].data.nbytes for part in parts)
        engine, compute = self._engine, self._engine.compute
        needed = memory.needed(
            engine.config,
            compute.place,
            rows=engine.rows,
            length=length,
            dtype=compute.dtype,
            cache_dtype=engine.cache_dtype,
            prompt=max(one.length for one in prompts),
            steps=engine.steps_per_call,
        )
        memory.require(needed, compute.place, held=needed.weights + held)

    def _decode(self) -> list[Event]:
        engine = self._engine
        assert self._cache is not None
        attended = min(bucket(max(row.length for row in self._rows if row)), self._cache.length)
        made, self._cache, self._seen = programs.decode(
            engine.params,
            self._cache,
            self._seen,
            placement.on_all(self._described(), engine.compute.place),
            config=engine.config,
            compute=engine.compute,
            attended=attended,
            steps=engine.steps_per_call,
            top=min(top_bucket(max(row.request.top for row in self._rows if row)), engine.config.vocab_size),
        )
        made = jax.tree.map(np.asarray, made)
        events = []
        for i, row in enumerate(self._rows):
            if row is not None:
                count = int((made.ids[i] >= 0).sum())
                events.append(self._advance(row, jax.tree.map(lambda part: part[i, :count], made)))  # noqa: B023
                if events[-1].reason is not None:
                    self._rows[i] = None
        return events

    def _advance(self, row: _Row, made: programs.Made) -> Event:
        """What comes of the tokens that a row got in a call."""
        new = tuple(map(int, made.ids))
        ended = new[-1] in row.stop_ids
        text, stream = "", row.stream
        if stream is not None:
            text = stream.push(new[:-1] if ended else new)
            if stream.stopped is not None:
                ended, new = True, new[: stream.count - row.made]
        row.length += len(new)
        row.made += len(new)
        row.token = new[-1]
        reason = "stop" if ended else "length" if row.made == row.limit else None
        if reason is not None and stream is not None:
            text += stream.finish()
            reason = "stop" if stream.stopped is not None else reason
        logps, top = tuple(map(float, made.logps[: len(new)])), _top(made, row.request.top, len(new))
        return Event(row.number, row.sample, new, logps, text, reason, top)

    def _described(self) -> programs.Rows:
        rows = self._rows
        default = next(row for row in rows if row)

        def ints(value: Callable[[_Row], int]) -> Any:
            return np.array([value(row) if row else 0 for row in rows], np.int32)

        def words(value: Callable[[_Row], int | str]) -> Any:
            return np.stack([sampling.words(value(row) if row else 0) for row in rows])

        return programs.Rows(
            token=ints(lambda row: row.token),
            length=ints(lambda row: row.length),
            made=ints(lambda row: row.made),
            left=ints(lambda row: row.limit - row.made),
            minimum=ints(lambda row: row.request.stopping.min_new_tokens),
            stop=self._stop_ids(),
            seed=words(lambda row: row.request.seed),
            prompt=words(lambda row: row.name),
            sample=ints(lambda row: row.sample),
            settings=sampling.Settings.of([(row or default).request.sampling for row in rows]),
        )

    def _stop_ids(self) -> Any:
        """Filled up to a multiple of four, so that few programs are compiled."""
        most = max(len(row.stop_ids) for row in self._rows if row)
        stop = np.full((len(self._rows), max(4, -(-most // 4) * 4)), -1, np.int32)
        for i, row in enumerate(self._rows):
            if row:
                stop[i, : len(row.stop_ids)] = row.stop_ids
        return stop


def _top(made: programs.Made, count: int, tokens: int) -> tuple[tuple[tuple[int, float], ...], ...]:
    """The `count` most probable ids at each of the first tokens of a row, as an event has them."""
    if not count or made.top_ids is None or made.top_logps is None:
        return ()
    ids, logps = (part[:tokens, :count].tolist() for part in (made.top_ids, made.top_logps))
    return tuple(tuple(zip(*pair, strict=True)) for pair in zip(ids, logps, strict=True))
