"""Memory of this machine, and refusals of what cannot fit into it: Linux would kill the process without a word."""

import contextlib
import os
import resource
from pathlib import Path

from janus_jax.errors import ConfigError

_GROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def host_memory() -> int:
    """Bytes that this process can have at most: the machine's, or the limit of its container or shell."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _GROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no such limit
            limits.append(int(Path(path).read_text(encoding="ascii")))
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    return min([*limits, soft] if soft != resource.RLIM_INFINITY else limits)


def require_host_memory(needed: int, settings: str, what: str) -> None:
    """Raises ConfigError if this machine has less memory than `needed` bytes.

    Args:
        settings: the keys to blame, with their values.
        what: takes it, in the plural.
    """
    present = host_memory()
    if needed > present:
        raise ConfigError(
            f"{settings}: {what} take at least {needed / 2**30:,.1f} GiB of memory, but this machine has "
            f"{present / 2**30:,.1f} GiB; set smaller values"
        )
