"""TPU slices by Google Cloud name and GPUs of one machine: what compilers call them, and the figures of each chip."""

import contextlib
import dataclasses
import difflib
import functools
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from importlib import resources
from typing import Annotated, Any

from pydantic import Field, ValidationError

from janus_jax.config.mistakes import join, problems
from janus_jax.config.section import Section
from janus_jax.config.yaml_file import merge, read_tree
from janus_jax.errors import ConfigError, first_line
from janus_jax.parallel.environment import gpu_memory_share, use_libtpu_as_compiler
from janus_jax.parallel.preflight import require_known_libtpu_flags
from janus_jax.planning.chips import gpus

CPU = "cpu"
"""Family of simulated devices, as in `cpu:8`."""

MOST_DEVICES = 32_768
"""More than the largest pod has. Descriptions of more devices could fill this machine's memory."""

_ALIAS = {"v5litepod": "v5e", "v5lite": "v5e", "v5": "v5p"}


@dataclasses.dataclass(frozen=True)
class Slice:
    """Chips connected by one fast network, and the options that describe them to libtpu. Or the GPUs of a machine."""

    name: str
    family: str
    chips: int
    devices_per_chip: int
    hosts: int
    topology: str | None  # libtpu's name, `v5e:4x4`; GPUs: `h100:8`; None: simulated
    chip_config_name: str | None = None  # v4: `megacore`, which makes one device of its two cores
    wrap: tuple[bool, bool, bool] | None = None  # which sides close to a ring; None: libtpu's own choice
    chips_per_host_bounds: tuple[int, int, int] | None = None

    @property
    def devices(self) -> int:
        return self.chips * self.devices_per_chip

    @property
    def is_gpu(self) -> bool:
        return self.topology is not None and self.family in gpus.KINDS.values()

    @property
    def network(self) -> str:
        """What connects its chips."""
        return "NVLink" if self.is_gpu else "ICI"


Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(gt=0)]


class Chip(Section):
    """Figures of one chip, or of one device where the name says so."""

    tensor_cores: Count
    devices: Count
    chips_per_host: Count  # they share `dcn_bytes_per_s_per_host`
    peak_bf16_flops: Positive
    hbm_gib: Positive
    usable_hbm_gib_per_device: Positive
    hbm_bytes_per_s: Positive
    ici_links: Count
    ici_bytes_per_s_per_link: Positive  # in each direction
    dcn_bytes_per_s_per_host: Positive | None  # in each direction; None: supports a single slice only
    usd_on_demand: Positive | None  # per chip and hour
    usd_spot: Positive | None

    @property
    def usable_hbm_bytes_per_device(self) -> int:
        return round(self.usable_hbm_gib_per_device * 2**30)

    @property
    def ici_bytes_per_s(self) -> float:
        """Bytes per second of all links of a chip together."""
        return self.ici_links * self.ici_bytes_per_s_per_link

    @property
    def dcn_bytes_per_s(self) -> float | None:
        """A chip's share of its host's network."""
        return None if self.dcn_bytes_per_s_per_host is None else self.dcn_bytes_per_s_per_host / self.chips_per_host


class Family(Section):
    """What Google Cloud and JAX call a family of TPUs, and the slices that are offered."""

    type: str
    """Accelerator types are this and a number, as in v5litepod-16."""
    device_kind: str
    """JAX's name of a device."""
    shapes: str
    """In chips, smallest first. Other shapes are written as FAMILY:AxBxC."""
    ring: Count | None
    """Side length at which a side of a 2D slice closes to a ring. 3D slices close if made of whole 4x4x4 cubes."""
    one_host: list[int]
    """Chips of slices that are a single host. Larger slices have four chips a host."""
    runtime: str
    """Software version of TPU VMs."""
    gke: str
    """Value of the node label cloud.google.com/gke-tpu-accelerator."""
    quota: str
    """Begin of the names of quotas: {spot} is Preemptible or nothing; {pod} is what slices of several hosts insert,
    {serving} what slices of one host do."""
    tpu_api: bool
    """Whether Google documents that the TPU API creates it; tpu7x is documented for GKE alone."""


