"""A scripted OpenAI-compatible server on this machine."""

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any


class Answer:
    """What the server does with one request.

    Args:
        body: JSON, or text that is sent as it is; None: the connection is cut.
        delay: seconds before.
        cut: the connection ends after half of the body.
    """

    def __init__(
        self,
        body: Any,
        status: int = 200,
        headers: dict[str, str] | None = None,
        delay: float = 0,
        *,
        cut: bool = False,
    ):
        self.body, self.status, self.headers, self.delay, self.cut = body, status, headers or {}, delay, cut


def said(text: str | None, reason: str = "stop", prompt: int = 7, completion: int = 3, **message: Any) -> Answer:
    """A chat completion."""
    choice = {"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": text, **message}}
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return Answer({"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage})


def refused(status: int, message: str = "no", code: str | None = None, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer({"error": {"message": message, "code": code}}, status, named)


class Server:
    """Calls `script(body, count)`, where `count` is how often this body came before. Port 0: a free one."""

    def __init__(self, script: Callable[[dict[str, Any], int], Answer], port: int = 0):
        self.bodies: list[dict[str, Any]] = []
        self.asked: list[str] = []
        """Idempotency-Key of each request."""
        self.answered: list[str] = []
        """Those that got a whole chat completion, as far as the server can tell."""
        self.keys: set[str] = set()
        """What came in Authorization."""
        self.most = 0
        """Requests at the same time, at most."""
        self._now, self._lock = 0, threading.Lock()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    count = outer.bodies.count(body)
                    outer.bodies.append(body)
                    outer.asked.append(self.headers["Idempotency-Key"])
                    outer.keys.add(self.headers["Authorization"])
                    outer._now += 1
                    outer.most = max(outer.most, outer._now)
                answer = script(body, count)
                time.sleep(answer.delay)
                with outer._lock:
                    outer._now -= 1
                if answer.body is None:
                    self.close_connection = True
                    return
                content = (answer.body if isinstance(answer.body, str) else json.dumps(answer.body)).encode()
                with contextlib.suppress(OSError):  # the client has gone
                    self.send_response(answer.status)
                    for name, value in {"Content-Type": "application/json", **answer.headers}.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content[: len(content) // 2] if answer.cut else content)
                    self.close_connection |= answer.cut
                    if answer.status == 200 and not answer.cut and isinstance(answer.body, dict):
                        with outer._lock:
                            outer.answered += [self.headers["Idempotency-Key"]] if answer.body.get("choices") else []

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def serving(script: Callable[[dict[str, Any], int], Answer], port: int = 0) -> Iterator[Server]:
    server = Server(script, port)
    try:
        yield server
    finally:
        server.close()
