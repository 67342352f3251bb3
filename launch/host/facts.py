"""What a host is: `python -m launch.host.facts` prints it as JSON, for `setup` to compare hosts.

Imports the standard library alone.
"""

import glob
import importlib.metadata
import json
import os
import platform
import shutil
import sys
import time
from typing import Any

PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "orbax-checkpoint", "tensorflow", "google-cloud-storage")
"""Packages whose versions must be the same on all hosts."""


def facts() -> dict[str, Any]:
    """Facts of this host; a version is None where the package is missing.

    Returns:
        free_bytes is of the file system of the home directory, time_s seconds since 1970 by this host's clock, and cpu
        whether the host is set to run JAX without its chips.
    """
    home = os.path.expanduser("~")
    return {
        "host": platform.node(),
        "home": home,
        "os": _os(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "interpreter": sys.executable,
        "versions": {name: _version(name) for name in PACKAGES},
        "code": os.path.basename(os.getcwd()),
        "chips": chips(),
        "cpu": os.environ.get("JAX_PLATFORMS") == "cpu",
        "cpus": os.cpu_count(),
        "free_bytes": shutil.disk_usage(home).free,
        "time_s": time.time(),
    }


def chips(devices: str = "/dev") -> int:
    """Number of TPU chips: newer machines show one VFIO group a chip, older ones one accel device."""
    return len(glob.glob(f"{devices}/accel[0-9]*") or glob.glob(f"{devices}/vfio/[0-9]*"))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _os() -> str:
    try:
        with open("/etc/os-release", encoding="utf-8") as file:
            values = dict(line.rstrip().split("=", 1) for line in file if "=" in line)
    except OSError:
        return platform.system()
    return values.get("PRETTY_NAME", platform.system()).strip('"')


if __name__ == "__main__":
    print(json.dumps(facts()))
