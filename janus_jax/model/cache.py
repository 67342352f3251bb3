"""What the layers keep of earlier tokens, so that a text grows by one token at a time (KV cache).

Rows of the cache have slots 0, 1, ... in the order of their texts. A slot counts for as long as its number is below the
length of its row, so what is left of an earlier text is never seen. The tokens of one call go into a small buffer at a
common place, `recent`, and into the cache once, at the end of the call: while tokens are made, the cache is only read.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from janus_jax.model.attention import Keys, Slots
from janus_jax.model.config import ModelConfig
from janus_jax.model.mistral import Compute, Params, bind, unembed
from janus_jax.parallel.mesh import Placement

AXES = ("layers", "batch", "kv_heads", None, "head_dim")
"""Logical axes of a cache. It holds whole rows on each device."""


class Cache(NamedTuple):
    """Keys, after RoPE, and values of all layers. T comes after the heads, as products with the cache read it.

    In int8, those of a token and head are whole numbers from -127 to 127, to be multiplied by their scale.
    """

    k: Num[Array, "layers B K T H"]
    v: Num[Array, "layers B K T H"]
    k_scale: Float[Array, "layers B K T"] | None = None
    v_scale: Float[Array, "layers B K T"] | None = None

    @property
    def length(self) -> int:
        """Slots of a row."""
        return self.k.shape[3]


def empty(config: ModelConfig, rows: int, length: int, compute: Compute, dtype: Any = None) -> Cache:
    """A cache of zeros on the mesh of `compute.place`. Jit it.

    Args:
        dtype: None: the compute dtype.
    """
    shape = (config.num_layers, rows, config.num_kv_heads, length, config.head_dim)
    part: Any = jax.ShapeDtypeStruct(shape, compute.dtype)
    keys = Cache(part, part)
    shapes = jax.eval_shape(lambda keys: stored(keys, compute.dtype if dtype is None else dtype), keys)
    return constrain(jax.tree.map(lambda part: jnp.zeros(part.shape, part.dtype), shapes), compute.place)


def stored(keys: Cache, dtype: Any) -> Cache:
    """Keys and values as a cache of this dtype holds them; those in int8 have a scale for each token and head."""
    if dtype != jnp.int8:
        return jax.tree.map(lambda part: part.astype(dtype), keys)

    def rounded(part: Array) -> tuple[Array, Array]:
        part = part.astype(jnp.float32)
        scale = jnp.abs(part).max(-1) / 127
        return jnp.round(part / jnp.where(scale > 0, scale, 1)[..., None]).astype(jnp.int8), scale

    (k, k_scale), (v, v_scale) = rounded(keys.k), rounded(keys.v)
    return Cache(k, v, k_scale, v_scale)


def constrain(cache: Cache, place: Placement) -> Cache:
    """The cache with each row and key head on the devices that have it."""
    return jax.tree.map(lambda part: place.constrain(part, AXES[: part.ndim]), cache)


def grown(cache: Cache, length: int, compute: Compute) -> Cache:
    """The cache with `length` slots, which are at least as many."""
    pad = [(0, 0)] * 3 + [(0, length - cache.length), (0, 0)]
    return constrain(jax.tree.map(lambda part: jnp.pad(part, pad[: part.ndim]), cache), compute.place)


def prefill(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "P L"],
    lengths: Int[Array, " P"],
    compute: Compute,
    dtype: Any = None,
) -> Cache:
    """Keys and values of prompts, computed as training computes them.

    Args:
        tokens: prompts from slot 0 on; what follows `lengths` is not seen by them.
        dtype: as of `empty`.
    """
    here = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    slots = Slots((here < lengths[:, None]).astype(jnp.int32), jnp.zeros_like(here), here)
    _, keys = bind(config, params).after(tokens, slots, compute, (), lambda _: ())
    cache = Cache(*(part.swapaxes(2, 3) for part in keys))
    return constrain(stored(cache, compute.dtype if dtype is None else dtype), compute.place)


def fill(cache: Cache, prompts: Cache, rows: Int[Array, " R"], sources: Int[Array, " R"], place: Placement) -> Cache:
    """Copies prompts into rows: prompt `sources[i]` into row `rows[i]`. Pairs with a negative row are skipped."""

    def local(part: Array, prompts: Array, rows: Array, sources: Array) -> Array:
        first = _first_row(part, place)

        def copy(i: Array, part: Array) -> Array:
            row = rows[i] - first

            def write(part: Array) -> Array:
                prompt = jax.lax.dynamic_slice_in_dim(prompts, sources[i], 1, 1)
                return jax.lax.dynamic_update_slice(part, prompt, (0, row, 0, 0, 0)[: part.ndim])

            return jax.lax.cond((rows[i] >= 0) & (row >= 0) & (row < part.shape[1]), write, lambda part: part, part)

        return jax.lax.fori_loop(0, rows.shape[0], copy, part)

    def of_part(part: Array, prompts: Array) -> Array:
        axes = AXES[: part.ndim]
        everywhere = ("layers", None, *axes[2:])  # any row may be a copy of any prompt
        return place.map(local, (axes, everywhere, (None,), (None,)), axes)(part, prompts, rows, sources)

    return jax.tree.map(of_part, cache, prompts)


def append(cache: Cache, recent: Cache, lengths: Int[Array, " B"], place: Placement) -> Cache:
    """Writes `recent` into each row from slot `lengths` on.

    Where a row has no room for all of its slots, they are written over its last ones: its text must be at its end.
    """

    def local(part: Array, recent: Array, lengths: Array) -> Array:
        def copy(part: Array, row: tuple[Array, Array, Array]) -> tuple[Array, None]:
            number, slots, length = row
            return jax.lax.dynamic_update_slice(part, slots[:, None], (0, number, 0, length, 0)[: part.ndim]), None

        rows = jnp.arange(part.shape[1], dtype=jnp.int32)
        return jax.lax.scan(copy, part, (rows, recent.swapaxes(0, 1), lengths))[0]

    def of_part(part: Array, new: Array) -> Array:
        axes = AXES[: part.ndim]
        return place.map(local, (axes, axes, ("batch",)), axes)(part, new, lengths)

    return jax.tree.map(of_part, cache, stored(recent, cache.k.dtype))


def next_logits(
    config: ModelConfig,
    params: Params,
    cache: Cache,
    recent: Cache,
    tokens: Int[Array, " B"],
    lengths: Int[Array, " B"],
    count: Int[Array, ""],
    *,
    attended: int,
    compute: Compute,
) -> tuple[Float[Array, "B V"], Cache]:
    """Logits (float32) after one more token of each row, and `recent` with that token in its slot `count`.

    Args:
        tokens: the newest tokens, which neither cache nor `recent` hold.
        lengths: slots of each row that the cache holds; none is above `attended`.
        count: slots that `recent` holds of every row.
        attended: slots of the cache to read.
    """
    old_at, new_at = (jnp.arange(n, dtype=jnp.int32)[None] for n in (attended, recent.length))
    rows = lengths[:, None]
    old, new = (
        Slots(seen.astype(jnp.int32), jnp.zeros(seen.shape, jnp.int32), jnp.broadcast_to(position, seen.shape))
        for seen, position in (
            (old_at < rows, old_at),
            (jnp.broadcast_to(new_at < count, (len(tokens), recent.length)), rows + new_at),
        )
    )
    here = Slots(jnp.ones_like(rows), jnp.zeros_like(rows), rows + count)

    def keys_of(layer: tuple[Cache, Cache]) -> list[Keys]:
        def keys(part: Cache, size: int, slots: Slots) -> Keys:
            k, v, *scales = jax.tree.map(lambda x: x[:, :, :size].swapaxes(1, 2), part)
            return Keys(k, v, slots, *scales)

        return [keys(layer[0], attended, old), keys(layer[1], recent.length, new)]

    model = bind(config, params)
    hidden, keys = model.after(tokens[:, None], here, compute, (cache, recent), keys_of)
    recent = Cache(
        *(
            jax.lax.dynamic_update_slice_in_dim(part, new.swapaxes(2, 3), count, 3)
            for part, new in zip(recent[:2], keys, strict=True)
        )
    )
    return unembed(model, hidden, compute)[:, 0], constrain(recent, compute.place)


def _first_row(part: Array, place: Placement) -> Array:
    """Number of the first row on this device, inside `Placement.map`."""
    names = place.names("batch")
    return (jax.lax.axis_index(names) if names else jnp.int32(0)) * part.shape[1]
