"""The next token of each row: filters as transformers applies them, random numbers that do not depend on the batch.

All settings are traced, so that other values need no other program. No filter sorts: a threshold is built bit by bit,
by 32 comparisons with the whole row. It ends on the score of a token, so the sets are exact.
"""

import dataclasses
import hashlib
import math
import numbers
from collections.abc import Callable, Sequence
from typing import NamedTuple, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer, Key

from janus_jax.config.mistakes import join
from janus_jax.errors import ConfigError

_ALL = np.iinfo(np.int32).max
"""A top-k that keeps every token."""


@no_type_check  # it checks values itself, and takes whole numbers
@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """How a row chooses its next token. The defaults change nothing: tokens follow the model's own distribution.

    Raises:
        ConfigError: a value that is not allowed; one line for each.
    """

    temperature: float = 1.0
    """Scores are divided by it. 0 is greedy: the best token, whatever the other options are."""
    top_k: int = 0
    """Only so many of the best tokens; 0 is no limit. Tokens that equal the last one stay too."""
    top_p: float = 1.0
    """Only the fewest of the best tokens that have this probability together; always at least one."""
    min_p: float = 0.0
    """Only tokens that are at least this probable, relative to the best one."""
    repetition_penalty: float = 1.0
    """Scores of tokens that the prompt or the answer holds are divided by it, or multiplied where negative."""

    def __post_init__(self) -> None:
        faults = [
            f"{name} = {value!r}: allowed: {allowed}"
            for name, (whole, fits, allowed) in _ALLOWED.items()
            if not (_is_number(value := getattr(self, name), whole) and fits(value))
        ]
        if faults:
            raise ConfigError(join("sampling", faults))


_ALLOWED: dict[str, tuple[bool, Callable[[float], bool], str]] = {
    "temperature": (False, lambda x: x == 0 or 1e-6 <= x <= 1e6, "0 (greedy), or a number from 0.000001 to 1000000"),
    "top_k": (True, lambda x: 0 <= x <= _ALL, f"a whole number from 0 (no limit) to {_ALL}"),
    "top_p": (False, lambda x: 0 <= x <= 1, "a number from 0 (the best token alone) to 1 (no limit)"),
    "min_p": (False, lambda x: 0 <= x <= 1, "a number from 0 (no limit) to 1"),
    "repetition_penalty": (False, lambda x: 1e-6 <= x <= 1e6, "a number from 0.000001 to 1000000; 1 is no penalty"),
}
"""Option -> whether it is a whole number, the values that it may have, and the same in words."""


def _is_number(value: object, whole: bool) -> bool:
    kind = numbers.Integral if whole else numbers.Real
    return isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)


class Settings(NamedTuple):
    """The options of a batch's rows."""

    temperature: Float[Array | np.ndarray, " B"]
    top_k: Int[Array | np.ndarray, " B"]
    tail: Float[Array | np.ndarray, " B"]
    """1 - top_p: least probable tokens that have no more than this together are left out. Negative: none are."""
    min_p: Float[Array | np.ndarray, " B"]
    repetition_penalty: Float[Array | np.ndarray, " B"]

    @classmethod
    def of(cls, rows: Sequence[SamplingOptions]) -> "Settings":
        """Host arrays with one element for each row."""
        tails = [1 - float(row.top_p) if row.top_p < 1 else -1 for row in rows]  # in float64, as in transformers
        return cls(
            np.array([row.temperature for row in rows], np.float32),
            np.array([row.top_k or _ALL for row in rows], np.int32),
            np.array(tails, np.float32),
            np.array([row.min_p for row in rows], np.float32),
            np.array([row.repetition_penalty for row in rows], np.float32),
        )


def sample(
    logits: Float[Array, "B V"], settings: Settings, keys: Key[Array, " B"], seen: Bool[Array, "B V"]
) -> Int[Array, " B"]:
    """The next token of each row: `perturbed`'s best of what `filter_logits` leaves. The first one, if two are equal.

    Args:
        keys: of `row_keys`.
        seen: the tokens that a row's prompt and answer hold (`mark_seen`), for the repetition penalty.
    """
    scores = perturbed(filter_logits(logits, settings, seen), settings, keys)
    # The first of the best. jnp.argmax takes 2 to 4 times as long on CPUs.
    ids = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
    last = scores.shape[1] - 1
    return jnp.where(scores == scores.max(-1, keepdims=True), ids, last).min(-1)


