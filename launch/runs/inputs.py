"""Data and weights of the workstation in the bucket, once for each content: gs://BUCKET/inputs/NAME-DIGEST."""

import dataclasses
import hashlib
import os
import re
import stat
import time
from collections.abc import Iterator

from janus_jax.errors import ConfigError, counted
from launch.context import Context

FOLDER = "inputs"
_LARGE_BYTES = 5 * 10**8
"""Takes seconds to read."""


@dataclasses.dataclass(frozen=True)
class Local:
    """A file or directory of the workstation."""

    path: str
    files: dict[str, os.stat_result]
    """By name below `path`; for a file, its own name."""

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(facts.st_size for facts in self.files.values())


def look(key: str, path: str) -> Local | None:
    """What is at a path of this workstation; None if nothing is.

    Args:
        key: of the configuration, for messages.
    Raises:
        ConfigError: it cannot be uploaded as it is.
    """
    full = os.path.abspath(os.path.expanduser(path))
    if not os.path.lexists(full):
        return None
    files = dict(_files(key, full))
    if not files:
        raise ConfigError(f"{key} = {path}: is an empty directory")
    return Local(full, files)


def stage(context: Context, key: str, local: Local) -> str:
    """Uploads what a key of the configuration names, unless the bucket has it whole. Returns its URL.

    Raises:
        ConfigError: it changed meanwhile.
        CloudError: the bucket refused.
    """
    base = os.path.basename(local.path)
    size = f"{local.size / 1e9:.2f} GB" if local.size >= 1e7 else f"{local.size:,} bytes"
    if local.size >= _LARGE_BYTES:
        context.say(f"{key}: reading {local.path} ({counted(len(local.files), 'file')}, {size}) for its checksum")
    digest = _digest(local)
    name = f"{re.sub(r'[^A-Za-z0-9._-]+', '-', base).strip('.-')[:40] or 'input'}-{digest}"
    folder, url = context.bucket.at(FOLDER), f"{context.bucket.url}/{FOLDER}/{name}"
    is_file = os.path.isfile(local.path)
    target = f"{url}/{base}" if is_file else url
    if not context.dry_run and folder.read(f"{name}.json") is not None:
        context.say(f"{key}: {local.path} is in the bucket already: {target}")
        return target
    context.say(f"{key}: uploading {local.path} ({len(local.files)} files, {size}) to {target}")
    if is_file:
        folder.at(name).upload(local.path, base)
    else:  # of a model in Hugging Face's cache every file is a link
        words = ["gcloud", "storage", "rsync", "--recursive", "--no-ignore-symlinks", local.path, url]
        context.gcloud.change([*words, f"--project={context.settings.project}"], timeout_s=None)
    now = dict(_files(key, local.path))
    if {n: (f.st_size, f.st_mtime_ns) for n, f in now.items()} != {
        n: (f.st_size, f.st_mtime_ns) for n, f in local.files.items()
    }:
        raise ConfigError(f"{key} = {local.path}: changed while it was uploaded; start again when nothing writes there")
    done = {"files": len(local.files), "bytes": local.size, "by": context.me, "at_s": time.time()}
    folder.write(f"{name}.json", done)
    return target


def _files(key: str, path: str) -> Iterator[tuple[str, os.stat_result]]:
    if not os.path.isdir(path):
        yield os.path.basename(path), _facts(key, path)
        return
    for directory, folders, names in os.walk(path):
        folders.sort()
        for folder in folders:
            if os.path.islink(full := os.path.join(directory, folder)):
                raise ConfigError(f"{key}: {full}: is a link to a directory, which gcloud does not upload; copy it")
        for name in sorted(names):
            full = os.path.join(directory, name)
            yield os.path.relpath(full, path).replace(os.sep, "/"), _facts(key, full)


def _facts(key: str, path: str) -> os.stat_result:
    try:
        facts = os.stat(path)
    except OSError as error:
        raise ConfigError(f"{key}: {path}: cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(facts.st_mode):
        raise ConfigError(f"{key}: {path}: is neither a file nor a directory")
    if not os.access(path, os.R_OK):
        raise ConfigError(f"{key}: {path}: cannot be read: permission denied")
    return facts


def _digest(local: Local) -> str:
    """Of names and contents."""
    whole = hashlib.sha256()
    for name in sorted(local.files):
        path = os.path.join(local.path, name) if os.path.isdir(local.path) else local.path
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
        whole.update(len(name.encode(errors="surrogateescape")).to_bytes(4, "big"))
        whole.update(name.encode(errors="surrogateescape") + content)
    return whole.hexdigest()[:16]
