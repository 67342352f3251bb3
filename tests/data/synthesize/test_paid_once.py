"""No request is paid for twice, and what was paid for is counted: counts on the side of the server."""

import json
import re
from collections import Counter

import pytest

from janus_jax.data.synthesize import gates
from janus_jax.data.synthesize.config import load_synthesis
from janus_jax.data.synthesize.pipeline import Synthesis
from janus_jax.errors import ConfigError
from tests.support.endpoint_server import Answer, refused, said, serving
from tests.support.synthesizing import QUESTIONS, answer, facts, made, replies, rows, write_config

pytest.importorskip("openai")

ALL = 78
"""Requests of a whole synthesis."""


def asked(body):
    return body["messages"][-1]["content"]


def test_late_answers_to_the_hierarchy_change_no_text_that_was_paid_for(tmp_path):
    down, notes = set[str](), []

    def script(body, count):
        if "subdimensions of" in asked(body):
            down.add(asked(body)) if not down else None
            if asked(body) in down:
                return Answer({"error": {"message": "down"}}, 500)
        return answer(body)

    with serving(script) as server:
        assert made(tmp_path, server, endpoint={"tries": 1}, tell=notes.append).run()
        assert any(line.startswith("note: hierarchy: a request got no answer: status 500") for line in notes)
        before, texts = rows(tmp_path, "sets"), len(rows(tmp_path, "systems"))
        down = {"none"}
        number = len(server.bodies)
        assert made(tmp_path, server).run() and rows(tmp_path, "sets") == before and texts == 18
        new = server.bodies[number:]
        assert new and all("subdimensions of" in asked(body) or "preferences that" in asked(body) for body in new)


def test_sets_stay_when_the_process_is_killed_just_before_step_json(tmp_path):
    """Those of instructions that stay, when others are added: all texts depend on them."""
    questions = "".join(json.dumps({"prompt": one}) + "\n" for one in QUESTIONS[3:])
    (tmp_path / "questions.jsonl").write_text(questions)
    with serving(answer) as server:
        assert made(tmp_path, server).run()
        before = {row["id"]: row["preferences"] for row in rows(tmp_path, "sets")}
        with (tmp_path / "questions.jsonl").open("a") as file:
            file.write("".join(json.dumps({"prompt": one}) + "\n" for one in QUESTIONS[:3]))
        (tmp_path / "out/steps/sets/step.json").unlink()
        assert made(tmp_path, server).run()
        after = {row["id"]: row["preferences"] for row in rows(tmp_path, "sets")}
        assert len(after) == 18 and after.items() >= before.items()
        assert Counter(map(json.dumps, server.bodies)).most_common(1)[0][1] == 1
        assert sum("Write a system message" in asked(body) for body in server.bodies) == 18


def test_what_was_answered_in_another_form_of_json_is_not_asked_again(tmp_path):
    """The endpoint takes a schema later, or requests go into files, where nothing says what it refuses."""

    def plain(body, count):
        if body.get("response_format", {}).get("type") == "json_schema":
            return refused(400, "response_format: json_schema is not supported")
        return answer(body)

    def again(*steps):
        for step in steps:
            (tmp_path / "out/steps" / step / "step.json").unlink()

    with serving(plain) as server:
        assert made(tmp_path, server).run()
        answered, url = len(replies(tmp_path)), server.url
    assert answered == ALL
    with serving(answer, int(url.rsplit(":", 1)[1].split("/")[0])) as server:
        again("rubrics")
        planned = {one.step: (one.requests, one.in_journal) for one in made(tmp_path, server).estimate()}
        assert planned == {"rubrics": (0, 12), "collection": (0, 0)}
        again("hierarchy")
        assert made(tmp_path, server).run() and not server.bodies
        again("hierarchy", "rubrics")
        assert Synthesis(load_synthesis(tmp_path / "synthesis.yaml"), batch=True).run()
        assert not list((tmp_path / "out").rglob("requests-*.jsonl"))


def test_a_reply_without_text_and_reason_is_a_refusal_that_was_paid_for(tmp_path):
    def script(body, count):
        none = body["messages"][0]["role"] == "system" and body["seed"] == 0
        return said(None, None, prompt=50, completion=20) if none else answer(body)

    with serving(script) as server:
        assert made(tmp_path, server).run()
        assert facts(tmp_path, "responses")["rejected"] == {"refusal": 18}
        assert facts(tmp_path, "responses")["unanswered"] == 0
        number = len(server.bodies)
        assert number == ALL + 18 and made(tmp_path, server).run() and len(server.bodies) == number