class ChipTable(Section):
    """Chips by family, and the date of their prices."""

    as_of: str
    families: dict[str, Family]
    chips: dict[str, Chip]

    def chip(self, target: Slice) -> Chip | None:
        """The figures of a slice's chips; None for simulated devices, which have none. Of a GPU's memory, the share
        that a run takes is usable."""
        if target.topology is None:
            return None
        chip = self.chips[target.family]
        if not target.is_gpu:
            return chip
        usable = chip.usable_hbm_gib_per_device * gpu_memory_share()
        return chip.model_copy(update={"usable_hbm_gib_per_device": usable})


def load_chips(path: str | os.PathLike[str] | None = None) -> ChipTable:
    """The package's table, with the keys of a user's file on top; the file may hold prices alone, for instance.

    Raises:
        ConfigError: the file cannot be read or has mistakes; names file, line, key and value of each.
    """
    return _packaged() if path is None else _load(path)


@functools.cache
def _packaged() -> ChipTable:
    return _load(None)


def _load(path: str | os.PathLike[str] | None) -> ChipTable:
    with resources.as_file(resources.files("janus_jax.planning.chips") / "chips.yaml") as packaged:
        root, faults = read_tree(packaged)
    if path is not None:
        overrides, faults = read_tree(path)
        if node := overrides.value.pop("families", None):
            faults.append(f"{node.origin}: families: cannot be overridden; allowed: as_of, chips")
        root = merge(root, overrides)
        chips = root.value["chips"].value
        for family, node in chips.items() if isinstance(chips, dict) else ():
            if family not in (*families(), *gpus.KINDS.values()):
                known = ", ".join((*families(), *gpus.KINDS.values()))
                faults.append(f"{node.origin}: chips.{family}: unknown family; allowed: {known}")
    try:
        table = ChipTable.model_validate(root.plain())
    except ValidationError as error:
        faults += problems(error, root, ChipTable.model_json_schema())
        table = None
    if faults or table is None:
        raise ConfigError(join(os.fspath(path or "chips.yaml"), faults))
    return table


def families() -> dict[str, Family]:
    """Families of TPUs by name, oldest first."""
    return load_chips().families


def find_slice(name: str) -> Slice:
    """The slice named by a Google Cloud accelerator type (`v5litepod-16`, `v4-32`), shape (`v5p:4x4x12`), GPUs
    (`h100:8`) or `cpu:8`.

    Raises:
        ConfigError: unknown slice; names the nearest and the sizes of the family, or all families.
    """
    text = name.strip().lower()
    if cpu := re.fullmatch(r"cpu[:-]([1-9]\d{0,4})", text):
        return Slice(f"{CPU}:{cpu[1]}", CPU, int(cpu[1]), 1, 1, None)
    if text.startswith(CPU):
        raise ConfigError(f"slice {name!r}: allowed: cpu:DEVICES, like cpu:8")
    if gpu := re.fullmatch(rf"({'|'.join(gpus.KINDS.values())})[:-](\d+)", text):
        if not 1 <= (count := int(gpu[2])) <= gpus.MOST:
            raise ConfigError(f"slice {name!r}: allowed: {_gpu_sizes(gpu[1])}, the GPUs of one machine")
        return Slice(f"{gpu[1]}:{count}", gpu[1], count, 1, 1, f"{gpu[1]}:{count}")
    match = re.fullmatch(r"(?P<family>[a-z0-9]+)(?P<mark>[:-])(?P<size>\d+(?:x\d+)*)", text)
    family = _ALIAS.get(match["family"], match["family"]) if match else ""
    if match is None or family not in families():
        everything = [name for known in families() for name in accelerator_types(known)]
        near = difflib.get_close_matches(text, everything, 3, 0.5)
        raise ConfigError(
            f"slice {name!r}: unknown{'; nearest: ' + ', '.join(near) if near else ''}; allowed: "
            + "; ".join(_sizes(known) for known in families())
            + "; FAMILY:SHAPE, like v5p:4x4x12; "
            + "".join(f"{_gpu_sizes(known)}; " for known in gpus.KINDS.values())
            + "cpu:DEVICES"
        )
    size = match["size"]
    if match["mark"] == ":" or "x" in size:
        return _of_shape(name, family, _sides(size))
    types = accelerator_types(family)
    if (type_ := f"{families()[family].type}-{int(size)}") in types:
        return _of_shape(type_, family, _sides(_shapes(family)[types.index(type_)]))
    counts = {type_: int(type_.rsplit("-", 1)[1]) for type_ in types}
    near = sorted(counts, key=lambda type_: abs(math.log(counts[type_] / max(int(size), 1))))[:2]
    near.sort(key=lambda type_: counts[type_])
    unit = "chips" if load_chips().chips[family].tensor_cores == 1 else "TensorCores, two per chip"
    raise ConfigError(
        f"slice {name!r}: {family} has no slice of that size; nearest: {', '.join(near)}; allowed: {_sizes(family)} "
        f"(numbers count {unit}), or a shape in chips, like {family}:{_shapes(family)[2]}"
    )


