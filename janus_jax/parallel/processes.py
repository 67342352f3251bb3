"""Processes: how they find each other, agree, and wait for each other."""

import contextlib
import dataclasses
import importlib.util
import json
import os
import re
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from janus_jax import errors
from janus_jax.errors import ConfigError, LostPeerError, OutOfMemoryError, first_line
from janus_jax.parallel import compiled_programs, environment, preflight, supervisor
from janus_jax.parallel.progress import Progress
from janus_jax.parallel.same_everywhere import require_same_versions
from janus_jax.parallel.star import DEAD_S, Place

BARRIER_TIMEOUT_S = 600
START_TIMEOUT_S = 300.0
_JAX_HEARTBEAT_S = int(4 * DEAD_S)
"""JAX aborts a process later than this package ends it with a message."""


@dataclasses.dataclass(frozen=True)
class RuntimeOptions:
    """Where this process stands. With nothing given: one process, or what a TPU pod says of itself."""

    coordinator: str | None = None  # HOST:PORT of process 0
    num_processes: int | None = None
    process_id: int | None = None
    devices: int | None = None  # CPU devices to simulate in this process
    start_timeout_s: float = START_TIMEOUT_S  # how long processes wait for each other at the start
    run: str = ""  # as messages call it
    launch: str = ""  # a token that starts of other launches do not have
    programs: str | None = None  # directory where compiled programs are kept


def supervise(options: RuntimeOptions) -> None:
    """Gives this process a parent that owns the exit code, if it may have peers; call before JAX is imported."""
    if options.coordinator is not None:
        maybe = options.num_processes != 1
    else:  # whether a TPU machine has peers, JAX finds out later
        maybe = options.devices is None and os.environ.get("JAX_PLATFORMS") != "cpu" and _on_tpu_vm()
    if maybe:
        supervisor.supervise()


def watching(bounds: Mapping[str, float]) -> contextlib.AbstractContextManager[Progress]:
    """Inside, the process ends with exit code 13 if a phase makes no progress for longer than its bound, in seconds."""
    if supervisor.channel() is None and not bounds:
        return contextlib.nullcontext(Progress())
    return supervisor.start_thread().bounded(bounds)


def start(options: RuntimeOptions) -> None:
    """Starts JAX's distributed runtime where there is more than one process; call before anything asks for devices.

    On a TPU VM the pod's own metadata tells coordinator and process ids. Explicit flags win over it. All processes meet
    before JAX's runtime begins. From then on each ends with exit code 13, and a line, if another one is lost.

    Raises:
        ConfigError: a simulated device count, or a coordinator, that comes when JAX has already started; processes
            with different versions, or that do not fit together; an environment that JAX cannot start in
            (`preflight`).
        LostPeerError: some process did not come within `start_timeout_s`.
    """
    preflight.require_known_xla_flags()
    preflight.require_known_jax_variables()
    if options.devices is not None:
        _simulate(options.devices)
    environment.use_most_of_gpu_memory()
    import jax

    if jax.distributed.is_initialized():
        return
    if options.programs is not None:
        compiled_programs.keep(options.programs)
    jax.config.update("jax_enable_preemption_service", False)  # it takes SIGTERM, and knows of steps only
    if options.coordinator is not None:
        environment.use_gloo_on_cpu()
        _begin(options)
    elif _on_tpu_vm() and not environment.uses_cpu_only():
        preflight.require_whole_tpu_variables()
        preflight.require_known_libtpu_flags()
        environment.use_open_coordinator_port()
        _begin(options)
    require_same_versions()
    if jax.distributed.is_initialized():
        preflight.devices()


def _begin(options: RuntimeOptions) -> None:
    """Meets the other processes, then starts JAX's runtime."""
    import jax

    coordinator, count, number, local = _cluster(options)
    if coordinator is None or count is None or number is None:  # JAX knows of no cluster here
        return
    if count > 1:
        place = Place(coordinator, count, number, options.run, options.launch)
        supervisor.start_thread().meet(place, options.start_timeout_s)
    else:
        preflight.require_free_port(coordinator)
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            number,
            local,
            cluster_detection_method="deactivate",
            heartbeat_timeout_seconds=_JAX_HEARTBEAT_S,
            coordinator_bind_address=os.environ.get("JAX_COORDINATOR_BIND_ADDRESS")
            or preflight.listen_address(coordinator),
        )
    except RuntimeError as error:
        kind = LostPeerError if re.match("DEADLINE_EXCEEDED|UNAVAILABLE|ABORTED", str(error)) else ConfigError
        raise kind(f"--coordinator {coordinator}: {first_line(error)}") from error


