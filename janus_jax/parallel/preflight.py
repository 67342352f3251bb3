"""Looks at the environment before JAX starts: what would end in a crash of C++ becomes one line.

Importing this module imports neither JAX nor libtpu.
"""

import contextlib
import errno
import functools
import importlib.util
import ipaddress
import mmap
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from janus_jax.errors import ConfigError, HeldError, LostPeerError, first_line

_PORT_WAIT_S = 5.0
"""How long an earlier run may take to let go of its port."""
_PARSE = "from jaxlib import _jax; _jax.CompileOptions()"
"""Has XLA read XLA_FLAGS, in 0.3 s. It ends the process at a flag that it does not know."""
_VALUES = {
    "JAX_COORDINATOR_PORT": (r"[1-9]\d{0,4}", "a port, 1 to 65535"),
    "JAX_DEFAULT_DEVICE": (r"cpu|gpu|cuda|rocm|tpu", "cpu, gpu, cuda, rocm or tpu"),
    "JAX_NUM_CPU_DEVICES": (r"-1|[1-9]\d*", "a number of at least 1"),
}
"""Variable of JAX that fails only when it is used -> pattern of what works, and the same in words."""


def require_known_xla_flags() -> None:
    """Has another process read XLA_FLAGS, unless JAX already has. Flags in a file are written out: others are added.

    Raises:
        ConfigError: XLA does not know a flag or its value, or the file cannot be read.
    """
    flags = os.environ.get("XLA_FLAGS", "").strip()
    if not flags or _jax_has_started():
        return
    if not flags.startswith("-"):
        try:
            flags = Path(flags).read_text().strip()
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"XLA_FLAGS={flags}: {getattr(error, 'strerror', None) or error}; allowed: flags that begin with --, "
                "or a file with such flags"
            ) from error
        os.environ["XLA_FLAGS"] = flags
    if reason := _refused(flags):
        raise ConfigError(f"XLA_FLAGS: {reason}")


