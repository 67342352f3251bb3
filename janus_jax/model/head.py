"""Log-probabilities of given tokens without ever holding [tokens, vocab] whole."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_LOGITS_PER_CHUNK = 1 << 24
"""Logit elements alive at once on a device: 64 MiB in float32."""


def token_logps(
    hidden: Float[Array, "B L D"], head: Float[Array, "D V"], targets: Int[Array, "B L"], *, shards: int = 1
) -> Float[Array, "B L"]:
    """log softmax(hidden @ head)[target] at each slot, in float32.

    Goes along the length in chunks whose logits are recomputed in the backward pass; those of a single chunk are kept.
    The picked logit is a masked sum rather than a gather, so that a vocabulary-sharded head needs no gathered logits.
    `shards` says over how many devices rows and vocabulary are spread, each of which holds its share of a chunk.
    """
    rows, length, width = hidden.shape
    vocab = head.shape[1]
    chunk = max(1, min(length, _LOGITS_PER_CHUNK * shards // (rows * vocab)))
    chunks = -(-length // chunk)
    padding = chunks * chunk - length

    def logps(args: tuple[Array, Array]) -> Array:
        # Rows and length as one axis: XLA's CPU backend runs the backward pass of the plain product 4 times faster.
        x, target = args[0].reshape(-1, width), args[1].reshape(-1, 1)
        logits = jnp.matmul(x, head.astype(x.dtype), preferred_element_type=jnp.float32)
        picked = jnp.where(jnp.arange(vocab, dtype=jnp.int32) == target, logits, 0).sum(-1)
        return (picked - jax.nn.logsumexp(logits, axis=-1)).reshape(args[1].shape)

    if chunks == 1:
        return logps((hidden, targets))
    hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0))).reshape(rows, chunks, chunk, width)
    targets = jnp.pad(targets, ((0, 0), (0, padding))).reshape(rows, chunks, chunk)
    out = jax.lax.map(jax.checkpoint(logps), (jnp.moveaxis(hidden, 1, 0), jnp.moveaxis(targets, 1, 0)))
    return jnp.moveaxis(out, 0, 1).reshape(rows, chunks * chunk)[:, :length]