def detect_slice(devices: Sequence[Any]) -> tuple[Slice, int]:
    """The slice of running devices, and the number of such slices. Devices of no known slice become `PLATFORM:COUNT`,
    which has no figures."""
    first, count = devices[0], len({getattr(device, "slice_index", 0) for device in devices})
    family = next((name for name, known in families().items() if known.device_kind == first.device_kind), None)
    if family is not None:
        coordinates = [[device.coords[axis] for device in devices] for axis in range(_dimensions(family))]
        shape = "x".join(str(max(places) - min(places) + 1) for places in coordinates)
        shapes = dict(zip(_shapes(family), accelerator_types(family), strict=True))
        with contextlib.suppress(ConfigError):
            target = find_slice(shapes.get(shape, f"{family}:{shape}"))
            if target.devices * count == len(devices):
                return target, count
    hosts = len({device.process_index for device in devices})
    if hosts == 1 and first.device_kind in gpus.KINDS and len(devices) <= gpus.MOST:
        return find_slice(f"{gpus.KINDS[first.device_kind]}:{len(devices)}"), 1
    return Slice(f"{first.platform}:{len(devices)}", first.platform, len(devices), 1, hosts, None), 1


def accelerator_types(family: str) -> list[str]:
    """The accelerator types of a family, smallest first. Their numbers count chips, or TensorCores."""
    cores = load_chips().chips[family].tensor_cores
    return [f"{families()[family].type}-{math.prod(_sides(shape)) * cores}" for shape in _shapes(family)]


def check_count(target: Slice, num_slices: int, table: ChipTable) -> None:
    """Raises ConfigError for too many devices, or for several slices of a chip that supports one."""
    chip = table.chip(target)
    if num_slices > 1 and chip is not None and chip.dcn_bytes_per_s_per_host is None:
        raise ConfigError(f"{num_slices} x {target.name}: {target.family} supports a single slice only")
    if (count := target.devices * num_slices) > MOST_DEVICES:
        raise ConfigError(f"{num_slices} x {target.name}: {count:,} devices in all; allowed: at most {MOST_DEVICES:,}")


