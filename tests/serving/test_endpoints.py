"""The endpoints over a real socket, with OpenAI's own client; log-probs beside transformers'."""

import json
import re
import shutil
import subprocess
import textwrap

import numpy as np
import pytest

from tests.support.repository import ROOT
from tests.support.serving import JSON, torch_log_probs
from tests.support.torch_models import greedy

ASKED = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "naïve 世界?"}]


def ids_of(server, messages):
    return server.service.served.written.encode(messages)


def chat(client, **options):
    return client.chat.completions.create(model="tiny", **({"messages": ASKED, "max_tokens": 12} | options))


def complete(client, **options):
    return client.completions.create(model="tiny", **({"max_tokens": 8, "temperature": 0} | options))


def test_what_is_served(server, client):
    (model,) = client.models.list().data
    assert model.id == client.models.retrieve("tiny").id == "tiny" and model.max_model_len == 128
    assert server.ask("/health")[:2] == (200, {"status": "ok", "texts": 0, "most_texts": 68})


def test_a_greedy_answer_is_that_of_transformers(server, client, tiny):
    ids = ids_of(server, ASKED)
    expected, sure = greedy(tiny[1], ids, 12, stop=server.service.served.written.stop_ids)
    assert sure > 5
    answer = chat(client, temperature=0, logprobs=True, top_logprobs=3)
    (choice,) = answer.choices
    assert (choice.finish_reason, choice.message.role) == ("length", "assistant")
    assert answer.usage.prompt_tokens == len(ids) and answer.usage.completion_tokens == 12
    logps = torch_log_probs(tiny[1], [*ids, *expected])[len(ids) - 1 :]
    texts, content = server.service._texts, choice.logprobs.content
    assert len(content) == 12
    for token, number, row in list(zip(content, expected, logps, strict=True))[:sure]:
        best = np.argsort(-row)[:3]
        assert token.token == texts.text(number)
        assert token.bytes == (None if texts.bytes(number) is None else list(texts.bytes(number)))
        assert token.logprob == pytest.approx(row[number], abs=1e-3)
        assert [one.token for one in token.top_logprobs] == [texts.text(int(other)) for other in best]
        assert [one.logprob for one in token.top_logprobs] == pytest.approx(row[best], abs=1e-3)
    if sure == 12:
        whole = server.service._detokenizer.decode(expected)
        assert choice.message.content == whole