def filter_logits(logits: Float[Array, "B V"], settings: Settings, seen: Bool[Array, "B V"]) -> Float[Array, "B V"]:
    """Scores in float32, -inf for tokens that are left out: softmax of a row is what `sample` draws from.

    Repetition penalty, temperature, top-k, top-p and min-p, in this order, leave the tokens that the logits processors
    of transformers leave. Where several tokens have the score at which top-p ends, as many stay as there: which ones
    its sort does not say, here the first. A greedy row gets the repetition penalty alone.
    """
    scores = logits.astype(jnp.float32)
    penalty = settings.repetition_penalty[:, None]
    scores = jnp.where(seen, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)
    draws = settings.temperature > 0
    scores = scores / jnp.where(draws, settings.temperature, 1)[:, None]
    top_k = jnp.where(draws, settings.top_k, _ALL)
    tail = jnp.where(draws, settings.tail, -1)
    min_p = jnp.where(draws, settings.min_p, 0)
    scores = jax.lax.cond((top_k < scores.shape[1]).any(), _top_k, _unchanged, scores, top_k)
    scores = jax.lax.cond((tail >= 0).any(), _top_p, _unchanged, scores, tail)
    return jax.lax.cond((min_p > 0).any(), _min_p, _unchanged, scores, min_p)


def perturbed(filtered: Float[Array, "B V"], settings: Settings, keys: Key[Array, " B"]) -> Float[Array, "B V"]:
    """Filtered scores plus Gumbel noise, whose largest element is a draw from their softmax; of greedy rows, no noise.

    How far the two largest are apart says by how much rounding may change a row's scores and not its token.
    """
    draws = settings.temperature > 0
    noise = jax.vmap(lambda key: _gumbel(key, filtered.shape[1]))
    return jax.lax.cond(draws.any(), lambda x: jnp.where(draws[:, None], x + noise(keys), x), lambda x: x, filtered)


def log_probs(scores: Float[Array, "B V"], ids: Int[Array, " B"]) -> Float[Array, " B"]:
    """Log-probs of tokens, in float32.

    Of the model's logits: under the model itself, as `logprobs` of OpenAI's interface and our scores have them. Of what
    `filter_logits` returns: under the distribution that was drawn from, as transformers' `compute_transition_scores`
    with `normalize_logits=True`; -inf for a token that was left out.
    """
    scores = scores.astype(jnp.float32)
    return jnp.take_along_axis(scores, ids[:, None], 1)[:, 0] - jax.nn.logsumexp(scores, -1)


def mark_seen(seen: Bool[Array, "B V"], ids: Int[Array, "B L"], valid: Bool[Array, "B L"]) -> Bool[Array, "B V"]:
    """Adds the valid ids of each row to what it has seen."""
    rows = jnp.arange(len(ids))[:, None]
    return seen.at[rows, jnp.where(valid, ids, seen.shape[1])].set(True, mode="drop")


# Random numbers


def words(value: int | np.integer | str | bytes | Sequence[int] | np.ndarray) -> np.ndarray:
    """Two uint32 words that stand for a seed of any size, or for a prompt by its number, its text or its ids."""
    if isinstance(value, str | bytes):
        content = repr(value)
    else:
        content = repr(int(value) if isinstance(value, int | np.integer) else [int(number) for number in value])
    return np.frombuffer(hashlib.blake2b(content.encode(), digest_size=8).digest(), "<u4").astype(np.uint32)


def row_keys(
    seed: Integer[Array | np.ndarray, "B ..."],
    prompt: Integer[Array | np.ndarray, "B ..."],
    sample: Integer[Array | np.ndarray, " B"],
    position: Integer[Array | np.ndarray, " B"],
) -> Key[Array, " B"]:
    """Keys that depend on seed, prompt, sample and position alone: not on the batch, its size or the row's place.

    Args:
        seed, prompt: numbers modulo 2^32, or `words` of them.
        sample: number of the answer to this prompt.
        position: number of the answer's token.
    """
    parts = [jnp.asarray(part).astype(jnp.uint32) for part in (seed, prompt, sample, position)]
    origins = jnp.concatenate([part.reshape(len(part), -1) for part in parts], 1)
    # whatever jax_default_prng_impl is
    keys = jax.random.wrap_key_data(jnp.zeros((len(origins), 2), jnp.uint32), impl="threefry2x32")
    for column in origins.T:
        keys = jax.vmap(jax.random.fold_in)(keys, column)
    return keys


