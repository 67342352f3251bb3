"""A model that generates: texts for requests, and log-probs of given continuations."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp

from janus_jax.checkpoint.stored_model import StoredModel
from janus_jax.errors import ConfigError
from janus_jax.generation import placement, scoring
from janus_jax.generation.detokenizer import Detokenizer
from janus_jax.generation.requests import Event, LogProbs, Request
from janus_jax.generation.session import Session
from janus_jax.model.config import ModelConfig
from janus_jax.model.mistral import Compute, Params
from janus_jax.text.tokenizer import Tokenizer

CACHE_DTYPES = ("bfloat16", "float32", "int8")


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
        cache_dtype: of the keys and values of earlier tokens; None: the compute dtype. int8 has a scale for each token
            and head.

    Raises:
        ConfigError: another dtype than those of `CACHE_DTYPES`.
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
        cache_dtype: Any = None,
    ):
        self.config, self.params, self.compute = config, params, compute
        self.cache_dtype = jnp.dtype(compute.dtype if cache_dtype is None else cache_dtype)
        if cache_dtype is not None and self.cache_dtype.name not in CACHE_DTYPES:
            raise ConfigError(f"cache_dtype={self.cache_dtype.name}: allowed: {', '.join(CACHE_DTYPES)}")
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
        compute = placement.compute_at(place, dtype)
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
        compute = placement.compute_at(place, dtype)
        params = model.load(dtype=compute.dtype, shardings=placement.shardings(model.config, place))
        return cls(model.config, params, compute, notes=notes, **options)

    def session(self, *, length: int = 0, checked: bool = True) -> Session:
        """Texts that grow together; requests may come and go meanwhile. It takes memory for its cache.

        Args:
            length, checked: as of `Session`.
        """
        return Session(self, length=length, checked=checked)

    def generate(self, requests: Iterable[Request], *, length: int = 0) -> Iterator[Event]:
        """New tokens of all texts, as they come.

        Requests are read when rows are free, so `requests` may be endless. While it is waited for, nothing grows; where
        requests come and go, use a `session`. Texts are independent of what else is in the batch: bit for bit where
        shapes are the same, which depend on the number of prompts that wait and on the longest text.

        Args:
            length: as of `Session`.

        Raises:
            DataError: a request cannot be answered (`requests.check`); it is named by its place, from 1 on.
        """
        session, waiting, number = self.session(length=length), iter(requests), 0
        more = True
        while more or session.busy:
            while more and session.has_room:
                if more := (request := next(waiting, None)) is not None:
                    session.submit(number, request)
                    number += 1
            yield from session.step()

    def log_probs(self, pairs: Sequence[scoring.Pair], *, top: int = 0) -> list[LogProbs]:
        """Log-probs of continuations.

        Args:
            pairs: ids of a context, at least one, and of its continuation.
            top: how many of the most probable ids are told at each place of a continuation, 0 to 20.

        Raises:
            DataError: a context is empty, a pair without its last token is longer than the model's longest text, an id
                is unknown, or `top` is not allowed.
        """
        return scoring.log_probs(self.config, self.params, self.compute, pairs, top=top)


def require_language_model(config: ModelConfig, *places: str) -> None:
    """Raises ConfigError for a reward model."""
    if config.head != "lm":
        raise ConfigError(*places, "is a reward model, which makes no text; allowed: a language model")
