"""`janus doctor`: checks packages, devices, disk, memory, and access to TPUs, GPUs and gs://.

It contacts no service. It looks for credential files but never reads or tries them.
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

from janus_jax.errors import counted
from janus_jax.parallel.preflight import require_known_jax_variables, require_known_xla_flags

GIB = 2**30
Status = Literal["ok", "missing", "warn"]


@dataclasses.dataclass(frozen=True)
class Check:
    """One result. `missing`: a requirement is absent or out of range. `warn`: possibly fine."""

    name: str
    status: Status
    detail: str
    hint: str = ""


def report() -> list[Check]:
    """All checks. Starts JAX's backend, so no other process may hold the accelerator."""
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
    """Prints a table. Returns the exit code: 2 if a requirement is missing, otherwise 0."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    checks = list(checks)
    colours = {"ok": "green", "warn": "yellow", "missing": "bold red"}
    table = Table("check", "status", "result", "what to do", box=None, pad_edge=False)
    for check in checks:
        table.add_row(Text(check.name), Text(check.status, colours[check.status]), check.detail, Text(check.hint))
    Console().print(table)
    missing = [check.name for check in checks if check.status == "missing"]
    if missing:
        print(f"missing: {', '.join(missing)}", file=sys.stderr)
    return 2 if missing else 0


def declared() -> tuple[str, list[str]]:
    """This package's Python range and requirements without extras, from its sources or its installation."""
    sources = Path(__file__).parents[2] / "pyproject.toml"
    if sources.is_file():  # more recent than the metadata of an editable installation
        project = tomllib.loads(sources.read_text(encoding="utf-8"))["project"]
        if project["name"] == "janus_jax":
            return project["requires-python"], project["dependencies"]
    metadata = importlib.metadata.metadata("janus_jax")
    required = importlib.metadata.requires("janus_jax") or []
    return metadata["Requires-Python"], [text for text in required if "extra ==" not in text]


def python(allowed: str) -> Check:
    """The interpreter against `requires-python`."""
    version = ".".join(map(str, sys.version_info[:3]))
    if Version(version) in SpecifierSet(allowed):
        return Check("python", "ok", f"{version} ({allowed})")
    hint = "create a virtual environment with a supported Python"
    return Check("python", "missing", f"{version}, needs {allowed}", hint)


def packages(requirements: Iterable[str]) -> list[Check]:
    """Each requirement against the installed version. Skips requirements of other platforms."""
    checks = []
    for requirement in map(Requirement, requirements):
        if requirement.marker and not requirement.marker.evaluate():
            continue
        name, allowed = requirement.name, str(requirement.specifier) or "any version"
        hint = f"pip install '{requirement}'"
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = None
        if version is not None and requirement.specifier.contains(version, prereleases=True):
            checks.append(Check(name, "ok", f"{version} ({allowed})"))
        else:
            checks.append(Check(name, "missing", f"{version or 'not installed'}, needs {allowed}", hint))
    return checks


def devices() -> Check:
    """What JAX sees: platform, kind and number of devices."""
    try:
        require_known_xla_flags()
        require_known_jax_variables()
        import jax

        available = jax.devices()
    except Exception as error:  # whatever the backend raises, the other checks still run
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        hint = "see the checks below; JAX_PLATFORMS=cpu ignores accelerators"
        return Check("jax devices", "missing", reason[:200], hint)
    kinds = ", ".join(sorted({device.device_kind for device in available}))
    return Check("jax devices", "ok", f"{len(available)} x {available[0].platform} ({kinds})")


def tpu(dev: Path = Path("/dev")) -> Check:
    """libtpu, which TPU chips need."""
    chips = sorted(dev.glob("accel[0-9]*")) or sorted(dev.glob("vfio/[0-9]*"))
    if importlib.util.find_spec("libtpu"):
        detail = f"libtpu {importlib.metadata.version('libtpu')}, {counted(len(chips), 'chip')} in {dev}"
        hint = "" if chips else "enough to compile for TPUs; this machine has none"
        return Check("tpu", "ok" if chips else "warn", detail, hint)
    hint = "pip install 'janus_jax[tpu]'"
    if chips:
        return Check("tpu", "warn", f"{counted(len(chips), 'chip')} in {dev}, but no libtpu", hint)
    return Check("tpu", "warn", "no chips, no libtpu", f"needed on a TPU VM: {hint}")


def gpu(dev: Path = Path("/dev")) -> Check:
    """JAX's CUDA plugin, which NVIDIA GPUs need."""
    cards = sorted(dev.glob("nvidia[0-9]*"))
    plugins = [name for name in ("jax_cuda12_plugin", "jax_cuda13_plugin") if importlib.util.find_spec(name)]
    if plugins:
        detail = f"{', '.join(plugins)}, {counted(len(cards), 'card')} in {dev}"
        return Check(
            "gpu",
            "ok" if cards else "warn",
            detail,
            "" if cards else "enough to compile for GPUs; this machine has none",
        )
    hint = "pip install 'janus_jax[cuda13]' (or 'janus_jax[cuda12]' for drivers older than 580)"
    if cards:
        return Check("gpu", "warn", f"{counted(len(cards), 'card')} in {dev}, but no CUDA plugin for JAX", hint)
    return Check("gpu", "warn", "no cards, no CUDA plugin", f"needed with an NVIDIA GPU: {hint}")


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
        detail = f"GOOGLE_APPLICATION_CREDENTIALS = {named}: file not found"
        return Check("gs://", "warn", detail, "correct or unset it")
    folder = os.environ.get("CLOUDSDK_CONFIG") or os.path.expanduser("~/.config/gcloud")
    if os.path.isfile(os.path.join(folder, "application_default_credentials.json")):
        return Check("gs://", "ok", "credentials: application default")
    if product_name.is_file() and "Google" in product_name.read_text(errors="replace"):
        return Check("gs://", "ok", "credentials: the service account of this Google VM")
    hint = "needed for gs:// paths: gcloud auth application-default login"
    return Check("gs://", "warn", "no credentials found", hint)


def disk(directory: Path) -> Check:
    """Free space in the directory where runs are written by default."""
    free = shutil.disk_usage(directory).free / GIB
    if free >= 10:
        return Check("disk", "ok", f"{free:.0f} GiB free in {directory}")
    return Check("disk", "warn", f"{free:.1f} GiB free in {directory}", "a checkpoint of a 7B model takes 80 GiB")


def memory() -> Check:
    """Main memory and cores."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    detail = f"{total:.0f} GiB, {os.cpu_count()} cores"
    if total >= 7:
        return Check("memory", "ok", detail)
    return Check("memory", "warn", detail, "the demo needs about 8 GiB")