def _gumbel(key: Key[Array, ""], size: int) -> Float[Array, " V"]:
    with jax.threefry_partitionable(True):  # a sharded vocabulary has the same numbers, and each device makes its own
        return _noise(jax.random.bits(key, (size,), jnp.uint32))


def _noise(bits: Array) -> Array:
    """Gumbel noise from uniform 32-bit numbers: the smaller the number, the larger the noise.

    jax.random.gumbel keeps 23 bits: it would draw tokens less probable than 1e-7 too seldom, or never.
    """
    uniform = jnp.minimum(bits.astype(jnp.float32) * 2.0**-32 + 2.0**-33, 1 - 2.0**-24)
    return -jnp.log(-jnp.log1p(-uniform))


# Filters: [B, V] scores -> [B, V] scores


def _unchanged(scores: Array, _: Array) -> Array:
    return scores


def _top_k(scores: Array, top_k: Array) -> Array:
    keys = _ordered(scores)
    threshold = _largest(lambda key: (keys >= key[:, None]).sum(-1) >= top_k, len(keys), 32)
    return jnp.where(keys >= threshold[:, None], scores, -jnp.inf)


def _top_p(scores: Array, tail: Array) -> Array:
    """Leaves out each token that has, together with all less probable ones, at most `tail` of the probability."""
    keys, probs = _ordered(scores), jax.nn.softmax(scores, -1)

    def below(key: Array) -> Array:
        return jnp.where(keys < key[:, None], probs, 0).sum(-1)

    threshold = _largest(lambda key: below(key) <= tail, len(keys), 32)
    threshold = jnp.minimum(threshold, keys.max(-1))  # one token stays
    ties = keys == threshold[:, None]
    number, prob, mass = ties.sum(-1), jnp.where(ties, probs, 0).max(-1), below(threshold)
    out = jnp.floor((tail - mass) / prob)  # how many of the tokens at the threshold have no place
    out += jnp.where(mass + (out + 1) * prob <= tail, 1, 0) - jnp.where(mass + out * prob > tail, 1, 0)
    # a probability of 0 gives NaN or infinity; the best token has at least 1 / V
    out = jnp.clip(jnp.nan_to_num(out), 0, number - 1).astype(jnp.int32)

    def first(ties: Array) -> Array:
        places = jax.lax.broadcasted_iota(jnp.uint32, ties.shape, 1)
        end = _largest(
            lambda end: (ties & (places < end[:, None])).sum(-1) <= number - out, len(ties), ties.shape[1].bit_length()
        )
        return ties & (places < end[:, None])

    ties = jax.lax.cond((out > 0).any(), first, lambda ties: ties, ties)
    return jnp.where(ties | (keys > threshold[:, None]), scores, -jnp.inf)


def _min_p(scores: Array, min_p: Array) -> Array:
    probs = jax.nn.softmax(scores, -1)
    return jnp.where(probs < min_p[:, None] * probs.max(-1, keepdims=True), -jnp.inf, scores)


def _ordered(scores: Array) -> Array:
    """Unsigned numbers in the order of the scores, equal where those are."""
    bits = jax.lax.bitcast_convert_type(jnp.where(scores == 0, 0.0, scores), jnp.uint32)  # -0 equals 0
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _largest(fits: Callable[[Array], Array], rows: int, bits: int) -> Array:
    """The largest number of so many bits that fits, for each row. What is smaller than a number that fits, fits."""

    def step(done: Array, best: Array) -> Array:
        candidate = best | (jnp.uint32(1) << (bits - 1 - done).astype(jnp.uint32))
        return jnp.where(fits(candidate), candidate, best)

    return jax.lax.fori_loop(0, bits, step, jnp.zeros(rows, jnp.uint32))
