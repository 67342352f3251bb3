"""How probable given continuations are."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from janus_jax.errors import ConfigError
from janus_jax.generation import placement
from janus_jax.generation.requests import LogProbs, require_ids
from janus_jax.generation.sizes import bucket
from janus_jax.model import head
from janus_jax.model.attention import Slots
from janus_jax.model.config import ModelConfig
from janus_jax.model.mistral import Compute, Params, bind

Pair = tuple[Sequence[int], Sequence[int]]
"""Ids of a context, and of its continuation."""

MOST_TOP = 20
"""Most probable ids that can be asked for at each place."""


def log_probs(
    config: ModelConfig, params: Params, compute: Compute, pairs: Sequence[Pair], *, rows: int, top: int = 0
) -> list[LogProbs]:
    """As `Engine.log_probs`.

    Args:
        rows: rows of a call, a multiple of the mesh's row shards.
    """
    if not 0 <= top <= MOST_TOP:
        raise ConfigError(f"top={top}: allowed: 0 to {MOST_TOP}")
    for place, (context, continuation) in enumerate(pairs, 1):
        require_ids(config, f"context {place}", context)
        require_ids(config, f"context {place} with its continuation", [*context, *continuation])
    order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][0]) - len(pairs[i][1]))
    results: dict[int, LogProbs] = {}
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        wholes = [np.array([*pairs[i][0], *pairs[i][1]], np.int32) for i in chosen]
        width = bucket(max(len(whole) - 1 for whole in wholes) or 1)
        inputs, targets, segment = np.zeros((3, rows, width), np.int32)
        for row, whole in enumerate(wholes):
            inputs[row, : len(whole) - 1], targets[row, : len(whole) - 1] = whole[:-1], whole[1:]
            segment[row, : len(whole) - 1] = 1
        slots = Slots(segment, np.zeros_like(segment), np.tile(np.arange(width, dtype=np.int32), (rows, 1)))
        on_all = placement.on_all((inputs, targets, slots), compute.place)
        # One program for all numbers but zero.
        most = min(MOST_TOP, config.vocab_size) if top else 0
        scores = scored(params, *on_all, config=config, compute=compute, top=most)
        logps, greedy, ids, of_ids = map(np.asarray, scores)
        for row, i in enumerate(chosen):
            part = row, slice(len(pairs[i][0]) - 1, len(wholes[row]) - 1)
            best = zip(ids[part][:, :top].tolist(), of_ids[part][:, :top].tolist(), strict=True)
            results[i] = LogProbs(
                tuple(map(float, logps[part])),
                float(logps[part].sum(dtype=np.float64)),
                bool(greedy[part].all()),
                tuple(tuple(zip(*one, strict=True)) for one in best) if top else (),
            )
    return [results[i] for i in range(len(pairs))]


@functools.partial(jax.jit, static_argnames=("config", "compute", "top"))
def scored(
    params: Params,
    tokens: Int[Array, "B L"],
    targets: Int[Array, "B L"],
    slots: Slots,
    *,
    config: ModelConfig,
    compute: Compute,
    top: int,
) -> tuple[Float[Array, "B L"], Bool[Array, "B L"], Int[Array, "B L T"], Float[Array, "B L T"]]:
    """`head.scored` of packed rows, on every device."""
    place = compute.place
    tokens, targets, slots = jax.tree.map(lambda x: place.constrain(x, ("batch", None)), (tokens, targets, slots))
    model = bind(config, params)
    scores = head.scored(model(tokens, slots, compute), model.head(), targets, top=top, place=place)
    return _on_every_device(scores, compute)


def _on_every_device(tree: Any, compute: Compute) -> Any:
    return jax.tree.map(lambda x: compute.place.constrain(x, (None,) * x.ndim), tree)
