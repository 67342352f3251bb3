"""For hosts that reach no package index: uv, the interpreter and all wheels, in one tar in the bucket.

The workstation makes the tar once for an environment. Wheels are for Linux on x86-64, whatever the workstation is.
"""

import dataclasses
import json
import os
import re
import shutil
import sys
import tarfile
import tempfile
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Sequence
from typing import Self

from launch.cloud.gcloud import Say, run_command
from launch.context import Context, cache_folder
from launch.errors import CloudError, HostError
from launch.remote.ship import Code

GLIBC = 31
"""Wheels may need glibc 2.31, as libtpu does; the images for TPUs have 2.35 or newer."""
PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in range(GLIBC, 4, -1)),
    *(f"manylinux{year}_x86_64" for year in (2014, 2010, 1)),
    "linux_x86_64",
)
PIP = (sys.executable, "-m", "pip", "-q", "--disable-pip-version-check")
FOLDER = "launch/wheels"
RECIPE = "launch/host/environment.json"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a checkout makes its environment on the hosts: a file of it, for a run may have other code than this."""

    python: str
    """Version."""
    uv: str
    """Version of uv, which makes it."""
    constraints: str
    """File of the checkout with exact versions."""
    extras: list[str]
    """Of pyproject.toml."""

    @classmethod
    def of(cls, code: Code) -> Self:
        """That of a checkout, which has the file."""
        return cls(**json.loads(code.files[RECIPE][0]))


def stage(context: Context, code: Code, identity: str, notify: Say) -> str:
    """Makes sure that the tar of an environment is in the bucket; its URL for the hosts.

    Raises:
        HostError: a package, the interpreter or uv cannot be had here.
        CloudError: the bucket refused.
    """
    folder, name = context.bucket.at(FOLDER), f"{identity}.tar"
    if not folder.names(name):
        with tempfile.TemporaryDirectory(prefix="janus-wheels-") as scratch:
            notify("collecting uv, the interpreter and packages for hosts without internet")
            path = os.path.join(scratch, name)
            pack(collect(code, os.path.join(scratch, "staged")), path)
            notify(f"uploading them to {folder.url} ({os.path.getsize(path) / 1e9:.1f} GB)")
            folder.upload(path, name)
    return url_of(f"{folder.url}/{name}")


def url_of(url: str) -> str:
    """Where hosts read a gs:// object over HTTP."""
    bucket, _, name = url.removeprefix("gs://").partition("/")
    base = os.environ.get("CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE") or "https://storage.googleapis.com/storage/v1/"
    return f"{base.rstrip('/')}/b/{bucket}/o/{urllib.parse.quote(name, safe='')}?alt=media"


def collect(code: Code, folder: str) -> str:
    """Fills a folder: uv, wheels/ and interpreter/RELEASE/ARCHIVE; returns it."""
    os.makedirs(folder)
    recipe = Recipe.of(code)
    uv = own_uv(recipe.uv)
    for name in ("pyproject.toml", recipe.constraints):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(code.files[name][0])
    listing = os.path.join(folder, "requirements.txt")
    extras = [word for extra in recipe.extras for word in ("--extra", extra)]
    asked = [os.path.join(folder, "pyproject.toml"), "--constraints", os.path.join(folder, recipe.constraints), *extras]
    exact = [
        "--python-version",
        recipe.python,
        "--python-platform",
        f"x86_64-manylinux_2_{GLIBC}",
        "--no-header",
        "--no-annotate",
    ]
    # uv judges `sys_platform` and the like for the hosts; pip would judge them for this workstation.
    _run([uv, "pip", "compile", "-q", *asked, *exact, "-o", listing], "resolving the packages")
    for_hosts = ["--only-binary=:all:", *(f"--platform={name}" for name in PLATFORMS)]
    for_hosts += ["--python-version", recipe.python, "--implementation", "cp"]
    download = [*PIP, "download", *for_hosts, "--no-deps"]
    _download(download, listing, os.path.join(folder, "wheels"))
    _run([*download, "-d", os.path.join(folder, "uv-wheel"), f"uv=={recipe.uv}"], "downloading uv")
    _unpack_uv(os.path.join(folder, "uv-wheel"), folder)
    _interpreter(uv, os.path.join(folder, "interpreter"), recipe)
    return folder


