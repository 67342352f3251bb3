"""Random runs of a synthesis: kills, limits, budgets, batch files, faults, changed settings. The server knows what it
answered: each answer stands in a journal once, tokens are those of the server, and a replay asks for nothing."""

import contextlib
import copy
import itertools
import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from janus_jax.data.synthesize.config import load_synthesis
from janus_jax.data.synthesize.pipeline import Synthesis
from janus_jax.errors import JanusError
from tests.support.endpoint_server import Answer, refused, said, serving
from tests.support.synthesizing import replies, reply, started, write_config

pytest.importorskip("openai")

STEPS = ("hierarchy", "systems", "responses", "rubrics")


class Provider:
    """Answers requests and batch files, with faults."""

    def __init__(self, draw):
        self.draw, self.serials = draw, itertools.count()
        self.given = dict[str, int]()
        """Tokens of each answer that was given, by its serial number, which stands as the name of the model."""
        self.bad, self.faults, self.delay, self.takes_schema = draw.choice([0.0, 0.2]), 0.0, 0.0, True
        self.lines = dict[str, dict[str, Any]]()  # answers to batch files, by id

    def completion(self, body):
        serial = f"answer {next(self.serials)}"
        text, reason = reply(body, serial), "stop"
        if self.draw.random() < self.bad:
            refusal = "I'm sorry, but I cannot help with that."
            text, reason = self.draw.choice([(refusal, "stop"), ("{", "stop"), (None, None)])
        return said(text, reason, self.draw.randrange(20, 90), self.draw.randrange(5, 40)).body | {"model": serial}

    def give(self, completion):
        self.given[completion["model"]] = completion["usage"]["total_tokens"]
        return completion

    def script(self, body, count):
        time.sleep(self.delay)
        if body.get("response_format", {}).get("type") == "json_schema" and not self.takes_schema:
            return refused(400, "response_format: json_schema is not supported")
        if self.draw.random() < self.faults:
            return self.draw.choice([refused(429, retry_after="0.01"), refused(500), Answer("no JSON {")])
        return Answer(self.give(self.completion(body)))

    def answers(self, files, *, whole):
        """To the requests of files: in any order, some twice, some missing, some failed; no line has an id."""
        made = []
        for request in (json.loads(line) for file in files for line in file.read_text().splitlines()):
            one = {"custom_id": request["custom_id"], "response": None, "error": {"code": "batch_expired"}}
            if whole or self.draw.random() < 0.7:
                one |= {"response": {"status_code": 200, "body": self.completion(request["body"])}, "error": None}
            made.append(self.lines.setdefault(request["custom_id"], one))
        return made if whole else self.draw.choices(made, k=len(made))


