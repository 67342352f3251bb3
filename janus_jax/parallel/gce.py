"""What the metadata server of a Google machine says about its end: maintenance that stops it, and preemption."""

import contextlib
import http.client
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

_PATHS = {"maintenance-event": "TERMINATE", "preempted": "TRUE"}
"""Entries of the instance's metadata, and how their value begins when the machine is about to stop."""
_WAIT_S = 60
_RETRY_S = 5.0


def metadata_host() -> str | None:
    """HOST[:PORT] of the metadata server; None where this is not a Google machine. Asks no network.

    `GCE_METADATA_HOST` and `NO_GCE_CHECK` count as for Google's own libraries.
    """
    if host := os.environ.get("GCE_METADATA_HOST"):
        return host
    if os.environ.get("NO_GCE_CHECK", "").lower() == "true":
        return None
    with contextlib.suppress(OSError):
        if Path("/sys/class/dmi/id/product_name").read_text().strip().startswith("Google"):
            return "metadata.google.internal"
    return None


def watch(notify: Callable[[str], None]) -> Callable[[], None]:
    """Calls `notify` from a thread when the metadata server announces the machine's end, with what it announces.

    Returns:
        A function that ends the watch. Without a metadata server no thread starts.
    """
    closed = threading.Event()
    host = metadata_host()
    for path in _PATHS if host else ():
        threading.Thread(
            target=_follow, args=(host, path, notify, closed), name=f"metadata {path}", daemon=True
        ).start()
    return closed.set


def _follow(host: str, path: str, notify: Callable[[str], None], closed: threading.Event) -> None:
    query = ""  # the value now; then it is asked for again, and the answer comes when it changes
    while not closed.is_set():
        began = time.monotonic()
        try:
            value, etag = _get(host, f"/computeMetadata/v1/instance/{path}{query}")
        except (OSError, http.client.HTTPException):  # the server restarts now and then
            closed.wait(_RETRY_S)
            continue
        if not closed.is_set() and value.upper().startswith(_PATHS[path]):
            notify(f"{path} {value}" if path == "maintenance-event" else "preemption")
            return
        if query and time.monotonic() - began < 0.1:  # a server that does not wait
            closed.wait(1)
        query = f"?wait_for_change=true&timeout_sec={_WAIT_S}" + (f"&last_etag={etag}" if etag else "")


def _get(host: str, path: str) -> tuple[str, str | None]:
    connection = http.client.HTTPConnection(host, timeout=_WAIT_S + 10)  # never through a proxy
    with contextlib.closing(connection):
        connection.request("GET", path, headers={"Metadata-Flavor": "Google"})
        answer = connection.getresponse()
        body = answer.read().decode(errors="replace").strip()
        if answer.status != 200:
            raise http.client.HTTPException(f"{answer.status} {answer.reason}")
        return body, answer.getheader("ETag")