def test_a_stream_is_the_same_answer(client):
    options = {"seed": 5, "n": 3, "logprobs": True, "top_logprobs": 1, "max_tokens": 10}
    whole = chat(client, **options)
    assert len({choice.message.content for choice in whole.choices}) == 3
    chunks = list(chat(client, **options, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert {chunk.id for chunk in chunks} == {chunks[0].id} and all(chunk.usage is None for chunk in chunks[:-1])
    for choice in whole.choices:
        parts = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
        assert parts[0].delta.role == "assistant"
        assert "".join(part.delta.content or "" for part in parts) == choice.message.content
        assert [part.finish_reason for part in parts if part.finish_reason] == [choice.finish_reason]
        tokens = [token for part in parts if part.logprobs for token in part.logprobs.content]
        assert tokens == choice.logprobs.content


def test_seeds_repeat_and_differ(client):
    def text(**options):
        return complete(client, prompt="the quick", temperature=1, max_tokens=16, **options).choices[0].text

    assert text(seed=1) == text(seed=1) != text(seed=2)
    assert text() != text()  # 400 tokens to the power of 16


def test_a_stop_string_ends_the_text(client):
    whole = complete(client, prompt="the quick", seed=3, temperature=1, max_tokens=16).choices[0]
    part = whole.text[len(whole.text) // 2 :][:2]
    cut = complete(client, prompt="the quick", seed=3, temperature=1, max_tokens=16, stop=[part]).choices[0]
    assert (cut.text, cut.finish_reason) == (whole.text[: whole.text.find(part)], "stop")


def test_a_prompt_has_four_forms(server, client):
    one, two = "the quick", "naïve 世界"
    ids = [server.service.served.written.encode_text(text) for text in (one, two)]
    single = [complete(client, prompt=text).choices[0].text for text in (one, two)]
    assert complete(client, prompt=ids[0]).choices[0].text == single[0]
    for prompts in ([one, two], ids):
        answer = complete(client, prompt=prompts, n=2)
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        assert [choice.text for choice in answer.choices] == [single[0], single[0], single[1], single[1]]
        assert answer.usage.prompt_tokens == sum(map(len, ids)) and answer.usage.completion_tokens == 32
    bare = complete(client, prompt=one, extra_body={"add_special_tokens": False})
    assert bare.usage.prompt_tokens == len(ids[0]) - 1


@pytest.mark.parametrize("most", [0, 1, 6])
def test_echo_has_the_log_probs_of_the_prompt(server, client, tiny, most):
    texts = server.service._texts
    prompts = ["naïve 世界 😀", "x"]
    answer = complete(client, prompt=prompts, echo=True, logprobs=2, max_tokens=most)
    for prompt, choice in zip(prompts, answer.choices, strict=True):
        ids = server.service.served.written.encode_text(prompt)
        made, _ = greedy(tiny[1], ids, most) if most else ([], 0)
        logps = torch_log_probs(tiny[1], [*ids, *made])
        assert choice.text.startswith(prompt) and choice.finish_reason == "length"
        result = choice.logprobs
        assert result.tokens == [texts.text(number) for number in (*ids, *made)]
        assert result.token_logprobs[0] is None and result.top_logprobs[0] is None
        targets = np.array([*ids, *made][1:])
        expected = logps[np.arange(len(targets)), targets]
        assert result.token_logprobs[1:] == pytest.approx(expected, abs=1e-3)
        for row, number, named in zip(logps, targets, result.top_logprobs[1:], strict=True):
            best = [int(other) for other in np.argsort(-row)[:2]]
            assert named.keys() == {texts.text(other) for other in {*best, int(number)}}
            assert max(named.values()) == pytest.approx(row.max(), abs=1e-3)
        # A token's text stands at its place, unless it is a control token or a part of a character.
        for token, place in zip(result.tokens, result.text_offset, strict=True):
            if not token.startswith(("bytes:", "<s>", "token_id:")):
                assert choice.text[place:].startswith(token), (token, place, choice.text)
    assert answer.usage.completion_tokens == 2 * most


def test_a_streamed_echo_is_the_same(client):
    options = {"prompt": ["the quick", "x"], "echo": True, "logprobs": 1, "max_tokens": 6, "n": 2, "seed": 1}
    whole = complete(client, **options, temperature=1)
    chunks = list(complete(client, **options, temperature=1, stream=True))
    assert whole.choices[0].logprobs.token_logprobs != whole.choices[1].logprobs.token_logprobs
    assert whole.choices[2].text.startswith("x") and len(whole.choices) == 4
    for choice in whole.choices:
        parts = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == choice.index]
        assert "".join(part.text for part in parts) == choice.text
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            assert [one for part in parts for one in getattr(part.logprobs, name)] == getattr(choice.logprobs, name)


def test_our_own_options_count(client):
    greedy_text = complete(client, prompt="the quick").choices[0].text
    for options in ({"top_k": 1}, {"min_p": 1.0}):
        drawn = complete(client, prompt="the quick", temperature=1, extra_body=options)
        assert drawn.choices[0].text == greedy_text
    penalty = complete(client, prompt="the quick", max_tokens=16, extra_body={"repetition_penalty": 1e6}, logprobs=0)
    tokens = penalty.choices[0].logprobs.tokens
    assert len(set(tokens)) == 16 and penalty.choices[0].logprobs.top_logprobs is None
    assert complete(client, prompt="x", extra_body={"top_k": -1, "min_tokens": 3}).usage.completion_tokens >= 3


def test_what_changes_nothing_is_taken(client):
    neutral = {"presence_penalty": 0, "frequency_penalty": 0, "logit_bias": {}, "tools": [], "tool_choice": "none"}
    ignored = {"user": "me", "store": False, "metadata": {"a": "b"}, "service_tier": "auto"}
    answer = chat(
        client, temperature=0, response_format={"type": "text"}, extra_body=neutral | ignored | {"stop": None}
    )
    parts = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "naïve 世界?"}]},
    ]
    assert chat(client, temperature=0, messages=parts).choices == answer.choices
    again = [*ASKED, answer.choices[0].message, {"role": "user", "content": "and?"}]
    assert chat(client, messages=again).usage.prompt_tokens > answer.usage.prompt_tokens


def test_streams_are_server_sent_events_in_ascii(server):
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    body = {"prompt": "é\u2028", "echo": True, "max_tokens": 1, "stream": True}
    connection.request("POST", "/v1/completions", json.dumps(body), JSON)
    response = connection.getresponse()
    assert response.getheader("content-type") == "text/event-stream; charset=utf-8"
    lines = response.read().decode("ascii").split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""] and all(line.startswith("data: ") for line in lines[:-1])
    assert json.loads(lines[0][6:])["choices"][0]["text"] == "é\u2028"


def test_the_examples_of_the_docs_run(server, capsys):
    page = (ROOT / "docs" / "serving.md").read_text().replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
    page = page.replace('model="dpo"', 'model="tiny"').replace("200", "8")
    (example,) = re.findall("```python\n(.*?)```", page, re.DOTALL)
    exec(example, {})
    assert capsys.readouterr().out != ""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = textwrap.dedent(page[page.index("    curl ") :].split("\n\n")[0])
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stdout.endswith("data: [DONE]\n\n") and '"finish_reason":"' in done.stdout, done
