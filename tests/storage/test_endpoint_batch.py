"""Files for batch APIs: requests out, answers in, each once."""

import json

import pytest

from janus_jax.errors import ConfigError, DataError
from janus_jax.storage.endpoint_batch import BatchEndpoint
from janus_jax.storage.endpoint_requests import Prices
from tests.support.endpoint_server import said

pytest.importorskip("openai")

QUESTIONS = [[{"role": "user", "content": f"q{number}"}] for number in range(4)]


def opened(tmp_path, **options):
    directory = tmp_path / "batch"
    return BatchEndpoint("http://127.0.0.1:9/v1", "m", directory=directory, journal=tmp_path / "journal", **options)


def asked(tmp_path, **options):
    """Texts that are known, and those that wait."""
    with opened(tmp_path, **options) as endpoint:
        texts = {reply.place: reply.text for reply in endpoint.complete(QUESTIONS, max_tokens=9)}
        return texts, endpoint.waiting


def requests(tmp_path):
    return {
        path.name: [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted((tmp_path / "batch").glob("requests-*"))
    }


def answers(tmp_path, *values):
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def whole(request, text="yes", status=200):
    body = said(text, prompt=5, completion=2).body
    return {"custom_id": request["custom_id"], "response": {"status_code": status, "body": body}, "error": None}


def test_requests_go_out_once_and_answers_come_in_once(tmp_path):
    assert asked(tmp_path) == ({}, 4) == asked(tmp_path)
    (lines,) = requests(tmp_path).values()
    assert [line["body"]["messages"] for line in lines] == QUESTIONS[::1] and lines[0]["body"]["max_tokens"] == 9
    assert all(len(line["custom_id"]) <= 64 and line["method"] == "POST" for line in lines)
    path = answers(
        tmp_path,
        whole(lines[0]),
        whole(lines[0], "again"),
        whole(lines[1], status=500),
        {"custom_id": lines[2]["custom_id"], "response": None, "error": {"code": "batch_expired"}},
        {**whole(lines[3]), "custom_id": "other"},
    )
    with opened(tmp_path) as endpoint:
        assert endpoint.take(path) == {"answered": 1, "repeated": 1, "failed": 2, "without_request": 1}
        assert endpoint.usage.tokens == 7 and endpoint.outstanding == 1
        assert endpoint.missing() == {"requests-001.jsonl": 1}
        assert endpoint.take(path) == {"repeated": 4, "without_request": 1}
    assert asked(tmp_path) == ({0: "yes"}, 3)
    again = requests(tmp_path)["requests-002.jsonl"]
    assert [line["body"] for line in again] == [lines[1]["body"], lines[2]["body"]]
    assert not {line["custom_id"] for line in again} & {line["custom_id"] for line in lines}
    with opened(tmp_path) as endpoint:  # the old file does not free what waits in the new one
        assert endpoint.take(path) == {"repeated": 4, "without_request": 1} and endpoint.outstanding == 3
    assert asked(tmp_path) == ({0: "yes"}, 3) and len(requests(tmp_path)) == 2
    (tmp_path / "batch/requests-002.jsonl").unlink()  # not sent after all
    assert asked(tmp_path) == ({0: "yes"}, 3) and len(requests(tmp_path)) == 2


def test_a_budget_counts_what_waits(tmp_path):
    with pytest.raises(ConfigError, match="the budget may not suffice for the next request"):
        asked(tmp_path, token_budget=130)  # a question takes at most 49 tokens of its own and 9 of its answer
    assert sum(map(len, requests(tmp_path).values())) == 2
    figures = "token_budget = 130: 0 tokens spent, requests without an answer can take 116, the next can take 58;"
    with pytest.raises(ConfigError, match=f"the budget may not suffice for the next request; {figures}"):
        asked(tmp_path, token_budget=130)
    money = {"money_budget": 0.0002, "prices": Prices(1.0, 3.0)}  # of which 0.000152 are reserved
    figures = "money_budget = 0.00020: 0.00 money spent, .* can take 0.00015, the next can take 0.000076;"
    with pytest.raises(ConfigError, match=figures) as error:
        asked(tmp_path, token_budget=1000, **money)
    assert "token" not in str(error.value)  # it names the limit that bound
    assert sum(map(len, requests(tmp_path).values())) == 2


def test_what_was_answered_is_reserved_no_longer(tmp_path):
    asked(tmp_path)
    (lines,) = requests(tmp_path).values()
    with opened(tmp_path, token_budget=100) as endpoint:
        endpoint.take(answers(tmp_path, *map(whole, lines)))
        assert endpoint.usage.tokens == 28 and not endpoint.outstanding
        assert not list(endpoint.complete([[{"role": "user", "content": "more"}]], max_tokens=9))
        assert endpoint.waiting == 1


def test_a_line_that_is_no_answer_is_named(tmp_path):
    asked(tmp_path)
    path = tmp_path / "answers.jsonl"
    path.write_text('{"custom_id": "a"\n')
    with opened(tmp_path) as endpoint, pytest.raises(DataError, match=r"answers.jsonl:1: is no answer of a batch"):
        endpoint.take(path)


EXPIRED = {"response": None, "error": {"code": "batch_expired"}}


def test_equal_failures_of_two_files_are_told_apart_by_the_ids_of_their_requests(tmp_path):
    """Some providers give the lines of their answers no id of their own."""
    old = ""
    for number in (1, 2, 3):
        assert asked(tmp_path) == ({}, 4)
        lines = list(requests(tmp_path).values())[-1]
        assert len(requests(tmp_path)) == number and len(lines) == 4
        with opened(tmp_path) as endpoint:
            if old:
                (tmp_path / "answers.jsonl").write_text(old)
                assert endpoint.take(tmp_path / "answers.jsonl") == {"repeated": 4} and endpoint.outstanding == 4
            path = answers(tmp_path, *({"custom_id": line["custom_id"], **EXPIRED} for line in lines))
            assert endpoint.take(path) == {"failed": 4} and not endpoint.outstanding
        old = path.read_text()


def test_an_answer_counts_after_a_failure_and_after_its_request_was_written_again(tmp_path):
    asked(tmp_path)
    (first,) = requests(tmp_path).values()
    with opened(tmp_path) as endpoint:
        path = answers(tmp_path, *({"custom_id": line["custom_id"], **EXPIRED} for line in first), whole(first[0]))
        assert endpoint.take(path) == {"failed": 4, "answered": 1}
    assert asked(tmp_path) == ({0: "yes"}, 3)
    with opened(tmp_path) as endpoint:
        assert endpoint.take(answers(tmp_path, whole(first[1]))) == {"answered": 1} and endpoint.outstanding == 2
        assert endpoint.usage.tokens == 14


def test_half_a_line_about_a_failure_costs_no_later_one(tmp_path):
    asked(tmp_path)
    (lines,) = requests(tmp_path).values()
    (tmp_path / "batch/failed.jsonl").write_text('["requests-001.js')  # a process was killed
    path = answers(tmp_path, *({"custom_id": line["custom_id"], **EXPIRED} for line in lines))
    with opened(tmp_path) as endpoint:
        assert endpoint.take(path) == {"failed": 4}
    with opened(tmp_path) as endpoint:
        assert endpoint.take(path) == {"repeated": 4} and not endpoint.outstanding


def test_files_of_older_versions_have_the_key_of_the_request_as_id(tmp_path):
    asked(tmp_path)
    (lines,) = requests(tmp_path).values()
    with opened(tmp_path) as endpoint:
        older = [{**line, "custom_id": key} for line, key in zip(lines, endpoint._sent, strict=True)]
    assert all(len(line["custom_id"]) == 64 for line in older)
    (tmp_path / "batch/requests-001.jsonl").write_text("".join(json.dumps(line) + "\n" for line in older))
    with opened(tmp_path) as endpoint:
        assert endpoint.take(answers(tmp_path, *map(whole, older))) == {"answered": 4}
    assert asked(tmp_path)[1] == 0


def test_the_newest_file_is_that_with_the_largest_number(tmp_path):
    asked(tmp_path)
    first, newest = tmp_path / "batch/requests-001.jsonl", tmp_path / "batch/requests-1000.jsonl"
    first.rename(first.with_name("requests-999.jsonl"))
    (lines,) = requests(tmp_path).values()
    with opened(tmp_path) as endpoint:
        endpoint.take(answers(tmp_path, *({"custom_id": line["custom_id"], **EXPIRED} for line in lines)))
    assert asked(tmp_path) == ({}, 4) == asked(tmp_path)
    assert newest.exists() and len(requests(tmp_path)) == 2
