"""A model that generates: texts for requests, and log-probs of given continuations."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from janus_jax.checkpoint.stored_model import StoredModel
from janus_jax.errors import ConfigError
from janus_jax.generation import placement, programs
from janus_jax.generation.detokenizer import Detokenizer
from janus_jax.generation.requests import Event, LogProbs, Request, require_ids
from janus_jax.generation.session import Session
from janus_jax.generation.sizes import bucket
from janus_jax.model.config import ModelConfig
from janus_jax.model.mistral import Compute, Params
from janus_jax.text.tokenizer import Tokenizer


class Engine:
    """Weights on a generation mesh, with what is compiled for them. Made by `live` or `stored`.

    Several processes make the same calls with the same requests, and get the same answers.

    Args:
        params: in the dtype and with the placement of `compute`.
        rows: texts that grow at the same time, rounded up to a multiple of the mesh's `data`.
        steps_per_call: most tokens that a row gets before the host looks at it.
        stop_ids: ids that end every text, such as EOS.
        tokenizer: makes text of ids, and is needed for stop strings.
        notes: what to tell of the mesh.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Params,
        compute: Compute,
        *,
        rows: int = 32,
        steps_per_call: int = 16,
        stop_ids: Sequence[int] = (),
        tokenizer: Tokenizer | None = None,
        notes: Sequence[str] = (),
    ):
        self.config, self.params, self.compute = config, params, compute
        self.row_shards = compute.place.shards("batch")
        self.rows = -(-rows // self.row_shards) * self.row_shards
        self.steps_per_call, self.stop_ids, self.notes = steps_per_call, tuple(stop_ids), list(notes)
        self.detokenizer = None if tokenizer is None else Detokenizer(tokenizer)

    @classmethod
    def live(cls, config: ModelConfig, params: Params, *, dtype: Any = None, **options: Any) -> "Engine":
        """An engine with a copy of live parameters, which may be on any mesh.

        Args:
            dtype: of weights, activations and cache; None: bfloat16, on CPUs float32.
            options: those of the class.

        Raises:
            ConfigError: the model has a value head, which makes no text.
        """
        require_language_model(config)
        devices = placement.devices_of(params)
        place, notes = placement.generation_place(config, devices)
        compute = Compute(dtype=placement.compute_dtype(dtype, place), place=place)
        return cls(config, placement.resharded(config, params, compute.dtype, place), compute, notes=notes, **options)

    @classmethod
    def stored(
        cls, model: StoredModel, *, dtype: Any = None, devices: Sequence[Any] | None = None, **options: Any
    ) -> "Engine":
        """An engine with the weights of a stored model, read straight onto the generation mesh.

        Args:
            devices: None: all.

        Raises:
            ConfigError: as `live`.
            ConversionError: weights are damaged.
        """
        require_language_model(model.config, model.path)
        place, notes = placement.generation_place(model.config, devices)
        compute = Compute(dtype=placement.compute_dtype(dtype, place), place=place)
        params = model.load(dtype=compute.dtype, shardings=placement.shardings(model.config, place))
        return cls(model.config, params, compute, notes=notes, **options)

    def session(self) -> Session:
        """Texts that grow together; requests may come and go meanwhile. It takes memory for its cache."""
        return Session(self)

    def generate(self, requests: Iterable[Request]) -> Iterator[Event]:
        """New tokens of all texts, as they come.

        Requests are read when rows are free, so `requests` may be endless. While it is waited for, nothing grows; where
        requests come and go, use a `session`. Texts are independent of what else is in the batch: for the same compiled
        shapes, bit for bit.

        Raises:
            DataError: a request cannot be answered (`requests.check`); it is named by its place, from 1 on.
        """
        session, waiting, number = self.session(), iter(requests), 0
        more = True
        while more or session.busy:
            while more and session.has_room:
                if more := (request := next(waiting, None)) is not None:
                    session.submit(number, request)
                    number += 1
            yield from session.step()

    def log_probs(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[LogProbs]:
        """Log-probs of continuations.

        Args:
            pairs: ids of a context, at least one, and of its continuation.

        Raises:
            DataError: a context is empty, a pair is longer than the model's longest text, or an id is unknown.
        """
        for place, (context, continuation) in enumerate(pairs, 1):
            require_ids(self.config, f"context {place}", context)
            require_ids(self.config, f"context {place} with its continuation", [*context, *continuation])
        order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][0]) - len(pairs[i][1]))
        results: dict[int, LogProbs] = {}
        for start in range(0, len(order), self.rows):
            chosen = order[start : start + self.rows]
            wholes = [np.array([*pairs[i][0], *pairs[i][1]], np.int32) for i in chosen]
            width = bucket(max(len(whole) - 1 for whole in wholes) or 1)
            inputs, targets = np.zeros((2, self.rows, width), np.int32)
            for row, whole in enumerate(wholes):
                inputs[row, : len(whole) - 1], targets[row, : len(whole) - 1] = whole[:-1], whole[1:]
            lengths = np.zeros(self.rows, np.int32)
            lengths[: len(wholes)] = [len(whole) - 1 for whole in wholes]
            on_all = placement.on_all((inputs, targets, lengths), self.compute.place)
            scores = programs.score(self.params, *on_all, config=self.config, compute=self.compute)
            logps, greedy = map(np.asarray, scores)
            for row, i in enumerate(chosen):
                part = slice(len(pairs[i][0]) - 1, len(wholes[row]) - 1)
                tokens = tuple(map(float, logps[row, part]))
                results[i] = LogProbs(
                    tokens, float(logps[row, part].sum(dtype=np.float64)), bool(greedy[row, part].all())
                )
        return [results[i] for i in range(len(pairs))]


def require_language_model(config: ModelConfig, *places: str) -> None:
    """Raises ConfigError for a reward model."""
    if config.head != "lm":
        raise ConfigError(*places, "is a reward model, which makes no text; allowed: a language model")
