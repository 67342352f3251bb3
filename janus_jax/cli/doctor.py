"""What this machine has and what it lacks: packages, devices, room, and the way to TPU, GPU and gs://.

Nothing is contacted: credentials are looked for as files, never read or tried.
"""

import dataclasses
import importlib.metadata
import importlib.util
import os
import shutil
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

GIB = 2**30
Status = Literal["ok", "missing", "warn"]


@dataclasses.dataclass(frozen=True)
class Check:
    """One finding. `missing` means a requirement that is absent or out of range; `warn` something that may be fine."""

    name: str
    status: Status
    detail: str
    hint: str = ""


def report() -> list[Check]:
    """All findings. Starts JAX's backend, so run it where no other process holds the accelerator."""
    python_range, requirements = declared()
    return [
        python(python_range),
        *packages(requirements),
        devices(),
        tpu(),
        gpu(),
        google_storage(),
        disk(Path.cwd()),
        memory(),
    ]


def show(checks: Iterable[Check]) -> int:
    """Prints a table; returns the exit code, 2 if a requirement is not met."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    checks = list(checks)
    colours = {"ok": "green", "warn": "yellow", "missing": "bold red"}
    table = Table("what", "status", "found", "what to do", box=None, pad_edge=False)
    for check in checks:
        table.add_row(
            *map(Text, (check.name,)), Text(check.status, colours[check.status]), check.detail, Text(check.hint)
        )
    Console().print(table)
    missing = [check.name for check in checks if check.status == "missing"]
    if missing:
        print(f"not usable yet: {', '.join(missing)}", file=sys.stderr)
    return 2 if missing else 0


def declared() -> tuple[str, list[str]]:
    """The Python range and the requirements (extras left out) of this package, from its sources or its installation."""
    sources = Path(__file__).parents[2] / "pyproject.toml"
    if sources.is_file():  # newer than the metadata of an editable installation
        project = tomllib.loads(sources.read_text(encoding="utf-8"))["project"]
        if project["name"] == "janus_jax":
            return project["requires-python"], project["dependencies"]
    metadata = importlib.metadata.metadata("janus_jax")
    required = importlib.metadata.requires("janus_jax") or []
    return metadata["Requires-Python"], [text for text in required if "extra ==" not in text]


def python(allowed: str) -> Check:
    """The interpreter against `requires-python`."""
    found = ".".join(map(str, sys.version_info[:3]))
    if Version(found) in SpecifierSet(allowed):
        return Check("python", "ok", f"{found} ({allowed})")
    return Check("python", "missing", f"{found}, needs {allowed}", "make a virtual environment with a newer Python")


def packages(requirements: Iterable[str]) -> list[Check]:
    """Each requirement against what is installed; those that do not apply to this platform are left out."""
    checks = []
    for requirement in map(Requirement, requirements):
        if requirement.marker and not requirement.marker.evaluate():
            continue
        name, allowed = requirement.name, str(requirement.specifier) or "any version"
        hint = f"pip install '{requirement}'"
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            checks.append(Check(name, "missing", f"not installed, needs {allowed}", hint))
            continue
        if requirement.specifier.contains(version, prereleases=True):
            checks.append(Check(name, "ok", f"{version} ({allowed})"))
        else:
            checks.append(Check(name, "missing", f"{version}, needs {allowed}", hint))
    return checks


def devices() -> Check:
    """What JAX sees: platform, kind and number of devices."""
    try:
        import jax

        found = jax.devices()
    except Exception as error:  # whatever the backend says, the other findings are still wanted
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return Check(
            "jax devices", "missing", reason[:200], "see the lines below; JAX_PLATFORMS=cpu leaves accelerators out"
        )
    kinds = ", ".join(sorted({device.device_kind for device in found}))
    return Check("jax devices", "ok", f"{len(found)} x {found[0].platform} ({kinds})")


def tpu(dev: Path = Path("/dev")) -> Check:
    """libtpu, wanted where the machine has TPU chips."""
    chips = sorted(dev.glob("accel[0-9]*")) or sorted(dev.glob("vfio/[0-9]*"))
    if importlib.util.find_spec("libtpu"):
        detail = f"libtpu {importlib.metadata.version('libtpu')}, {len(chips)} chips in {dev}"
        return Check("tpu", "ok" if chips else "warn", detail, "" if chips else "fine for compiling; no TPU is here")
    hint = "pip install 'janus_jax[tpu]'"
    if chips:
        return Check("tpu", "warn", f"{len(chips)} chips in {dev}, but no libtpu", hint)
    return Check("tpu", "warn", "no chips, no libtpu", f"only on a TPU VM: {hint}")


def gpu(dev: Path = Path("/dev")) -> Check:
    """JAX's CUDA plugin, wanted where the machine has NVIDIA GPUs."""
    cards = sorted(dev.glob("nvidia[0-9]*"))
    plugins = [name for name in ("jax_cuda12_plugin", "jax_cuda13_plugin") if importlib.util.find_spec(name)]
    if plugins:
        detail = f"{', '.join(plugins)}, {len(cards)} cards in {dev}"
        return Check("gpu", "ok" if cards else "warn", detail, "" if cards else "no NVIDIA GPU is here")
    hint = "pip install 'janus_jax[cuda12]'"
    if cards:
        return Check("gpu", "warn", f"{len(cards)} cards in {dev}, but no CUDA plugin for JAX", hint)
    return Check("gpu", "warn", "no cards, no CUDA plugin", f"only with an NVIDIA GPU: {hint}")


def google_storage(product_name: Path = Path("/sys/class/dmi/id/product_name")) -> Check:
    """Packages and a source of credentials for gs:// paths."""
    names = ("google-cloud-storage", "gcsfs")
    absent = [check.name for check in packages(names) if check.status != "ok"]
    if absent:
        return Check("gs://", "warn", f"{' and '.join(absent)} not installed", f"pip install {' '.join(absent)}")
    if os.environ.get("STORAGE_EMULATOR_HOST"):
        return Check("gs://", "ok", "emulator at STORAGE_EMULATOR_HOST")
    named = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    if named:
        if os.path.isfile(named):
            return Check("gs://", "ok", "credentials: GOOGLE_APPLICATION_CREDENTIALS")
        return Check("gs://", "warn", f"GOOGLE_APPLICATION_CREDENTIALS = {named}: no such file", "correct or unset it")
    folder = os.environ.get("CLOUDSDK_CONFIG") or os.path.expanduser("~/.config/gcloud")
    if os.path.isfile(os.path.join(folder, "application_default_credentials.json")):
        return Check("gs://", "ok", "credentials: application default")
    if product_name.is_file() and "Google" in product_name.read_text(errors="replace"):
        return Check("gs://", "ok", "credentials: the service account of this Google VM")
    return Check("gs://", "warn", "no credentials found", "only for gs:// paths: gcloud auth application-default login")


def disk(directory: Path) -> Check:
    """Free room where runs are written by default."""
    free = shutil.disk_usage(directory).free / GIB
    if free >= 10:
        return Check("disk", "ok", f"{free:.0f} GiB free in {directory}")
    return Check("disk", "warn", f"{free:.1f} GiB free in {directory}", "checkpoints of a 7B model take 80 GiB each")


def memory() -> Check:
    """Main memory and cores."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    detail = f"{total:.0f} GiB, {os.cpu_count()} cores"
    return (
        Check("memory", "ok", detail) if total >= 7 else Check("memory", "warn", detail, "the demo wants about 8 GiB")
    )
