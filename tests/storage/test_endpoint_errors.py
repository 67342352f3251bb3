"""What an endpoint refuses or sends in place of answers: whose fault it is, and that no key is shown."""

import pytest

from janus_jax.errors import ConfigError, StorageError
from janus_jax.storage.endpoint import Endpoint
from janus_jax.storage.endpoint_errors import NoCompletionError
from tests.support.endpoint_client import SECRET, ask, echo, opened, texts
from tests.support.endpoint_server import Answer, refused, said, serving

pytest.importorskip("openai")

pytestmark = pytest.mark.usefixtures("quick_endpoint")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            refused(401, f"Incorrect API key: {SECRET}"),
            r"does not accept the key in \$JUDGE_KEY \(status 401: Incorrect",
        ),
        (refused(403), r"the key in \$JUDGE_KEY \(status 403: no\)"),
        (refused(404, "no model"), "does not have the path /chat/completions or the model 'judge'"),
        (refused(404, "The model `judge` does not exist"), "does not have the model 'judge'"),
        (refused(400, "gone", "model_not_found"), r"does not have the model 'judge' \(status 400: gone\)"),
        (refused(400, f"too long {SECRET}"), r"refuses conversation [1-4] \(status 400"),
        (refused(429, "pay first", "insufficient_quota"), "refuses requests.*429"),
    ],
)
def test_refusals_end_at_once_without_the_key(tmp_path, answer, message):
    with serving(lambda body, count: answer) as server, opened(server, tmp_path) as endpoint:
        with pytest.raises(ConfigError, match=message) as caught:
            list(endpoint.complete([ask(f"q{n}") for n in range(40)]))
        assert SECRET not in str(caught.value) and "\n" not in str(caught.value)
        assert len(server.bodies) <= 8
        with pytest.raises(ConfigError, match=message):
            list(endpoint.complete([ask("alone")]))
    assert SECRET not in (tmp_path / "replies.jsonl").read_text()


@pytest.mark.parametrize(("status", "before"), [(400, 275), (401, 275), (502, 275), (429, 275)])
def test_no_part_of_a_key_is_shown_where_a_message_is_cut(tmp_path, status, before):
    message = f"{'x' * before} {SECRET} is wrong"
    with serving(lambda body, count: refused(status, message)) as server, opened(server, tmp_path, tries=1) as endpoint:
        try:
            shown = " ".join(reply.failure for reply in endpoint.complete([ask("q")]))
        except (ConfigError, StorageError) as error:
            shown = str(error)
    assert "xxx" in shown and "sk-" not in shown and len(shown) < 420
    assert shown.endswith("tried 1 times") or status != 429


def test_no_part_of_a_key_is_shown_wherever_a_refusal_is_cut(tmp_path):
    def script(body, count):
        return said(None, refusal=f"{'x' * int(body['messages'][0]['content'])} {SECRET} is wrong")

    with serving(script) as server, opened(server, tmp_path) as endpoint:
        failures = [reply.failure for reply in endpoint.complete([ask(str(before)) for before in range(265, 305)])]
    assert len(failures) == 40 and not any("sk-" in failure or "xxx" not in failure for failure in failures)


@pytest.mark.parametrize(
    ("status", "message", "option"),
    [
        (400, "Unsupported parameter: 'max_tokens' is not supported; use 'max_completion_tokens'", "max_tokens"),
        (400, "Unrecognized request argument supplied: seed", "seed"),
        (422, "{'loc': ['body', 'seed'], 'msg': 'Extra inputs are not permitted'}", "seed"),
        (400, "'temperature' does not support 0.5 with this model", "temperature"),
        (400, "'max_tokens' is too large: 9. The maximum context length is 8 and extra tokens are cut", None),
        (400, "no such thing", None),
        (400, "temperature is not available with judge", "temperature"),
        (400, "response_format json_schema is not available for model judge", "response_format"),
        (400, "the seed of the model judge does not exist", None),
    ],
)
def test_an_option_that_is_refused_is_named(tmp_path, status, message, option):
    with serving(lambda body, count: refused(status, message)) as server, opened(server, tmp_path) as endpoint:
        with pytest.raises(ConfigError) as caught:
            list(endpoint.complete([ask("q")], seed=1, max_tokens=9, temperature=0.5, response_format={"type": "text"}))
        assert getattr(caught.value, "option", None) == option and message in str(caught.value)
        assert ("refuses conversation 1" in str(caught.value)) == (option is None)


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        ({"error": None, "message": "the real reason"}, "the real reason"),
        ({"error": {}, "detail": [{"msg": "the real reason"}]}, '[{"msg": "the real reason"}]'),
        ({"error": ""}, '{"error": ""}'),
        ("the real\nreason", "the real reason"),
        (" ", "without a message"),
    ],
)
def test_the_reason_of_an_error_is_shown_wherever_it_stands(tmp_path, body, shown):
    with serving(lambda *_: Answer(body, 400)) as server, opened(server, tmp_path) as endpoint:
        with pytest.raises(ConfigError) as caught:
            list(endpoint.complete([ask("q")]))
    assert str(caught.value).endswith(f"refuses conversation 1 (status 400: {shown})")


