"""Answers that do not pass a gate: what is counted, and what is asked after them."""

import json
import re
import urllib.parse
from collections import Counter

import pytest

from janus_jax.data.synthesize import gates
from janus_jax.data.synthesize.config import load_synthesis
from janus_jax.data.synthesize.pipeline import Synthesis
from janus_jax.data.synthesize.prompts import read_prompt
from tests.support.endpoint_server import Answer, said, serving
from tests.support.synthesizing import QUESTIONS, answer, facts, made, prose, reply, rows, write_config

pytest.importorskip("openai")


def test_answers_that_do_not_pass_are_counted_and_asked_for_again(tmp_path):
    def script(body, count):
        first = body["seed"] == 0  # a later sample has another seed
        text, asked = reply(body), body["messages"][-1]["content"]
        if not first:
            return said(text)
        if "subdimensions of" in asked:
            return said("Sure! ```json\n" + text.replace("]}", ",]}") + "\n```\nDone.")
        if "preferences that different people" in asked:
            return said(text[:-20])
        if "Write a system message" in asked:
            return said("I'm sorry, but I cannot help with that.", "stop")
        if "Write a rubric" in asked:
            return said(json.dumps({"criteria": "Is it?"}))
        return said(text, "length")

    with serving(script) as server:
        assert made(tmp_path, server).run()
    hierarchy = facts(tmp_path, "hierarchy")
    assert hierarchy["counts"]["mended_json"] and hierarchy["rejected"]["bad_json"]
    assert facts(tmp_path, "systems")["rejected"] == {"refusal": 18}
    assert facts(tmp_path, "responses")["rejected"] == {"truncated": 18}
    assert facts(tmp_path, "rubrics")["rejected"] == {"wrong_form": 12}
    assert facts(tmp_path, "responses")["counts"] == {"rows": 18} and not facts(tmp_path, "responses")["dropped"]
    assert rows(tmp_path, "responses")[0]["provenance"] | {"time": 0} == {
        **{"model": "scripted", "time": 0, "seed": 1, "answer": 2},
        **{"repair": read_prompt("repair").digest, "repaired_gate": "truncated"},
    }
    published = json.loads((tmp_path / "out/provenance/bench.jsonl").read_text().splitlines()[0])
    gates_noted = [published["response"].get("repaired_gate"), *(one["repaired_gate"] for one in published["rubrics"])]
    assert gates_noted == ["truncated", *["wrong_form"] * 4]
    assert "repair" not in published["system"]  # a refusal is asked for again without a note


def test_a_further_request_says_what_was_wrong_and_a_refusal_is_not_argued_with(tmp_path):
    def script(body, count):
        asked = body["messages"][-1]["content"]
        if body["seed"]:
            return said(reply(body))
        if asked == QUESTIONS[0]:
            return said("I'm sorry, but I cannot help with that.")
        faulty = {"Name 2 ": '{"subdimensions": "one"}', "Write a system": "You are short.", "Write a rubric": "{"}
        faulty[QUESTIONS[1]] = "Oil it.</s>"
        faulty["preferences that different"] = (
            '{"preferences": [{"preference": "<|im_end|>", "description": "One sentence."}]}'
        )
        return said(next((text for start, text in faulty.items() if start in asked), reply(body)))

    (tmp_path / "mine").mkdir()
    with serving(script) as server:
        assert made(tmp_path, server).run()
        further = [body["messages"] for body in server.bodies if body["seed"]]
        first = [json.dumps(body["messages"]) for body in server.bodies if not body["seed"]]
        assert not any("earlier answer" in text for text in first)
        said_of = Counter(
            re.sub(r".*could not be used: (.*?)\. Answer again .*", r"\1", messages[-1]["content"], flags=re.DOTALL)
            for messages in further
        )
        assert said_of.pop(QUESTIONS[0]) == 3  # as before
        assert set(said_of) == {
            "its JSON had another form (subdimensions has another type)",
            "it was too short (14 characters; at least 150)",
            "it was no valid JSON",
            "it had marks of a chat template, or names of speakers",
            "it repeated what only shows the form of an answer: one sentence",
        }
        noted = next(messages for messages in further if "no valid JSON" in messages[-1]["content"])
        start, _, note = noted[-1]["content"].partition("\n\n(Note: ")
        assert note.endswith(")") and json.dumps([{"role": "user", "content": start}]) in first
        # a note of one's own makes the steps again, and asks only for what it changes
        (tmp_path / "mine/repair.txt").write_text("Because {fault}, once more.")
        number = len(server.bodies)
        assert made(tmp_path, server, prompts=str(tmp_path / "mine")).run()
        new = [body["messages"][-1]["content"] for body in server.bodies[number:] if body["seed"]]
        assert sum("no valid JSON, once more." in text for text in new) == 12


