"""Mesh axes, sharding rules from logical axes to mesh axes, and the shardings that follow from them.

The model and the loader use logical axes only. Configurations and the planner name mesh axes too;
`axes` owns the names.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from janus_jax.errors import ConfigError
from janus_jax.parallel import preflight
from janus_jax.parallel.axes import AXES, DEFAULT_RULES, MeshShape, Rules


def build_mesh(shape: MeshShape, devices: list[Any] | None = None) -> Mesh:
    """A mesh over all devices, or the given ones, in an order that suits the hardware's topology.

    Each slice holds whole replicas: only `data` spans slices, which a slow network connects.

    Raises:
        ConfigError: the sizes do not multiply to the devices, `data` does not divide over the slices, or JAX has none.
    """
    chosen = preflight.devices() if devices is None else devices
    try:
        resolved = shape.resolve(len(chosen))
    except ConfigError as error:
        wanted, processes = shape.fixed, jax.process_count()
        if devices is not None or chosen[0].platform != "cpu" or wanted < 1 or wanted % processes:
            raise
        raise ConfigError(f"{error}; --devices {wanted // processes} simulates {wanted} devices on the CPU") from error
    sizes = dataclasses.astuple(resolved)
    auto = (jax.sharding.AxisType.Auto,) * len(AXES)
    slices = len({getattr(device, "slice_index", 0) for device in chosen})
    # Otherwise mesh axes would have to be products of whole axes of a v4's, v5p's or v6e's network.
    split = {"allow_split_physical_axes": True}
    if slices == 1:
        return Mesh(mesh_utils.create_device_mesh(sizes, chosen, **split), AXES, axis_types=auto)
    check_slices(resolved, slices)
    inner, outer = (resolved.data // slices, *sizes[1:]), (slices, *(1,) * (len(AXES) - 1))
    return Mesh(mesh_utils.create_hybrid_device_mesh(inner, outer, chosen, **split), AXES, axis_types=auto)


def check_slices(sizes: MeshShape, slices: int) -> None:
    """Raises ConfigError if `data`, the only axis that spans slices, does not divide over them."""
    if sizes.data % slices:
        raise ConfigError(f"mesh.data={sizes.data}: allowed with {slices} slices: a multiple of {slices}")


def adopt(mesh: Mesh) -> Mesh:
    """A caller's mesh with all of `AXES`. Missing axes get size 1; devices stay where they are.

    Raises:
        ConfigError: the mesh has an axis that is not in `AXES`.
    """
    unknown = [axis for axis in mesh.axis_names if axis not in AXES]
    if unknown:
        raise ConfigError(f"mesh: unknown axis {unknown[0]!r}; allowed: {', '.join(AXES)}")
    present = [axis for axis in AXES if axis in mesh.axis_names]
    ordered = mesh.devices.transpose([mesh.axis_names.index(axis) for axis in present])
    sizes = [mesh.shape.get(axis, 1) for axis in AXES]
    return Mesh(ordered.reshape(sizes), AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))


def merge_rules(overrides: Mapping[str, str | list[str] | None] | None) -> Rules:
    """The default rules, overridden by a configuration's `sharding:`.

    Raises:
        ConfigError: unknown logical axis or mesh axis.
    """
    rules = dict(DEFAULT_RULES)
    for logical, target in (overrides or {}).items():
        if logical not in rules:
            raise ConfigError(f"sharding.{logical}: unknown logical axis; allowed: {', '.join(rules)}")
        axes = () if target is None else (target,) if isinstance(target, str) else tuple(target)
        unknown = [axis for axis in axes if axis not in AXES]
        if unknown:
            raise ConfigError(f"sharding.{logical}: unknown mesh axis {unknown[0]!r}; allowed: {', '.join(AXES)}")
        rules[logical] = axes
    return rules


def partition_spec(axes: tuple[str | None, ...], rules: Rules) -> PartitionSpec:
    """The mesh axes of each dimension of an array.

    Raises:
        ConfigError: two dimensions would use the same mesh axis.
    """
    parts, used = [], set()
    for logical in axes:
        mesh_axes = () if logical is None else rules.get(logical, ())
        if clash := used.intersection(mesh_axes):
            raise ConfigError(
                f"sharding: axes {axes} map two dimensions to mesh axis {clash.pop()!r}; change the rule of {logical!r}"
            )
        used.update(mesh_axes)
        parts.append(mesh_axes[0] if len(mesh_axes) == 1 else mesh_axes or None)
    return PartitionSpec(*parts)


def param_shardings(specs: Any, mesh: Mesh, rules: Rules) -> Any:
    """A NamedSharding for each `ParamSpec` of the tree.

    Raises:
        ConfigError: a dimension does not divide over its shards; names parameter, logical axis, size and mesh axes.
    """

    def sharding(path: tuple[Any, ...], spec: Any) -> NamedSharding:
        partition = partition_spec(spec.axes, rules)
        for logical, size in zip(spec.axes, spec.shape, strict=True):
            if size % (parts := shards(mesh, rules, logical)):
                name = jax.tree_util.keystr(path, simple=True, separator=".")
                raise ConfigError(
                    f"mesh: {'*'.join(rules[logical])}={parts} does not divide {logical}={size} of parameter {name}; "
                    f"choose a divisor or set sharding.{logical}"
                )
        return NamedSharding(mesh, partition)

    return jax.tree_util.tree_map_with_path(sharding, specs)


Shares = tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array]]
"""What a device keeps of an array, and the array again from that."""


def _same(x: jax.Array) -> jax.Array:
    return x


WHOLE: Shares = (_same, _same)


@dataclasses.dataclass(frozen=True)
class Placement:
    """Maps logical axes to a mesh for the model, which knows no mesh axes.

    Without a mesh everything is on one device and nothing is constrained.
    """

    mesh: Mesh | None = None
    rules: Rules = dataclasses.field(default_factory=dict, hash=False)

    @property
    def platform(self) -> str | None:
        """Platform of the mesh's devices; `tpu` also if a TPU program is compiled without a TPU."""
        return None if self.mesh is None else self.mesh.devices.flat[0].platform

    @property
    def device_kind(self) -> str | None:
        """JAX's name for the kind of device, such as `TPU v4`."""
        return None if self.mesh is None else self.mesh.devices.flat[0].device_kind

    def sharding(self, axes: tuple[str | None, ...]) -> NamedSharding:
        """The sharding of an array with these logical axes. Needs a mesh."""
        assert self.mesh is not None
        return NamedSharding(self.mesh, partition_spec(axes, self.rules))

    def constrain(self, x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
        """Constrains an array to the sharding of its logical axes."""
        return x if self.mesh is None else jax.lax.with_sharding_constraint(x, self.sharding(axes))

    def shards(self, *axes: str) -> int:
        """Number of shards of several logical axes together."""
        return 1 if self.mesh is None else math.prod(shards(self.mesh, self.rules, axis) for axis in axes)

    def names(self, *axes: str) -> tuple[str, ...]:
        """The mesh axes of logical axes with more than one device, for collectives inside `map`."""
        if self.mesh is None:
            return ()
        return tuple(name for axis in axes for name in self.rules.get(axis, ()) if self.mesh.shape[name] > 1)

    def share_count(self, shape: tuple[int, ...], axes: tuple[str | None, ...], over: str) -> int:
        """The number of `shares`; 1 if no such shares exist."""
        taken = {name for axis in axes if axis for name in self.names(axis)}
        parts = self.shards(over)
        return 1 if shape[-1] % parts or taken & {*self.names(over)} else parts

    def shares(self, shape: tuple[int, ...], axes: tuple[str | None, ...], over: str) -> Shares:
        """Two functions for arrays that all devices along `over` hold alike: one leaves each device an equal share of
        the last axis, the other makes the array whole again, with the same bits. If no such shares exist, both return
        what they get.

        Each device does this by itself (`map`): an array that is asked for in shares changes how XLA computes it.

        Args:
            axes: logical axes of the array.
            over: a logical axis.
        """
        names, parts = self.names(over), self.share_count(shape, axes, over)
        if parts == 1:
            return WHOLE

        def share(x: jax.Array) -> jax.Array:
            size = shape[-1] // parts
            return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(names) * size, size, axis=-1)

        def whole(x: jax.Array) -> jax.Array:
            return jax.lax.all_gather(x, names, axis=x.ndim - 1, tiled=True)

        split = (*axes[:-1], over)
        return self.map(share, (axes,), split), self.map(whole, (split,), axes)

    def map(self, f: Callable[..., Any], in_axes: Any, out_axes: Any) -> Callable[..., Any]:
        """`f`, run on every device on its own shards (`jax.shard_map`). `f` does its own collectives.

        Args:
            in_axes, out_axes: trees of tuples with the logical axes of each argument and result.
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
"""The placement without a mesh."""


def shards(mesh: Mesh, rules: Rules, axis: str) -> int:
    """Number of shards of a logical axis."""
    return math.prod(mesh.shape[name] for name in rules.get(axis, ()))


def row_shards(mesh: Mesh, rules: Rules) -> int:
    """Number of shards of a batch's rows."""
    return shards(mesh, rules, "batch")


def check_rows(rows: int, mesh: Mesh, rules: Rules, key: str, microbatches: int = 1) -> None:
    """Raises ConfigError if the rows of a microbatch do not divide over the row shards.

    Args:
        rows: rows of a microbatch.
        key: the configuration key that sets the rows of all microbatches.
        microbatches: their number.
    """
    parts = row_shards(mesh, rules)
    if rows % parts:
        axes = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in rules.get("batch", ()))
        raise ConfigError(
            f"{key}: {rows} rows in a microbatch do not divide over {parts} row shards ({axes}); use a multiple of "
            f"{parts * microbatches}, fewer microbatches, or give devices to mesh.tensor or mesh.context instead"
        )


def batch_sharding(mesh: Mesh, rules: Rules, logical: tuple[str | None, ...]) -> NamedSharding:
    """The sharding of a batch field, such as (None, 'batch', 'length') for [M, B, L]."""
    return NamedSharding(mesh, partition_spec(logical, rules))