def _download(download: Sequence[str], listing: str, folder: str) -> None:
    """Downloads the wheels of a list of exact versions. The few packages without one are built here."""
    with open(listing, encoding="utf-8") as file:
        wanted = file.read().split()
    while True:
        with open(listing, "w", encoding="utf-8") as file:
            file.write("\n".join(wanted) + "\n")
        try:
            _run([*download, "-d", folder, "-r", listing], "downloading the packages")
            return
        except HostError as error:
            name = re.search(r"No matching distribution found for (\S+==\S+)", str(error))
            if name is None or name.group(1) not in wanted:
                raise
        requirement = name.group(1)
        wanted.remove(requirement)
        with tempfile.TemporaryDirectory() as built:
            _run([*PIP, "wheel", "--no-deps", "-w", built, requirement], f"building {requirement}")
            for wheel in os.listdir(built):
                if not wheel.endswith("-none-any.whl"):
                    raise HostError(requirement, f"has no wheel in the package index; {wheel} runs here alone")
                os.makedirs(folder, exist_ok=True)
                shutil.move(os.path.join(built, wheel), folder)


def pack(folder: str, path: str) -> None:
    """Writes what is in a folder as a tar. Wheels are compressed already."""
    with tarfile.open(path, "w") as tar:
        for name in sorted(os.listdir(folder)):
            tar.add(os.path.join(folder, name), arcname=name)


def own_uv(version: str) -> str:
    """uv for this workstation, from the package index."""
    target = os.path.join(cache_folder(), f"uv-{version}")
    uv = os.path.join(target, "bin", "uv")
    if not os.path.exists(uv):
        shutil.rmtree(target, ignore_errors=True)
        install = [*PIP, "install", "--no-deps", "--target", target, f"uv=={version}"]
        _run(install, "installing uv on this workstation")
    return uv


def _unpack_uv(wheel_folder: str, folder: str) -> None:
    with zipfile.ZipFile(os.path.join(wheel_folder, os.listdir(wheel_folder)[0])) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith("/scripts/uv"))
        with wheel.open(name) as source, open(os.path.join(folder, "uv"), "wb") as target:
            shutil.copyfileobj(source, target)
    os.chmod(os.path.join(folder, "uv"), 0o755)
    shutil.rmtree(wheel_folder)


def _interpreter(uv: str, mirror: str, recipe: Recipe) -> None:
    """Downloads the archive that uv would install, to where uv looks for it in a mirror: RELEASE/ARCHIVE."""
    words = [uv, "python", "list", f"cpython-{recipe.python}-linux-x86_64-gnu", "--only-downloads", "--show-urls"]
    listed = json.loads(_run([*words, "--output-format", "json"], "asking uv for the interpreter"))
    if not listed:
        raise HostError("uv", f"{recipe.uv} offers no Python {recipe.python} for Linux on x86-64")
    url = listed[0]["url"]
    release, archive = url.rsplit("/", 2)[1:]
    os.makedirs(os.path.join(mirror, release))
    target = os.path.join(mirror, release, urllib.parse.unquote(archive))
    try:
        with urllib.request.urlopen(url, timeout=60) as source, open(target, "wb") as file:
            shutil.copyfileobj(source, file)
    except OSError as error:
        raise HostError(url, f"cannot be downloaded: {error}") from error


def _run(words: Sequence[str], what: str) -> str:
    try:
        result = run_command(words, None, 3600)
    except CloudError as error:
        raise HostError(what, str(error)) from error
    if result.code:
        last = [line for line in result.err.splitlines() if line.strip()][-3:]
        raise HostError(f"{what}: {' '.join(last) or f'exit code {result.code}'}")
    return result.out
