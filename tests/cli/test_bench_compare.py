"""`janus bench compare` and `table` against synthetic judges: what they prefer is recovered within the interval."""

import csv
import json
import random
import re

import pytest

from tests.support.benches import answers_to, asked_about, bench_row, write_rows
from tests.support.endpoint_server import said, serving

pytest.importorskip("openai")

ROWS = [bench_row(number) for number in range(60)]


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    bench = write_rows(tmp_path / "bench.jsonl", ROWS)
    own = write_rows(tmp_path / "own.jsonl", answers_to(ROWS, "Own {number}."))
    return bench, own, write_rows(tmp_path / "other.jsonl", answers_to(ROWS, "Other {number}, longer."))


def test_a_known_preference_is_recovered_and_a_bias_for_a_place_is_told(janus, files, tmp_path):
    bench, own, other = files

    def prefers(body, count):
        """Of 70 % of all rows the own answer, of the others the other one."""
        task = body["messages"][-1]["content"]
        (number,) = set(re.findall(r"Question (\d+)\?", task))
        first = task.index("Own") < task.index("Other")
        return said(f"[RESULT] {'AB'[(random.Random(number).random() < 0.7) != first]}")

    def run(script, name, *options):
        with serving(script) as server:
            words = ("bench", "compare", bench, "--answers", own, "--against", other, "--judge", "j")
            where = ("--base-url", server.url, "--out", tmp_path / name, "--json", tmp_path / f"{name}.json")
            code, out, err = janus(*words, *where, *options)
            assert code == 0, err
            return out, json.loads((tmp_path / f"{name}.json").read_text()), server.bodies

    out, lines, bodies = run(prefers, "steady", "--csv", tmp_path / "pairs.csv")
    assert len(bodies) == 2 * len(ROWS)
    assert lines["low"] <= 0.7 <= lines["high"] and lines["consistent"] == 1 and lines["low"] > 0.5
    assert "inconsistent" not in out and "120 verdicts in" in out
    (row,) = csv.DictReader((tmp_path / "pairs.csv").open())
    assert row["name"] == "own against other" and row["pairs"] == "60" and len(lines["of_pairs"]) == 60
    assert float(row["score % low"]) == pytest.approx(100 * lines["low"]) and lines["kind"] == "pairwise"
    assert run(prefers, "again", "--limit", 5)[1]["pairs"] == 5
    out, lines, _ = run(lambda body, count: said("[RESULT] A"), "biased")
    assert (lines["score"], lines["consistent"], lines["first_place"]) == (0.5, 0, 1)
    assert "50.000 [50.000, 50.000]" in out and "the judge is inconsistent" in out
    assert "no pair has a winner and answers of different lengths" in out and "nan" not in out
    code, _, err = janus("bench", "table", tmp_path / "biased")
    assert code == 2 and "holds verdicts of kind 'pairwise'" in err


def test_a_judge_with_a_known_mean_is_recovered_by_the_table(janus, files, tmp_path):
    bench, own, _ = files

    def scores(body, count):
        row, rubric = asked_about(body)
        drawn = random.Random(f"{row} {rubric} {body['seed']}").choices([1, 2, 3, 4, 5], [1, 1, 2, 3, 3])
        return said(f"A score of 5 needs more. [RESULT] {drawn[0]}")

    with serving(scores) as server:
        words = ("bench", "judge", bench, "--answers", own, "--judge", "j", "--base-url", server.url)
        assert janus(*words, "--out", tmp_path / "judged")[0] == 0
    code, _, err = janus("bench", "table", tmp_path / "judged", "--json", tmp_path / "t.json")
    assert code == 0, err
    whole = json.loads((tmp_path / "t.json").read_text())["models"][0]["groups"][0]
    assert whole["low"] <= 3.6 <= whole["high"] and whole["high"] - whole["low"] < 0.5
    assert (whole["rows"], whole["verdicts"], whole["failed"]) == (60, 360, 0)
