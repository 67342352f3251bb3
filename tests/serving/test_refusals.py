"""What the server refuses: the status, OpenAI's form of the error, and the field that it names."""

import json
import socket

import openai
import pytest

from janus_jax.serving import app
from tests.support.serving import JSON, running

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = {"messages": [{"role": "user", "content": "Why?"}]}
X = {"prompt": "x"}

BAD = {
    "no JSON": (TEXT, b"{", 400, "the body is not valid JSON at line 1, character 2: ", None),
    "no object": (TEXT, b"[1]", 400, "allowed: a JSON object", None),
    "no UTF-8": (TEXT, b'{"prompt": "\xff"}', 400, "byte 0xff at position 13", None),
    "half a surrogate pair": (TEXT, b'{"prompt": "\\ud800"}', 400, "surrogate", None),
    "nested": (TEXT, b"[" * 100_000, 400, "nested too deeply", None),
    "not a number": (TEXT, b'{"prompt": "x", "temperature": NaN}', 400, "JSON", None),
    "infinite": (TEXT, b'{"prompt": "x", "temperature": 1e999}', 400, "JSON", None),
    "many digits": (TEXT, b'{"prompt": "x", "seed": ' + b"1" * 5000 + b"}", 400, "JSON", None),
    "twice": (TEXT, b'{"prompt": "x", "prompt": "y"}', 400, "'prompt' twice", None),
    "no prompt": (TEXT, {}, 400, "is required", "prompt"),
    "null prompt": (TEXT, {"prompt": None}, 400, "is required", "prompt"),
    "a number": (TEXT, {"prompt": 5}, 400, "a list of ids", "prompt"),
    "an object": (TEXT, {"prompt": {"text": "x"}}, 400, "a list of ids", "prompt"),
    "empty list": (TEXT, {"prompt": []}, 400, "a list of ids", "prompt"),
    "empty ids": (TEXT, {"prompt": [[1], []]}, 400, "a list of ids", "prompt"),
    "mixed": (TEXT, {"prompt": ["x", [1]]}, 400, "a list of ids", "prompt"),
    "truth as an id": (TEXT, {"prompt": [True, 1]}, 400, "a list of ids", "prompt"),
    "unknown id": (TEXT, {"prompt": [1, 400]}, 400, "400; allowed: 0 to 399", "prompt"),
    "negative id": (TEXT, {"prompt": [-1]}, 400, "-1; allowed: 0 to 399", "prompt"),
    "too long": (TEXT, {"prompt": [7] * 128}, 400, "128 tokens; allowed: at most 127 (the window is 128)", "prompt"),
    "second too long": (TEXT, {"prompt": [[7], [7] * 200]}, 400, "prompt.1: has 200 tokens", "prompt"),
    "no room": (TEXT, {"prompt": [7] * 100, "max_tokens": 29}, 400, "allowed: at most 28", "max_tokens"),
    "no tokens": (TEXT, X | {"max_tokens": 0}, 400, "needs echo", "max_tokens"),
    "too many tokens": (TEXT, X | {"max_tokens": 10**30}, 400, "less than 2147483648", "max_tokens"),
    "minimum": (TEXT, X | {"max_tokens": 3, "min_tokens": 4}, 400, "allowed: 0 to 3", "min_tokens"),
    "unknown field": (TEXT, X | {"best": 1}, 400, "is no field that this server knows", "best"),
    "field of chat": (TEXT, X | {"top_logprobs": 1}, 400, "is no field", "top_logprobs"),
    "penalty": (TEXT, X | {"presence_penalty": 0.5}, 400, "not supported; allowed: 0", "presence_penalty"),
    "bias": (TEXT, X | {"logit_bias": {"5": 1}}, 400, "not supported; allowed: {}", "logit_bias"),
    "suffix": (TEXT, X | {"suffix": "y"}, 400, "not supported", "suffix"),
    "best of": (TEXT, X | {"best_of": 3}, 400, "allowed: n (1)", "best_of"),
    "hot": (TEXT, X | {"temperature": "hot"}, 400, "temperature = 'hot': should be a valid number", "temperature"),
    "cold": (TEXT, X | {"temperature": -1}, 400, "greater than or equal to 0", "temperature"),
    "lukewarm": (TEXT, X | {"temperature": 1e-9}, 400, "temperature = 1e-09: allowed", "temperature"),
    "truth as a number": (TEXT, X | {"n": True}, 400, "valid integer", "n"),
    "no samples": (TEXT, X | {"n": 0}, 400, "greater than or equal to 1", "n"),
    "many samples": (TEXT, X | {"n": 100}, 400, "100 texts at once; allowed: at most 68", "n"),
    "many prompts": (TEXT, {"prompt": ["x"] * 69}, 400, "69 texts at once", "prompt"),
    "many log-probs": (
        TEXT,
        X | {"n": 60, "max_tokens": 120, "logprobs": 20 + 20},
        400,
        "less than or equal",
        "logprobs",
    ),
    "empty stop": (TEXT, X | {"stop": ""}, 400, "at least 1 character", "stop.0"),
    "many stops": (TEXT, X | {"stop": ["x"] * 17}, 400, "at most 16", "stop"),
    "unknown stop id": (TEXT, X | {"stop_token_ids": [400]}, 400, "from 0 to 399", "stop_token_ids"),
    "stream options": (TEXT, X | {"stream_options": {"include_usage": True}}, 400, "stream = true", "stream_options"),
    "model": (TEXT, X | {"model": "gpt"}, 404, "'gpt': is not served here; allowed: 'tiny'", "model"),
    "no messages": (CHAT, {"messages": []}, 400, "at least 1 item", "messages"),
    "no role": (CHAT, {"messages": [{"content": "x"}]}, 400, "is required", "messages.0.role"),
    "other role": (CHAT, {"messages": [{"role": "tool", "content": "x"}]}, 400, "'developer'", "messages.0.role"),
    "order": (CHAT, {"messages": [{"role": "assistant", "content": "x"}]}, 400, "roles assistant", "messages"),
    "empty message": (CHAT, {"messages": [{"role": "user", "content": ""}]}, 400, "is empty", "messages.0.content"),
    "number": (CHAT, {"messages": [{"role": "user", "content": 5}]}, 400, "should be a text", "messages.0.content"),
    "image": (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        400,
        'allowed: {"type": "text"',
        "messages.0.content.0",
    ),
    "name": (CHAT, {"messages": [{"role": "user", "content": "x", "name": "b"}]}, 400, "no field", "messages.0.name"),
    "tools": (CHAT, USER | {"tools": [{"type": "function"}]}, 400, "not supported; allowed: []", "tools"),
    "format": (CHAT, USER | {"response_format": {"type": "json_object"}}, 400, "not supported", "response_format"),
    "alternatives": (CHAT, USER | {"top_logprobs": 2}, 400, "needs logprobs", "top_logprobs"),
    "two limits": (CHAT, USER | {"max_tokens": 2, "max_completion_tokens": 3}, 400, "differ", "max_completion_tokens"),
    "long chat": (CHAT, {"messages": [{"role": "user", "content": "x " * 500}]}, 400, "at most 127", "messages"),
}


