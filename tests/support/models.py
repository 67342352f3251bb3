"""The small model of conversions, parameters for it, and model files read without the library."""

import functools
import json
import struct
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.checkpoint.hf.keys import leaves
from janus_jax.checkpoint.hf.read import load_hf
from janus_jax.errors import ConversionError
from janus_jax.model.config import ModelConfig
from janus_jax.model.mistral import Params, init_params

SMALL = ModelConfig(
    vocab_size=80,
    hidden_size=16,
    intermediate_size=24,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,  # not D / N
    rope_theta=1e4,
    sliding_window=5,
    max_position_embeddings=64,
    initializer_range=0.3,
)


def random_params(config: ModelConfig, dtype=jnp.float32) -> Params:
    """Random everywhere, the norms too."""
    return _random(config, jnp.dtype(dtype))


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def _random(config: ModelConfig, dtype) -> Params:
    """One program, which processes share; operation by operation it would be dozens."""
    params = init_params(config, jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), len(jax.tree.leaves(params)))
    flat, tree = jax.tree.flatten(params)
    noisy = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(flat, keys, strict=True)]
    return jax.tree.map(lambda leaf: leaf.astype(dtype), jax.tree.unflatten(tree, noisy))


def refused(directory: Path, *parts: object, read: Callable = load_hf) -> None:
    """Asserts that `read` gives one line, a ConversionError, that names all `parts`."""
    with pytest.raises(ConversionError) as caught:
        read(directory)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message, message


def assert_same_bits(ours: Params, theirs: Params) -> None:
    """Equal names, shapes, dtypes and bits."""
    a, b = leaves(ours), leaves(theirs)
    assert a.keys() == b.keys()
    for path in a:
        x, y = np.asarray(a[path]), np.asarray(b[path])
        assert x.dtype == y.dtype and x.shape == y.shape, path
        assert x.tobytes() == y.tobytes(), path


def read_safetensors(file: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """{name: (dtype, shape, bytes)}, parsed from the published format without the library."""
    content = file.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    assert header.pop("__metadata__") == {"format": "pt"}
    data = content[8 + size :]
    assert sum(end - start for start, end in (entry["data_offsets"] for entry in header.values())) == len(data)
    return {
        name: (entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])]) for name, entry in header.items()
    }


def read_tensors(directory: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """The tensors of all files in a directory."""
    tensors: dict[str, tuple[str, list[int], bytes]] = {}
    for file in sorted(directory.glob("*.safetensors")):
        tensors |= read_safetensors(file)
    return tensors