def _cluster(options: RuntimeOptions) -> tuple[str | None, int | None, int | None, Any]:
    """Coordinator, number of processes, number of this one, ids of its devices; as JAX finds them, unless given."""
    if options.coordinator is not None:
        return options.coordinator, options.num_processes, options.process_id, None
    from jax._src import clusters

    given = os.environ.get("JAX_COORDINATOR_ADDRESS")
    detect = clusters.ClusterEnv.auto_detect_unset_distributed_params
    try:
        return detect(given, None, None, None, None, int(options.start_timeout_s))
    except (RuntimeError, OSError, ValueError) as error:  # OSError: of the machine's metadata server, too
        raise LostPeerError(f"this TPU machine does not say which others it belongs to: {first_line(error)}") from error


def _simulate(devices: int) -> None:
    try:
        environment.simulate_devices(devices)
    except RuntimeError as error:
        import jax

        if len(jax.local_devices(backend="cpu")) != devices:
            raise ConfigError(f"--devices {devices}: JAX has already started with another number") from error


def _on_tpu_vm() -> bool:
    has_chips = Path("/dev/accel0").exists() or Path("/dev/vfio/0").exists()
    return has_chips and importlib.util.find_spec("libtpu") is not None


def is_main() -> bool:
    """True in the one process that writes logs and single files. Asks for no devices where there is one process."""
    import jax

    return not jax.distributed.is_initialized() or jax.process_index() == 0


def peers() -> dict[str, Any]:
    """The coordinator's key-value store, this process's number and the number of processes; empty if there is one."""
    import jax

    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return {}
    return {"client": _key_value_store(), "process": jax.process_index(), "processes": jax.process_count()}


def barrier(name: str, timeout_s: int = BARRIER_TIMEOUT_S) -> None:
    """Waits until every process is here.

    Raises:
        LostPeerError: some process ended or did not come within `timeout_s` seconds; end with `leave` then.
    """
    import jax

    if jax.process_count() == 1:
        return
    import orbax.checkpoint as ocp  # its barrier has a time-out; JAX's public one has none

    try:
        ocp.multihost.get_barrier_sync_fn()(key=name, timeout_ms=timeout_s * 1000)
    except jax.errors.JaxRuntimeError as error:
        raise LostPeerError(
            f"process {jax.process_index()} of {jax.process_count()} waited at barrier {name!r} in vain (time-out "
            f"{timeout_s} s): {first_line(error)}"
        ) from error


@contextlib.contextmanager
def agreement(name: str, timeout_s: int = BARRIER_TIMEOUT_S) -> Iterator[None]:
    """What every process does inside succeeds on all of them or on none; afterwards all are here.

    Raises:
        Exception: its own.
        JanusError: the first that another process met, with the number of that process.
        LostPeerError: as `barrier`.
    """
    import jax

    if not jax.distributed.is_initialized():  # asked in this way, JAX does not look for devices yet
        yield
        return
    client, failure = _key_value_store(), None
    try:
        yield
    except LostPeerError:  # nobody to agree with
        raise
    except Exception as error:
        failure = error
    kind = OutOfMemoryError if failure is not None and _of_memory(failure) else type(failure)
    known = [one.__name__ for one in kind.__mro__ if one.__module__ == errors.__name__]  # others may be more special
    outcome = None if failure is None else [next(iter(known), ""), _message(failure)]
    client.key_value_set(f"{name}/{jax.process_index()}", json.dumps(outcome), allow_overwrite=True)
    try:
        barrier(name, timeout_s)
    except LostPeerError as lost:  # its end may be why this one failed, or the other way round: both are told
        raise lost if failure is None else LostPeerError(f"{lost}; before that: {_message(failure)}") from failure
    if failure is not None:
        raise failure
    for process in range(jax.process_count()):
        outcome = json.loads(client.blocking_key_value_get(f"{name}/{process}", timeout_s * 1000))
        if outcome is not None:
            kind, message = outcome
            raise getattr(errors, kind, errors.JanusError)(f"process {process}: {message}")


