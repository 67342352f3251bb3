"""A scripted model that plays all parts of a synthesis, and configurations for it."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Container
from pathlib import Path
from typing import Any

import yaml

from janus_jax.data.synthesize.config import load_synthesis
from janus_jax.data.synthesize.pipeline import Synthesis
from tests.support.endpoint_server import Answer, Server, said
from tests.support.repository import ROOT

KEY = "SYNTHESIS_KEY"
QUESTIONS = (
    "Why does bread dough rise before it is baked?",
    "How can I keep my bicycle chain from rusting in winter?",
    "What should I read before my first visit to Japan?",
    "Explain how a vaccine trains the immune system.",
    "Give me ideas for a rainy afternoon with two children.",
    "Which trees grow well in a small garden with clay soil?",
)


def draw(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).digest()[:6])


def prose(count: int, *parts: object) -> str:
    """English text that depends on its parts, with few words in common with others."""
    words = [f"{'bcdfghklmnprst'[draw(at, *parts) % 14]}o{draw(at, 'x', *parts) % 100_000}" for at in range(count)]
    return "The " + " of the ".join(" ".join(words[at : at + 5]) for at in range(0, count, 5)) + "."


def reply(body: dict[str, Any], sample: object = None) -> str:
    """What a model without faults answers; equal requests get equal answers."""
    sample = body.get("seed", 0) if sample is None else sample
    messages = body["messages"]
    asked = messages[-1]["content"]
    if messages[0]["role"] == "system":
        return prose(40, "response", messages[0]["content"], asked, sample)
    number = re.search(r"(?:Name|Write|each of these) (\d+) ", asked)
    names = [f"{prose(4, asked, sample, at)[4:-1]}" for at in range(int(number[1]) if number else 0)]
    if "subdimensions of" in asked:
        return json.dumps({"subdimensions": names})
    if "preferences that different people may have" in asked:
        rows = [{"preference": name, "description": prose(12, name, "d")} for name in names]
        return json.dumps({"preferences": rows})
    if "Describe each of these" in asked:
        listed = re.findall(r"^- (.+)$", asked, re.MULTILINE)
        rows = [{"preference": name, "description": prose(12, name, "d")} for name in listed]
        return json.dumps({"descriptions": rows})
    if "Write a system message" in asked:
        return "You are a model. " + prose(40, "system", asked, sample)
    assert "Write a rubric" in asked, asked
    scores = {str(score): prose(6, asked, sample, score) for score in range(1, 6)}
    return json.dumps({"criteria": "Is it so? " + prose(6, asked, sample), "score_descriptions": scores})


def answer(body: dict[str, Any], count: int = 0) -> Answer:
    """A script of a server without faults."""
    return said(reply(body), prompt=50, completion=20)


def write_config(folder: Path, url: str, **changes: Any) -> Path:
    """A configuration of a small synthesis in a folder, with its instructions beside it."""
    source = folder / "questions.jsonl"
    if not source.exists():
        source.write_text("".join(json.dumps({"system": "Be kind.", "prompt": one}) + "\n" for one in QUESTIONS))
    values: dict[str, Any] = {
        "out": str(folder / "out"),
        "endpoints": {
            "default": {"base_url": url, "model": "scripted", "key_variable": None, "tries": 4}
            | changes.pop("endpoint", {})
        },
        "hierarchy": {"subdimensions": 6, "preferences": 3, "at_a_time": 2},
        "instructions": {"sources": [{"path": str(source), "main_source": "questions"}]},
        "bench": {"instructions": 1},
    }
    for name, value in changes.items():
        values[name] = {**values[name], **value} if isinstance(values.get(name), dict) else value
    path = folder / "synthesis.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def made(folder: Path, server: Server, **changes: Any) -> Synthesis:
    """A synthesis in a folder; `changes` are of `write_config`, and `limit` and `tell` of Synthesis."""
    more = {name: changes.pop(name) for name in ("limit", "tell") if name in changes}
    return Synthesis(load_synthesis(write_config(folder, server.url, **changes)), **more)


def facts(folder: Path, step: str) -> dict[str, Any]:
    return json.loads((folder / "out/steps" / step / "step.json").read_text())


def rows(folder: Path, step: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out/steps" / step / "rows.jsonl").read_text().splitlines()]


def replies(folder: Path) -> list[dict[str, Any]]:
    """The records of all journals."""
    journals = (folder / "out/steps").glob("*/replies.jsonl")
    return [json.loads(line) for path in journals for line in path.read_text().splitlines()[1:]]


def batch_answers(
    folder: Path, step: str, path: Path, *, broken: Container[int] = (), short: Container[int] = ()
) -> Path:
    """Answers to all request files of a step, as a provider returns them. Some failed, and some are too short."""
    lines: list[str] = []
    for file in sorted((folder / "out/steps" / step / "batch").glob("requests-*.jsonl")):
        for line in file.read_text().splitlines():
            request = json.loads(line)
            body = said("Hi." if len(lines) in short else reply(request["body"]), prompt=50, completion=20).body
            response, error = {"status_code": 200, "body": body}, None
            if len(lines) in broken:
                response, error = None, {"code": "batch_expired", "message": "too late"}
            lines.append(json.dumps({"custom_id": request["custom_id"], "response": response, "error": error}) + "\n")
    path.write_text("".join([*lines, lines[0]]))  # one comes twice
    return path


def started(config: Path) -> subprocess.Popen[str]:
    """The command in a process of its own; notes and errors come through its stderr."""
    code = "from janus_jax.cli.__main__ import run; run()"
    command = [sys.executable, "-c", code, "data", "synthesize", str(config)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
