"""Which key heads a device has beside its query heads, when a kernel runs on each device alone."""

import jax
from jaxtyping import Array, Float

from janus_jax.model.kernels import Need
from janus_jax.parallel.mesh import Placement


def apart_reason(need: Need) -> str | None:
    """Why a device's query heads and key heads do not belong together, for a user to read; None if they do."""
    heads, kv_heads, place = need.heads, need.kv_heads, need.place
    q_shards, kv_shards = place.shards("q_heads"), place.shards("kv_heads")
    local, group = heads // q_shards, heads // kv_heads
    apart = kv_shards > 1 and place.names("q_heads") != place.names("kv_heads")
    if apart or (kv_shards == 1 and local % group and group % local):
        return (
            f"{heads} query heads on {q_shards} devices and {kv_heads} key heads on {kv_shards}: a device's queries "
            "and keys do not belong together"
        )
    return None


def heads_of_a_device(heads: int, kv_heads: int, place: Placement) -> tuple[int, int]:
    """Query heads of a device, and the key heads that they use."""
    local = heads // place.shards("q_heads")
    return local, max(1, local * kv_heads // heads)


def keys_of_queries(
    q: Float[Array, "B L N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    *,
    group: int,
    kv_heads: int,
    place: Placement,
) -> tuple[Float[Array, "B S G H"], Float[Array, "B S G H"]]:
    """Inside `Placement.map`: of the device's keys and values, those that its queries use.

    Args:
        group: query heads that share a key head.
        kv_heads: key heads on all devices.
    """
    if k.shape[2] < kv_heads or place.shards("q_heads") == 1:
        return k, v
    first = jax.lax.axis_index(place.names("q_heads")) * q.shape[2] // group  # all key heads are here, queries of some
    count = max(1, q.shape[2] // group)
    k, v = (jax.lax.dynamic_slice_in_dim(x, first, count, axis=2) for x in (k, v))
    return k, v
