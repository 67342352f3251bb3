"""What attention is computed on, for tests of kernels."""

import jax.numpy as jnp

from janus_jax.model.kernels import Need


def need(**changes) -> Need:
    """Heads of Mistral 7B, pairs that share prompts, one device; with changes."""
    sizes = {"heads": 32, "kv_heads": 8, "head_dim": 128, "window": None, "dtype": jnp.dtype(jnp.bfloat16)}
    limits = {"row_length": 4096, "longest": 2048, "copies": 1024, "segments": 5, "branches": 2}
    return Need(**{**sizes, **limits, **changes})
