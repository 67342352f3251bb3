"""What a synthesis does when something goes wrong outside it: disks, signals, servers, keys, files, budgets."""

import contextlib
import json
import random
import resource
import signal
import threading
import time

import pytest

from janus_jax.data.synthesize.config import load_synthesis
from janus_jax.data.synthesize.files import Lock
from janus_jax.data.synthesize.pipeline import Synthesis
from janus_jax.data.synthesize.prompts import read_prompt
from janus_jax.errors import ConfigError, DataError, HeldError, StorageError
from janus_jax.storage.pace import pause_after  # before a fixture replaces it
from tests.support.endpoint_server import Answer, refused, said, serving
from tests.support.synthesizing import (
    KEY,
    QUESTIONS,
    answer,
    batch_answers,
    facts,
    made,
    replies,
    reply,
    rows,
    started,
    write_config,
)

pytest.importorskip("openai")

ALL = 78
"""Requests of a whole synthesis."""


def test_a_second_process_is_refused_before_it_asks(tmp_path):
    with serving(answer) as server:
        work = made(tmp_path, server)
        with Lock(work.out), pytest.raises(HeldError, match=r"out .*: another process writes it; wait for its end, or"):
            work.run()
        assert not server.bodies and work.run()


@contextlib.contextmanager
def files_of_at_most(size):
    """A disk without room for larger files."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_named_and_costs_at_most_what_was_under_way(tmp_path):
    """Journal, its index, rows and Parquet files each meet the limit at some size."""
    names, failed, starts = set(), True, 0
    with serving(answer) as server:
        while failed:
            failed, starts = False, starts + 1
            with files_of_at_most(2_000 * 2**starts):
                try:
                    made(tmp_path, server, endpoint={"concurrent": 3}).run()
                except StorageError as error:
                    failed = True
                    assert "cannot be" in str(error) and error.exit_code == 14
                    names.add(str(error).partition(": ")[0].rpartition("/")[2])
        assert len(names) > 1, names
        keys = [reply["key"] for reply in replies(tmp_path)]
        assert len(keys) == len(set(keys)) == ALL and len(server.bodies) <= ALL + 3 * (starts - 1)
    assert not list((tmp_path / "out").rglob("*.incomplete"))
    assert len(rows(tmp_path, "responses")) == 18


def test_what_changed_is_named_and_asks_anew_and_the_rest_is_kept(tmp_path):
    lines = []

    def by_temperature(body, count=0):
        return said(reply(body) + (" Warmly." if body.get("temperature") == 0.5 else ""), prompt=50, completion=20)

    def run(server, **changes):
        lines.clear()
        number = len(server.bodies)
        assert made(tmp_path, server, tell=lines.append, **changes).run()
        return len(server.bodies) - number, [line for line in lines if "is made again" in line]

    with serving(by_temperature) as server:
        assert run(server) == (ALL, [])
        kept, none = "; requests that did not are not sent again", "; it asks no model"
        assert run(server, responses={"temperature": 0.5}) == (
            18,
            [
                f"note: responses is made again: temperature changed{kept}",
                f"note: rubrics is made again: the rows of responses changed{kept}",
                f"note: collection is made again: the rows of responses changed{none}",
            ],
        )
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine/system.txt").write_text("Write a system message for {preferences}, please.")
        number, notes = run(server, prompts=str(tmp_path / "mine"))
        assert number == 36 and notes[:2] == [  # the responses to new system messages are new too
            f"note: systems is made again: prompts changed{kept}",
            f"note: responses is made again: temperature, the rows of systems changed{kept}",
        ]
        number, notes = run(server)
        assert number == 0 and len(notes) == 4  # the first answers are in the journals
        number, notes = run(server, seed=1, instructions={"min_chars": 46})
        assert notes[:2] == [
            f"note: instructions is made again: min_chars changed{none}",
            f"note: hierarchy is made again: seed changed{kept}",
        ]
        assert len(rows(tmp_path, "instructions")) == 5 and number


@pytest.mark.parametrize("step", [None, "hierarchy"])
def test_a_key_that_is_missing_is_named_before_anything_is_written(tmp_path, monkeypatch, step):
    monkeypatch.delenv(KEY, raising=False)
    with serving(answer) as server:
        with pytest.raises(ConfigError, match=rf"endpoints.default: \${KEY}: is not set; put the API key into it"):
            made(tmp_path, server, endpoint={"key_variable": KEY}).run(step)
        assert not server.bodies and not (tmp_path / "out").exists()
        assert made(tmp_path, server, endpoint={"key_variable": KEY}).estimate()  # a dry run needs none


@pytest.mark.parametrize(
    ("refusal", "keys", "text"),
    [
        (refused(401, "bad key"), "key_variable", "does not accept the key in $SYNTHESIS_KEY (status 401: bad key)"),
        (Answer({"detail": "Not Found"}, 404), "model, base_url", "'scripted' (status 404: Not Found)"),
        (refused(400, "scripted is not a valid model ID"), "model, base_url", "(status 400: scripted is not a valid"),
        (refused(400, "unknown parameter: seed"), "seed: false", "refuses the option 'seed'"),
        (refused(400, "no such thing"), "", "refuses conversation"),
        (refused(402, "pay first"), "", "refuses requests (status 402: pay first)"),
    ],
)
def test_an_endpoint_that_refuses_everything_ends_the_run_and_names_the_key(tmp_path, monkeypatch, refusal, keys, text):
    monkeypatch.setenv(KEY, "sk-1")
    with serving(lambda body, count: refusal) as server, pytest.raises(ConfigError) as caught:
        made(tmp_path, server, endpoint={"key_variable": KEY, "tries": 2}).run()
    assert text in str(caught.value)
    for key in keys.split(", "):
        assert (f"endpoints.default.{key}" if key else "endpoints.default: ") in str(caught.value)


def test_an_endpoint_that_never_sends_a_chat_completion_ends_the_run(tmp_path):
    with serving(lambda body, count: Answer("<html>Sign in</html>")) as server:
        with pytest.raises(StorageError, match=r"^endpoints.default.base_url: .*: <html>Sign in</html>$") as caught:
            made(tmp_path, server).run()
        assert caught.value.exit_code == 14 and len(server.bodies) <= 3 * 8 + 8
        assert not (tmp_path / "out/steps/systems").exists()
    with serving(answer) as server:
        assert made(tmp_path, server).run()


@pytest.mark.parametrize("presses", [1, 2])
def test_the_first_ctrl_c_waits_for_what_is_under_way_and_the_second_does_not(tmp_path, presses):
    release = threading.Event()

    def script(body, count):
        if len(server.bodies) > 5:
            release.wait(120)
        return answer(body)

    with serving(script) as server:
        process = started(write_config(tmp_path, server.url, endpoint={"concurrent": 3}))
        with process:
            deadline = time.monotonic() + 120
            while len(server.bodies) < 8 and time.monotonic() < deadline:
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            assert any(line.startswith("waiting for 3 requests under way; a second Ctrl-C") for line in process.stderr)
            if presses == 1:
                release.set()
            else:
                process.send_signal(signal.SIGINT)
            last = process.stderr.read().splitlines()[-1]
            assert process.wait(60) == 130 and last == "interrupted"
        assert len(server.bodies) == 8 and len(replies(tmp_path)) == (8 if presses == 1 else 5)
        release.set()
        assert made(tmp_path, server).run() and len(server.bodies) == ALL + (0 if presses == 1 else 3)


def test_a_server_that_is_gone_for_a_while_is_waited_for(tmp_path, monkeypatch):
    """With all tries that the configuration has by default, a minute at least."""
    down = threading.Event()

    def first(body, count):
        if len(server.bodies) <= 20:
            return answer(body)
        down.set()
        return Answer(None)  # the connection is cut

    work = None
    with serving(first) as server:
        port = int(server.url.rsplit(":", 1)[1].split("/")[0])
        work = made(tmp_path, server, endpoint={"tries": 1000})
        thread = threading.Thread(target=work.run)
        thread.start()
        assert down.wait(60)
    time.sleep(0.1)  # connections are refused
    with serving(answer, port) as second:
        thread.join(120)
    texts = [reply["key"] for reply in replies(tmp_path) if reply.get("text") is not None]
    assert len(texts) == len(set(texts)) == ALL == 20 + len(second.answered)
    assert facts(tmp_path, "collection")["counts"]["collection_rows"] == 15

    monkeypatch.setattr(random, "uniform", lambda least, most: least)
    assert sum(pause_after(failures, None) for failures in range(1, 8)) > 60


def test_a_budget_that_is_reached_exactly_pays_for_what_is_known_and_no_more(tmp_path):
    with serving(answer) as server:
        work = made(tmp_path, server)
        assert work.run()
        tokens, _ = work.spent()
        (tmp_path / "out/steps/responses/step.json").unlink()
        assert made(tmp_path, server, budget={"tokens": tokens}).run() and len(server.bodies) == ALL
        message = (
            rf"budget.tokens = {tokens:,}: the budget may not suffice for the next request of responses; "
            rf"{tokens:,} tokens spent, the next can take [0-9],[0-9]{{3}}; a larger one goes on"
        )
        with pytest.raises(ConfigError, match=message):
            made(tmp_path, server, budget={"tokens": tokens}, responses={"temperature": 0.5}).run()
        assert len(server.bodies) == ALL


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b'{"custom_id": "x", "response": {}}\n{"custom_id": "y", "error": {}}\n', r"none of its 2 answers is to a"),
        (b'{"custom_id": "\xff"}\n', r"answers.jsonl:1: is no answer of a batch"),
    ],
)
def test_answers_of_something_else_are_refused(tmp_path, content, message):
    path = tmp_path / "answers.jsonl"
    path.write_bytes(content)
    with serving(answer) as server:
        for step in ("hierarchy", "instructions", "sets"):
            assert made(tmp_path, server, hierarchy={"subdimensions": 0, "preferences": 0}).run(step)
        work = made(tmp_path, server, hierarchy={"subdimensions": 0, "preferences": 0})
        with pytest.raises(DataError, match=message):
            work.run("systems", [path])
        assert not server.bodies


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"questions.jsonl: has no record"),
        (b"\n\n", r"questions.jsonl: has no record"),
        (
            b'{"prompt": "Caf\xe9 or tea in the morning?"}\n{"prompt": "Hi"}\n{"output": "a"}\n',
            "no instruction is left; dropped: 1 bad_encoding, 1 too_short, 1 missing_field; the first: .*"
            r"questions.jsonl:2: too_short \(2 characters\), .*; all are in .*instructions/dropped.failed.jsonl$",
        ),
    ],
)
def test_sources_without_an_instruction_end_before_anything_is_asked(tmp_path, content, message):
    (tmp_path / "questions.jsonl").write_bytes(content)
    with serving(answer) as server:
        for _ in range(2):
            with pytest.raises(DataError, match=message):
                made(tmp_path, server).run()
        with pytest.raises(DataError, match=message.partition("; all are")[0]) as error:
            made(tmp_path, server).estimate()
        assert "all are in" not in str(error.value)  # a dry run leaves no file
        assert not server.bodies and not (tmp_path / "out/steps/instructions/step.json").exists()
    if content.strip():
        files = sorted(path.name for path in (tmp_path / "out/steps/instructions").iterdir())
        assert files == ["dropped.failed.jsonl"]
        lines = (tmp_path / "out/steps/instructions/dropped.failed.jsonl").read_text().splitlines()
        assert [json.loads(line)["reason"] for line in lines] == ["bad_encoding", "too_short", "missing_field"]


def test_a_try_without_an_instruction_leaves_the_files_of_the_one_before(tmp_path):
    folder = tmp_path / "out/steps/instructions"
    with serving(answer) as server:
        assert made(tmp_path, server, instructions={"min_chars": 46}).run("instructions")
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert before["dropped.jsonl"]
        with pytest.raises(DataError, match="dropped: 6 too_short"):
            made(tmp_path, server, instructions={"min_chars": 900}).run("instructions")
        assert made(tmp_path, server, instructions={"min_chars": 46}).run("instructions")
        after = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert len(after.pop("dropped.failed.jsonl").splitlines()) == 6 and after == before
        assert made(tmp_path, server).run("instructions") and not (folder / "dropped.failed.jsonl").exists()


def test_lines_that_are_not_utf_8_are_dropped_and_named(tmp_path):
    lines = [json.dumps({"prompt": "Why does bread dough rise before it is baked?"}).encode(), b'{"prompt": "\xff"}']
    (tmp_path / "questions.jsonl").write_bytes(b"\n".join(lines))
    with serving(answer) as server:
        assert made(tmp_path, server).run("instructions")
    assert facts(tmp_path, "instructions")["dropped"] == {"bad_encoding": 1}
    (dropped,) = map(json.loads, (tmp_path / "out/steps/instructions/dropped.jsonl").read_text().splitlines())
    assert dropped["place"].endswith("questions.jsonl:2") and "UTF-8" in dropped["detail"]


def test_a_synthesis_without_a_row_says_that_answers_are_missing(tmp_path):
    def script(body, count):
        if body["messages"][0]["role"] != "system":
            return answer(body)
        return Answer("<html>", 200) if QUESTIONS[0] in str(body) else Answer({"error": {"message": "down"}}, 500)

    why = "15 x status 500: down; 3 x the reply is no chat completion"
    with serving(script) as server:
        with pytest.raises(
            StorageError, match=f"responses: endpoints.default: no answer to 18 requests .{why}.; start"
        ):
            made(tmp_path, server, endpoint={"tries": 1}).run()
    with serving(answer) as server:
        assert made(tmp_path, server).run()


def test_a_bench_without_a_rubric_is_named_and_counted(tmp_path):
    """Each ask gets another fault: copied words, one description twice, a number, a word, marks of a chat."""
    example = json.loads(read_prompt("rubric").examples[0])

    def script(body, count):
        if "Write a rubric" not in body["messages"][-1]["content"]:
            return answer(body)
        rubric = json.loads(reply(body))
        scores = rubric["score_descriptions"]
        if body["seed"] == 0:
            scores["3"] = example["score_descriptions"]["2"].upper()
        elif body["seed"] == 1:
            scores["4"] = f" {scores['2']}.. "
        elif body["seed"] == 2:
            scores["1"] = "1"
        elif body["seed"] == 3:
            scores["1"] = "Très mal."
        else:
            scores["5"] += "<|im_end|>"
        return said(json.dumps(rubric))

    notes = []
    with serving(script) as server:
        assert made(tmp_path, server, tell=notes.append, bench={"asks": 5}).run()
    gates = ("chat_markup", "copied_example", "copied_form", "repeated_text", "too_short")
    rejected = dict.fromkeys(gates, 12)
    assert facts(tmp_path, "rubrics")["rejected"] == rejected
    assert facts(tmp_path, "collection")["dropped"] == {"without_rubrics": 3}
    what = "no row of the bench is complete, so its file is not written; dropped.jsonl of each step says why"
    assert f"note: bench: {what}" in notes and not (tmp_path / "out/bench").exists()
    yields = {row["what"]: row for row in json.loads((tmp_path / "out/report.json").read_text())["yields"]}
    assert yields["rubrics"] == {"what": "rubrics", "wanted": 12, "made": 0, "left_out": 12, "answers_refused": 60}


def test_a_synthesis_without_a_row_ends_with_a_report_of_what_was_left_out(tmp_path):
    def script(body, count):
        return said("I'm sorry, but I cannot help.") if body["messages"][0]["role"] == "system" else answer(body)

    with serving(script) as server:
        for _ in range(2):
            with pytest.raises(DataError, match="collection: no instruction has all its responses"):
                made(tmp_path, server).run()
        assert len(server.bodies) == ALL - 12 + 3 * 18  # no rubrics, and each response four times
    report = json.loads((tmp_path / "out/report.json").read_text())
    responses = next(row for row in report["yields"] if row["what"] == "responses")
    assert responses == {"what": "responses", "wanted": 18, "made": 0, "left_out": 18, "answers_refused": 72}
    assert "18 (100%)" in (tmp_path / "out/report.html").read_text()
    assert not (tmp_path / "out/collection/train.parquet").exists()


def test_a_file_with_a_line_that_is_no_answer_is_refused_whole(tmp_path):
    small, notes = {"hierarchy": {"subdimensions": 0, "preferences": 0}}, []
    config = load_synthesis(write_config(tmp_path, "http://127.0.0.1:9/v1", **small))
    assert not Synthesis(config, batch=True).run()
    whole = batch_answers(tmp_path, "systems", tmp_path / "whole.jsonl")
    bad = tmp_path / "bad.jsonl"
    bad.write_text(whole.read_text() + "garbage\n")
    for files in ([bad], [whole, bad]):
        with pytest.raises(DataError, match=r"bad\.jsonl:20: is no answer of a batch"):
            Synthesis(config, batch=True).run("systems", files)
        assert Synthesis(config).spent()[0] == 0
    assert Synthesis(config, batch=True, tell=notes.append).run("systems", [whole])
    assert any("18 answered, 1 repeated" in line for line in notes), notes