class Run:
    """One random run in a folder."""

    def __init__(self, folder, draw, server, provider):
        self.folder, self.draw, self.server, self.provider = folder, draw, server, provider
        self.lost = set[str]()
        self.files = list[tuple[str, Path]]()  # (step, answers) that were given
        self.changes = {
            "endpoint": {"concurrent": draw.choice([1, 3, 64]), "prices": {"prompt": 1.0, "completion": 3.0}},
            "hierarchy": {"subdimensions": draw.choice([0, 6]), "preferences": 0, "asks": 2},
            "sets": {"per_instruction": 2},
            "systems": {"examples": draw.choice([0, 3])},
        }

    def config(self):
        return write_config(self.folder, self.server.url, **copy.deepcopy(self.changes))

    def make(self, only=None, answers=(), **more):
        """What the command does; an error is an end like another."""
        with contextlib.suppress(JanusError):
            Synthesis(load_synthesis(self.config()), **more).run(only, answers)
        self.check()

    def check(self, allowed=0):
        """What was given stands in a journal once, but what a killed process could not write down."""
        paid = [one for one in replies(self.folder) if "model" in one]
        assert len({one["model"] for one in paid}) == len({one["key"] for one in paid}) == len(paid)
        lost = self.provider.given.keys() - {one["model"] for one in paid} - self.lost
        assert len(lost) <= allowed, lost
        self.lost |= lost

    def killed(self, number, allowed):
        before, self.provider.delay = len(self.server.bodies), 0.02
        with started(self.config()) as process:
            deadline = time.monotonic() + 60
            while process.poll() is None and len(self.server.bodies) == before and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(self.draw.uniform(0, 0.3))
            process.send_signal(number)
            process.stderr.read()
        time.sleep(0.2)  # until the server has seen it
        self.provider.delay = 0.0
        self.check(allowed)

    def batch(self, *, whole=False):
        """Gives answers to all files of requests. Returns how many steps have such files."""
        steps = [step for step in STEPS if list(self.requests(step))]
        for step in steps:
            lines = self.provider.answers(self.requests(step), whole=whole)
            path = self.folder / f"answers-{len(self.files)}.jsonl"
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
            if not whole:  # cut off in the middle, and then whole
                content = path.read_bytes()
                path.write_bytes(content[: self.draw.randrange(len(content))])
                self.make(step, [path], batch=True)
                path.write_bytes(content)
            self.files.append((step, path))
            self.make(step, [path], batch=True)
            for line in lines:
                if line["response"]:
                    self.provider.give(line["response"]["body"])
            self.check()
        return len(steps)

    def requests(self, step):
        return sorted((self.folder / "out/steps" / step / "batch").glob("requests-*.jsonl"))

    def something(self):
        tokens = sum(self.provider.given.values())
        match self.draw.choice(
            ["make", "limit", "budget", "write", "batch", "old", "change", "server", "step", "kill"]
        ):
            case "make":
                self.make()
            case "limit":
                self.make(limit=self.draw.randint(1, 3))
            case "budget":
                self.changes["budget"] = {"tokens": tokens + self.draw.randrange(1000, 40_000)}
                self.make()
                assert sum(self.provider.given.values()) <= max(tokens, self.changes.pop("budget")["tokens"])
            case "write":
                self.make(batch=True)
            case "batch":
                self.batch()
            case "old" if self.files:
                step, path = self.draw.choice(self.files)
                self.make(step, [path], batch=True)
            case "change":
                section = self.draw.choice(["systems", "responses", "hierarchy", "bench"])
                self.changes.setdefault(section, {})["asks"] = self.draw.randint(1, 4)
                self.changes["systems"]["examples"] = self.draw.choice([0, 3])
            case "server":
                self.provider.takes_schema = not self.provider.takes_schema
                self.provider.faults = self.draw.choice([0.0, 0.1, 0.3])
            case "step":
                for path in (self.folder / "out/steps").glob("*/step.json"):
                    path.unlink()
                for path in (self.folder / "out/steps").glob("*/replies.jsonl.index*"):
                    path.unlink()
            case "kill":
                number = self.draw.choice([signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
                allowed = self.changes["endpoint"]["concurrent"] if number == signal.SIGKILL else 0
                self.killed(number, allowed)

    def end(self):
        """Makes the rest, and all once more from the journals alone."""
        self.provider.faults = 0.0
        while any(self.waits(step) for step in STEPS):
            self.batch(whole=True)
        made = []
        for _ in range(2):
            self.make()
            number = len(self.server.bodies)
            made.append([path.read_bytes() for path in sorted((self.folder / "out/steps").glob("*/rows.jsonl"))])
            for path in (self.folder / "out/steps").glob("*/step.json"):
                path.unlink()
        assert made[0] == made[1] and len(self.server.bodies) == number
        tokens = sum(count for serial, count in self.provider.given.items() if serial not in self.lost)
        assert Synthesis(load_synthesis(self.config())).spent()[0] == tokens
        report = json.loads((self.folder / "out/report.json").read_text())
        assert sum(sum((step["usage"] or {}).values()) for step in report["steps"]) == tokens

    def waits(self, step):
        with Synthesis(load_synthesis(self.config()))._endpoints.files(step) as files:
            return files.outstanding


@pytest.mark.parametrize("seed", [33, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(33))])
def test_a_random_run_pays_for_nothing_twice_and_loses_nothing(tmp_path, seed):
    draw = random.Random(seed)
    provider = Provider(draw)
    with serving(provider.script) as server:
        run = Run(tmp_path, draw, server, provider)
        for _ in range(draw.randint(3, 8)):
            run.something()
        run.end()
