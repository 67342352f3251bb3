"""The client of the Perspective API against a scripted server: nothing is asked twice, nothing becomes a number."""

import json
import threading
import time

import pytest

from janus_jax.errors import ConfigError, StorageError
from janus_jax.evaluation.toxicity.perspective import Perspective
from janus_jax.storage import pace
from tests.support.endpoint_server import Answer, serving

KEY = "secret-key-1"


def scored(value):
    kind = {"value": value, "type": "PROBABILITY"}
    return Answer({"attributeScores": {"TOXICITY": {"spanScores": [], "summaryScore": kind}}, "languages": ["en"]})


def refused(status, message="no", kind="", **headers):
    details = [{"@type": "type.googleapis.com/google.commentanalyzer.v1alpha1.Error", "errorType": kind}]
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer({"error": {"code": status, "message": message, "details": details}}, status, named)


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("PERSPECTIVE_API_KEY", KEY)
    real = pace.pause_after
    monkeypatch.setattr(pace, "pause_after", lambda failures, asked: real(failures, asked or "0.01"))


@pytest.fixture
def client(tmp_path):
    """Makes a client; all are closed."""
    made = []

    def make(server, **options):
        options = {"requests_a_second": 1e4, "timeout_s": 5.0} | options
        made.append(Perspective(tmp_path / "replies.jsonl", url=server.url, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def said(body):
    return body["comment"]["text"]


def test_the_request_is_what_the_api_documents_and_the_key_is_in_a_header(client):
    with serving(lambda body, count: scored(0.25)) as server:
        assert client(server).scores([" naïve 世界"]) == [0.25]
    assert server.bodies == [
        {
            "comment": {"text": " naïve 世界"},
            "requestedAttributes": {"TOXICITY": {}},
            "languages": ["en"],
            "doNotStore": True,
        }
    ]


def test_troubles_pass_and_no_text_is_asked_for_again_once_it_is_scored(client):
    troubles = {
        "a": refused(429, Retry_After="0.02"),
        "b": Answer("<html>", 500),
        "c": Answer('{"attributeScores": {"TOXI'),
        "d": Answer(None),
        "e": scored(1.5),
        "f": Answer([1, 2], 503),
    }

    def script(body, count):
        return troubles[said(body)] if count == 0 else scored(0.5)

    with serving(script) as server:
        assert client(server).scores([*troubles, *troubles]) == [0.5] * 12
        assert sorted(map(said, server.bodies)) == sorted([*troubles] * 2)


def test_a_text_that_the_api_cannot_score_is_unscored_for_good(client):
    kinds = {"is": "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE", "long": "COMMENT_TOO_LONG"}
    with serving(lambda body, count: refused(400, kind=kinds[said(body)])) as server:
        one = client(server)
        assert one.scores(["is", "long"]) == ["language not supported", "too long"]
        one.close()
        assert client(server).scores(["long", "is"]) == ["too long", "language not supported"]
        assert len(server.bodies) == 2


def test_a_text_that_always_fails_is_counted_and_asked_again_by_the_next_run(client):
    def script(body, count):
        return Answer({}, 500) if said(body) == "bad" and count < 8 else scored(0.1)

    with serving(script) as server:
        one = client(server, concurrent=1)
        assert one.scores(["a", "bad", "b"]) == [0.1, "failed: status 500", 0.1]
        one.close()
        assert client(server).scores(["a", "bad", "b"]) == [0.1] * 3
        assert [said(body) for body in server.bodies].count("a") == 1


def test_an_api_that_is_down_ends_the_command_and_keeps_what_is_scored(client):
    down = threading.Event()

    def script(body, count):
        return Answer({}, 503) if down.is_set() else scored(0.1)

    with serving(script) as server:
        one = client(server, concurrent=2)
        assert one.scores(["a"]) == [0.1]
        down.set()
        with pytest.raises(StorageError, match=r"status 503; tried 8 times; what is scored is kept .*2026"):
            one.scores([f"x{at}" for at in range(9)])
        down.clear()
        assert one.scores(["a", "x0"]) == [0.1] * 2


def test_too_much_for_too_long_ends_the_command(client):
    with serving(lambda body, count: refused(429)) as server, pytest.raises(StorageError, match="status 429"):
        client(server, concurrent=1).scores(["a"])


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (refused(400, "API key not valid. Please pass a valid API key."), "does not accept the key in"),
        (refused(403, f"{KEY} has no right"), r"does not accept the key in .*\*\*\* has no right"),
        (refused(403, f"{'x' * 295}{KEY}"), r"x{295}\*\*\*\)"),
        (refused(400, "Unknown attribute: X"), "refuses the request .*Unknown attribute: X.*2026"),
        (Answer("moved", 302, {"Location": "http://127.0.0.1:1/"}), "refuses the request .status 302"),
        (Answer("gone", 404), "refuses the request .status 404"),
    ],
)
def test_what_will_not_come_right_is_one_line_without_the_key(client, answer, what):
    with serving(lambda body, count: answer) as server, pytest.raises(ConfigError, match=what) as error:
        client(server).scores(["a", "b"])
    assert KEY not in str(error.value) and "\n" not in str(error.value)


def test_the_rate_is_kept(client):
    """Requests are at least 1 / rate apart, so a slow machine cannot fail it."""
    times = []

    def script(body, count):
        times.append(time.monotonic())
        return scored(0.1)

    with serving(script) as server:
        start = time.monotonic()
        client(server, requests_a_second=20).scores(["a", "b", "c", "d"])
        assert time.monotonic() - start >= 3 / 20 * 0.99 and len(times) == 4


def test_arguments_that_cannot_be_are_refused_before_anything_is_asked(monkeypatch, tmp_path):
    for value, what in (("", "PERSPECTIVE_API_KEY is empty"), ("a b", "holds blanks")):
        monkeypatch.setenv("PERSPECTIVE_API_KEY", value)
        with pytest.raises(ConfigError, match=what):
            Perspective(tmp_path / "r")
    monkeypatch.setenv("PERSPECTIVE_API_KEY", KEY)
    for url, what in (("ftp://x", "allowed: http"), (f"http://x/?key={KEY}", "no user, password, query")):
        with pytest.raises(ConfigError, match=what) as error:
            Perspective(tmp_path / "r", url=url)
        assert KEY not in str(error.value)
    with pytest.raises(ConfigError, match="--requests-a-second 0"):
        Perspective(tmp_path / "r", requests_a_second=0)
    (tmp_path / "r").write_text(json.dumps({"a": 1}) + "\n")
    with pytest.raises(ConfigError, match="is no journal of replies"):
        Perspective(tmp_path / "r")