def test_a_refusal_in_place_of_json_counts_as_one_and_is_not_argued_with(tmp_path):
    def script(body, count):
        json_wanted = body["messages"][0]["role"] != "system" and "Write a system" not in asked(body)
        return said("I'm sorry, but I cannot help with that.") if json_wanted and not body["seed"] else answer(body)

    with serving(script) as server:
        assert made(tmp_path, server).run()
        assert facts(tmp_path, "hierarchy")["rejected"] == {"refusal": 30}
        assert facts(tmp_path, "rubrics")["rejected"] == {"refusal": 12}
        assert not any("Note:" in asked(body) for body in server.bodies)


def test_the_note_that_older_versions_sent_after_a_refusal_in_place_of_json_counts(tmp_path, monkeypatch):
    def script(body, count):
        refuses = "subdimensions of" in asked(body) and not body["seed"]
        return said("I'm sorry, but I cannot help with that.") if refuses else answer(body)

    with serving(script) as server:
        with monkeypatch.context() as older:
            older.setattr(gates, "refusal", lambda text: None)
            assert made(tmp_path, server).run("hierarchy")
        assert set(facts(tmp_path, "hierarchy")["rejected"]) == {"bad_json"}
        number, before = len(server.bodies), rows(tmp_path, "hierarchy")
        assert any("no valid JSON" in asked(body) for body in server.bodies)
        (tmp_path / "out/steps/hierarchy/step.json").unlink()
        assert made(tmp_path, server).run("hierarchy") and len(server.bodies) == number
        assert rows(tmp_path, "hierarchy") == before and set(facts(tmp_path, "hierarchy")["rejected"]) == {"refusal"}


def test_money_counts_at_the_prices_of_its_time(tmp_path):
    dear, free = {"prompt": 1000.0, "completion": 1000.0}, {"prompt": 0.0, "completion": 0.0}

    def work(server, prices, **changes):
        return made(tmp_path, server, endpoint={"prices": prices}, **changes)

    with serving(answer) as server:
        for step in ("instructions", "hierarchy", "sets", "systems"):
            assert work(server, dear).run(step)
        tokens, money = work(server, free).spent()
        assert tokens == 70 * len(server.bodies) and money == pytest.approx(tokens / 1000)
        with pytest.raises(ConfigError, match=r"budget.money = 3.00: .*; 3.36 money spent, the next can take 0"):
            work(server, {"prompt": 0.01, "completion": 0.01}, budget={"money": 3.0}).run("responses")
        # lines that say no money, as of older versions, count at the prices of now
        path = tmp_path / "out/steps/systems/replies.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({k: v for k, v in one.items() if k != "money"}) + "\n" for one in lines))
        path.with_name("replies.jsonl.index").unlink()
        assert work(server, free).spent()[1] == pytest.approx(70 * 30 / 1000)


def test_the_report_counts_whole_journals_also_of_what_was_made_before(tmp_path):
    with serving(answer) as server:
        assert made(tmp_path, server).run()
        assert made(tmp_path, server, responses={"temperature": 0.5}).run()
        (tmp_path / "out/steps/rubrics/step.json").unlink()
        assert made(tmp_path, server, bench={"instructions": 0}).run()  # asks for no rubric any more
        paid = len(server.bodies)
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert sum(sum((step["usage"] or {}).values()) for step in report["steps"]) == 70 * paid


def test_a_budget_that_ends_a_batch_names_the_files_that_are_to_be_sent(tmp_path):
    changes = {"hierarchy": {"subdimensions": 0, "preferences": 0}, "budget": {"tokens": 12_000}}
    config, notes = load_synthesis(write_config(tmp_path, "http://127.0.0.1:9/v1", **changes)), []
    for words in ("wrote .*requests-001.jsonl", "already written, waiting for answers: .*requests-001.jsonl"):
        notes.clear()
        with pytest.raises(ConfigError, match="the budget may not suffice for the next request of systems"):
            Synthesis(config, batch=True, tell=notes.append).run()
        (file,) = (tmp_path / "out/steps/systems/batch").iterdir()
        number = len(file.read_text().splitlines())
        assert 0 < number < 18 and any(line.startswith(f"systems: {number} answers to come") for line in notes)
        assert any(re.match(words, line) for line in notes), notes
