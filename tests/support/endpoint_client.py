"""A client of a scripted server, with a key that may be shown nowhere."""

from pathlib import Path
from typing import Any

from janus_jax.storage.endpoint import Endpoint
from tests.support.endpoint_server import Answer, Server, said

SECRET = "sk-very-secret-key"


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def opened(server: Server, folder: Path, **options: Any) -> Endpoint:
    options = {"journal": folder / "replies.jsonl", "key_variable": "JUDGE_KEY", "concurrent": 4, "tries": 4} | options
    return Endpoint(server.url, "judge", **options)


def echo(body: dict[str, Any], count: int) -> Answer:
    return said(body["messages"][-1]["content"].upper())


def texts(replies: Any) -> dict[tuple[int, int], str | None]:
    return {(reply.place, reply.sample): reply.text for reply in replies}
