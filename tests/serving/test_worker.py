"""Many requests at once: none mixes with another; what is cancelled, late or too much harms no other."""

import asyncio
import concurrent.futures
import contextlib
import http.client
import json
import socket
import sys
import threading
import time

import openai
import pytest

from janus_jax.generation.requests import Event, Request
from janus_jax.serving import worker
from tests.support.serving import JSON, running
from tests.support.torch_models import log_probs

TEXT = "/v1/completions"


def until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_answers_do_not_mix(server, client, tiny):
    """Prompts with disjoint ids, more than there are rows, some to be scored: each answer is that of its own prompt."""

    def ask(number):
        ids = [20 + number, 60 + number, 100 + number] * (1 + number % 3)
        options = {"echo": True, "logprobs": 1, "max_tokens": 5 + number % 4, "temperature": number % 2, "seed": number}
        (choice,) = client.completions.create(model="tiny", prompt=ids, n=1, **options).choices
        return ids, choice, options

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        together = list(pool.map(ask, range(24)))
    for number in range(0, 24, 5):
        _, choice, _ = ask(number)
        assert choice.text == together[number][1].text
        assert choice.logprobs.token_logprobs[1:] == pytest.approx(
            together[number][1].logprobs.token_logprobs[1:], abs=1e-3
        )
    texts = server.service._texts
    for ids, choice, _ in together:
        assert choice.logprobs.tokens[: len(ids)] == [texts.text(i) for i in ids]
        expected, _ = log_probs(tiny[1], ids[:1], ids[1:])
        assert choice.logprobs.token_logprobs[1 : len(ids)] == pytest.approx(expected, abs=1e-3)


def test_a_client_that_leaves_frees_its_rows(server, client):
    """Streams are left after their first chunk, whole answers before they come."""
    running_worker = server.service.worker
    stream = client.completions.create(
        model="tiny", prompt="x", n=8, max_tokens=100, stream=True, extra_body={"min_tokens": 100}
    )
    next(iter(stream))
    assert running_worker.texts == 8
    stream.close()
    until(lambda: running_worker.texts == 0)
    with socket.create_connection(("127.0.0.1", server.port)) as plain:
        plain.sendall(raw(json.dumps({"prompt": "x", "n": 8, "max_tokens": 100, "min_tokens": 100}).encode()))
        until(lambda: running_worker.texts == 8)
    until(lambda: running_worker.texts == 0)
    assert not running_worker._growing and not running_worker._open


def raw(body):
    """The bytes of a request."""
    head = f"POST {TEXT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body


class Held:
    """A session whose steps wait."""

    def __init__(self, monkeypatch, server):
        self.go, self.session = threading.Event(), server.service.worker._session
        step = self.session.step

        def held():
            assert self.go.wait(60)
            return step()

        monkeypatch.setattr(self.session, "step", held)


@pytest.fixture
def alone(opened):
    """A server for one test, with four rows and room for four more texts."""
    with running(*opened, queue=4, timeout=60) as made:
        yield made


def test_more_than_fits_is_refused_and_may_come_again(alone, monkeypatch):
    held = Held(monkeypatch, alone)
    body = {"prompt": "x", "n": 8, "max_tokens": 2}
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(alone.ask, TEXT, body)
        until(lambda: alone.service.worker.texts == 8)
        code, answer, headers = alone.ask(TEXT, {"prompt": "x", "max_tokens": 2})
        assert (code, headers["retry-after"]) == (429, "1") and answer["error"]["code"] == "rate_limit_exceeded"
        held.go.set()
        assert first.result()[0] == 200
    assert alone.ask(TEXT, {"prompt": "x", "max_tokens": 2})[0] == 200


def test_an_answered_client_takes_no_place(alone, monkeypatch):
    """It may ask again before the worker has cleared what it answered."""
    running_worker = alone.service.worker
    close, held = running_worker._close, threading.Event()
    monkeypatch.setattr(running_worker, "_close", lambda job: (held.wait(5), close(job)))
    body = {"prompt": "x", "n": 8, "max_tokens": 2}
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert alone.ask(TEXT, body)[0] == 200
        second = pool.submit(alone.ask, TEXT, body)
        until(lambda: running_worker._fresh or second.done())
        held.set()
        assert second.result()[0] == 200


