"""NVIDIA GPUs to plan for, and how XLA compiles for one on a machine that has none."""

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import Any

from janus_jax.errors import ConfigError, first_line
from janus_jax.parallel.environment import gpu_memory_share

MOST = 8
"""GPUs of one machine, joined by NVLink."""

PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")
INSTALL = "pip install 'janus_jax[cuda13]' (or 'janus_jax[cuda12]')"

KINDS = {"NVIDIA H100 80GB HBM3": "h100", "NVIDIA H200": "h200"}
"""JAX's `device_kind` -> family. PCIe and NVL cards are slower, so they are none of these."""

_MEMORY = {"h100": (84_942_979_072, 3_352_320_000_000), "h200": (150_000_000_000, 4_800_000_000_000)}
"""Bytes of memory, and bytes per second."""

_SCALAR = {4: (64, 1), 8: (64, 1), 10: (128, 2), 11: (128, 1), 12: (64, 1), 16: (128, 2)}
_MATRIX = {2: 1024, 6: 1024, 10: 512, 11: 256, 16: 512, 19: 1024, 20: 1024}
"""XLA's number of an element type -> units of a core and operations of a unit in a cycle; of four matrix units."""


def target_config(family: str) -> str:
    """A `GpuTargetConfigProto` as text: what XLA asks of a GPU when it compiles.

    Figures: openxla/xla, xla/backends/gpu/target_config/specs/h100_sxm.txtpb and h200.txtpb, except the memory of an
    H200, which is what CUDA reports. Versions are the oldest that JAX's plugin for CUDA 13 accepts.

    On a GPU, JAX tells XLA how large its pool is. Here XLA assumes 80 % of the memory instead, so the memory is such
    that this is the pool.
    """
    kind = next(kind for kind, known in KINDS.items() if known == family)
    memory, bandwidth = _MEMORY[family]
    memory = round(memory * gpu_memory_share() / 0.8)
    scalar = "".join(
        f"rate_infos {{ key: {key} value {{ clock_rate_ghz: 1.98 units_per_core: {units} ops_per_clock: {ops} }} }} "
        for key, (units, ops) in _SCALAR.items()
    )
    matrix = "".join(
        f"rate_infos {{ key: {key} value {{ clock_rate_ghz: 1.83 units_per_core: 4 ops_per_clock: {ops} }} }} "
        for key, ops in _MATRIX.items()
    )
    return f"""
gpu_device_info {{
  name: "{kind}" device_vendor: "NVIDIA Corporation" platform_version: "Compute Capability 9.0a"
  cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}
  core_count: 132 fpus_per_core: 128 threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  device_memory_size: {memory} memory_bandwidth: {bandwidth} l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_address_bits: 64 pcie_bandwidth: 34359738368 ecc_enabled: true
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0" dnn_version: "9.12.0"
  device_interconnect_info {{ active_links: 18 }}
  scalar_unit_description {{ {scalar}}}
  matrix_unit_description {{ {matrix}}}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 12 patch: 0 }}
device_description_str: "{kind}"
"""


def devices(family: str, count: int) -> list[Any]:
    """JAX devices of one machine with `count` GPUs. Programs can be compiled for them, not run.

    Raises:
        ConfigError: JAX's CUDA plugin is not installed, or does not start.
    """
    name = f"{family}:{count}"
    if not any(map(importlib.util.find_spec, PLUGINS)):
        raise ConfigError(f"slice {name}: compiling for GPUs needs JAX's CUDA plugin, but no GPU: {INSTALL}")
    from jax.experimental import topologies

    try:
        described = topologies.get_topology_desc(
            name, platform="cuda", topology=f"1x1x{count}", target_config=target_config(family)
        ).devices
    except Exception as error:  # XLA raises several types
        raise ConfigError(f"slice {name}: JAX's CUDA plugin refuses it: {first_line(error)}") from error
    return list(described)


@contextlib.contextmanager
def lowering_for(device: Any) -> Iterator[None]:
    """Tells Pallas which GPU it lowers kernels for. Otherwise it asks this machine, which may have none."""
    if device.platform != "gpu":
        yield
        return
    import jax

    kind = jax.sharding.AbstractDevice(device.device_kind, getattr(device, "core_count", None), "gpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=kind)):
        yield


def what_is_missing(message: str) -> str | None:
    """What to install, if XLA's message says that a part of the CUDA toolkit is missing which compiling needs."""
    if "ptxas" in message or "libdevice" in message:
        return f"compiling for GPUs needs ptxas and libdevice of the CUDA toolkit: {INSTALL}"
    return None
