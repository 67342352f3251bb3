"""How a parameter is sharded and by which rules. Nothing is compiled: shapes and rules suffice."""

import dataclasses
import difflib
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from janus_jax.checkpoint.hf.keys import nest
from janus_jax.config.run import RunConfig
from janus_jax.errors import ConfigError
from janus_jax.model.mistral import ParamSpec, param_specs
from janus_jax.parallel import mesh as meshes
from janus_jax.planning.chips.slices import find_slice
from janus_jax.planning.inputs import find_model
from janus_jax.planning.report.text import size
from janus_jax.training.optimizer import AdamW


def explain_parameters(config: RunConfig, topology: str, name: str, *, num_slices: int = 1) -> str:
    """Logical axes, rules, mesh axes and bytes of parameter `name`, or of all parameters below the prefix `name`.

    Raises:
        ConfigError: unknown slice or parameter (the message names the nearest), or mesh or rules do not suit the model.
    """
    devices = find_slice(topology).devices * num_slices
    sizes = config.mesh.shape.resolve(devices)
    rules = meshes.merge_rules(config.sharding)
    shape = dataclasses.asdict(sizes)
    mesh = jax.sharding.AbstractMesh(tuple(shape.values()), meshes.AXES)
    meshes.check_slices(sizes, num_slices)
    specs = param_specs(find_model(config)[0], jnp.dtype(config.params_dtype))
    shardings = meshes.param_shardings(specs, mesh, rules)  # pyright: ignore[reportArgumentType]
    leaves = jax.tree_util.tree_leaves_with_path(specs, is_leaf=lambda leaf: isinstance(leaf, ParamSpec))
    named = {_name(path): spec for path, spec in leaves}
    sharding_of = {_name(path): sharding for path, sharding in jax.tree_util.tree_leaves_with_path(shardings)}
    chosen = {known: spec for known, spec in named.items() if known == name or known.startswith(f"{name}.")}
    if not chosen:
        raise ConfigError(_unknown(name, list(named)))
    adamw = AdamW.of(config)

    def moments(name: str, spec: ParamSpec) -> str:
        path = tuple(name.split("."))
        held = adamw.moment_bytes(nest({path: spec}), nest({path: sharding_of[name]}))
        return f"two moments in {config.moments}: {size(held)} per device"

    head = f"mesh {' x '.join(f'{axis} {count}' for axis, count in shape.items())}, {devices:,} devices"
    parts = [
        "\n".join(
            _parameter(known, spec, sharding_of[known].shard_shape(spec.shape), shape, rules, moments(known, spec))
        )
        for known, spec in chosen.items()
    ]
    return "\n\n".join([head, *parts])


def _parameter(
    name: str, spec: ParamSpec, local: tuple[int, ...], mesh: dict[str, int], rules: meshes.Rules, moments: str
) -> Iterator[str]:
    yield f"{name}   {spec.dtype} {_times(spec.shape)}"
    yield f"  {'logical axis':<14}{'size':>10}   {'sharding rule':<24}{'per device':>12}"
    used: set[str] = set()
    for axis, length, part in zip(spec.axes, spec.shape, local, strict=True):
        mesh_axes = rules.get(axis, ())
        used.update(mesh_axes)
        rule = " x ".join(f"{name} ({mesh[name]})" for name in mesh_axes) or "none"
        yield f"  {axis:<14}{length:>10,}   {rule:<24}{part:>12,}"
    numbers, pieces = math.prod(local), math.prod(spec.shape) // math.prod(local)
    itemsize = jnp.dtype(spec.dtype).itemsize
    yield (
        f"  per device: {_times(local)}, {size(numbers * itemsize)} of {size(math.prod(spec.shape) * itemsize)}\n"
        f"  {moments}"
    )
    copies = math.prod(mesh.values()) // pieces
    idle = [f"{axis} ({count})" for axis, count in mesh.items() if axis not in used and count > 1]
    if copies == 1:
        yield f"  not replicated: {pieces:,} shards, each on one device"
    else:
        subject = "the whole parameter" if pieces == 1 else f"each of {pieces:,} shards"
        yield f"  replicated: {subject} lies on {copies:,} devices, along {' x '.join(idle)}"


def _unknown(name: str, known: list[str]) -> str:
    prefixes = {full.rsplit(".", level)[0] for full in known for level in range(1, full.count(".") + 1)}
    names = [*known, *sorted(prefixes)]
    near = difflib.get_close_matches(name, names, 3, 0.4)
    last = name.rsplit(".", 1)[-1]
    near = list(dict.fromkeys([*(full for full in known if full.rsplit(".", 1)[-1] == last), *near]))[:3]
    hint = f"did you mean {', '.join(near)}?" if near else f"allowed: {', '.join(known)}"
    return f"--explain {name}: unknown parameter; {hint}"


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(f"{length:,}" for length in shape)