def devices(target: Slice, num_slices: int = 1) -> list[Any]:
    """JAX devices of `num_slices` slices, slice by slice. Programs can be compiled for them, not run.

    libtpu describes the hardware and compiles for it on any machine, in several processes at once.

    Raises:
        ConfigError: libtpu, or for GPUs JAX's CUDA plugin, is not installed or does not know the slice.
    """
    if num_slices < 1:
        raise ConfigError(f"num_slices = {num_slices}: allowed: a whole number, at least 1")
    if target.topology is None:
        return _simulated(target, num_slices)
    if target.is_gpu:
        return gpus.devices(target.family, target.devices)
    if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
        raise ConfigError(f"slice {target.name}: compiling for TPUs needs libtpu: pip install 'janus_jax[tpu]'")
    use_libtpu_as_compiler()
    require_known_libtpu_flags()
    from jax.experimental import topologies

    options = {
        "chip_config_name": target.chip_config_name,
        "wrap": target.wrap,
        "chips_per_host_bounds": target.chips_per_host_bounds,
        "num_slices": num_slices if num_slices > 1 else None,
    }
    options = {key: value for key, value in options.items() if value is not None}
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=target.topology, **options).devices
    except Exception as error:  # XLA raises several types
        raise ConfigError(f"slice {target.name}: libtpu refuses {target.topology}: {first_line(error)}") from error
    if len(described) != target.devices * num_slices:
        raise ConfigError(
            f"slice {target.name}: libtpu has {len(described)} devices, expected {target.devices * num_slices}"
        )
    return sorted(described, key=lambda device: getattr(device, "slice_index", 0))


def _of_shape(name: str, family: str, sides: tuple[int, ...]) -> Slice:
    shape = "x".join(map(str, sides))
    dimensions = _dimensions(family)
    bounds = (1, 1, 1) if math.prod(sides) == 1 else (2, 2, 1)
    if sides == (2, 4) and 8 in families()[family].one_host:
        bounds = (2, 4, 1)
    full = (*sides, 1, 1)[:3]
    if len(sides) != dimensions or any(side < 1 or side % bound for side, bound in zip(full, bounds, strict=True)):
        raise ConfigError(
            f"slice {name!r}: {shape} is not a shape of {family}; allowed: {dimensions} sides in chips, whole hosts of "
            f"2x2, like {', '.join(_shapes(family)[1:4])}"
        )
    if dimensions == 2:
        ring = families()[family].ring
        closed = (sides[0] == ring, sides[1] == ring, False)
        wrap = closed if any(closed) else None
    else:
        wrap = (True, True, True) if all(side % 4 == 0 for side in sides) else None
    chips = math.prod(sides)
    return Slice(
        name=name,
        family=family,
        chips=chips,
        devices_per_chip=load_chips().chips[family].devices,
        hosts=chips // math.prod(bounds),
        topology=f"{family}:{shape}",
        chip_config_name="megacore" if family == "v4" else None,
        wrap=wrap,
        chips_per_host_bounds=bounds,
    )


def _sides(shape: str) -> tuple[int, ...]:
    return tuple(int(side) for side in shape.split("x"))


def _shapes(family: str) -> list[str]:
    return families()[family].shapes.split()


def _dimensions(family: str) -> int:
    return len(_sides(_shapes(family)[0]))


def _sizes(family: str) -> str:
    first, *others = accelerator_types(family)
    return f"{first}, " + ", ".join("-" + type_.rsplit("-", 1)[1] for type_ in others)


def _gpu_sizes(family: str) -> str:
    return f"{family}:1 to {family}:{gpus.MOST}"


def _simulated(target: Slice, num_slices: int) -> list[Any]:
    import jax

    if num_slices > 1:
        raise ConfigError(f"slice {target.name}: simulated devices are a single slice; num_slices = {num_slices}")
    with contextlib.suppress(RuntimeError):  # JAX has started with a fixed number of devices
        jax.config.update("jax_num_cpu_devices", target.devices)
    simulated = jax.devices(CPU)
    if len(simulated) < target.devices:
        raise ConfigError(f"slice {target.name}: JAX has already started with {len(simulated)} CPU devices")
    return simulated[: target.devices]
