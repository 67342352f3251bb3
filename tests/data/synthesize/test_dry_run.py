"""A dry run says what the run would do with the files that are there: journals, batch files, rows that were edited."""

import json

import pytest

from janus_jax.data.synthesize import dry_run
from janus_jax.data.synthesize.config import load_synthesis
from janus_jax.data.synthesize.pipeline import Synthesis
from janus_jax.errors import ConfigError, DataError
from janus_jax.storage.endpoint_requests import BudgetError
from tests.support.endpoint_server import serving
from tests.support.synthesizing import answer, batch_answers, made, rows, write_config

pytest.importorskip("openai")
pytest.importorskip("datasketch")


def refusal(work, match, *steps):
    """The error of a dry run, which is that of the run, and the lines before it."""
    lines = []
    with pytest.raises(ConfigError, match=match) as dry:
        for line in dry_run.lines(work, *steps):
            lines.append(line)
    with pytest.raises(ConfigError) as run:
        work.run(*steps)
    assert str(dry.value) == str(run.value)
    return lines


def test_it_refuses_what_the_run_refuses(tmp_path):
    small = {"hierarchy": {"subdimensions": 0, "preferences": 0}}
    with serving(answer) as server:
        work = Synthesis(load_synthesis(write_config(tmp_path, server.url, **small)), batch=True)
        assert not work.run()
        lines = refusal(made(tmp_path, server, **small), "has 18 requests without an answer, which would be paid")
        assert any(line.startswith("systems ") for line in lines)  # the figures come first
        for path in (tmp_path / "out/steps/systems/batch").iterdir():
            path.unlink()
        assert made(tmp_path, server, **small).run()
        path, sent = tmp_path / "out/steps/systems/rows.jsonl", len(server.bodies)
        path.write_text(path.read_text().replace("You are a model.", "You are a helpful model.", 1))
        refusal(made(tmp_path, server, systems={"temperature": 0.5}, **small), r"systems/rows.jsonl: was edited, and")
        assert len(server.bodies) == sent
        assert list(dry_run.lines(made(tmp_path, server, **small), "systems"))  # used as they are


def test_a_bench_of_all_instructions_is_refused_with_what_the_sources_dropped(tmp_path):
    only, every = {"sources": [{"path": str(tmp_path / "questions.jsonl"), "first": 1}]}, {"max_chars": 45}
    what = (
        "bench.instructions = 1: allowed: fewer than the 1 instruction that the sources leave .instructions: 1 row of"
    )
    for change, read in ((only, "1 record"), (every, "6 records; dropped: 5 too_long")):
        with serving(answer) as server, pytest.raises(DataError, match=f"{what} {read}."):
            made(tmp_path, server, instructions=change).estimate()


def test_it_counts_the_answers_of_a_hierarchy_that_was_stopped(tmp_path):
    with serving(answer) as server:
        (whole,) = made(tmp_path, server).estimate("hierarchy")
        assert whole.in_journal == 0 and not (tmp_path / "out/steps").exists()
        with pytest.raises(ConfigError, match="the budget may not suffice") as stopped:
            made(tmp_path, server, budget={"tokens": 4_000}).run("hierarchy")
        assert isinstance(stopped.value.__cause__, BudgetError)
        paid, before = len(server.bodies), sorted((tmp_path / "out").rglob("*"))
        (left,) = made(tmp_path, server).estimate("hierarchy")
        assert 0 < left.in_journal == paid and left.requests + paid == whole.requests
        assert sorted((tmp_path / "out").rglob("*")) == before and len(server.bodies) == paid
        assert made(tmp_path, server).run("hierarchy")
        assert len(server.bodies) == whole.requests and rows(tmp_path, "hierarchy")


def test_it_counts_further_requests_for_answers_that_pass_no_more(tmp_path):
    with serving(answer) as server:
        assert made(tmp_path, server, responses={"asks": 2}).run()
        sizes = sorted(len(row["output"]) for row in rows(tmp_path, "responses"))
        stricter = {"responses": {"asks": 2, "min_chars": sizes[9]}, "budget": {"tokens": 5_000}}
        refused, sent = sum(size < sizes[9] for size in sizes), len(server.bodies)
        work = made(tmp_path, server, **stricter)
        planned = {one.step: (one.requests, one.in_journal) for one in work.estimate()}
        assert planned["responses"] == (refused, len(sizes)) and refused
        assert any("budget.tokens = 5,000: the run will probably stop" in line for line in dry_run.lines(work))
        assert len(server.bodies) == sent
        assert made(tmp_path, server, responses=stricter["responses"]).run()
        assert len(server.bodies) - sent == refused


def test_it_counts_further_requests_of_a_batch(tmp_path):
    small = {"hierarchy": {"subdimensions": 0, "preferences": 0}}
    config = load_synthesis(write_config(tmp_path, "http://127.0.0.1:9/v1", systems={"asks": 2}, **small))
    assert not Synthesis(config, batch=True).run()
    batch, short = tmp_path / "out/steps/systems/batch", {1, 2, 5}
    answers = batch_answers(tmp_path, "systems", tmp_path / "answers.jsonl", short=short)
    with answers.open() as lines:
        answers.with_name("part.jsonl").write_text("".join(list(lines)[:12]))
    notes = []
    assert not Synthesis(config, batch=True, tell=notes.append).run("systems", [answers.with_name("part.jsonl")])
    (systems,) = (one for one in Synthesis(config).estimate() if one.step == "systems")
    further = len((batch / "requests-002.jsonl").read_text().splitlines())
    assert further and (systems.requests, systems.in_journal) == (6 + further, 12)
    where = f"{6 + further} answers to come (6 of requests-001.jsonl, {further} of requests-002.jsonl)"
    assert any(f"systems: {where}; send requests-002.jsonl to" in line for line in notes), notes


def test_it_keeps_the_sets_that_were_drawn_when_instructions_come_later(tmp_path):
    with serving(answer) as server:
        assert made(tmp_path, server).run()
        with (tmp_path / "questions.jsonl").open("a") as lines:
            lines.write(json.dumps({"prompt": "Where do swallows spend the winter months, and why?"}) + "\n")
        sent, planned = len(server.bodies), made(tmp_path, server).estimate()
        assert made(tmp_path, server).run()
        assert len(server.bodies) - sent == sum(one.requests for one in planned) == 6
