"""The client of OpenAI-compatible endpoints, against a scripted server: nothing is asked or paid for twice."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from unittest import mock

import pytest

from janus_jax.errors import ConfigError, StorageError
from janus_jax.storage.endpoint import Endpoint
from janus_jax.storage.endpoint_requests import Prices
from tests.support.endpoint_client import SECRET, ask, echo, opened, texts
from tests.support.endpoint_server import Answer, refused, said, serving
from tests.support.repository import ROOT

pytest.importorskip("openai")

pytestmark = pytest.mark.usefixtures("quick_endpoint")


def test_many_are_asked_at_the_same_time_and_never_again(tmp_path):
    conversations = [ask(f"q{number}") for number in range(12)] + [ask("q3")]

    def slowly(body, count):
        answer = echo(body, count)
        answer.delay = 0.05
        return answer

    with serving(slowly) as server:
        with opened(server, tmp_path) as endpoint:
            got = texts(endpoint.complete(conversations, temperature=0.5, max_tokens=9, top_k=4))
            assert got == {(n, 0): f"Q{n}" for n in range(12)} | {(12, 0): "Q3"}
            assert len(server.bodies) == 12 and 1 < server.most <= 4
            assert (endpoint.usage.prompt_tokens, endpoint.usage.completion_tokens) == (84, 36)
        assert server.bodies[0].keys() == {"model", "messages", "temperature", "max_tokens", "top_k"}
        assert server.keys == {f"Bearer {SECRET}"}
        with opened(server, tmp_path) as endpoint:
            assert texts(endpoint.complete(conversations, temperature=0.5, max_tokens=9, top_k=4)) == got
            assert len(server.bodies) == 12 and endpoint.usage.tokens == 120
            assert len(texts(endpoint.complete(conversations[:1], temperature=0.6))) == 1  # another request
            assert len(server.bodies) == 13
            many = texts(endpoint.complete([ask("s")], samples=3, seed=5))
            assert many == {(0, sample): "S" for sample in range(3)}
            assert sorted(body["seed"] for body in server.bodies[13:]) == [5, 6, 7]
    assert SECRET not in (tmp_path / "replies.jsonl").read_text()


def test_a_killed_client_goes_on_where_it_was(tmp_path):
    def slowly(body, count):
        answer = echo(body, count)
        answer.delay = 0.03
        return answer

    with serving(slowly) as server:
        code = (
            "from janus_jax.storage.endpoint import Endpoint\n"
            f"e = Endpoint({server.url!r}, 'judge', journal='replies.jsonl', key_variable='JUDGE_KEY', concurrent=3)\n"
            "list(e.complete([[{'role': 'user', 'content': f'q{n}'}] for n in range(60)]))\n"
        )
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        child = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths})
        began = time.monotonic()
        while len(server.bodies) < 20 and time.monotonic() - began < 100:
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.wait()
        time.sleep(0.2)
        file = tmp_path / "replies.jsonl"
        kept = file.read_bytes().count(b"\n") - 1
        before = len(server.bodies)
        assert 20 - 3 <= kept <= before < 60
        with file.open("ab") as torn:
            torn.write(b'{"key": "half of a li')
        with opened(server, tmp_path) as endpoint:
            assert texts(endpoint.complete([ask(f"q{n}") for n in range(60)])) == {(n, 0): f"Q{n}" for n in range(60)}
        assert len(server.bodies) - before == 60 - kept and before - kept <= 3
        assert all(json.loads(line) for line in file.read_text().splitlines())


def test_a_long_storm_of_429_is_lived_through_as_long_as_anything_is_answered(tmp_path):
    """One in three requests is answered, whoever comes: some are refused more often than there are tries."""
    lock, number = threading.Lock(), 0

    def script(body, count):
        nonlocal number
        with lock:
            number += 1
            return echo(body, count) if number % 3 == 0 else refused(429)

    with serving(script) as server, opened(server, tmp_path, tries=4, concurrent=8) as endpoint:
        assert len(list(endpoint.complete([ask(f"q{n}") for n in range(16)]))) == 16


def test_storms_of_429_and_broken_replies_are_tried_again(tmp_path):
    troubles = [
        refused(429, "slow down", retry_after="0.01"),
        refused(500),
        Answer("<html>gateway</html>"),
        Answer({"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 0}}),
        refused(503),
    ]

    def script(body, count):
        number = int(body["messages"][0]["content"][1:])
        return troubles[(number + count) % 5] if count < 2 else echo(body, count)

    with serving(script) as server, opened(server, tmp_path) as endpoint:
        assert texts(endpoint.complete([ask(f"q{n}") for n in range(10)])) == {(n, 0): f"Q{n}" for n in range(10)}
        assert len(server.bodies) == 30
        assert endpoint.usage.prompt_tokens == 10 * 7 + 4 * 2  # those without a choice count their tokens


def test_what_is_no_answer_is_a_failure_and_asked_again_by_the_next_run(tmp_path):
    script = {
        "null": said(None, "content_filter"),
        "refusal": said(None, refusal="I will not"),
        "long": said("cut", "length"),
        "down": refused(502, f"bad {SECRET}"),
        "empty": said(""),
    }
    with serving(lambda body, count: script[body["messages"][0]["content"]]) as server:
        for again in (False, True):
            with opened(server, tmp_path) as endpoint:
                replies = {reply.place: reply for reply in endpoint.complete([ask(name) for name in script])}
            assert [replies[place].text for place in range(5)] == [None, None, "cut", None, ""]
            assert replies[0].failure == "no content (content_filter)" and replies[1].failure == "refused: I will not"
            assert replies[2].finish_reason == "length" and not replies[2].failure
            assert "502" in replies[3].failure and SECRET not in replies[3].failure
            assert len(server.bodies) == 8 * (1 + again) - 2 * again
            assert endpoint.usage.prompt_tokens == 7 * (4 + 2 * again)  # what was paid for, failures too


def test_an_endpoint_that_is_not_there_or_always_too_busy_ends_with_exit_code_14(tmp_path):
    with serving(lambda body, count: refused(429)) as server, opened(server, tmp_path) as endpoint:
        with pytest.raises(StorageError, match=r"429.*tried 4 times"):
            list(endpoint.complete([ask("q")]))
    with opened(server, tmp_path) as endpoint:
        with pytest.raises(StorageError, match=r"cannot be reached.*tried 4 times"):
            list(endpoint.complete([ask("q")]))
        assert endpoint.usage.tokens == 0


def test_a_reply_that_comes_too_late_counts_as_paid(tmp_path):
    with serving(lambda body, count: Answer({}, delay=0.5) if count == 0 else echo(body, count)) as server:
        with opened(server, tmp_path, timeout_s=0.15) as endpoint:
            assert texts(endpoint.complete([ask("q")], max_tokens=10)) == {(0, 0): "Q"}
            assert endpoint.usage.uncounted == 1 and endpoint.usage.completion_tokens == 10 + 3
        with opened(server, tmp_path) as endpoint:
            assert endpoint.usage.uncounted == 1 and endpoint.usage.completion_tokens == 13


@pytest.mark.parametrize("budget", [{"token_budget": 400}, {"money_budget": 0.0006, "prices": Prices(1.0, 3.0)}])
def test_a_budget_ends_before_it_is_passed_and_a_larger_one_goes_on(tmp_path, budget):
    conversations = [ask(f"q{n}") for n in range(30)]
    with serving(lambda body, count: said("yes", prompt=20, completion=20)) as server:
        with opened(server, tmp_path, **budget) as endpoint:
            with pytest.raises(ConfigError, match="budget needs max_tokens"):
                next(endpoint.complete(conversations))
            got = []
            with pytest.raises(ConfigError, match="the budget may not suffice for the next request"):
                for reply in endpoint.complete(conversations, max_tokens=20):
                    got.append(reply)
            assert 3 <= len(got) == len(server.bodies) < 30
            assert endpoint.usage.tokens == 40 * len(got) <= budget.get("token_budget", 1000)
            assert endpoint.money is None or endpoint.money <= 0.0006
        with opened(server, tmp_path) as endpoint:
            assert len(list(endpoint.complete(conversations, max_tokens=20))) == 30 == len(server.bodies)


def test_another_try_leaves_room_for_those_under_way(tmp_path):
    """One is cut off, and counts as the most it can have taken, while the other still takes as much."""
    most = 49 + 5  # 33 bytes of the message and 16 around it, and the answer's limit

    def script(body, count):
        answer = said("A", prompt=most - 5, completion=5)
        if body["messages"][0]["content"] == "q0":
            return Answer(None) if not count else answer
        return Answer(answer.body, delay=0.5)

    with serving(script) as server, opened(server, tmp_path, token_budget=2 * most) as endpoint:
        got = texts(endpoint.complete([ask("q0"), ask("q1")], max_tokens=5))
        assert got == {(0, 0): None, (1, 0): "A"} and endpoint.usage.tokens == 2 * most
        assert len(server.bodies) == 2


@pytest.mark.parametrize("count", ["-50", "1e999", "Infinity", "NaN", "9" * 4000])
def test_a_count_that_is_none_does_not_damage_the_journal(tmp_path, count):
    choice = '{"message": {"content": "A"}}'
    body = f'{{"choices": [{choice}], "usage": {{"prompt_tokens": {count}, "completion_tokens": 1}}}}'
    with serving(lambda *_: Answer(body)) as server:
        for _ in range(2):
            with opened(server, tmp_path) as endpoint:
                assert texts(endpoint.complete([ask("q")], max_tokens=5)) == {(0, 0): "A"}
                assert endpoint.usage.uncounted == 1 and 0 < endpoint.usage.tokens < 100
        assert len(server.bodies) == 1


def test_a_reply_that_is_nested_without_end_is_tried_again(tmp_path):
    def script(body, count):
        return echo(body, count) if count else Answer('{"choices": ' + "[" * 100_000)

    with serving(script) as server, opened(server, tmp_path) as endpoint:
        assert texts(endpoint.complete([ask("q")])) == {(0, 0): "Q"}


def test_half_a_pair_of_utf_16_is_a_mark_that_files_hold(tmp_path):
    def script(body, count):
        return said("a\ud83d") if body["messages"][0]["content"] == "q" else said(None, refusal="no \ud83d")

    with serving(script) as server, opened(server, tmp_path) as endpoint:
        replies = sorted(endpoint.complete([ask("q"), ask("r")]))
    assert replies[0].text == "a\ufffd" and replies[1].failure == "refused: no \ufffd"


def test_an_estimate_asks_nothing(tmp_path):
    with serving(echo) as server, opened(server, tmp_path, prices=Prices(1e6, 2e6)) as endpoint:
        list(endpoint.complete([ask("q0")], max_tokens=10))
        estimate = endpoint.estimate([ask("q0"), ask("q1"), ask("q1")], max_tokens=10)
        assert (estimate.requests, estimate.in_journal, estimate.completion_tokens, len(server.bodies)) == (1, 1, 10, 1)
        assert estimate.money is not None and estimate.money > 20
        assert estimate.text().startswith("1 request (1 more are in the journal), about ")
        assert endpoint.estimate([ask("q2")]).text().endswith("no limit of answers")


def test_arguments_that_are_not_allowed_are_named(tmp_path, monkeypatch):
    def made(url="http://127.0.0.1:9/v1", **options):
        Endpoint(url, "m", **{"journal": tmp_path / "j", "key_variable": None} | options)

    monkeypatch.setenv("BAD_KEY", "a\nb")
    for options, message in (
        ({"url": f"http://me:{SECRET}@h/v1"}, "no user"),
        ({"url": f"http://h/v1?key={SECRET}"}, "no user"),
        ({"url": "h:1/v1"}, "allowed: http"),
        ({"key_variable": "NO_SUCH_KEY"}, r"\$NO_SUCH_KEY: is not set"),
        ({"key_variable": "BAD_KEY"}, "is no API key"),
        ({"key_variable": f"sk-{SECRET}"}, "give its name, not the key"),
        ({"concurrent": 0}, "concurrent = 0"),
        ({"money_budget": 1.0}, "only with prices"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            made(**options)
        assert SECRET not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    with mock.patch.dict(sys.modules, {"openai": None}), pytest.raises(ConfigError, match=r"janus_jax\[llm\]"):
        made()
    (tmp_path / "notes.txt").write_text("mine\n")
    with pytest.raises(ConfigError, match=r"notes.txt:1: is no journal"):
        made(journal=tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine\n"
    (tmp_path / "damaged").write_text('{"journal": "replies", "version": 1}\n{"key": "a", "text": "b"}\n')
    with pytest.raises(ConfigError, match="damaged:2: is damaged"):
        made(journal=tmp_path / "damaged")
    with pytest.raises(ConfigError, match="is a URL"):
        made(journal="gs://bucket/j")
    endpoint = Endpoint("http://127.0.0.1:9/v1", "m", journal=tmp_path / "j", key_variable=None)
    with pytest.raises(ConfigError, match="another process writes it"):
        made()
    for options in ({"n": 2}, {"stream": True}, {"samples": 0}, {"bad": {1, 2}}):
        with pytest.raises(ConfigError, match=r"allowed|cannot be sent"):
            list(endpoint.complete([ask("q")], **options))
    endpoint.close()


def test_replies_that_are_left_halfway_are_in_the_journal(tmp_path):
    def slowly(body, count):
        answer = echo(body, count)
        answer.delay = 0.1 if body["messages"][0]["content"] != "q0" else 0
        return answer

    conversations = [ask(f"q{number}") for number in range(12)]
    with serving(slowly) as server:
        with opened(server, tmp_path, token_budget=4 * 60, concurrent=3) as endpoint:
            left = endpoint.complete(conversations, max_tokens=9)
            assert next(left).text == "Q0"  # the others are under way, and nobody closes the generator
        lines = (tmp_path / "replies.jsonl").read_text().splitlines()[1:]
        assert len(lines) == len(server.bodies) == len(set(server.answered)) > 1
        del left
        with opened(server, tmp_path) as endpoint:  # what was cancelled is reserved no longer
            next(left := endpoint.complete(conversations, max_tokens=9))
            left.close()
            assert endpoint._account.reserved.tokens == 0
