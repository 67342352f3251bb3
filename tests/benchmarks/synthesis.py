"""`janus data synthesize` against a server that takes so many requests a second, is slow and makes faults.

The server is a process of its own. It answers after seconds (lognormal), refuses what comes faster than its limit
(429 with Retry-After), and spoils some answers: 429, 500, half a body, no JSON, silence until the client's time-out.
The command is killed (-9) after half of the requests and started again. Shown: requests a second beside the server's
limit, CPU and memory of the command, time until the second start asks on, and what the server answered twice. Then a
loop of httpx without a journal, gates or files sends as many requests of the same size, as a peer.

    python -m tests.benchmarks.synthesis [REQUESTS] [A_SECOND]        (20000, 200: about five minutes)
    python -m tests.benchmarks.synthesis journal [REPLIES]            (1000000: size, memory, opening, looking up)
"""

import asyncio
import collections
import json
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import yaml

MEDIAN_S, SIGMA = 2.0, 0.6
"""Of the time that an answer takes: mean 2.4 s, one in a thousand takes more than 12.7 s."""
CONCURRENT = 4
"""Requests at the same time, for each that the server takes in a second."""
TIMEOUT_S = 20.0
FAULTS = {"429": 0.01, "500": 0.01, "cut": 0.005, "no JSON": 0.005, "silent": 0.002}
WORDS = [
    "".join(random.Random(number).choices("abcdefghijklmnoprstuvw", k=2 + number % 9)) for number in range(3000)
] + ["the", "of", "and", "is"] * 100


def prose(count: int, seed: object) -> str:
    return "The " + " ".join(random.Random(str(seed)).choices(WORDS, k=count)) + "."


