"""Texts that grow together in the rows of one cache."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from janus_jax.errors import DataError
from janus_jax.generation import memory, placement, programs, sampling
from janus_jax.generation.detokenizer import TextStream
from janus_jax.generation.requests import Event, Request, check
from janus_jax.generation.sizes import bucket
from janus_jax.model.cache import Cache

if TYPE_CHECKING:
    from janus_jax.generation.engine import Engine


@dataclasses.dataclass
class _Prompt:
    """A request some of whose samples have no row yet."""

    number: int
    request: Request
    started: int = 0
    keys: tuple[Cache, np.ndarray, int] | None = None
    """After its prefill: prompts, their tokens, and which of them it is."""


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
    """Requests go in by `submit`; each `step` makes some tokens of every text that has a row."""

    def __init__(self, engine: "Engine"):
        self._engine = engine
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
        while self._waiting and None in self._rows:
            fresh = [prompt for prompt in self._waiting if prompt.keys is None][: self._engine.row_shards]
            if self._waiting[0].keys is None:
                self._prefill(fresh)
            keys = self._waiting[0].keys
            assert keys is not None
            pairs: list[tuple[int, int]] = []
            free = [i for i, row in enumerate(self._rows) if row is None]
            # All prompts of one prefill that have rows are copied together.
            while self._waiting and (own := self._waiting[0].keys) and own[0] is keys[0] and free:
                prompt = self._waiting[0]
                row = free.pop(0)
                self._rows[row] = self._start(prompt)
                pairs.append((row, own[2]))
                if prompt.started == prompt.request.samples:
                    self._waiting.pop(0)
            self._fill(keys[0], keys[1], pairs)

    def _start(self, prompt: _Prompt) -> _Row:
        request, engine = prompt.request, self._engine
        stopping = request.stopping
        sample, prompt.started = prompt.started, prompt.started + 1
        return _Row(
            number=prompt.number,
            sample=sample,
            request=request,
            name=prompt.number if request.name is None else request.name,
            stop_ids=(*engine.stop_ids, *stopping.stop_ids),
            length=len(request.ids) - 1,  # the last token of the prompt is the first input
            token=request.ids[-1],
            limit=min(stopping.max_new_tokens, engine.config.max_position_embeddings - len(request.ids)),
            stream=None if engine.detokenizer is None else engine.detokenizer.stream(stopping.stop),
        )

    def _prefill(self, prompts: list[_Prompt]) -> None:
        engine, count = self._engine, self._engine.row_shards
        width = bucket(max(len(prompt.request.ids) for prompt in prompts))
        tokens, lengths = np.full((count, width), -1, np.int32), np.zeros(count, np.int32)
        for i, prompt in enumerate(prompts):
            tokens[i, : len(prompt.request.ids)], lengths[i] = prompt.request.ids, len(prompt.request.ids) - 1
        on_all = placement.on_all((np.maximum(tokens, 0), lengths), engine.compute.place)
        keys = programs.prefill(engine.params, *on_all, config=engine.config, compute=engine.compute)
        for i, prompt in enumerate(prompts):
            prompt.keys = (keys, tokens, i)

    def _fill(self, keys: Cache, tokens: np.ndarray, pairs: list[tuple[int, int]]) -> None:
        engine = self._engine
        rows = (self._rows[row] for row, _ in pairs)
        needed = max(row.length + row.limit for row in rows if row is not None) + engine.steps_per_call
        self._reserve(bucket(max(needed, keys.length)), keys.length)
        targets, sources = np.full(len(self._rows), -1, np.int32), np.zeros(len(self._rows), np.int32)
        targets[: len(pairs)], sources[: len(pairs)] = zip(*pairs, strict=True)
        on_all = placement.on_all((tokens, targets, sources), engine.compute.place)
        assert self._cache is not None
        self._cache, self._seen = programs.fill(self._cache, self._seen, keys, *on_all, compute=engine.compute)

    def _reserve(self, length: int, prompt: int) -> None:
        """Makes rows of the cache at least `length` slots long, for prompts of up to `prompt` tokens."""
        engine = self._engine
        if self._cache is None or self._cache.length < length:
            self._require_memory(length, prompt)
        if self._cache is None:
            sizes = {"rows": engine.rows, "length": length}
            self._cache, self._seen = programs.empty(config=engine.config, compute=engine.compute, **sizes)
        elif self._cache.length < length:
            self._cache = programs.grow(self._cache, length=length, compute=engine.compute)

    def _require_memory(self, length: int, prompt: int) -> None:
        """Raises ConfigError if a cache of this length does not fit beside the weights, and the cache that is there."""
        engine, compute = self._engine, self._engine.compute
        needed = memory.needed(
            engine.config,
            compute.place,
            rows=engine.rows,
            length=length,
            dtype=compute.dtype,
            prompt=prompt,
            steps=engine.steps_per_call,
        )
        memory.require(needed, compute.place, held=needed.weights)

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
        )
        ids, logps = map(np.asarray, made)
        events = []
        for i, row in enumerate(self._rows):
            if row is not None:
                count = int((ids[i] >= 0).sum())
                events.append(self._advance(row, ids[i, :count], logps[i, :count]))
                if events[-1].reason is not None:
                    self._rows[i] = None
        return events

    def _advance(self, row: _Row, ids: np.ndarray, logps: np.ndarray) -> Event:
        new = tuple(map(int, ids))
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
        return Event(row.number, row.sample, new, tuple(map(float, logps[: len(new)])), text, reason)

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
