"""What a host's own kernel and metadata server say: processes, who holds the chips, which worker this is."""

import contextlib
import glob
import http.client
import os
import re
import signal
import time
from pathlib import Path

from janus_jax.parallel.gce import metadata_host

CHIPS = ("/dev/accel*", "/dev/vfio/*")
LOCK = "/tmp/libtpu_lockfile"
_METADATA_S = 5.0


def process_start(pid: int) -> str | None:
    """When a process started, in clock ticks since the boot that is named too; None if there is no such process, or
    nothing is left of it but its exit code. A process id may be used again, this pair is not."""
    fields = _stat(pid)
    return None if fields is None or fields[0] == "Z" else f"{fields[19]}@{_boot()}"


def session(pid: int) -> list[int]:
    """Processes of the session that `pid` leads or has led."""
    members = []
    for other in _pids():
        fields = _stat(other)
        if fields is not None and fields[0] != "Z" and int(fields[3]) == pid:
            members.append(other)
    return members


def end(pids: list[int], *, grace_s: float = 0.0) -> None:
    """Ends processes: SIGTERM and the grace, if there is one, then SIGKILL; waits until they are gone."""
    starts = {pid: process_start(pid) for pid in pids}
    for number, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 10.0)):
        if not patience_s:
            continue
        alive = [pid for pid, start in starts.items() if start is not None and process_start(pid) == start]
        for pid in alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline and any(process_start(pid) == starts[pid] for pid in alive):
            time.sleep(0.05)


def free_chips() -> list[str]:
    """Ends processes that hold TPU chips, and removes libtpu's lock file, which a killed process leaves behind.

    Returns:
        A line for each holder: whether it was ended, or whose it is.
    """
    lines, ours = [], []
    for pid, device in sorted(_holders().items()):
        text = f"process {pid} ({_name(pid)}), which held {device}"
        if os.geteuid() in (0, _owner(pid)):
            ours.append(pid)
            lines.append(f"ended {text}")
        else:
            lines.append(f"left {text}: it is another user's")
    end(ours, grace_s=5.0)
    if os.path.exists(LOCK) and len(ours) == len(lines):
        try:
            os.remove(LOCK)
            lines.append(f"removed {LOCK}")
        except OSError as error:
            lines.append(f"cannot remove {LOCK}: {error.strerror}; `sudo rm {LOCK}`")
    return lines


def disagreement(worker: int, hosts_per_slice: int, slices: int) -> str:
    """How this machine's own metadata contradicts the number that it was given; "" if it does not, or has none."""
    host = metadata_host()
    if host is None:
        return ""
    expected_slice, expected = divmod(worker, hosts_per_slice)
    own = _metadata(host, "agent-worker-number")
    if own is not None and own.isdecimal() and int(own) != expected:
        return f"it is worker {own} of its slice by its own metadata (agent-worker-number), not {expected}"
    environment = _metadata(host, "tpu-env") if slices > 1 else None
    match = re.search(r"^\s*MEGASCALE_SLICE_ID\s*:\s*['\"]?(\d+)", environment or "", re.MULTILINE)
    if match and int(match[1]) != expected_slice:
        return f"it is in slice {match[1]} by its own metadata (tpu-env), not {expected_slice}"
    return ""


def _metadata(host: str, name: str) -> str | None:
    """An attribute of the instance; None if it has none, or the server does not answer."""
    for attempt in range(3):
        connection = http.client.HTTPConnection(host, timeout=_METADATA_S)
        try:
            path = f"/computeMetadata/v1/instance/attributes/{name}"
            connection.request("GET", path, headers={"Metadata-Flavor": "Google"})
            answer = connection.getresponse()
            body = answer.read().decode(errors="replace").strip()
            if answer.status == 200:
                return body
            if answer.status == 404:
                return None
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.5 * (attempt + 1))
    return None


def _holders() -> dict[int, str]:
    devices = {path for pattern in CHIPS for path in glob.glob(pattern)}
    holders = {}
    for pid in _pids() if devices else ():
        if pid == os.getpid():
            continue
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            for handle in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    if (target := os.readlink(f"/proc/{pid}/fd/{handle}")) in devices:
                        holders[pid] = target
                        break
    return holders


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the third one, which is the state."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None


def _boot() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    return ""


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    return "?"


def _owner(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return -1