class Server:
    """A model behind an OpenAI-compatible URL with a limit and faults; GET tells its counts."""

    def __init__(self, a_second: float):
        self.a_second, self.free, self.at = a_second, a_second, time.monotonic()
        self.counts: collections.Counter[str] = collections.Counter()
        self.answered: collections.Counter[str] = collections.Counter()
        self.draw = random.Random(0)

    def admits(self) -> bool:
        now = time.monotonic()
        self.free, self.at = min(self.a_second, self.free + (now - self.at) * self.a_second), now
        admitted = self.free >= 1
        self.free -= admitted
        return admitted

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                if head.startswith("get"):
                    twice = sum(count - 1 for count in self.answered.values())
                    output = {**self.counts, "answered": len(self.answered), "answered twice": twice}
                    writer.write(whole(200, json.dumps(output).encode()))
                    continue
                headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
                body = json.loads(await reader.readexactly(int(headers["content-length"])))
                if not await self.answer(writer, body, headers["idempotency-key"]):
                    break
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def answer(self, writer: asyncio.StreamWriter, body: dict[str, Any], key: str) -> bool:
        """False: the connection ends."""
        self.counts["requests"] += 1
        if not self.admits():
            self.counts["above the limit"] += 1
            writer.write(whole(429, b'{"error": {"message": "slow down"}}', "Retry-After: 1\r\n"))
            return True
        chance = self.draw.random()
        fault = next((name for name, share in FAULTS.items() if (chance := chance - share) < 0), "")
        self.counts[fault or "good"] += 1
        if fault in ("429", "500"):
            writer.write(whole(int(fault), b'{"error": {"message": "no"}}', "Retry-After: 1\r\n"))
            return True
        await asyncio.sleep(self.draw.lognormvariate(0, SIGMA) * MEDIAN_S + (3 * TIMEOUT_S if fault == "silent" else 0))
        text = prose(400 if body["messages"][0]["role"] == "system" else 180, (key, body.get("seed")))
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        usage = {"prompt_tokens": 300, "completion_tokens": 500}
        content = json.dumps({"id": "x", "model": "simulated", "choices": [choice], "usage": usage}).encode()
        if fault == "no JSON":
            content = content.replace(b'"choices"', b'choices"', 1)
        out = whole(200, content)
        if fault == "cut":
            writer.write(out[: len(out) // 2])
            return False
        writer.write(out)
        await writer.drain()
        if not fault:
            self.answered[key] += 1
        return True


def whole(status: int, content: bytes, more: str = "") -> bytes:
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n{more}\r\n"
    return head.encode() + content


async def serve(a_second: float) -> None:
    server = await asyncio.start_server(Server(a_second).serve, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def counts(port: int) -> dict[str, int]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as reply:
        return json.load(reply)


def cpu_and_memory(pid: int) -> tuple[float, float]:
    """Seconds of CPU, and MB."""
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return sum(map(int, stat[11:13])) / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGESIZE") / 1e6


def config(folder: Path, port: int, requests: int, a_second: float) -> Path:
    lines = [json.dumps({"prompt": f"{prose(12, ('question', one))[:-1]}?"}) + "\n" for one in range(requests // 6)]
    (folder / "questions.jsonl").write_text("".join(lines))
    endpoint = {"base_url": f"http://127.0.0.1:{port}/v1", "model": "simulated", "key_variable": None}
    endpoint |= {
        "concurrent": round(CONCURRENT * a_second),
        "requests_a_minute": round(60 * a_second),
        "timeout_s": TIMEOUT_S,
    }
    values = {
        "out": str(folder / "out"),
        "endpoints": {"default": endpoint},
        "instructions": {"sources": [{"path": str(folder / "questions.jsonl")}]},
    }
    (folder / "synthesis.yaml").write_text(yaml.safe_dump(values))
    return folder / "synthesis.yaml"


def watch(command: list[str], port: int, until: int | None = None) -> float:
    """One start of a client, killed after so many answers. Returns its requests a second: the median of those 5 seconds
    in which it sent more than half as many as at best, so without the ends of steps."""
    began, had = time.monotonic(), counts(port)
    process = subprocess.Popen(command, env={**os.environ, "NO_PROXY": "127.0.0.1"}, stderr=subprocess.DEVNULL)
    first: float | None = None
    track: list[tuple[float, int, float, float]] = []
    while process.poll() is None:
        now = counts(port)
        if first is None and now.get("requests", 0) > had.get("requests", 0):
            first = time.monotonic() - began
            print(f"  first request after {first:.1f} s")
        if first is not None:
            try:
                track.append((time.monotonic(), now.get("requests", 0), *cpu_and_memory(process.pid)))
            except (OSError, IndexError):
                break
        if until is not None and now["answered"] - had["answered"] >= until:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(1)
    print(f"  ended with {process.wait()} after {time.monotonic() - began:.0f} s")
    rates = []
    for start in range(0, len(track) - 5, 5):
        one, other = track[start], track[start + 5]
        wall = other[0] - one[0]
        rates.append((other[1] - one[1]) / wall)
        print(
            f"  {other[0] - began:6.0f} s: {rates[-1]:6.1f} requests a second, "
            f"CPU {(other[2] - one[2]) / wall:5.2f} cores, {other[3]:6.0f} MB"
        )
    rate = statistics.median([one for one in rates if one > max(rates) / 2] or [0.0])
    asked, cpu = track[-1][1] - track[0][1], track[-1][2] - track[0][2]
    most = max(one[3] for one in track)
    print(f"  median {rate:.1f} requests a second, {1000 * cpu / asked:.2f} ms of CPU a request, at most {most:.0f} MB")
    return rate


async def peer(port: int, requests: int, a_second: float) -> None:
    """Requests at an even pace; each is sent again until it is answered. Nothing is kept."""
    import httpx2 as httpx  # which openai brings

    most = round(CONCURRENT * a_second)
    limits = httpx.Limits(max_connections=most, max_keepalive_connections=most)
    free, clock = asyncio.Semaphore(most), asyncio.get_running_loop().time
    async with httpx.AsyncClient(timeout=TIMEOUT_S, limits=limits) as client, asyncio.TaskGroup() as group:

        async def ask(number: int) -> None:
            messages = [("system", prose(180, ("s", number))), ("user", prose(12, number))]
            body = {"model": "m", "messages": [{"role": role, "content": text} for role, text in messages]}
            while True:
                try:
                    url, headers = f"http://127.0.0.1:{port}/v1/chat/completions", {"Idempotency-Key": str(number)}
                    reply = await client.post(url, json=body, headers=headers)
                    if reply.json()["choices"][0]["message"]["content"]:
                        break
                except (httpx.HTTPError, ValueError, KeyError):
                    await asyncio.sleep(1)
            free.release()

        began = clock()
        for number in range(requests):
            await asyncio.sleep(max(0.0, began + number / a_second - clock()))
            await free.acquire()
            group.create_task(ask(number))


def simulate(requests: int, a_second: float) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "tests.benchmarks.synthesis", "serve", str(a_second)]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        try:
            port = int(server.stdout.readline())
            file = config(Path(scratch), port, requests, a_second)
            code = f"import sys; sys.argv = ['janus', 'data', 'synthesize', {str(file)!r}]; "
            command = [sys.executable, "-c", code + "from janus_jax.cli.__main__ import run; run()"]
            rates = []
            for until in (requests // 2, None):
                print(f"start of the command, {'killed half way' if until else 'to the end'}")
                rates.append(watch(command, port, until))
            print(f"server (limit {a_second:g} a second): {counts(port)}")
            print("a loop of httpx")
            arguments = [str(port), str(requests // 2), str(a_second)]
            plain = watch([sys.executable, "-m", "tests.benchmarks.synthesis", "peer", *arguments], port)
            print(f"ratio to the loop: {' and '.join(f'{rate / plain:.2f}' for rate in rates)}")
            steps = Path(scratch) / "out/steps"
            for name in ("systems", "responses"):
                facts = json.loads((steps / name / "step.json").read_text())
                print(f"{name}: {facts['counts']}, dropped {facts['dropped']}, rejected {facts['rejected']}")
            journals = [line for path in steps.glob("*/replies.jsonl") for line in path.open()]
            keys = collections.Counter(key for line in journals if (key := json.loads(line).get("key")))
            print(f"journals: {len(keys)} requests, {sum(keys.values())} records")
        finally:
            server.terminate()
            server.wait()


def journal(replies: int) -> None:
    """A journal of so many replies of 2.5 kB: made, opened without its index, opened again, and asked."""
    from janus_jax.storage.endpoint_journal import ReplyJournal

    def memory() -> str:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        return f"{pages * os.sysconf('SC_PAGESIZE') / 1e6:.0f} MB now, at most {most:.0f} MB"

    print(f"before: {memory()}")
    with tempfile.TemporaryDirectory() as scratch:
        path, text = Path(scratch) / "replies.jsonl", prose(400, 0)
        more = {"finish_reason": "stop", "time": 0, "model": "m", "prompt_tokens": 300, "completion_tokens": 500}
        with path.open("w") as file:
            file.write('{"journal": "replies", "version": 1}\n')
            for number in range(replies):
                file.write(json.dumps({"key": f"{number:064x}", "text": text, **more}) + "\n")
        for what in ("without its index", "again"):
            began, cpu = time.monotonic(), time.process_time()
            made = ReplyJournal(path)
            print(
                f"opened {what}: {time.monotonic() - began:.2f} s, CPU {time.process_time() - cpu:.2f} s; {memory()}; "
                f"{made.spent.completion_tokens:,} tokens"
            )
            began, draw = time.monotonic(), random.Random(1)
            for _ in range(10_000):
                record = made.get(f"{draw.randrange(replies):064x}")
                assert record is not None and record["text"] == text
            print(f"a look-up: {(time.monotonic() - began) * 100:.0f} us; {memory()}")
            made.close()
        print(f"on disk: {path.stat().st_size / 1e9:.2f} GB, index {made.index_path.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments[:1] == ["serve"]:
        asyncio.run(serve(float(arguments[1])))
    elif arguments[:1] == ["peer"]:
        asyncio.run(peer(int(arguments[1]), int(arguments[2]), float(arguments[3])))
    elif arguments[:1] == ["journal"]:
        journal(int(arguments[1]) if len(arguments) > 1 else 1_000_000)
    else:
        simulate(int(arguments[0]) if arguments else 20_000, float(arguments[1]) if len(arguments) > 1 else 200.0)
