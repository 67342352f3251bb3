"""How ssh reaches the workers: lines that gcloud gives, kept per creation of the machines, and where sockets lie."""

import contextlib
import hashlib
import json
import os
import shlex
import stat
import tempfile
from typing import Any

from launch.cloud.gcloud import interrupted, require
from launch.context import Context, cache_folder
from launch.errors import CloudError, HostError, Kind

DEFAULT_KEY = "~/.ssh/google_compute_engine"
PAUSE_S = 2.0
"""Before a node is asked again that refused the key."""


def ssh(context: Context, node: str, worker: str, *words: str) -> list[str]:
    """Words of `gcloud compute tpus tpu-vm ssh`."""
    key = context.settings.ssh_key
    own = [] if key == DEFAULT_KEY else [f"--ssh-key-file={os.path.expanduser(key)}"]
    return context.gcloud.tpu("tpu-vm", "ssh", node, f"--worker={worker}", *own, *words)


def ask_gcloud(context: Context, node: str) -> list[list[str]]:
    """Lines of ssh to the workers of a node, without the command, after a connection to the first one.

    A new key is unknown to the machines at first; gcloud tries for a minute, then we do.
    """
    push = ssh(context, node, "0", "--command=true", "--quiet")
    for turn in range(3):
        _require_uninterrupted(node)
        try:
            context.gcloud.change(push, timeout_s=180)
            break
        except CloudError as error:
            if turn == 2 or error.kind not in (Kind.UNKNOWN, Kind.UNAVAILABLE):
                if "return code [255]" in str(error):
                    raise HostError(f"worker 0 ({node})", f"cannot be reached: {error}") from error
                raise
            interrupted.wait(PAUSE_S)
    _require_uninterrupted(node)
    words = ssh(context, node, "all", "--command=true", "--dry-run", "--quiet")
    result = context.runner(words, None, 180)
    require(result, words)
    return [_target(line) for line in result.out.splitlines() if line.strip()]


def _require_uninterrupted(node: str) -> None:
    if interrupted.is_set():
        raise HostError(node, "not asked: stopped")


def _target(line: str) -> list[str]:
    """The words of a line that gcloud printed, without `-- true`, and with host keys checked.

    gcloud does not check the key of a host that it has not seen. Keys have the machine's own number in their name, so a
    known one never changes.
    """
    words = shlex.split(line)
    if words[-2:] != ["--", "true"] or "ssh" not in os.path.basename(words[0]):
        raise CloudError(Kind.UNKNOWN, "gcloud compute tpus tpu-vm ssh --dry-run", f"no line of ssh: {line[:200]!r}")
    return ["StrictHostKeyChecking=accept-new" if word == "StrictHostKeyChecking=no" else word for word in words[:-2]]


def sockets() -> str | None:
    """A short directory for sockets that only this user can open; None if it cannot be had."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    folder = os.path.join(base, "jl") if base and os.path.isdir(base) else f"/tmp/jl-{os.getuid()}"
    return folder if _private(folder) else None


def _private(folder: str) -> bool:
    """Makes a directory for this user alone; whether it is one."""
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        facts = os.lstat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid() and not facts.st_mode & 0o077


def cache_file(context: Context) -> str:
    """Where the lines of a launch are kept."""
    settings = context.settings
    unique = "\0".join((settings.project, settings.zone, settings.name, settings.ssh_key))
    return os.path.join(cache_folder(), f"{settings.name}-{hashlib.sha256(unique.encode()).hexdigest()[:12]}.json")


def load(path: str, stamp: dict[str, Any]) -> dict[str, list[list[str]]] | None:
    """The lines by node, if they are of these machines and their key is still there."""
    try:
        with open(path, encoding="utf-8") as file:
            kept = json.load(file)
        lines = kept["lines"]
        keys = {line[line.index("-i") + 1] for rows in lines.values() for line in rows if "-i" in line}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    same = all(kept.get(name) == value for name, value in stamp.items())
    return lines if same and all(os.path.exists(key) for key in keys) else None


def save(path: str, value: dict[str, Any]) -> None:
    """Keeps lines, with what they are good for, for this user alone."""
    with contextlib.suppress(OSError):  # it only saves time
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=os.path.dirname(path), delete=False, encoding="utf-8") as file:
            json.dump(value, file)
        os.replace(file.name, path)


def remove(path: str) -> None:
    """Forgets the lines."""
    with contextlib.suppress(OSError):
        os.remove(path)
