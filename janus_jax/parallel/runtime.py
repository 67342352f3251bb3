"""Processes: how they find each other, agree, and wait for each other."""

import dataclasses
import importlib.util
import os
from pathlib import Path

from janus_jax.errors import ConfigError, LostPeerError

BARRIER_TIMEOUT_S = 600


@dataclasses.dataclass(frozen=True)
class RuntimeOptions:
    """Where this process stands. With nothing given: one process, or what a TPU pod says of itself."""

    coordinator: str | None = None  # HOST:PORT of process 0
    num_processes: int | None = None
    process_id: int | None = None
    devices: int | None = None  # CPU devices to simulate in this process


def start(options: RuntimeOptions) -> None:
    """Starts JAX's distributed runtime where there is more than one process; call before anything asks for devices.

    On a TPU VM the pod's own metadata tells coordinator and process ids. Explicit flags win over it.

    Raises:
        ConfigError: a simulated device count that comes too late, or a coordinator that cannot be reached.
    """
    if options.devices is not None:
        _simulate(options.devices)
    import jax

    if jax.distributed.is_initialized():
        return
    if options.coordinator is not None:
        if jax.config.jax_platforms == "cpu":
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
        try:
            jax.distributed.initialize(options.coordinator, options.num_processes, options.process_id)
        except RuntimeError as error:
            raise ConfigError(f"--coordinator {options.coordinator}: {str(error).splitlines()[0]}") from error
    elif _on_tpu_vm():
        jax.distributed.initialize()


def _simulate(devices: int) -> None:
    import jax

    flags = os.environ.get("XLA_FLAGS", "")
    if "--xla_cpu_collective_call_terminate_timeout_seconds" not in flags:
        # Many simulated devices share few cores: a slow peer is late, not lost.
        flags += " --xla_cpu_collective_call_terminate_timeout_seconds=600"
        os.environ["XLA_FLAGS"] = flags.strip()
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", devices)
    except RuntimeError as error:
        if len(jax.local_devices(backend="cpu")) != devices:
            raise ConfigError(f"--devices {devices}: JAX has already started with another number") from error


def _on_tpu_vm() -> bool:
    has_chips = Path("/dev/accel0").exists() or Path("/dev/vfio/0").exists()
    return has_chips and importlib.util.find_spec("libtpu") is not None


def is_main() -> bool:
    """True in the one process that writes logs and single files."""
    import jax

    return jax.process_index() == 0


def barrier(name: str, timeout_s: int = BARRIER_TIMEOUT_S) -> None:
    """Waits until every process is here.

    Raises:
        LostPeerError: some process did not come within `timeout_s` seconds.
    """
    import jax

    if jax.process_count() == 1:
        return
    from jax._src import distributed  # the public sync_global_devices has no time-out

    try:
        distributed.global_state.client.wait_at_barrier(name, timeout_in_ms=timeout_s * 1000)
    except jax.errors.JaxRuntimeError as error:
        raise LostPeerError(
            f"process {jax.process_index()} of {jax.process_count()} waited {timeout_s} s at barrier {name!r} in vain: "
            f"{str(error).splitlines()[0]}"
        ) from error