@functools.cache
def _refused(flags: str) -> str | None:
    environ = {**os.environ, "XLA_FLAGS": flags, "TF_CPP_MIN_LOG_LEVEL": "0"}  # otherwise it may keep quiet
    try:
        done = subprocess.run([sys.executable, "-c", _PARSE], env=environ, capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    text = done.stderr.decode(errors="replace")
    if done.returncode == 0 or not (reason := re.search(r"\] ((?:Unknown flag|Couldn't interpret).*)", text)):
        return None  # whatever it is, JAX itself will say it
    return re.sub(r"^Unknown flag in XLA_FLAGS: ", "XLA does not know ", reason[1]).rstrip(".")


def require_known_jax_variables() -> None:
    """Imports JAX if the environment sets it up: it reads its variables then, and refuses some values with a traceback.

    Raises:
        ConfigError: names the variable, its value and, where this package knows, what is allowed.
    """
    names = {name for name in os.environ if name.startswith("JAX_")} - {"JAX_PLATFORMS"}
    for name, (pattern, allowed) in _VALUES.items():
        if name in names and not re.fullmatch(pattern, os.environ[name]):
            raise ConfigError(f"{name}={os.environ[name]}: allowed: {allowed}")
    if not names or "jax" in sys.modules:
        return
    try:
        import jax  # noqa: F401  pyright: ignore[reportUnusedImport]
    except ValueError as error:
        reason = first_line(error)
        if match := re.match(r"invalid truth value '(.*)' for environment '(\w+)'", reason):
            raise ConfigError(f"{match[2]}={match[1]}: allowed: true or false") from None
        if match := re.match(r'Invalid value "(.*)" for JAX flag (\w+)', reason):
            raise ConfigError(
                f"{match[2].upper()}={match[1]}: JAX does not know this value; unset the variable"
            ) from None
        raise ConfigError(f"a variable of {', '.join(sorted(names))}: JAX refuses it: {reason}") from None


def require_known_libtpu_flags(library: Path | None = None) -> None:
    """Looks for the names of LIBTPU_INIT_ARGS in libtpu, which ends the process at a flag that it does not know.

    Args:
        library: libtpu.so; None: the installed one.
    Raises:
        ConfigError: names the flag.
    """
    names = [match[1] for match in re.finditer(r"(?:^|\s)--?([\w.-]+)", os.environ.get("LIBTPU_INIT_ARGS", ""))]
    if library is None:
        spec = importlib.util.find_spec("libtpu")
        library = None if spec is None or spec.origin is None else Path(spec.origin).with_name("libtpu.so")
    if not names or library is None or not library.exists():
        return
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for name in names:
            if all(content.find(b"\0" + text.encode() + b"\0") < 0 for text in {name, name.removeprefix("no")}):
                raise ConfigError(f"LIBTPU_INIT_ARGS: the installed libtpu does not know --{name}")


def require_whole_tpu_variables(environ: Mapping[str, str] = os.environ) -> None:
    """Raises ConfigError for a number of this host without the names of all, or the other way round."""
    hosts, number = environ.get("TPU_WORKER_HOSTNAMES", ""), environ.get("TPU_WORKER_ID", "")
    names = [name for name in hosts.split(",") if name.strip()]
    if number and not names and not environ.get("TPU_PROCESS_ADDRESSES"):
        raise ConfigError(f"TPU_WORKER_ID={number}: needs TPU_WORKER_HOSTNAMES, the names of all hosts; or unset both")
    if len(names) > 1 and not number:
        raise ConfigError(f"TPU_WORKER_HOSTNAMES={hosts}: needs TPU_WORKER_ID, the number of this host; or unset both")
    if names and number and not (number.isdecimal() and int(number) < len(names)):
        raise ConfigError(
            f"TPU_WORKER_ID={number}: allowed: 0 to {len(names) - 1}, a host of TPU_WORKER_HOSTNAMES={hosts}"
        )


def require_free_port(coordinator: str) -> None:
    """Binds the coordinator's port for a moment: JAX crashes where it is taken.

    Args:
        coordinator: HOST:PORT; this machine is the host.
    Raises:
        LostPeerError: another process has the port, and keeps it for `_PORT_WAIT_S`.
        ConfigError: it cannot be bound at all.
    """
    port, deadline = coordinator.rpartition(":")[2], time.monotonic() + _PORT_WAIT_S
    while isinstance(error := bound(coordinator), OSError):
        if error.errno != errno.EADDRINUSE:
            raise ConfigError(f"--coordinator {coordinator}: port {port} cannot be opened: {error.strerror}")
        if time.monotonic() > deadline:
            raise LostPeerError(
                f"--coordinator {coordinator}: port {port} of this machine is taken, by an earlier run perhaps; end "
                "it, or choose another port"
            )
        time.sleep(0.2)
    error.close()


def listen_address(coordinator: str) -> str:
    """HOST:PORT where process 0 listens: the coordinator's own address, so that no other network reaches it.

    All addresses if the coordinator is a name, which may mean loopback on its own machine, or an address that the
    network translates.
    """
    host, _, port = coordinator.rpartition(":")
    with contextlib.suppress(ValueError, OSError):
        address = ipaddress.ip_address(host.strip("[]"))
        with socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind((str(address), 0))
        return coordinator
    return f"[::]:{port}"


def bound(coordinator: str) -> socket.socket | OSError:
    """A socket at the coordinator's `listen_address`, or why it cannot be had."""
    place, _, port = listen_address(coordinator).rpartition(":")
    place = place.strip("[]")
    own = (socket.AF_INET6 if ":" in place else socket.AF_INET, place)
    for family, host in [(socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")] if place == "::" else [own]:
        try:
            probe = socket.socket(family, socket.SOCK_STREAM)
        except OSError:
            continue  # this machine has no IPv6
        try:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what has just ended is not in the way
            if host == "::":
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            probe.bind((host, int(port)))
            return probe
        except OSError as error:
            probe.close()
            if host != "::" or error.errno in (errno.EADDRINUSE, errno.EACCES):
                return error
    return OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))


def devices() -> list[Any]:
    """`jax.devices()`.

    Raises:
        ConfigError: JAX_PLATFORMS, or another variable, names what this machine does not have, or JAX cannot start.
        HeldError: another process uses the TPU.
    """
    import jax

    try:
        if default := os.environ.get("JAX_DEFAULT_DEVICE"):  # JAX looks for it at its first operation
            jax.devices(default)
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # without a GPU, JAX ends at an assertion for `cuda`
        reason = re.sub(r"\s*\(set JAX_PLATFORMS=.*", "", first_line(error))
        reason = "" if isinstance(error, AssertionError) else f": {reason}"
        if re.search(r"in use", reason):
            raise HeldError(f"devices of this machine are held by another process{reason}") from error
        for name in ("JAX_DEFAULT_DEVICE", "JAX_PLATFORM_NAME"):
            if wanted := os.environ.get(name):
                raise ConfigError(f"{name}={wanted}: JAX cannot use such devices here{reason}; unset it") from error
        platforms = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue] (made at run time)
        if not platforms:
            raise ConfigError(f"JAX cannot use the devices of this machine{reason}; see janus doctor") from error
        raise ConfigError(
            f"JAX_PLATFORMS={platforms}: JAX cannot use such devices here{reason}; unset it, or set JAX_PLATFORMS=cpu"
        ) from error


def _jax_has_started() -> bool:
    if "jax" not in sys.modules:
        return False
    with contextlib.suppress(ImportError, AttributeError):
        from jax._src import xla_bridge

        return xla_bridge.backends_are_initialized()
    return False
