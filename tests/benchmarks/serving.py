"""1,000 requests to `janus serve` from 32 clients at once: no answer mixes with another, memory stays flat.

Seven of ten are ordinary. The others leave early, read slowly, or send bodies that are too large or no JSON. Every
prompt has a mark of its own, which its answer echoes; text and log-probs are compared with those of the prompt asked
alone. About three minutes on two CPU cores.

    python -m tests.benchmarks.serving [REQUESTS] [CLIENTS]
"""

import collections
import concurrent.futures
import http.client
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROMPTS = 64
HEADERS = {"content-type": "application/json"}
WORST = 1e-3
"""Difference of a log-prob from that of the prompt asked alone."""


def body(number: int, stream: bool) -> dict[str, Any]:
    prompt = f"mark {number:04d} " + "the quick brown fox " * (number % 4)
    sizes = {"max_tokens": 8 + 8 * (number % 3), "min_tokens": 8}
    return {"prompt": prompt, "temperature": 0, "logprobs": 1, "echo": True, "stream": stream, **sizes}


class Load:
    """Requests to one server, and what came of them."""

    def __init__(self, port: int):
        self.port = port
        self.alone: dict[int, dict[str, Any]] = {}
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.seconds: list[float] = []
        self.worst = 0.0

    def post(self, content: bytes, read_slowly: bool = False, leave: bool = False) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            connection.request("POST", "/v1/completions", content, HEADERS)
            response = connection.getresponse()
            if leave:
                response.read(20)
                return response.status, b""
            if read_slowly:
                parts = []
                while part := response.read(512):
                    parts.append(part)
                    time.sleep(0.02)
                return response.status, b"".join(parts)
            return response.status, response.read()
        finally:
            connection.close()

    def ask(self, number: int, stream: bool = False, slowly: bool = False) -> dict[str, Any]:
        """The choice; all chunks of a stream put together."""
        while True:
            status, content = self.post(json.dumps(body(number, stream)).encode(), slowly)
            if status != 429:
                break
            self.outcomes["refused at first: queue is full"] += 1
            time.sleep(1)
        assert status == 200, content
        if not stream:
            return json.loads(content)["choices"][0]
        events = content.decode().split("\n\n")
        assert events[-2:] == ["data: [DONE]", ""], events[-3:]
        chunks = [json.loads(event[6:])["choices"][0] for event in events[:-2]]
        logps = [logp for chunk in chunks for logp in chunk["logprobs"]["token_logprobs"]]
        return {"text": "".join(chunk["text"] for chunk in chunks), "logprobs": {"token_logprobs": logps}}

    def check(self, number: int, choice: dict[str, Any]) -> None:
        mine = self.alone[number]
        assert choice["text"] == mine["text"] and choice["text"].count("mark") == 1, (number, choice["text"])
        assert choice["text"].startswith(f"mark {number:04d} ")
        pairs = zip(choice["logprobs"]["token_logprobs"], mine["logprobs"]["token_logprobs"], strict=True)
        self.worst = max(self.worst, *(abs(one - other) for one, other in pairs if one is not None))

    def one(self, place: int) -> None:
        rng = random.Random(place)
        number, kind = rng.randrange(PROMPTS), rng.random()
        if kind < 0.7:
            began = time.monotonic()
            self.check(number, self.ask(number, stream=rng.random() < 0.5))
            self.seconds.append(time.monotonic() - began)
            self.outcomes["answered"] += 1
        elif kind < 0.8:
            self.post(json.dumps(body(number, True) | {"n": 2}).encode(), leave=True)
            self.outcomes["left early"] += 1
        elif kind < 0.88:
            self.check(number, self.ask(number, stream=True, slowly=True))
            self.outcomes["read slowly"] += 1
        elif kind < 0.94:
            status, content = self.post(b'{"prompt": "' + b"x" * (5 << 20) + b'"}')
            assert status == 413, content
            self.outcomes["too large (413)"] += 1
        else:
            bad = rng.choice([b"{", b"\xff", b'{"prompt": 5}', b'{"prompt": "x", "n": "many"}', b"[" * 10_000])
            status, content = self.post(bad)
            assert status == 400, (bad, content)
            self.outcomes["malformed (400)"] += 1


def resident(pid: int) -> float:
    """MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def main(requests: int, clients: int) -> None:
    from tests.support import serving

    with tempfile.TemporaryDirectory() as place:
        path, _ = serving.directory(Path(place))
        command = [sys.executable, "-m", "janus_jax.cli", "serve", str(path), "--port", "0", "--rows", "16"]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server:
            try:
                measure(server, requests, clients)
            finally:
                server.terminate()
            print(f"exit code {server.wait(60)}")


def measure(server: subprocess.Popen, requests: int, clients: int) -> None:
    assert server.stderr is not None
    lines: list[str] = []
    while not lines or lines[-1] != "ready\n":
        lines.append(server.stderr.readline())
    load = Load(int(lines[-2].split("/v1")[0].rpartition(":")[2]))
    for number in range(PROMPTS):
        load.alone[number] = load.ask(number)
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        began, memory = time.monotonic(), [resident(server.pid)]
        for tenth in range(10):
            list(pool.map(load.one, range(tenth * requests // 10, (tenth + 1) * requests // 10)))
            memory.append(resident(server.pid))
    spent = time.monotonic() - began
    for name, count in sorted(load.outcomes.items()):
        print(f"{count:6,}  {name}")
    seconds = sorted(load.seconds)
    middle, late = (seconds[int(share * (len(seconds) - 1))] for share in (0.5, 0.99))
    print(f"{requests:,} requests in {spent:.0f} s; answered: p50 {middle:.2f} s, p99 {late:.2f} s")
    print(f"largest difference of a log-prob from the prompt asked alone: {load.worst:.1e}")
    print("resident MiB before, and after each tenth:", *(f"{one:.0f}" for one in memory))
    assert load.worst < WORST


if __name__ == "__main__":
    given = [*map(int, sys.argv[1:]), 1000, 32][:2] if len(sys.argv) != 2 else [int(sys.argv[1]), 32]
    main(*given)
