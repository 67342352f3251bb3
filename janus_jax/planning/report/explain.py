"""Where a parameter lies and by which rule; follows from shapes and rules, so that nothing is compiled."""

import difflib
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from janus_jax.config.run import RunConfig
from janus_jax.errors import ConfigError
from janus_jax.model.mistral import ParamSpec, param_specs
from janus_jax.parallel import mesh as meshes
from janus_jax.planning.chips.slices import find_slice
from janus_jax.planning.inputs import find_model

_GIB = 2**30


def explain_parameters(config: RunConfig, topology: str, name: str, *, num_slices: int = 1) -> str:
    """Logical axes, rules, mesh axes and bytes of a parameter, or of all whose names begin with `name.`.

    Raises:
        ConfigError: unknown slice or parameter (names the nearest), or a mesh or rules that do not suit the model.
    """
    devices = find_slice(topology).devices * num_slices
    sizes = meshes.MeshShape(**config.mesh.model_dump()).resolve(devices)
    rules = meshes.merge_rules(config.sharding)
    shape = {axis: getattr(sizes, axis) for axis in meshes.AXES}
    mesh = jax.sharding.AbstractMesh(tuple(shape.values()), meshes.AXES)
    meshes.check_slices(sizes, num_slices)
    specs = param_specs(find_model(config)[0], jnp.dtype(config.params_dtype))
    shardings = meshes.param_shardings(specs, mesh, rules)  # pyright: ignore[reportArgumentType]
    leaves = jax.tree_util.tree_leaves_with_path(specs, is_leaf=lambda leaf: isinstance(leaf, ParamSpec))
    found = {_name(path): spec for path, spec in leaves}
    lies = {_name(path): sharding for path, sharding in jax.tree_util.tree_leaves_with_path(shardings)}
    chosen = [each for each in found if each == name or each.startswith(f"{name}.")]
    if not chosen:
        raise ConfigError(_unknown(name, list(found)))
    moments = jnp.dtype(config.optimizer.moments)
    head = f"mesh {' x '.join(f'{axis} {size}' for axis, size in shape.items())}, {devices:,} devices"
    parts = [
        "\n".join(_parameter(each, found[each], lies[each].shard_shape(found[each].shape), shape, rules, moments))
        for each in chosen
    ]
    return "\n\n".join([head, *parts])


def _parameter(
    name: str, spec: ParamSpec, local: tuple[int, ...], mesh: dict[str, int], rules: meshes.Rules, moments: jnp.dtype
) -> Iterator[str]:
    yield f"{name}   {spec.dtype} {_times(spec.shape)}"
    yield f"  {'logical axis':<14}{'size':>10}   {'sharding rule':<24}{'on a device':>12}"
    used: set[str] = set()
    for axis, size, part in zip(spec.axes, spec.shape, local, strict=True):
        over = rules.get(axis, ())
        used.update(over)
        rule = " x ".join(f"{each} ({mesh[each]})" for each in over) or "none"
        yield f"  {axis:<14}{size:>10,}   {rule:<24}{part:>12,}"
    numbers, pieces = math.prod(local), math.prod(spec.shape) // math.prod(local)
    itemsize = jnp.dtype(spec.dtype).itemsize
    both = 2 * moments.itemsize * numbers
    yield (
        f"  on a device: {_times(local)}, {_size(numbers * itemsize)} of {_size(math.prod(spec.shape) * itemsize)}; "
        f"two moments in {moments}: {_size(both)}"
    )
    copies = math.prod(mesh.values()) // pieces
    idle = [f"{axis} ({size})" for axis, size in mesh.items() if axis not in used and size > 1]
    if copies == 1:
        yield f"  {pieces:,} pieces, each on one device: nothing is replicated"
    else:
        whole = "the whole of it" if pieces == 1 else f"each of {pieces:,} pieces"
        yield f"  replicated: {whole} lies on {copies:,} devices, along {' x '.join(idle)}"


def _unknown(name: str, known: list[str]) -> str:
    prefixes = {each.rsplit(".", level)[0] for each in known for level in range(1, each.count(".") + 1)}
    names = [*known, *sorted(prefixes)]
    near = difflib.get_close_matches(name, names, 3, 0.4)
    last = name.rsplit(".", 1)[-1]
    near = list(dict.fromkeys([*(each for each in known if each.rsplit(".", 1)[-1] == last), *near]))[:3]
    return f"--explain {name}: no parameter; " + (
        f"near to it: {', '.join(near)}" if near else f"allowed: {', '.join(known)}"
    )


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(f"{size:,}" for size in shape)


def _size(count: int) -> str:
    return f"{count / _GIB:.2f} GiB" if count >= _GIB / 100 else f"{count / 2**20:.2f} MiB"
