"""What cuDNN does with packed sequences, in plain JAX: from JAX's and cuDNN's descriptions, not from our rule.

JAX turns begins of sequences within rows into numbers of elements from the begin of the memory; this is done by JAX's
own function here. From there cuDNN knows no rows: sequence i is `lengths[i]` tokens from element `begins[i]` on, a
token of queries is N x H elements and one of keys K x H. Its queries see its keys up to their own number, with a window
W the last W of them. Memory outside all sequences is not written.
"""

import functools

import jax
import jax.numpy as jnp
from jax._src.cudnn.fused_attention_stablehlo import _fix_seqlen_offsets


def packed_attention(q, k, v, lengths, begins, *, window):
    """In the place of `cudnn.packed_attention`, any dtype. NaN where cuDNN writes nothing or reads beyond the end."""
    return _attend(window, q, k, v, lengths, begins)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(window, q, k, v, lengths, begins):
    at, sequences = _places(q, k, lengths, begins)
    return _sequences(window, q, k, v, at, sequences)


def _forward(window, q, k, v, lengths, begins):
    return _attend(window, q, k, v, lengths, begins), (q, k, v, lengths, begins)


def _backward(window, kept, cotangent):
    q, k, v, lengths, begins = kept
    (queries, keys, valid), sequences = _places(q, k, lengths, begins)

    def written(x, at):
        tokens = x.shape[0] * x.shape[1]
        count = jnp.zeros(tokens + 1, jnp.int32).at[jnp.where(valid, at, tokens)].add(1)[:-1]
        return jnp.where(count.reshape(*x.shape[:2], 1, 1) == 1, x, jnp.nan)

    _, pull = jax.vjp(lambda *qkv: _sequences(window, *qkv, (queries, keys, valid), sequences), q, k, v)
    # A product that is masked is still computed: cotangents that are not finite would spread.
    flat = cotangent.reshape(-1, *cotangent.shape[2:])
    cotangent = jnp.where(jnp.isfinite(flat).all(), cotangent, jnp.nan)
    dq, dk, dv = pull(cotangent)
    return written(dq, queries), written(dk, keys), written(dv, keys), None, None


_attend.defvjp(_forward, _backward)


def _places(q, k, lengths, begins):
    """Tokens of queries and keys [sequences, T] and which of them are in the sequence."""
    sizes, _, q_begins, k_begins = _fix_seqlen_offsets(lengths, lengths, begins, begins, q, k)
    sequences = lengths.size
    inside = jnp.arange(q.shape[1])
    sizes = sizes.reshape(-1)[:, None]
    q_tokens = q_begins.reshape(-1)[:sequences, None] // (q.shape[2] * q.shape[3]) + inside
    k_tokens = k_begins.reshape(-1)[:sequences, None] // (k.shape[2] * k.shape[3]) + inside
    valid = inside < sizes
    too_long = sizes > q.shape[1]
    return (q_tokens, k_tokens, valid & ~too_long), sequences


def _sequences(window, q, k, v, at, sequences):
    queries, keys, valid = at
    group = q.shape[2] // k.shape[2]

    def tokens(x, index):  # [R, T, ...] -> [sequences, T, ...]
        flat = x.reshape(-1, *x.shape[2:])
        return jnp.where(valid[:, :, None, None], flat.at[index].get(mode="fill", fill_value=jnp.nan), 0)

    q_of, k_of, v_of = tokens(q, queries), tokens(k, keys), tokens(v, keys)
    k_of, v_of = (jnp.repeat(x, group, axis=2) for x in (k_of, v_of))
    number = jnp.arange(q.shape[1])
    seen = number[:, None] >= number[None, :]
    if window is not None:
        seen &= number[:, None] - window < number[None, :]
    seen = seen[None] & valid[:, None, :]
    scores = jnp.einsum("sqnh,sknh->snqk", q_of, k_of, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    scores = jnp.where(seen[:, None], scores, jnp.finfo(jnp.float32).min)
    out = jnp.einsum("snqk,sknh->sqnh", jax.nn.softmax(scores, axis=-1).astype(v.dtype), v_of)
    memory = jnp.full((q.shape[0] * q.shape[1] + 1, *q.shape[2:]), jnp.nan, q.dtype)
    memory = memory.at[jnp.where(valid, queries, memory.shape[0] - 1)].set(out)
    return memory[:-1].reshape(q.shape)