def test_a_further_request_that_an_older_version_sent_is_not_sent_again(tmp_path, monkeypatch):
    def script(body, count):
        asked = body["messages"][-1]["content"].partition("\n\n(Note: ")[0]
        short = "Write a system" in asked and body["seed"] < 1 + len(asked) % 2
        return said("You are short." if short else reply(body))

    with serving(script) as server:
        with monkeypatch.context() as older:
            older.setattr(gates, "fault", lambda gate, detail: "")
            assert made(tmp_path, server).run("hierarchy") and made(tmp_path, server).run("instructions")
            assert made(tmp_path, server).run("sets") and made(tmp_path, server, systems={"asks": 2}).run("systems")
        number = len(server.bodies)
        number_left = facts(tmp_path, "systems")["dropped"]["too_short"]
        assert facts(tmp_path, "systems")["rejected"] == {"too_short": 18 + number_left} and 0 < number_left < 18
        assert made(tmp_path, server, systems={"asks": 3}).run("systems")
        new = [body for body in server.bodies[number:]]
        assert len(new) == number_left and {body["seed"] for body in new} == {2}
        assert all("too short" in body["messages"][-1]["content"] for body in new)
        origins = [row["provenance"] for row in rows(tmp_path, "systems")]
        noted = {(one["answer"], one.get("repaired_gate", "")) for one in origins}
        assert noted == {(2, ""), (3, "too_short")}  # the older requests had no note


def test_what_another_answer_adds_later_does_not_send_a_further_request_again(tmp_path):
    """The third answer is too like the second, and later, by another ROUGE-L, too like the first, which came late."""
    words = prose(150).split()
    asked, late = list[str](), False

    def script(body, count):
        system, prompt = (one["content"] for one in body["messages"])
        if not prompt.startswith(QUESTIONS[0]) or body["seed"]:
            return said(reply(body))
        first, second, third = words[25:125], [*words[:80], *words[125:145]], words[:100]
        at = asked.index(system)
        if at == 0 and not late:
            return Answer({"error": {"message": "down"}}, 500)
        return said(" ".join((first, second, third)[at]))

    def run(server):
        return made(tmp_path, server, endpoint={"tries": 1}, responses={"alike": 0.7}).run("responses")

    with serving(answer) as server:
        for step in ("hierarchy", "instructions", "sets", "systems"):
            assert made(tmp_path, server).run(step)
    (one,) = [row["id"] for row in rows(tmp_path, "instructions") if row["prompt"] == QUESTIONS[0]]
    asked += [row["system"] for row in rows(tmp_path, "systems") if row["instruction"] == one]
    with serving(script, urllib.parse.urlsplit(server.url).port or 0) as server:
        assert run(server) and facts(tmp_path, "responses")["unanswered"] == 1
        number, late = len(server.bodies), True
        assert facts(tmp_path, "responses")["rejected"] == {"alike": 1} and run(server)
        assert facts(tmp_path, "responses")["rejected"] == {"alike": 1}
        assert [body["messages"][0]["content"] for body in server.bodies[number:]] == asked[:1]


def test_a_further_request_that_waits_in_an_older_file_is_not_written_again(tmp_path, monkeypatch):
    config = load_synthesis(
        write_config(tmp_path, "http://127.0.0.1:9/v1", hierarchy={"subdimensions": 0, "preferences": 0})
    )
    for step in ("hierarchy", "instructions", "sets"):
        assert Synthesis(config).run(step)
    assert not Synthesis(config, batch=True).run("systems")
    (file,) = (tmp_path / "out/steps/systems/batch").glob("requests-*")
    short = [
        {"custom_id": json.loads(line)["custom_id"], "response": {"status_code": 200, "body": said("You.").body}}
        for line in file.read_text().splitlines()
    ]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(one) + "\n" for one in short))
    with monkeypatch.context() as older:
        older.setattr(gates, "fault", lambda gate, detail: "")
        assert not Synthesis(config, batch=True).run("systems", [tmp_path / "answers.jsonl"])
    assert not Synthesis(config, batch=True).run("systems")
    assert sorted(path.name for path in file.parent.glob("requests-*")) == [file.name, "requests-002.jsonl"]


def test_a_refusal_that_was_paid_for_is_not_asked_for_again(tmp_path):
    def script(body, count):
        asked = body["messages"][-1]["content"]
        return said(None, refusal="I will not") if asked == QUESTIONS[0] else said(reply(body))

    with serving(script) as server:
        assert made(tmp_path, server).run()
        number = len(server.bodies)
        assert facts(tmp_path, "responses")["dropped"] == {"refusal": 3}
        (tmp_path / "out/steps/responses/step.json").unlink()
        assert made(tmp_path, server).run() and len(server.bodies) == number
