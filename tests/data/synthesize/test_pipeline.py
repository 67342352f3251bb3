"""A whole synthesis against a scripted server: what it writes, what builds read, faults, kills, limits, budgets."""

import itertools
import json
import random
import signal
import time
from collections import Counter

import pyarrow.parquet
import pytest

from janus_jax.data.build.derive import derive_pairs
from janus_jax.data.build.readers import read_records
from janus_jax.data.synthesize.collection import BENCH, COLLECTION
from janus_jax.data.synthesize.config import load_synthesis
from janus_jax.data.synthesize.files import shuffled, summary
from janus_jax.data.synthesize.pipeline import Synthesis
from janus_jax.errors import ConfigError
from janus_jax.evaluation.bench.rows import read_bench
from tests.support.endpoint_server import Answer, refused, said, serving
from tests.support.synthesizing import (
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


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with a finished synthesis, and how many requests it took."""
    folder = tmp_path_factory.mktemp("whole")
    with serving(answer) as server:
        planned = sum(one.requests for one in made(folder, server).estimate())
        assert not (folder / "out").exists()  # a dry run writes nothing
        assert made(folder, server).run()
        assert len(server.bodies) == planned
        assert made(folder, server).run() and len(server.bodies) == planned  # all is made
    return folder


def test_the_collection_is_in_the_published_schema_and_builds_read_it(whole, tmp_path):
    table = pyarrow.parquet.read_table(whole / "out/collection/train.parquet")
    assert tuple(table.column_names) == COLLECTION and table.num_rows == 3 * 5
    unread: Counter[str] = Counter()
    records = list(read_records(whole / "out/collection/train.parquet", "sft", unread=unread))
    assert not unread and {record.prompt for record in records} < set(QUESTIONS)
    for record in records:
        assert [one["dimension"] for one in record.preference_set] == [
            *("style", "background_knowledge", "informativeness", "harmlessness")
        ]
        assert record.main_source == "questions" and all(map(all, (one.values() for one in record.preference_set)))
    for kind in ("dpo", "orpo", "rm"):
        pairs = list(derive_pairs(records, kind, seed=0, all_pairs=False, scratch=tmp_path, dropped=Counter()))
        assert len(pairs) == 5
    origins = [json.loads(line) for line in (whole / "out/provenance/collection.jsonl").read_text().splitlines()]
    assert len(origins) == table.num_rows and len({one["id"] for one in origins}) == len(origins)
    system = origins[0]["system"]
    assert system["model"] == "scripted" and len(system["prompts"]) == 16 and system["seed"] == 0
    assert abs(system["time"] - time.time()) < 3600


def test_the_bench_is_held_out_and_read_as_one(whole):
    bench = read_bench(whole / "out/bench/train.parquet")
    assert tuple(pyarrow.parquet.read_schema(whole / "out/bench/train.parquet").names) == BENCH
    assert len(bench) == 3 and {len(row.rubrics) for row in bench} == {4}
    held = {row.prompt for row in bench}
    assert held.isdisjoint(row.prompt for row in read_records(whole / "out/collection/train.parquet", "sft"))
    assert len(held) == 1


def test_the_report_counts_and_shows_samples(whole):
    report = json.loads((whole / "out/report.json").read_text())
    counted = {row["what"]: (row["here"], row["paper"]) for row in report["statistics"]}
    assert counted["instructions"] == (6, 65_653) and counted["system messages"] == (18, 196_956)
    assert counted["subdimensions"] == (24, 6_027) and counted["preferences"] == (72, 797_904)
    page = (whole / "out/report.html").read_text()
    assert "<svg" in page and page.count("<h4>Response</h4>") == 15 and "<script src" not in page


def test_equal_runs_in_another_order_of_instructions_make_equal_rows(whole, tmp_path):
    lines = [json.dumps({"prompt": one}) + "\n" for one in QUESTIONS[::-1]]
    (tmp_path / "questions.jsonl").write_text("".join(lines))
    with serving(answer) as server:
        assert made(tmp_path, server).run()

    def texts(folder):
        table = pyarrow.parquet.read_table(folder / "out/collection/train.parquet").to_pylist()
        return sorted(json.dumps(row, sort_keys=True) for row in table)

    assert texts(tmp_path) == texts(whole)


def test_a_limit_grows_and_never_shrinks_and_pays_once(whole, tmp_path):
    with serving(answer) as server:
        assert made(tmp_path, server, limit=2).run()
        assert len(rows(tmp_path, "systems")) == 6 and len(rows(tmp_path, "sets")) == 18
        assert made(tmp_path, server).run() and made(tmp_path, server, limit=2).run()
        assert len(rows(tmp_path, "systems")) == 18
        assert len(server.bodies) == len({json.dumps(body) for body in server.bodies})
    assert rows(tmp_path, "sets") == rows(whole, "sets")


def test_steps_alone_need_those_before_them(tmp_path):
    with serving(answer) as server:
        with pytest.raises(ConfigError, match="--step responses: the step instructions, which it needs, is not made"):
            made(tmp_path, server).run("responses")
        for step in ("hierarchy", "instructions", "sets", "systems"):
            assert made(tmp_path, server).run(step)
        with pytest.raises(ConfigError, match="the step systems, which it needs, has changed; run --step systems"):
            made(tmp_path, server, systems={"temperature": 0.5}).run("responses")
        # rows that a person edits are used, and not written over
        path = tmp_path / "out/steps/systems/rows.jsonl"
        path.write_text(path.read_text().replace("You are a model.", "You are a helpful model.", 1))
        assert made(tmp_path, server).run("responses")
        assert any("helpful" in body["messages"][0]["content"] for body in server.bodies)
        with pytest.raises(ConfigError, match=r"rows.jsonl: was edited, and the step would be made again"):
            made(tmp_path, server, systems={"temperature": 0.5}).run("systems")


@pytest.mark.parametrize(
    ("step", "column", "file"),
    [("systems", "system", "collection"), ("responses", "output", "collection"), ("rubrics", "criteria", "bench")],
)
def test_provenance_marks_texts_that_a_person_edited(tmp_path, step, column, file):
    def edited():
        lines = [*map(json.loads, (tmp_path / f"out/provenance/{file}.jsonl").read_text().splitlines())]
        parts = [(line["id"], one) for line in lines for one in (line["system"], line["response"])]
        parts += [(line["id"], one) for line in lines for one in line.get("rubrics", ())]
        return [(id_, one["model"]) for id_, one in parts if one.get("edited")]

    with serving(answer) as server:
        assert made(tmp_path, server).run() and not edited()
        published = {json.loads(line)["id"] for line in (tmp_path / f"out/provenance/{file}.jsonl").open()}
        ours = rows(tmp_path, step)
        changed, other = [row for row in ours if row["id"] in published][:2]
        changed[column] += " More."
        other["extra"] = "the text stays"
        (tmp_path / f"out/steps/{step}/rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ours))
        assert made(tmp_path, server).run() and edited() == [(changed["id"], "scripted")]


def faulty(body, count):
    """Each request meets another fault first, and then comes right; some answers are no answers."""
    if count == 0:
        kind = len(json.dumps(body)) % 5
        if kind == 0:
            return refused(429, retry_after="0.001")
        if kind == 1:
            return refused(500)
        if kind == 2:
            return Answer(said(reply(body)).body, cut=True)
        if kind == 3:
            return Answer("no JSON {")
    return said(reply(body), prompt=50, completion=20)


def test_faults_of_the_server_cost_no_row(whole, tmp_path):
    with serving(faulty) as server:
        assert made(tmp_path, server).run()
        assert len(server.answered) == len(set(server.answered))
    for step in ("hierarchy", "systems", "responses", "rubrics"):
        assert [{**row, "provenance": 0} for row in rows(tmp_path, step)] == [
            {**row, "provenance": 0} for row in rows(whole, step)
        ]


def test_responses_that_ignore_the_system_message_are_dropped_with_their_instruction(tmp_path):
    def script(body, count):
        alone = body["messages"][-1]["content"].startswith(QUESTIONS[0])
        return said("The same answer to all three people." if alone else reply(body))

    with serving(script) as server:
        assert made(tmp_path, server, bench={"instructions": 0}).run()
    responses = facts(tmp_path, "responses")
    assert responses["dropped"] == {"alike": 2} and responses["rejected"] == {"alike": 2 * 4}
    assert facts(tmp_path, "collection")["dropped"] == {"incomplete": 1}
    assert summary("collection", facts(tmp_path, "collection")) == (
        "collection: 15 rows; dropped: 1 instruction (3 rows) incomplete"
    )
    records = read_records(tmp_path / "out/collection/train.parquet", "sft")
    assert {record.prompt for record in records} == set(QUESTIONS[1:])
    assert not (tmp_path / "out/bench/train.parquet").exists()


@pytest.mark.parametrize(
    ("in_bench", "others", "refused_to", "expected"),
    [
        (1, 0, "none", []),  # no row of the collection was wanted
        (0, 1, "none", []),
        (1, 1, "others", ["note: collection: no row of the collection"]),
        (1, 1, "bench", ["note: bench: no row of the bench"]),
    ],
)
def test_with_a_limit_a_file_without_rows_is_noted_only_where_rows_were_wanted(
    whole, tmp_path, in_bench, others, refused_to, expected
):
    prompts, notes = {row["id"]: row["prompt"] for row in rows(whole, "instructions")}, []
    for seed in itertools.count():
        held = set(shuffled(prompts, seed, "bench")[:1])
        chosen = set(shuffled(prompts, seed, "limit")[: in_bench + others])
        if len(chosen & held) == in_bench:
            break
    silent = {prompts[one] for one in {"none": set(), "bench": held, "others": chosen - held}[refused_to]}

    def script(body, count):
        asked = body["messages"]
        refuses = asked[0]["role"] == "system" and asked[-1]["content"] in silent
        return said("I'm sorry, but I cannot help with that.") if refuses else answer(body)

    with serving(script) as server:
        assert made(tmp_path, server, limit=in_bench + others, seed=seed, tell=notes.append).run()
    found = [line for line in notes if "no row of the" in line]
    trial = "note: none of the 1 instruction held out for the bench is among the 1 of --limit, so this trial makes no"
    assert sum(line.startswith(trial) for line in notes) == (not in_bench)
    assert len(found) == len(expected) and all(map(str.startswith, found, expected))
    assert (tmp_path / "out/collection/train.parquet").exists() == (others and refused_to != "others")
    assert (tmp_path / "out/bench/train.parquet").exists() == (in_bench and refused_to != "bench")


def test_a_dry_run_after_a_trial_counts_all_that_is_left(tmp_path):
    def planned(**changes):
        return {one.step: (one.requests, one.in_journal) for one in made(tmp_path, server, **changes).estimate()}

    with serving(answer) as server:
        assert made(tmp_path, server, limit=2).run()
        before, bench = len(server.bodies), len(rows(tmp_path, "rubrics"))
        left = planned()
        assert left == {"systems": (12, 6), "responses": (12, 6), "rubrics": (12 - bench, bench), "collection": (0, 0)}
        warmer = planned(systems={"temperature": 0.5})  # other system messages, and so other responses
        assert warmer["systems"] == warmer["responses"] == (18, 0)
        assert made(tmp_path, server).run()
        assert len(server.bodies) - before == sum(requests for requests, _ in left.values())


def test_an_endpoint_without_structured_output_is_asked_in_words(tmp_path):
    def script(body, count):
        kind = body.get("response_format", {}).get("type")
        if kind == "json_schema":
            return refused(400, "response_format: json_schema is not supported")
        return answer(body)

    with serving(script) as server:
        assert made(tmp_path, server).run("hierarchy")
        kinds = Counter(body.get("response_format", {}).get("type") for body in server.bodies)
        assert kinds["json_object"] == 30 and kinds["json_schema"] and not kinds[None]


def test_a_budget_of_all_steps_ends_before_it_is_passed(tmp_path):
    budget = {"tokens": 60_000}
    with serving(lambda body, count: said(reply(body), prompt=400, completion=600)) as server:
        with pytest.raises(ConfigError, match=r"budget.tokens = 60,000: the budget may not suffice"):
            made(tmp_path, server, budget=budget).run()
        work = made(tmp_path, server, budget=budget)
        assert 0 < work.spent()[0] == 1000 * len(server.bodies) <= 60_000
        number = len(server.bodies)
        assert made(tmp_path, server, budget={"tokens": 10_000_000}).run()
        assert len(server.bodies) == 78 and number < 78


def test_a_batch_api_makes_what_requests_would(whole, tmp_path):
    config = load_synthesis(
        write_config(tmp_path, "http://127.0.0.1:9/v1", hierarchy={"subdimensions": 0, "preferences": 0})
    )
    notes = []
    for step in ("hierarchy", "instructions", "sets"):
        assert Synthesis(config).run(step)
    assert not Synthesis(config, batch=True, tell=notes.append).run("systems")
    (file,) = (tmp_path / "out/steps/systems/batch").iterdir()
    request = json.loads(file.read_text().splitlines()[0])
    assert request.keys() == {"custom_id", "method", "url", "body"} and request["url"] == "/v1/chat/completions"
    assert len(file.read_text().splitlines()) == 18 and any(str(file) in line for line in notes)
    send = "send requests-001.jsonl to the batch API, then run --batch --step systems --answers FILE"
    assert notes[1:] == [f"systems: 18 answers to come; {send}"]  # no text is counted before one comes
    # what waits is neither written again nor asked for
    notes.clear()
    again = Synthesis(config, batch=True, tell=notes.append)
    assert not again.run("systems") and len(list(file.parent.iterdir())) == 1 and again.waits == "systems"
    assert not any("to the batch API" in line for line in notes)
    assert notes[-1] == f"already written, waiting for answers: {file}"
    with pytest.raises(ConfigError, match="18 requests without an answer, which would be paid for twice"):
        Synthesis(config).run("systems")
    answers = batch_answers(tmp_path, "systems", tmp_path / "answers.jsonl", broken={3})
    notes.clear()
    assert not Synthesis(config, batch=True, tell=notes.append).run("systems", [answers])
    assert any("17 answered, 1 failed, 1 repeated" in line for line in notes)
    again = file.with_name("requests-002.jsonl")
    assert len(again.read_text().splitlines()) == 1  # the one that failed
    assert any("1 answer to come; send requests-002.jsonl to the" in line for line in notes)
    assert not Synthesis(config, batch=True, tell=notes.append).run("systems", [answers])  # the old file again
    assert any("19 repeated" in line for line in notes) and not file.with_name("requests-003.jsonl").exists()
    file.unlink()
    answers = batch_answers(tmp_path, "systems", tmp_path / "answers.jsonl")
    assert Synthesis(config, batch=True).run("systems", [answers])
    assert len(rows(tmp_path, "systems")) == 18 and Synthesis(config).spent()[0] == 18 * 70


def kills(folder, server, number, longest_s):
    """Starts the command, and kills it so many times at random moments; then makes the rest here."""
    draw = random.Random(number)
    config = write_config(folder, server.url, endpoint={"concurrent": 3})
    for _ in range(number):
        before = len(server.bodies)
        process = started(config)
        deadline = time.monotonic() + 120
        while process.poll() is None and len(server.bodies) == before and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(draw.uniform(0, longest_s))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert Synthesis(load_synthesis(config)).run()


def check_kills(whole, folder, number, longest_s):
    def script(body, count):
        one = answer(body)
        one.delay = 0.02
        return one

    with serving(script) as server:
        kills(folder, server, number, longest_s)
        keys = [reply["key"] for reply in replies(folder)]
        assert len(keys) == len(set(keys)) == 78  # nothing is lost, and nothing is in twice
        again = len(server.bodies) - 78
        assert 0 <= again <= 3 * number  # only what was under way when it was killed
    for step in ("hierarchy", "sets", "systems", "responses", "rubrics"):
        assert [{**row, "provenance": 0} for row in rows(folder, step)] == [
            {**row, "provenance": 0} for row in rows(whole, step)
        ]


def test_a_kill_loses_nothing_and_pays_for_nothing_twice(whole, tmp_path):
    check_kills(whole, tmp_path, 1, 0.2)


@pytest.mark.slow
def test_many_kills_lose_nothing_and_pay_for_nothing_twice(whole, tmp_path):
    check_kills(whole, tmp_path, 12, 0.5)
