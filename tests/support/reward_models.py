"""Small reward models, texts for them to judge, and the reward that this package computes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.model.attention import Slots
from janus_jax.model.mistral import Compute, token_values
from tests.support.models import SMALL

EOS = 2
LENGTHS = (3, 17, 9, 1)
REWARD_MODELS = {
    "window": dataclasses.replace(SMALL, head="value"),
    "tied": dataclasses.replace(SMALL, head="value", tie_embeddings=True, sliding_window=None),
}


def reward_texts(vocab_size):
    """Token ids of unequal lengths that end in EOS; id 0, which pads, and EOS occur inside too."""
    rng = np.random.default_rng(0)
    ids_of_texts = [rng.integers(0, vocab_size, length) for length in LENGTHS]
    ids_of_texts[1][[4, 7, 15]] = [0, EOS, 0]
    for ids in ids_of_texts:
        ids[-1] = EOS
    return ids_of_texts


def our_reward(model, params, ids):
    """The reward of one text by itself, without padding."""
    tokens = jnp.asarray(ids, jnp.int32)[None]
    one = jnp.ones_like(tokens)
    layout = Slots(one, one, jnp.arange(len(ids), dtype=jnp.int32)[None])
    return float(_values(model, params, tokens, layout, Compute(dtype=jnp.float32))[0, -1])


_values = jax.jit(token_values, static_argnums=(0, 4))  # operation by operation it would be a hundred programs