@pytest.mark.parametrize("path, body, status, message, param", BAD.values(), ids=BAD)
def test_bad_requests_are_named(server, path, body, status, message, param):
    code, answer, _ = server.ask(path, body)
    assert code == status and answer.keys() == {"error"}, answer
    error = answer["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert message in error["message"] and "\n" not in error["message"] and error["param"] == param, error


def test_openais_client_knows_the_errors(client):
    with pytest.raises(openai.BadRequestError, match="n = 0"):
        client.completions.create(model="tiny", prompt="x", n=0)
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt="x")


def test_responses_of_many_log_probs_are_refused(opened):
    with running(*opened, window=256, queue=128) as server:
        code, answer, _ = server.ask(TEXT, X | {"n": 80, "max_tokens": 200, "logprobs": 20})
        assert code == 400 and "336,000 log-probs; allowed: at most 262,144" in answer["error"]["message"]


def test_other_paths_methods_and_types_are_named(server):
    assert server.ask("/v1/embeddings", X)[0] == server.ask("/v1/models/other")[0] == 404
    assert server.ask(TEXT)[0] == 405
    code, answer, _ = server.ask(TEXT, X, {"content-type": "text/plain"})
    assert code == 415 and "allowed: application/json" in answer["error"]["message"]
    for charset in ("application/json; charset=utf-8", "Application/JSON"):
        assert server.ask(TEXT, X | {"max_tokens": 1}, {"content-type": charset})[0] == 200


def test_a_large_body_is_read_but_not_kept(server, monkeypatch):
    monkeypatch.setattr(app, "MOST_BODY", 1 << 20)
    body = json.dumps({"prompt": "x" * (3 << 20)}).encode()
    code, answer, headers = server.ask(TEXT, body)
    assert code == 413 and "larger than 1 MiB" in answer["error"]["message"] and headers["connection"] == "close"


def test_a_body_that_is_said_to_be_huge_is_not_read(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as plain:
        plain.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999999\r\n\r\n")
        assert plain.recv(1 << 16).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_does_not_come_is_not_waited_for(server, monkeypatch):
    monkeypatch.setattr(app, "_BODY_TIMEOUT_S", 0.2)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as plain:
        plain.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{")
        assert plain.recv(1 << 16).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:8000"])
def test_this_machine_is_called_by_its_names(server, host):
    assert server.ask("/v1/models", headers={"host": host})[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil", ""])
def test_other_names_are_refused(server, host):
    """A page whose name leads to 127.0.0.1 (DNS rebinding)."""
    code, answer, _ = server.ask("/v1/models", headers={"host": host})
    assert code == 403 and "is no name of this server" in answer["error"]["message"]


def test_a_key_is_asked_for(opened):
    with running(*opened, key="s3cret") as server:
        for headers in (
            {},
            {"authorization": "Bearer s3cre"},
            {"authorization": "s3cret"},
            {"authorization": "Bearer \xe9"},
        ):
            code, answer, given = server.ask("/v1/models", headers=headers)
            assert code == 401 and "s3cret" not in json.dumps(answer) and given["www-authenticate"] == "Bearer"
            assert server.ask(TEXT, X, JSON | headers)[0] == 401
        assert server.ask("/health")[0] == 200
        with openai.OpenAI(base_url=server.url, api_key="s3cret") as client:
            assert client.models.list().data[0].id == "tiny"