@pytest.mark.parametrize(
    ("model", "message", "why"),
    [
        ("lab-seed/seed-2", "unknown model lab-seed/seed-2", "does not have .*the model 'lab-seed/seed-2'"),
        ("s", "seed is not supported", "refuses the option 'seed'"),
        ("s", "no such message: it was not found", "refuses conversation 1"),
    ],
)
def test_names_of_options_and_models_are_whole_words(tmp_path, model, message, why):
    with serving(lambda body, count: refused(400, message)) as server:
        endpoint = Endpoint(server.url, model, journal=tmp_path / "replies.jsonl", key_variable=None)
        with endpoint, pytest.raises(ConfigError, match=why):
            list(endpoint.complete([ask("q")], seed=1))


def test_a_conversation_that_alone_is_refused_is_a_failure(tmp_path):
    def script(body, count):
        return refused(400, "too long") if "long" in str(body["messages"]) else echo(body, count)

    with serving(script) as server, opened(server, tmp_path, concurrent=1) as endpoint:
        got = texts(endpoint.complete([ask("long"), ask("q"), *(ask(f"long {n}") for n in range(9))]))
        assert got[1, 0] == "Q" and [text for text in got.values() if text is not None] == ["Q"]
        failures = [reply.failure for reply in endpoint.complete([ask("long")])]
        assert failures == ["status 400: too long"]


@pytest.mark.parametrize(("conversations", "most"), [(1, 4), (40, 12 + 4)])
def test_an_endpoint_that_never_sends_a_chat_completion_ends_at_once_and_is_shown(tmp_path, conversations, most):
    page = f"<!doctype html>\n<title>{'Sign in ' * 7}</title> {SECRET} {'x' * 200}"
    with serving(lambda *_: Answer(page)) as server, opened(server, tmp_path) as endpoint:
        with pytest.raises(NoCompletionError, match=r"has never sent a chat completion, to \d+ requests; ") as caught:
            list(endpoint.complete([ask(f"q{n}") for n in range(conversations)]))
        assert caught.value.exit_code == 14 and len(server.bodies) <= most
        shown = str(caught.value).partition("begins with: ")[2]
        assert shown.startswith("<!doctype html> <title>Sign") and shown.endswith("</title> *** xxxxxxxx")
        assert len(shown) == 100


@pytest.mark.parametrize(("other", "count"), [(refused(500), 1), (said(None, "content_filter"), 5), (said("A"), 5)])
def test_replies_that_are_no_chat_completion_are_failures_where_anything_else_comes(tmp_path, other, count):
    def script(body, count):
        return other if body["messages"][0]["content"] == "a" else Answer("<html>")

    with serving(script) as server, opened(server, tmp_path, concurrent=1, tries=2) as endpoint:
        asked = [ask("a"), *(ask(f"q{number}") for number in range(count))]
        failures = [reply.failure for reply in endpoint.complete(asked)]
    assert failures[1:] == ["the reply is no chat completion"] * count


def test_a_403_after_an_answer_is_of_its_conversation_alone(tmp_path):
    def script(body, count):
        return refused(403, "input was flagged") if body["messages"][0]["content"] == "bad" else echo(body, count)

    with serving(script) as server, opened(server, tmp_path, concurrent=1) as endpoint:
        got = [reply.text or reply.failure for reply in endpoint.complete([ask("a"), ask("bad"), ask("b")])]
        assert sorted(got) == ["A", "B", "status 403: input was flagged"]


def test_a_conversation_whose_refusal_also_names_the_model_is_a_failure_and_a_model_that_goes_is_none(tmp_path):
    def script(body, count):
        return {
            "image": refused(400, "The image of this message was not found (model judge)"),
            "gone": refused(400, "was taken down", "model_not_found"),
        }.get(body["messages"][0]["content"]) or echo(body, count)

    with serving(script) as server:
        for _ in range(2):  # also where only the journal has an answer
            with opened(server, tmp_path, concurrent=1) as endpoint:
                got = [reply.text or reply.failure for reply in endpoint.complete([ask("a"), ask("image"), ask("b")])]
            assert sorted(got) == ["A", "B", "status 400: The image of this message was not found (model judge)"]
        with (
            opened(server, tmp_path) as endpoint,
            pytest.raises(ConfigError, match=r"does not have .*the model .judge."),
        ):
            list(endpoint.complete([ask("gone")]))
