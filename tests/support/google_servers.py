"""HTTP servers on this machine: Google's TPU API (`fake_tpu.py`), and the metadata server that every machine asks.

    python -m tests.support.google_servers [--port N] [--log requests.jsonl] [--auto]

prints `PORT N` of the API; `--auto` takes a queued resource one state further at each GET.
"""

import argparse
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.support.fake_tpu import BY_HAND, STEP_BY_STEP, Refused, Tpu

Answer = tuple[int, dict[str, str], bytes]
"""Status, headers, body."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # which holds every answer back for 40 ms
    respond: Callable[["_Handler", bytes], Answer]

    def handle_any(self) -> None:
        status, headers, body = self.respond(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
        with contextlib.suppress(ConnectionError):  # a client that was killed while it waited
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    do_GET = do_POST = do_PATCH = do_DELETE = handle_any

    def log_message(self, format: str, *args: object) -> None:
        pass


def server(address: tuple[str, int], respond: Callable[[_Handler, bytes], Answer]) -> ThreadingHTTPServer:
    handler = type("Handler", (_Handler,), {"respond": respond})
    server = ThreadingHTTPServer(address, handler)
    server.daemon_threads = True
    return server


def api(tpu: Tpu, port: int = 0, log: Path | None = None) -> ThreadingHTTPServer:
    """The HTTP server of the TPU service; the caller runs `serve_forever`.

    Args:
        log: gets one JSON line a request.
    """

    def respond(request: _Handler, raw: bytes) -> Answer:
        url = urlsplit(request.path)
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        status, headers = 200, {}
        with tpu.lock:
            try:
                answer = tpu.answer(request.command, url.path, query, json.loads(raw) if raw else None)
            except Refused as refused:
                status, answer, headers = refused.status, refused.body, refused.headers
            except Exception as error:  # a fault of the fake is not to look like one of gcloud
                status, answer = 500, {"error": {"code": 500, "message": f"fake_tpu.py: {error!r}"}}
            if log and not url.path.startswith("/_admin/"):
                entry = {"at": round(time.time(), 2), "method": request.command, "path": url.path, "query": query}
                entry |= {"body": raw.decode(errors="replace"), "status": status}
                with log.open("a") as file:
                    file.write(json.dumps(entry) + "\n")
            return status, {"Content-Type": "application/json; charset=UTF-8", **headers}, json.dumps(answer).encode()

    return server(("127.0.0.1", port), respond)


class Metadata:
    """Answers every host of `tpu` about itself; it tells them by the loopback address at which they ask."""

    def __init__(self, tpu: Tpu):
        self._tpu, self._changed, self._values = tpu, threading.Condition(), {}

    def announce(self, internal: str, what: str = "preempted", value: str = "TRUE") -> None:
        """Has a host read that it will be preempted, or that maintenance comes (`maintenance-event`)."""
        with self._changed:
            self._values[internal, what] = value
            self._changed.notify_all()

    def value(self, internal: str, path: str) -> str | None:
        """The entry below computeMetadata/v1 at `path`; None if there is none."""
        try:
            name, number = self._tpu.host(internal)
        except KeyError:
            return None
        node, points = self._tpu.nodes[name], self._tpu.addresses(name)
        _, project, _, zone, _, node_id = name.split("/")
        environment = {"ACCELERATOR_TYPE": node["acceleratorType"], "NODE_ID": node_id, "ZONE": zone}
        environment |= {"WORKER_ID": str(number)}
        if node["multisliceNode"]:
            slices = self._tpu.nodes_of(node["queuedResource"])
            environment |= {"MEGASCALE_NUM_SLICES": str(len(slices)), "MEGASCALE_SLICE_ID": str(slices.index(name))}
        return {
            "project/project-id": project,
            "instance/hostname": f"t1v-n-{node['id']}-w-{number}.{zone}.c.{project}.internal",
            "instance/zone": f"projects/1/zones/{zone}",
            "instance/preempted": self._values.get((internal, "preempted"), "FALSE"),
            "instance/maintenance-event": self._values.get((internal, "maintenance-event"), "NONE"),
            "instance/attributes/accelerator-type": node["acceleratorType"],
            "instance/attributes/agent-worker-number": str(number),
            "instance/attributes/instance-id": node_id,
            "instance/attributes/worker-network-endpoints": ",".join(f"unknown:unknown:{point}" for point in points),
            "instance/attributes/tpu-env": "\n".join(f"{key}: '{text}'" for key, text in environment.items()),
        }.get(path)

    def _respond(self, request: _Handler, raw: bytes) -> Answer:
        local, peer = request.connection.getsockname()[0], request.client_address[0]
        url = urlsplit(request.path)
        query, path = dict(parse_qsl(url.query)), url.path.removeprefix("/computeMetadata/v1").strip("/")
        if not peer.startswith("127.") or request.headers.get("Metadata-Flavor") != "Google":
            return 403, {}, b"Missing Metadata-Flavor:Google header."
        value = self.value(local, path)
        if query.get("wait_for_change") == "true":
            deadline = time.monotonic() + float(query.get("timeout_sec", "60"))
            with self._changed:
                while (value := self.value(local, path)) == query.get("last_etag", value):
                    if (left := deadline - time.monotonic()) <= 0 or value is None:
                        break
                    self._changed.wait(min(left, 1.0))
        headers = {"Metadata-Flavor": "Google", "Content-Type": "application/text", "ETag": value or "0"}
        if not path:  # how Google's libraries ask whether it is there
            return 200, headers, b"instance/\nproject/\n"
        if value is None:
            return 404, headers, b""
        return 200, {**headers, "ETag": value.replace("\n", " ")}, value.encode()

    def server(self) -> ThreadingHTTPServer:
        """The HTTP server, at every loopback address; others than this machine are refused."""
        return server(("0.0.0.0", 0), lambda request, raw: self._respond(request, raw))


@contextlib.contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[int]:
    """Runs a server in a thread; yields its port."""
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--auto", action="store_true")
    options = parser.parse_args()
    alone: Any = api(Tpu(STEP_BY_STEP if options.auto else BY_HAND), options.port, options.log)
    print("PORT", alone.server_address[1], flush=True)
    alone.serve_forever()