def broadcast(name: str, value: Any, timeout_s: int = BARRIER_TIMEOUT_S) -> Any:
    """Returns process 0's `value` (JSON types) on every process.

    Raises:
        LostPeerError: some process ended or did not come; end with `leave` then.
    """
    import jax

    if jax.process_count() == 1:
        return value
    client = _key_value_store()
    if is_main():
        client.key_value_set(f"{name}/value", json.dumps(value), allow_overwrite=True)
    barrier(f"{name}/set", timeout_s)
    shared = json.loads(client.blocking_key_value_get(f"{name}/value", timeout_s * 1000))
    barrier(f"{name}/read", timeout_s)  # the name may be used again
    return shared


def broadcast_large(name: str, value: Any) -> Any:
    """As `broadcast`, for values that are too large for the coordinator's store: they go through the devices."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return value
    content = np.frombuffer(json.dumps(value).encode() if is_main() else b"", np.uint8)
    size = broadcast(name, len(content))
    content = content if is_main() else np.zeros(size, np.uint8)
    return json.loads(multihost_utils.broadcast_one_to_all(content).tobytes())


def publish(key: str, text: str) -> None:
    """Lets all processes know a text; see `published`. Waits for nobody."""
    _key_value_store().key_value_set(key, text)


def published(directory: str) -> dict[str, str]:
    """The texts that were published as DIRECTORY/NAME so far, by name."""
    return {key.rpartition("/")[2]: text for key, text in _key_value_store().key_value_dir_get(directory)}


def _key_value_store() -> Any:
    """The coordinator's store: it needs no devices and has a time-out.

    Neither JAX nor Orbax offers it publicly. What they offer goes through the devices' collectives, which a failing
    process may never reach.
    """
    from jax._src import distributed

    client = distributed.global_state.client
    assert client is not None  # there are several processes
    return client


@contextlib.contextmanager
def memory_for(what: str, advice: str = "to find what fits: janus plan CONFIG --topology SLICE") -> Iterator[None]:
    """Raises OutOfMemoryError where JAX or numpy do not get the memory that they ask for inside."""
    import jax

    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not _of_memory(error):
            raise
        raise OutOfMemoryError(f"{what}: {first_line(error)}; {advice}") from error


_OF_MEMORY = ("resource_exhausted", "out of memory", "hbmoom", "out_of_memory", "alloc_failed")
"""What XLA calls a lack of memory: when it compiles, when a program starts, inside a library."""
_OF_ELSE = ("shared memory size limit", "message larger than max")
"""What is exhausted too, and is no memory of a device: of a kernel's block, of a message between processes."""


def _of_memory(error: Exception) -> bool:
    """Whether an error of JAX or numpy means too little memory."""
    text = str(error).lower()
    named = any(words in text for words in _OF_MEMORY) and not any(words in text for words in _OF_ELSE)
    return isinstance(error, MemoryError) or (type(error).__name__ == "JaxRuntimeError" and named)


def _message(error: Exception) -> str:
    return str(error) if isinstance(error, errors.JanusError) else f"{type(error).__name__}: {error}"


def part(exit_code: int) -> NoReturn:
    """Ends this process, which all others do too, whatever its threads still do."""
    import jax

    for number in supervisor.heard((signal.SIGINT, signal.SIGTERM, signal.SIGHUP)):
        signal.signal(number, signal.SIG_DFL)  # JAX's shutdown, which waits for the others, holds handlers back
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def leave(exit_code: int) -> NoReturn:
    """Ends this process; without a goodbye if there are others, one of which is lost.

    Left to an ordinary exit, JAX waits 100 s or more for the lost process and then aborts with code 134.
    """
    import jax

    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    sys.exit(exit_code)
