"""Brings an export from a run directory in a bucket to this workstation, whole and verified, or not at all."""

import base64
import dataclasses
import hashlib
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from janus_jax.errors import ConfigError, JanusError, StorageError, counted
from launch.cloud.bucket import Bucket, Entry
from launch.cloud.gcloud import Say

REPORT = "conversion_report.json"
_MARK = ".pulled-from"
_BLOCK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Source:
    """What to bring."""

    folder: Bucket
    """The run directory."""
    step: int
    exported: bool
    """Whether the run has written `exports/STEP`; else only a checkpoint is there, to be converted here."""

    @property
    def url(self) -> str:
        return f"{self.folder.url}/{'exports' if self.exported else 'checkpoints'}/{self.step}"


def find(folder: Bucket, step: int | None) -> Source:
    """The newest export of a run, or a step.

    Raises:
        ConfigError: the run has none, or not this step; names those that it has.
        CloudError: the bucket refused.
    """
    names = [entry.name for entry in folder.entries(f"exports/*/{REPORT}", "checkpoints/*/commit_success.txt")]
    exports, saved = _steps(names, "exports"), _steps(names, "checkpoints")
    if step is None:
        if exports:
            return Source(folder, exports[-1], True)
        if saved:
            what = f"no export yet; a saved step can be converted: --step {saved[-1]}"
            raise ConfigError(folder.url, f"{what} (a run writes exports/STEP at its end, with export.hf=true)")
        raise ConfigError(folder.url, "holds neither an export nor a saved step")
    if step in exports or step in saved:
        return Source(folder, step, step in exports)
    steps = ", ".join(map(str, sorted({*exports, *saved}))) or "none"
    raise ConfigError(f"--step {step}", f"{folder.url} has no such step; allowed: {steps}")


def bring(source: Source, target: Path, say: Say, *, dry_run: bool = False) -> None:
    """Copies an export beside the target, verifies it there, and renames it.

    Raises:
        ConfigError: the target holds something else.
        StorageError: too little room, or a file that is not what the bucket has.
        CloudError: the bucket refused.
    """
    name = f"exports/{source.step}"
    entries = [_below(entry, name) for entry in source.folder.entries(f"{name}/**")]
    entries = [entry for entry in entries if entry.name]
    size = sum(entry.size for entry in entries)
    if occupied(target):
        if wrong := differences(target, entries):
            raise ConfigError(target, f"exists, and is not {source.url}: {wrong[0]}; name another directory")
        say(f"{target}: is there already, the same as {source.url} ({counted(len(entries), 'file')}, {_gb(size)})")
        return
    partial = target.with_name(f"{target.name}.partial")
    if dry_run:
        say(shlex.join(["gcloud", "storage", "rsync", "--recursive", source.url, os.fspath(partial)]))
        return
    _claim(partial, source.url)
    if (free := shutil.disk_usage(partial).free + _held(partial)) < size:
        raise StorageError(target.parent, f"{_gb(free)} free, {_gb(size)} needed")
    say(f"{source.url}: {counted(len(entries), 'file')}, {_gb(size)}")
    source.folder.download(f"{name}/", partial)
    if wrong := [*differences(partial, entries), *_tensors(partial)]:
        shutil.rmtree(partial)  # what is wrong would be taken for right by the next copy
        raise StorageError(partial, f"is not what {source.url} holds: {'; '.join(wrong[:3])}; nothing is kept")
    (partial / _MARK).unlink()
    if target.is_dir():
        target.rmdir()  # it is empty
    partial.rename(target)
    report = _report(target)
    done = {"digest": "with the checkpoint, tensor by tensor", "logits": "with the checkpoint, logits too"}
    compared = done.get(str(report.get("verify")))
    say(
        f"{target}: verified: sizes and checksums of all files"
        + (f"; the run compared it {compared}" if compared else "")
    )


def convert(source: Source, target: Path, words: Sequence[str], say: Say) -> None:
    """Converts a saved step here, with `janus convert to-hf`, which verifies what it writes.

    Raises:
        ConfigError: the target holds something, or janus_jax is not installed here; says what to run.
        JanusError: with the exit code of `janus`, which has said why.
    """
    if occupied(target):
        raise ConfigError(target, "exists; name another directory")
    run = ["convert", "to-hf", source.folder.url, os.fspath(target), "--step", str(source.step), *words]
    if not _installed():
        line = shlex.join(["janus", *run])
        raise ConfigError(
            source.url,
            "was not exported, and janus_jax is not installed here to convert it; where it is, or on a host "
            f"(python -m launch ssh), run: {line}",
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    say(f"converts {source.url}: {shlex.join(['janus', *run])}")
    code = subprocess.run([sys.executable, "-m", "janus_jax.cli", *run], check=False).returncode
    if code:
        error = JanusError(source.url, f"janus convert ended with exit code {code}")
        error.exit_code = code if code > 0 else 128 - code
        raise error


def _installed() -> bool:
    """Whether `janus convert` can run here."""
    try:
        return all(importlib.util.find_spec(name) for name in ("jax", "orbax", "google.cloud.storage"))
    except ModuleNotFoundError:
        return False


def occupied(target: Path) -> bool:
    """Whether something is there already; an empty directory is nothing."""
    return os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir()))


def differences(directory: Path, entries: Sequence[Entry]) -> list[str]:
    """How a directory differs from what the bucket lists: names, sizes, and MD5 where the store has one. (gcloud has
    compared the checksums of objects without MD5 when it copied them.)"""
    if not directory.is_dir():
        return ["it is no directory"]
    present = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()} - {_MARK}
    names = {entry.name for entry in entries}
    wrong = [f"{name} is missing" for name in sorted(names - present)]
    wrong += [f"{name} is not in the bucket" for name in sorted(present - names)]
    for entry in entries:
        if entry.name not in present:
            continue
        path = directory / entry.name
        if path.stat().st_size != entry.size:
            wrong.append(f"{entry.name} has {path.stat().st_size:,} bytes instead of {entry.size:,}")
        elif entry.md5 is not None and _md5(path) != entry.md5:
            wrong.append(f"{entry.name} has another MD5")
    return wrong


def _tensors(directory: Path) -> list[str]:
    """Tensors that the export's own report names and no file has: a file was removed from the bucket."""
    expected, held = set(_report(directory).get("sha256") or ()), set()
    for path in directory.glob("*.safetensors"):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            try:
                held |= set(json.loads(file.read(length)))
            except ValueError:
                return [f"{path.name} is no safetensors file"]
    return [f"tensor {name} is in no file" for name in sorted(expected - held)]


def _report(directory: Path) -> dict[str, Any]:
    try:
        report = json.loads((directory / REPORT).read_bytes())
    except (OSError, ValueError):
        return {}
    return report if isinstance(report, dict) else {}


def _claim(partial: Path, url: str) -> None:
    """Makes the directory of a copy, or takes up that of one that was cut off."""
    mark = partial / _MARK
    if occupied(partial) and not (mark.is_file() and mark.read_text(encoding="utf-8") == url):
        raise ConfigError(partial, f"exists, and is no copy of {url} that was cut off; move it away")
    partial.mkdir(parents=True, exist_ok=True)
    mark.write_text(url, encoding="utf-8")


def _steps(names: Sequence[str], folder: str) -> list[int]:
    parts = [name.split("/") for name in names]
    return sorted(int(part[1]) for part in parts if part[0] == folder and part[1].isdecimal())


def _below(entry: Entry, name: str) -> Entry:
    return dataclasses.replace(entry, name=entry.name.removeprefix(f"{name}/"))


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return base64.b64encode(digest.digest()).decode()


def _held(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"
