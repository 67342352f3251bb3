"""The compiled programs of generation, one for each bucket of shapes."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from janus_jax.generation import sampling
from janus_jax.model import cache as kv
from janus_jax.model.cache import Cache
from janus_jax.model.config import ModelConfig
from janus_jax.model.mistral import Compute, Params
from janus_jax.model.vocabulary import largest
from janus_jax.parallel.mesh import Placement

_STATIC = ("config", "compute")


class Rows(NamedTuple):
    """What the host says of each row of a call; a row without a text has `left` 0."""

    token: Int[Array, " B"]
    """The newest token, which the cache does not hold."""
    length: Int[Array, " B"]
    """Slots of the cache that hold the tokens before it."""
    made: Int[Array, " B"]
    """Tokens that the text has already."""
    left: Int[Array, " B"]
    """Tokens that may still be made."""
    minimum: Int[Array, " B"]
    """Tokens before which no stop id may come."""
    stop: Int[Array, "B I"]
    """Ids that end the text, filled with -1."""
    seed: UInt32[Array, "B 2"]
    prompt: UInt32[Array, "B 2"]
    sample: Int[Array, " B"]
    """Of these three and the number of a token its random numbers are made."""
    settings: sampling.Settings


class Made(NamedTuple):
    """The tokens of a call; -1 after the end of a row."""

    ids: Int[Array, "B C"]
    logps: Float[Array, "B C"]
    """Their log-probs under the model, whatever the sampling."""
    top_ids: Int[Array, "B C T"] | None
    """The most probable ids at each of them, and their log-probs; None if none are asked for."""
    top_logps: Float[Array, "B C T"] | None


@functools.partial(jax.jit, static_argnames=(*_STATIC, "rows", "length", "dtype"))
def empty(
    *, config: ModelConfig, compute: Compute, rows: int, length: int, dtype: Any = None
) -> tuple[Cache, Bool[Array, "B V"]]:
    """A cache without a text, and which ids each row has seen."""
    seen = jnp.zeros((rows, config.vocab_size), bool)
    return kv.empty(config, rows, length, compute, dtype), compute.place.constrain(seen, ("batch", None))


@functools.partial(jax.jit, static_argnames=("length", "compute"))
def grow(cache: Cache, *, length: int, compute: Compute) -> Cache:
    return kv.grown(cache, length, compute)


@functools.partial(jax.jit, static_argnames=(*_STATIC, "dtype"))
def prefill(
    params: Params,
    tokens: Int[Array, "P L"],
    lengths: Int[Array, " P"],
    *,
    config: ModelConfig,
    compute: Compute,
    dtype: Any = None,
) -> Cache:
    place = compute.place
    tokens, lengths = place.constrain(tokens, ("batch", None)), place.constrain(lengths, ("batch",))
    return kv.prefill(config, params, tokens, lengths, compute, dtype)


@functools.partial(jax.jit, static_argnames="compute", donate_argnames=("cache", "seen"))
def fill(
    cache: Cache,
    seen: Bool[Array, "B V"],
    prompts: Cache,
    tokens: Int[Array, "P S"],
    rows: Int[Array, " R"],
    sources: Int[Array, " R"],
    *,
    compute: Compute,
) -> tuple[Cache, Bool[Array, "B V"]]:
    """Puts prompts into rows (`cache.fill`). `tokens` are their ids, filled with -1."""
    ids = jnp.where(tokens < 0, seen.shape[1], tokens)
    of_prompts = jnp.zeros((len(tokens), seen.shape[1]), bool)
    of_prompts = of_prompts.at[jnp.arange(len(tokens))[:, None], ids].set(True, mode="drop")
    targets = jnp.where(rows < 0, len(seen), rows)
    seen = seen.at[targets].set(of_prompts[sources], mode="drop")
    cache = kv.constrain(kv.fill(cache, prompts, rows, sources, compute.place), compute.place)
    return cache, compute.place.constrain(seen, ("batch", None))


@functools.partial(jax.jit, static_argnames=(*_STATIC, "attended", "steps", "top"), donate_argnames=("cache", "seen"))
def decode(
    params: Params,
    cache: Cache,
    seen: Bool[Array, "B V"],
    rows: Rows,
    *,
    config: ModelConfig,
    compute: Compute,
    attended: int,
    steps: int,
    top: int = 0,
) -> tuple[Made, Cache, Bool[Array, "B V"]]:
    """Makes up to `steps` tokens of each row; it ends early when no row goes on.

    Args:
        attended: slots of the cache to read; no row is longer.
        top: how many of the most probable ids are told for each token, at most the vocabulary.
    """
    place = compute.place
    rows = jax.tree.map(lambda x: place.constrain(x, ("batch",) + (None,) * (x.ndim - 1)), rows)
    count, vocabulary = len(rows.token), jnp.arange(config.vocab_size, dtype=jnp.int32)
    is_stop = (rows.stop[:, :, None] == vocabulary).any(1)

    def goes_on(state: Any) -> Array:
        i, live = state[:2]
        return (i < steps) & live.any()

    def one(state: Any) -> Any:
        i, live, token, recent, seen, made = state
        logits, recent = kv.next_logits(
            config, params, cache, recent, token, rows.length, i, attended=attended, compute=compute
        )
        allowed = jnp.where(is_stop & (rows.made + i < rows.minimum)[:, None], -jnp.inf, logits)
        keys = sampling.row_keys(rows.seed, rows.prompt, rows.sample, rows.made + i)
        new = sampling.sample(allowed, rows.settings, keys, seen).astype(jnp.int32)
        chosen = new[:, None] == vocabulary
        # A masked sum rather than a gather: the vocabulary may be split.
        logsumexp = jax.nn.logsumexp(logits, axis=-1)
        logp = jnp.where(chosen, logits, 0).sum(-1) - logsumexp
        best = _best(logits, logsumexp, top, place) if top else (None, None)
        made = jax.tree.map(lambda all_, at: all_.at[:, i].set(at), made, Made(jnp.where(live, new, -1), logp, *best))
        live = live & ~(chosen & is_stop).any(-1) & (i + 1 < rows.left)
        return i + 1, live, new, recent, seen | chosen, made

    state = (
        jnp.int32(0),
        rows.left > 0,
        rows.token,
        kv.empty(config, count, steps, compute),
        seen,
        Made(
            jnp.full((count, steps), -1, jnp.int32),
            jnp.zeros((count, steps), jnp.float32),
            jnp.zeros((count, steps, top), jnp.int32) if top else None,
            jnp.zeros((count, steps, top), jnp.float32) if top else None,
        ),
    )
    _, _, _, recent, seen, made = jax.lax.while_loop(goes_on, one, state)
    cache = kv.constrain(kv.append(cache, recent, rows.length, place), place)
    made = jax.tree.map(lambda part: place.constrain(part, (None,) * part.ndim), made)
    return made, cache, place.constrain(seen, ("batch", None))


def _best(logits: Array, logsumexp: Array, count: int, place: Placement) -> tuple[Array, Array]:
    """The most probable ids [B, count] and their log-probs."""
    run = functools.partial(largest, count=count, place=place)
    values, ids = place.map(run, (("batch", "vocab"),), (("batch", None),) * 2)(logits)
    return ids, values - logsumexp[:, None]