def test_what_takes_too_long_ends(alone, monkeypatch):
    with openai.OpenAI(base_url=alone.url, api_key="any", max_retries=0) as client:
        stream = iter(
            client.completions.create(
                model="tiny", prompt="x", max_tokens=90, stream=True, extra_body={"min_tokens": 90}
            )
        )
        next(stream)
        # Steps are slow from now on.
        step = alone.service.worker._session.step
        monkeypatch.setattr(alone.service.worker._session, "step", lambda: (time.sleep(0.05), step())[1])
        alone.service.timeout = 0.5
        with pytest.raises(openai.InternalServerError):
            client.completions.create(model="tiny", prompt="x", max_tokens=90, extra_body={"min_tokens": 90})
        code, answer, _ = alone.ask(TEXT, {"prompt": "x", "max_tokens": 90, "min_tokens": 90})
        assert (code, answer["error"]["message"]) == (504, "took longer than 0.5 s")
        assert len(list(stream)) > 5  # it began when there was more time
        late = client.completions.create(
            model="tiny", prompt="x", max_tokens=90, stream=True, extra_body={"min_tokens": 90}
        )
        with pytest.raises(openai.APIError, match="took longer"):
            list(late)
    until(lambda: alone.service.worker.texts == 0)


def test_a_model_that_fails_ends_its_requests_and_no_others(alone, monkeypatch, capfd):
    def fail():
        raise RuntimeError("out of chips")

    monkeypatch.setattr(alone.service.worker._session, "step", fail)
    code, answer, _ = alone.ask(TEXT, {"prompt": "x"})
    assert code == 500 and "the log of the server" in answer["error"]["message"] and "chips" not in str(answer)
    until(lambda: "out of chips" in capfd.readouterr().err)  # clients are answered before the log is
    assert alone.ask(TEXT, {"prompt": "x", "max_tokens": 2})[0] == 200


def test_a_closed_log_keeps_no_client_waiting(alone, monkeypatch):
    """`janus serve 2>&1 | head`: nothing can be written to the log when a call fails."""

    class Closed:
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(alone.service.worker._session, "step", None)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", Closed())
        assert alone.ask(TEXT, {"prompt": "x"})[0] == 500
    assert alone.ask(TEXT, {"prompt": "x", "max_tokens": 2})[0] == 200


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_answers_all_and_is_not_healthy(alone, monkeypatch):
    def die():
        raise SystemExit  # no Exception

    monkeypatch.setattr(alone.service.worker._session, "step", die)
    for _ in range(2):
        code, answer, _ = alone.ask(TEXT, {"prompt": "x"})
        assert (code, answer["error"]["code"]) == (500, "model_failed")
    until(lambda: not alone.service.worker.alive)
    assert alone.ask("/health")[0] == 503


def test_a_window_takes_its_own_slots(opened):
    one = worker.Worker(opened[0], 4)
    one.reserve(128)
    assert one._session._cache.length == 128 and not one._session.busy


def test_a_reader_sees_the_last_news_before_the_end(opened, monkeypatch):
    """Also if it looks while the worker counts what has ended."""

    async def scenario():
        one = worker.Worker(opened[0], 4)
        job = worker.Job([Request([1])], [(0, [1, 2])], 0)
        one._open, one._growing = {job}, {0: worker._Growing(job, 0)}
        put, seen = job.put, []
        monkeypatch.setattr(job, "put", lambda news: (seen.append((job.scores, job.texts)), put(news))[1])
        one._scoring.append(job)
        one._score()
        one._deliver([Event(0, 0, (5,), (0.0,), "x", "stop")])
        assert seen == [(1, 1), (0, 1)] and job.done
        assert len(await job.read()) == 2 and await job.read() == []

    asyncio.run(scenario())


def test_a_reader_that_does_not_read_is_cut_off_and_blocks_nobody(alone, monkeypatch):
    monkeypatch.setattr(worker, "_MOST_UNREAD", 200)
    alone.listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # connections inherit it
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    plain.connect(("127.0.0.1", alone.port))
    body = {"prompt": "x", "n": 6, "max_tokens": 120, "min_tokens": 120, "logprobs": 20, "stream": True}
    content = json.dumps(body).encode()
    plain.sendall(raw(content))
    until(lambda: alone.service.worker.texts == 6)
    until(lambda: alone.service.worker.texts == 0)
    assert alone.ask(TEXT, {"prompt": "x", "max_tokens": 2})[0] == 200
    received = b""
    plain.settimeout(30)
    while b"too slowly" not in received:
        new = plain.recv(1 << 16)
        assert new
        received += new
    plain.close()


@pytest.mark.parametrize("grace", [60, 0])
def test_a_server_that_ends_lets_answers_finish(opened, grace):
    """Or ends them with an error, when they have no time."""
    with running(*opened, grace=grace) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        body = {"prompt": "x", "max_tokens": 100, "min_tokens": 100, "stream": True}
        connection.request("POST", TEXT, json.dumps(body), JSON)
        response = connection.getresponse()
        response.read(10)
        server.stop()
        events = response.read().decode().split("\n\n")
        with contextlib.suppress(ConnectionError):  # it may have gone
            code, _, _ = server.ask(TEXT, {"prompt": "x"})
            assert code == 503
    if grace:
        assert events[-2] == "data: [DONE]" and '"finish_reason":"length"' in events[-3]
    else:
        assert json.loads(events[-2][6:])["error"]["code"] == "shutting_down"
