"""What a model that generates takes on each device: weights, cache, temporaries. Arithmetic; nothing is compiled."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from janus_jax.errors import ConfigError
from janus_jax.generation import placement, scoring
from janus_jax.generation.requests import Request
from janus_jax.generation.sizes import SLOTS_PER_CALL, TOKENS_PER_STEP, bucket, buckets, prompts_per_call, slots
from janus_jax.model import head
from janus_jax.model.attention import queries_per_block
from janus_jax.model.blockwise import block_size, suits
from janus_jax.model.config import ModelConfig
from janus_jax.model.mistral import param_specs
from janus_jax.parallel.mesh import Placement

_TPU_LANES = 128
"""Elements to which TPUs pad the last dimension of an array."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on each device, of a cache with `rows` rows of `length` slots. Made by `needed`."""

    config: ModelConfig
    place: Placement
    rows: int
    length: int
    dtype: Any
    cache_dtype: Any
    live: bool
    prompt: int
    steps: int
    platform: str | None

    @functools.cached_property
    def weights(self) -> int:
        """Exact."""
        return sum(jax.tree.leaves(self._weights))

    @property
    def cache(self) -> int:
        """Exact."""
        return self._keys(self._rows, self.length, self.cache_dtype)

    @property
    def temporaries(self) -> int:
        """What lives beside weights and cache at most: of a prefill, of copying it into rows, or of a decoding call.

        An estimate, above what XLA reports.
        """
        seen = self._rows * self.config.vocab_size  # which ids each row has seen
        waiting = self._keys(1, self._prompts * self.prompt, self.cache_dtype)  # a call's prompts with more samples
        return seen + max(self._decode + waiting, max(self._prefill, self._fill) + self._step)

    @property
    def beside(self) -> dict[str, int]:
        """What is on a device beside the arguments of `decode`, `prefill` and `fill`."""
        return {"decode": 0, "prefill": self.cache + self._step, "fill": self.weights + self._step}

    @property
    def _step(self) -> int:
        """The prompts that a step computes before they are copied into rows."""
        return self._keys(1, min(self._rows * self.prompt, TOKENS_PER_STEP + self.prompt), self.cache_dtype)

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.temporaries

    @functools.cached_property
    def _weights(self) -> Any:
        """Bytes of each parameter on a device."""
        return jax.tree.map(
            lambda spec, sharding: math.prod(sharding.shard_shape(spec.shape)) * self.dtype.itemsize,
            param_specs(self.config),
            placement.shardings(self.config, self.place),
        )

    @property
    def _rows(self) -> int:
        return -(-self.rows // self.place.shards("batch"))

    def _keys(self, rows: int, length: int, dtype: Any, layers: int | None = None) -> int:
        """Keys and values of a device's heads. One scale belongs to a slot of a key head in int8."""
        n = self.config
        slot = n.head_dim * dtype.itemsize + (4 if dtype == jnp.int8 else 0)
        heads = n.num_kv_heads // self.place.shards("kv_heads")
        return 2 * (layers or n.num_layers) * rows * heads * length * slot

    @property
    def _layer(self) -> int:
        """Weights of one layer, which are cut out of those of all."""
        return sum(jax.tree.leaves(self._weights["layers"])) // self.config.num_layers

    def _scores(self, queries: int, keys: int, rows: int) -> int:
        """Attention scores in float32, before and after the mask, and their softmax."""
        copies = 2 if self.platform == "cpu" and queries > 1 else 3
        return copies * 4 * rows * queries * keys * (self.config.num_heads // self.place.shards("kv_heads"))

    @property
    def _decode(self) -> int:
        n, size = self.config, self.dtype.itemsize
        vocabulary = n.vocab_size // self.place.shards("vocab")
        recent = self._keys(self._rows, self.steps, self.dtype)
        logits = 2 * 4 * self._rows * vocabulary + self._rows * n.vocab_size  # with what sampling leaves; stop ids
        heads = n.num_heads // self.place.shards("kv_heads")
        if self.platform == "tpu":  # reads the cache where it is; turns the weights of all queries once
            read = n.num_layers * n.hidden_size * heads * n.head_dim * size
        else:
            read = self._keys(self._rows, self.length, self.dtype, layers=1)
        return self._layer + recent + logits + read + self._scores(1, self.length + self.steps, self._rows)

    @property
    def _prompts(self) -> int:
        """Of one prefill, for each shard of rows."""
        return prompts_per_call(self.prompt, self._rows)

    @property
    def _prefill(self) -> int:
        # Shorter prompts may fill a call better than the longest ones.
        tokens = max(self._prompts * self.prompt, min(SLOTS_PER_CALL, self._rows * self.prompt))
        widths = ((prompts_per_call(width, self._rows), width) for width in buckets(self.prompt))
        return self._largest_forward(widths, tokens) + self._keys(1, tokens, self.dtype)

    def _largest_forward(self, calls: Iterable[tuple[int, int]], tokens: int) -> int:
        """Of calls with so many rows of such a length. On CPUs only long rows go block by block."""
        return max(self._forward(rows, length, tokens) for rows, length in calls)

    def _forward(self, rows: int, length: int, tokens: int) -> int:
        """Of one layer that reads `tokens` in rows of `length`."""
        n, parts = self.config, self.place.shards("kv_heads")
        block, keys = queries_per_block(rows, length, n.num_heads // parts, length), length
        if suits(length, self.place, self.platform):
            block = keys = block_size(n.num_heads // n.num_kv_heads, n.head_dim)
        wide = 2 * n.hidden_size + 2 * n.intermediate_size // self.place.shards("mlp")
        wide += (n.num_heads + 2 * n.num_kv_heads) * n.head_dim // parts
        return self._layer + self._scores(block, keys, rows) + tokens * wide * self.dtype.itemsize

    @property
    def scoring(self) -> int:
        """Weights and temporaries of a call that scores a full row of `scoring.SLOTS_PER_CALL`, or shorter rows."""
        slots = scoring.SLOTS_PER_CALL
        forward = self._largest_forward(((slots // length, length) for length in buckets(slots)), slots)
        return self.weights + max(forward, self._layer + 3 * head.BYTES_PER_CHUNK)

    @property
    def _fill(self) -> int:
        """Each device gets all prompts of a prefill. TPUs write into rows of whole lanes: heads of 64 are padded."""
        padding = -self.config.head_dim % _TPU_LANES if self.platform == "tpu" else 0
        padded = self.cache * (self.config.head_dim + padding) // self.config.head_dim if padding else 0
        prompts = self._prompts * self.place.shards("batch")
        return self._keys(prompts, self.prompt, self.cache_dtype) + padded

    def text(self) -> str:
        """One line for people."""
        copy = " (a copy beside those of training)" if self.live else ""
        return (
            f"{_gib(self.total)} on each device: weights {_gib(self.weights)}{copy}, cache of {self.rows:,} rows of "
            f"{self.length:,} slots {_gib(self.cache)}, temporaries {_gib(self.temporaries)}"
        )

    def most_rows(self, free: int) -> int:
        """The most rows that fit into `free` bytes of each device, a multiple of the mesh's `data`; 0: none do."""
        shards, low, high = self.place.shards("batch"), 0, self._rows
        while low < high:
            middle = (low + high + 1) // 2
            fits = dataclasses.replace(self, rows=middle * shards).total <= free
            low, high = (middle, high) if fits else (low, middle - 1)
        return low * shards


def needed(
    config: ModelConfig,
    place: Placement,
    *,
    rows: int,
    length: int,
    dtype: Any,
    cache_dtype: Any = None,
    live: bool = False,
    prompt: int | None = None,
    steps: int = 16,
    platform: str | None = None,
) -> Memory:
    """What `rows` texts that grow together take, each of up to `length` tokens with its prompt.

    Args:
        place: of `placement.generation_place`. Its devices need not exist; a mesh without any (`AbstractMesh`) needs
            `platform`.
        rows: rounded up to a multiple of the mesh's `data`.
        length: rounded up to a bucket.
        dtype: of weights and activations.
        cache_dtype: None: `dtype`.
        live: the weights are a copy beside those of training.
        prompt: tokens of the longest prompt; None: `length`.
        steps: most tokens of a decoding call (`Engine.steps_per_call`).
        platform: of the devices; None: what `place` says.
    """
    shards, length = place.shards("batch"), bucket(length)
    return Memory(
        config,
        place,
        -(-rows // shards) * shards,
        length,
        jnp.dtype(dtype),
        jnp.dtype(dtype if cache_dtype is None else cache_dtype),
        live,
        length if prompt is None else bucket(prompt),
        steps,
        place.platform if platform is None else platform,
    )


def require(memory: Memory, place: Placement, *places: str, held: int = 0) -> None:
    """Raises ConfigError if it does not fit into what is free on the devices of this process.

    Devices that tell nothing of their memory, such as CPUs, are not checked.

    Args:
        places: what to blame, such as an option.
        held: bytes of `memory` that are on the devices already.
    """
    assert place.mesh is not None
    free = free_bytes(place.mesh.local_devices)
    if free is None or memory.total <= free + held:
        return
    most = memory.most_rows(free + held)
    allowed = f"at most {most:,} rows of this length" if most else "shorter texts, or more devices; not one row fits"
    raise ConfigError(*places, f"generation needs {memory.text()}; {_gib(free + held)} is free; allowed: {allowed}")


def free_bytes(devices: Sequence[Any]) -> int | None:
    """The least that is free on a device; None: the devices do not tell."""
    of_devices = [device.memory_stats() for device in devices]
    return min((stats["bytes_limit"] - stats.get("bytes_in_use", 0) for stats in of_devices if stats), default=None)


def longest_row(config: ModelConfig, requests: Sequence[Request], steps: int) -> int:
    """Slots of a row in which each text of `requests` has room, as a session reserves them."""
    longest = config.max_position_embeddings
    return max(slots(len(one.ids), one.stopping.max_new_tokens, steps, longest) for one in requests)


def require_for(
    config: ModelConfig, requests: Sequence[Request], rows: int, *places: str, cache_dtype: Any = None, steps: int = 16
) -> None:
    """As `require`, for requests to a model whose weights are not read yet, on all devices.

    Args:
        rows: texts that grow at the same time.
    """
    place, _ = placement.generation_place(config)
    length = longest_row(config, requests, steps)
    prompt, dtype = max(len(one.ids) for one in requests), placement.compute_at(place).dtype
    memory = needed(
        config, place, rows=rows, length=length, dtype=dtype, cache_dtype=cache_dtype, prompt=prompt, steps=steps
    )
    require(memory, place, *places)


def require_to_score(config: ModelConfig, *places: str) -> None:
    """Raises ConfigError if weights that are not read yet, and a call that scores, do not fit into what is free.

    Devices that tell nothing of their memory, such as CPUs, are not checked.
    """
    place, _ = placement.generation_place(config)
    assert place.mesh is not None
    free = free_bytes(place.mesh.local_devices)
    memory = needed(config, place, rows=1, length=1, dtype=placement.compute_at(place).dtype)
    if free is not None and memory.scoring > free:
        what = f"scoring needs {_gib(memory.scoring)} on each device: weights {_gib(memory.weights)}, temporaries "
        what += f"{_gib(memory.scoring - memory.weights)}; {_gib(free)} is free; allowed: more devices, a smaller model"
        raise ConfigError(*places, what)


def _gib(size: int) -> str:
    return f"{size / 2**30:,.2f} GiB"
