"""Mesh axes, the table of sharding rules, and everything that follows from the two.

Only this module and `axes` know the names of mesh axes; the rest of the package speaks of logical axes.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from janus_jax.errors import ConfigError
from janus_jax.parallel.axes import AXES, DEFAULT_RULES, MeshShape, Rules


def build_mesh(shape: MeshShape, devices: list[Any] | None = None) -> Mesh:
    """A mesh over all devices (or the given ones), in the order that suits the hardware's topology.

    Several slices are replicas, or groups of them: only `data` goes over the slow network between slices.

    Raises:
        ConfigError: the sizes do not multiply to the devices, or slices are more than `data` divides over.
    """
    chosen = jax.devices() if devices is None else devices
    resolved = shape.resolve(len(chosen))
    sizes = tuple(dataclasses.astuple(resolved))
    auto = (jax.sharding.AxisType.Auto,) * len(AXES)
    slices = len({getattr(device, "slice_index", 0) for device in chosen})
    # Or axes of the mesh would have to be products of whole axes of a v4's, v5p's or v6e's network.
    split = {"allow_split_physical_axes": True}
    if slices == 1:
        return Mesh(mesh_utils.create_device_mesh(sizes, chosen, **split), AXES, axis_types=auto)
    check_slices(resolved, slices)
    inner, outer = (resolved.data // slices, *sizes[1:]), (slices, *(1,) * (len(AXES) - 1))
    return Mesh(mesh_utils.create_hybrid_device_mesh(inner, outer, chosen, **split), AXES, axis_types=auto)


def check_slices(sizes: MeshShape, slices: int) -> None:
    """Raises ConfigError where the axis of replicas does not divide over slices, which a slow network connects."""
    if sizes.data % slices:
        raise ConfigError(f"mesh.data={sizes.data}: there are {slices} slices; allowed: a multiple of {slices}")


def adopt(mesh: Mesh) -> Mesh:
    """Somebody's own mesh with the axes of this package: those that it lacks have size 1, devices stay where they are.

    Raises:
        ConfigError: it has an axis that is none of `AXES`.
    """
    unknown = [axis for axis in mesh.axis_names if axis not in AXES]
    if unknown:
        raise ConfigError(f"mesh: unknown axis {unknown[0]!r}; known are {', '.join(AXES)}")
    there = [axis for axis in AXES if axis in mesh.axis_names]
    ordered = mesh.devices.transpose([mesh.axis_names.index(axis) for axis in there])
    sizes = [mesh.shape.get(axis, 1) for axis in AXES]
    return Mesh(ordered.reshape(sizes), AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))


def merge_rules(overrides: Mapping[str, str | list[str] | None] | None) -> Rules:
    """The default rules with a config's `sharding:` on top.

    Raises:
        ConfigError: unknown logical axis or mesh axis.
    """
    rules = dict(DEFAULT_RULES)
    for logical, target in (overrides or {}).items():
        if logical not in rules:
            raise ConfigError(f"sharding.{logical}: unknown logical axis; known are {', '.join(rules)}")
        axes = () if target is None else (target,) if isinstance(target, str) else tuple(target)
        unknown = [axis for axis in axes if axis not in AXES]
        if unknown:
            raise ConfigError(f"sharding.{logical}: unknown mesh axis {unknown[0]!r}; known are {', '.join(AXES)}")
        rules[logical] = axes
    return rules


def partition_spec(axes: tuple[str | None, ...], rules: Rules) -> PartitionSpec:
    """Mesh axes of each dimension.

    Raises:
        ConfigError: two dimensions of one array would use the same mesh axis.
    """
    parts, used = [], set()
    for logical in axes:
        mesh_axes = () if logical is None else rules.get(logical, ())
        clash = used.intersection(mesh_axes)
        if clash:
            raise ConfigError(
                f"sharding: axes {axes} map two dimensions to mesh axis {clash.pop()!r}; change the rule of {logical!r}"
            )
        used.update(mesh_axes)
        parts.append(mesh_axes[0] if len(mesh_axes) == 1 else mesh_axes or None)
    return PartitionSpec(*parts)


def param_shardings(specs: Any, mesh: Mesh, rules: Rules) -> Any:
    """A NamedSharding for each `ParamSpec` of the tree.

    Raises:
        ConfigError: a sharded dimension does not divide; names parameter, logical axis, size and mesh axes.
    """

    def sharding(path: tuple[Any, ...], spec: Any) -> NamedSharding:
        partition = partition_spec(spec.axes, rules)
        for logical, size, part in zip(spec.axes, spec.shape, partition, strict=True):
            mesh_axes = () if part is None else (part,) if isinstance(part, str) else part
            shards = math.prod(mesh.shape[axis] for axis in mesh_axes)
            if size % shards:
                name = jax.tree_util.keystr(path, simple=True, separator=".")
                raise ConfigError(
                    f"mesh: {'*'.join(mesh_axes)}={shards} does not divide {logical}={size} of parameter {name}; "
                    f"choose a divisor or set sharding.{logical}"
                )
        return NamedSharding(mesh, partition)

    return jax.tree_util.tree_map_with_path(sharding, specs)


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where arrays of logical axes lie on a mesh: what the model is told, which knows no mesh axes.

    Without a mesh everything is on one device, and nothing is said about it.
    """

    mesh: Mesh | None = None
    rules: Rules = dataclasses.field(default_factory=dict, hash=False)

    @property
    def platform(self) -> str | None:
        """Of the mesh's devices: `tpu` also where a TPU program is compiled without a TPU."""
        return None if self.mesh is None else self.mesh.devices.flat[0].platform

    @property
    def device_kind(self) -> str | None:
        """What JAX calls them, such as `TPU v4`."""
        return None if self.mesh is None else self.mesh.devices.flat[0].device_kind

    def sharding(self, axes: tuple[str | None, ...]) -> NamedSharding:
        """Of an array with these logical axes; needs a mesh."""
        assert self.mesh is not None
        return NamedSharding(self.mesh, partition_spec(axes, self.rules))

    def constrain(self, x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
        """Pins an array's logical axes to the mesh."""
        return x if self.mesh is None else jax.lax.with_sharding_constraint(x, self.sharding(axes))

    def shards(self, *axes: str) -> int:
        """How many ways logical axes are split together."""
        return 1 if self.mesh is None else math.prod(shards(self.mesh, self.rules, axis) for axis in axes)

    def names(self, *axes: str) -> tuple[str, ...]:
        """The mesh axes of logical axes, for collectives inside `map`; none without a mesh."""
        return () if self.mesh is None else tuple(name for axis in axes for name in self.rules.get(axis, ()))

    def map(self, f: Callable[..., Any], in_axes: Any, out_axes: Any) -> Callable[..., Any]:
        """`f` run on every device with its shards alone; collectives in it are its own affair.

        Args:
            in_axes, out_axes: logical axes of each argument and result, as in `sharding`; trees of tuples.
        """
        if self.mesh is None:
            return f

        def is_axes(leaf: Any) -> bool:
            return isinstance(leaf, tuple) and all(axis is None or isinstance(axis, str) for axis in leaf)

        def specs(tree: Any) -> Any:
            return jax.tree.map(lambda axes: partition_spec(axes, self.rules), tree, is_leaf=is_axes)

        ins, outs = specs(in_axes), specs(out_axes)
        return jax.shard_map(f, mesh=self.mesh, in_specs=ins, out_specs=outs, check_vma=False)


NOWHERE = Placement()
"""Without a mesh."""


def shards(mesh: Mesh, rules: Rules, axis: str) -> int:
    """How many ways a logical axis is split."""
    return math.prod(mesh.shape[name] for name in rules.get(axis, ()))


def row_shards(mesh: Mesh, rules: Rules) -> int:
    """How many ways the rows of a batch are split."""
    return shards(mesh, rules, "batch")


def check_rows(rows: int, mesh: Mesh, rules: Rules, key: str, microbatches: int = 1) -> None:
    """Raises ConfigError when `rows` rows of a microbatch do not divide over the row shards.

    Args:
        microbatches: among which what `key` says is divided.
    """
    parts = row_shards(mesh, rules)
    if rows % parts:
        axes = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in rules.get("batch", ()))
        raise ConfigError(
            f"{key}: {rows} rows in a microbatch do not divide over {parts} row shards ({axes}); use a multiple of "
            f"{parts * microbatches}, fewer microbatches, or give devices to mesh.tensor or mesh.context instead"
        )


def batch_sharding(mesh: Mesh, rules: Rules, logical: tuple[str | None, ...]) -> NamedSharding:
    """Sharding of a batch field, e.g. (None, 'batch', 'length') for [M, B, L]."""
    return NamedSharding(mesh, partition_spec(logical, rules))
