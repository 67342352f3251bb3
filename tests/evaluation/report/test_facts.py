"""What the page says of runs."""

import dataclasses

import pytest

from janus_jax.evaluation.report import facts
from janus_jax.evaluation.report.run_files import read_run
from tests.support.reported import records, write_run


@pytest.fixture
def runs(tmp_path):
    made = {"a": {"schedule": {"learning_rate": 1e-3}}, "b": {"schedule": {"learning_rate": 2e-3}, "samples": None}}
    return [read_run(write_run(tmp_path / name, config=config), name) for name, config in made.items()]


def test_only_settings_that_differ_are_compared(runs):
    rows, more = facts.differences(runs)
    assert dict(rows)["schedule.learning_rate"] == ["0.001", "0.002"] and more == 0
    assert [key for key, _ in rows] == ["run.dir", "schedule.learning_rate"]


def test_the_summary_has_a_cell_for_each_run(tmp_path, runs):
    pairs = read_run(write_run(tmp_path / "c", records(pairs=True), config={"objective": {"name": "rm"}}), "c")
    rows = dict(facts.summary_rows([*runs, pairs]))
    assert rows["objective"] == ["sft", "sft", "rm"] and rows["held-out accuracy"] == ["", "", "0.5 (step 20)"]
    assert rows["steps"] == ["20 of 20"] * 3 and rows["share of training"] == ["90%"] * 3


def test_starts_say_what_was_saved_and_how_they_ended(runs):
    first, second = facts.start_rows(runs[0])
    assert first[1:] == [
        "2001-09-09 01:46:40 UTC",
        "2001-09-09 01:47:30 UTC",
        "40 s",
        "1 save, newest step 10",
        "ended before the last step; the next one began 4 s later",
    ]
    assert second[0] == "2" and second[-1] == "finished"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"ended": "finished"}, "finished"),
        ({"ended": "interrupted"}, "interrupted at step 20 of 30"),
        ({"ended": "loss did not improve"}, "stopped early at step 20 of 30: loss did not improve"),
    ],
)
def test_how_a_run_ended(runs, changes, text):
    runs[0].summary.update(total_steps=30, **changes)
    assert facts.state(runs[0]).text == text


def test_links_are_relative_to_the_page_and_safe(tmp_path):
    link = facts.link(str(tmp_path / 'a "b" #?<%' / "exports"), "step 1", tmp_path / "pages" / "r.html")
    assert link.href == "./../a%20%22b%22%20%23%3F%3C%25/exports"
    assert facts.link("gs://b/run/exports/1", "step 1", tmp_path / "r.html").href == ""
    assert facts.link("javascript:alert(1)", "x", tmp_path / "r.html").href.startswith("./")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (1234567, "1,234,567"),
        (5e-6, "5e-06"),
        ("a" * 64, "aaaaaaaaaaaa…"),
        ({"a": 1, "b": {"c": 2}}, "a 1; b c 2"),
        ([1, "x"], '[1, "x"]'),
        (10**400, "a number of more than 64 bits"),
    ],
)
def test_values_as_words(value, text):
    assert facts.words(value) == text


def test_a_value_that_holds_itself_ends(tmp_path):
    loop: dict = {}
    loop["self"] = loop
    assert facts.words([loop]) == "a value that is not shown"


def test_values_of_any_size_are_said(tmp_path):
    run = read_run(write_run(tmp_path / "run"), "run")
    run.summary.update(fill=10**400, tokens=1e400, goodput={"compile": 5.0}, best={"loss": None, "step": "x"})
    run.meta.update(data=[{}], model={"num_layers": None})
    lone = dataclasses.replace(run, starts=())
    assert dict(facts.summary_rows([lone]))["share of training"] == ["0%"]
    assert facts.data_sets(lone) == ([], [])
