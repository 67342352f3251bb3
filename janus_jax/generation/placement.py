"""Where a model generates: the mesh, and its weights brought there."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from janus_jax.model.config import ModelConfig
from janus_jax.model.mistral import Compute, Params, param_specs
from janus_jax.parallel import preflight
from janus_jax.parallel.axes import AXES, DEFAULT_RULES, MeshShape, Rules
from janus_jax.parallel.mesh import Placement, build_mesh, param_shardings


def generation_place(config: ModelConfig, devices: Sequence[Any] | None = None) -> tuple[Placement, list[str]]:
    """The mesh of a model that generates, and what to tell of it.

    `tensor` is the largest size that divides the key heads, `data` takes the other devices: weights then stay where
    they are, and each device has whole rows of the cache. With several processes or slices, `tensor` also divides the
    devices of a slice, so every process has work.

    Args:
        devices: in the order of the mesh; None: all, in an order that suits the hardware.
    """
    chosen = list(preflight.devices() if devices is None else devices)
    slices = len({getattr(device, "slice_index", 0) for device in chosen})
    whole = slices > 1 or len({device.process_index for device in chosen}) > 1
    data, tensor, rules, notes = split(config, len(chosen), slices, whole=whole)
    used = data * tensor
    if devices is None and used == len(chosen):
        mesh = build_mesh(MeshShape(data=data, fsdp=1, tensor=tensor, context=1))
    else:
        auto = (jax.sharding.AxisType.Auto,) * len(AXES)
        mesh = Mesh(np.array(chosen[:used]).reshape(data, 1, tensor, 1), AXES, axis_types=auto)
    return Placement(mesh, rules), notes


def split(config: ModelConfig, devices: int, slices: int, *, whole: bool) -> tuple[int, int, Rules, list[str]]:
    """Sizes of `data` and `tensor`, sharding rules and notes, as `generation_place` has them.

    Args:
        whole: whether `tensor` divides the devices of a slice.
    """
    within = devices // slices
    sizes = [n for n in range(1, within + 1) if not config.num_kv_heads % n and not (whole and within % n)]
    tensor, notes = sizes[-1], []
    data = devices // tensor
    if (used := data * tensor) < devices:
        notes.append(
            f"{used} of {devices} devices are used: tensor={tensor} divides {config.num_kv_heads} key heads, and "
            f"{devices} is not a multiple of it"
        )
    rules = dict(DEFAULT_RULES)
    for axis, size, what in (
        ("mlp", config.intermediate_size, "feed-forward layers"),
        ("vocab", config.vocab_size, "embedding and head"),
    ):
        if size % tensor:
            rules[axis] = ()
            notes.append(f"{what} are whole on each device: tensor={tensor} does not divide {axis}={size}")
    return data, tensor, rules, notes


def compute_at(place: Placement, dtype: Any = None) -> Compute:
    """How a model runs at `place`.

    Args:
        dtype: of weights and activations; None: bfloat16, on CPUs float32, because they emulate bfloat16.
    """
    default = jnp.float32 if place.platform == "cpu" else jnp.bfloat16
    return Compute(dtype=jnp.dtype(default if dtype is None else dtype), place=place)


def shardings(config: ModelConfig, place: Placement) -> Any:
    """The sharding of every parameter."""
    assert place.mesh is not None
    return param_shardings(param_specs(config), place.mesh, place.rules)


def devices_of(params: Params) -> list[Any]:
    """The devices of live parameters, in the order of their mesh."""
    sharding = jax.tree.leaves(params)[0].sharding
    mesh = getattr(sharding, "mesh", None)
    return list(mesh.devices.flat) if mesh is not None else sorted(sharding.device_set, key=lambda one: one.id)


def resharded(config: ModelConfig, params: Params, dtype: Any, place: Placement) -> Params:
    """A copy of live parameters in `dtype` on the mesh of `place`. Parameters stay as they are."""
    wanted = shardings(config, place)
    assert place.mesh is not None
    if list(place.mesh.devices.flat) != devices_of(params):  # some devices are left out
        return jax.device_put(jax.tree.map(lambda leaf: leaf.astype(dtype), params), wanted)
    return _copier(dtype, tuple(jax.tree.leaves(wanted)), jax.tree.structure(wanted))(params)


@functools.lru_cache(maxsize=4)
def _copier(dtype: Any, leaves: tuple[Any, ...], tree: Any) -> Any:
    """One compiled program for all calls: samples while training copy the weights again and again."""

    def copy(params: Params) -> Params:
        return jax.tree.map(lambda leaf: leaf.astype(dtype), params)

    return jax.jit(copy, out_shardings=jax.tree.unflatten(tree, leaves))


def on_all(tree: Any, place: Placement) -> Any:
    """Host arrays, the same in all processes, as arrays on every device."""
    whole = place.sharding(())
    if jax.process_count() == 1:
        return jax.device_put(tree, whole)
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, whole, lambda index: x[index]), tree)
