"""Means of judged answers: right by hand, known preferences inside the interval, failures said."""

import csv
import io
import json

import numpy as np
import pytest

from janus_jax.errors import ConfigError, DataError
from janus_jax.evaluation.bench import judgements, tables
from janus_jax.evaluation.bench.rows import read_bench
from janus_jax.evaluation.intervals import mean_interval
from tests.support.benches import bench_row, write_rows
from tests.support.judged import judged


@pytest.fixture
def rows(tmp_path):
    return read_bench(write_rows(tmp_path / "bench.jsonl", [bench_row(number) for number in range(4)]))


def test_a_mean_is_of_rows_of_rubrics_of_runs(tmp_path, rows):
    failed = {(0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1)}
    kept = judgements.read(
        judged(tmp_path / "m", rows, lambda n, k, r: None if (n, k, r) in failed else 1 + n + r, runs=2), "absolute"
    )
    assert tables.row_scores(kept) == {rows[0].id: 1.5, rows[2].id: 3.5, rows[3].id: 4.5}
    assert tables.run_means(kept) == pytest.approx([8 / 3, 11 / 3])
    made = tables.groups(kept, "m", {})
    whole, *by_source = made
    assert (whole.rows, whole.scored, whole.verdicts, whole.failed) == (4, 3, 16, 6)
    assert whole.mean == pytest.approx(9.5 / 3)
    assert [(group.name, group.rows, group.mean) for group in by_source] == [("alpaca", 2, 4.5), ("koala", 2, 2.5)]
    lines = tables.table([kept], [made]).lines()
    warning = "warning: m: 6 of 16 verdicts failed; they count nowhere; most often: no verdict in 5 replies"
    assert warning in lines and "warning: m: 1 row without any score, in no mean" in lines
    assert any(line.startswith("m: judge j, runs 2, means of the runs 2.67, 3.67, temperature 1.0") for line in lines)
    assert any(line.split()[:5] == ["m:", "koala", "2", "2", "2.500"] for line in lines)
    assert any(line.startswith("note: m: the paper's judge was gpt-4-0125-preview") for line in lines)
    assert any(line.split()[:2] == ["Janus", "7B"] and line.split()[-1] == "4.17" for line in lines)


def test_rows_of_several_sets_are_counted_and_in_no_column(tmp_path, rows, janus):
    first = write_rows(tmp_path / "first.jsonl", [{"instruction": " Question  0?"}, {"instruction": "Question 1?"}])
    second = write_rows(tmp_path / "second.jsonl", [{"prompt": "Question 1?"}, {"prompt": "Question 2?\n"}])
    sets = tables.parse_sets([f"first={first}", f"second={second}"])
    kept = judgements.read(judged(tmp_path / "m", rows, lambda n, k, r: 1 + n), "absolute")
    made = {group.name: group for group in tables.groups(kept, "m", sets) if group.by == "set"}
    assert {name: (group.rows, group.mean) for name, group in made.items()} == {
        "first": (1, 1.0),
        "second": (1, 3.0),
        "several sets": (1, 2.0),
        "no set": (1, 4.0),
    }
    judged(tmp_path / "other", rows, lambda n, k, r: 5, judge="another")
    files = ("--json", tmp_path / "t.json", "--csv", tmp_path / "t.csv", "--set", f"first={first}")
    code, out, err = janus("bench", "table", tmp_path / "m", tmp_path / "other", *files, "--set", f"second={second}")
    assert code == 0 and "warning: m: 1 rows lie in several sets, so no set's mean is exact" in out, err
    assert "warning: m and other: judge differ, so their means do not compare" in out
    read = list(csv.DictReader(io.StringIO((tmp_path / "t.csv").read_text())))
    names = ["m", "m: alpaca", "m: koala", "m: first only", "m: second only", "m: several sets", "m: no set", "other"]
    assert [row["name"] for row in read[:8]] == names and len(read) == 14 and read[0]["score"] == "2.5"
    output = json.loads((tmp_path / "t.json").read_text())
    assert output["kind"] == "bench" and output["settings"]["other"]["judge"] == "another"
    assert output["models"][1]["groups"][0]["mean"] == 5 and output["paper"]["rows"]["Janus 7B"][-1] == 4.17
    for words, says in (
        ((tmp_path,), "holds no verdicts: settings.json is missing"),
        ((tmp_path / "m", "--set", "x"), "--set x: allowed: NAME=FILE"),
        ((tmp_path / "m", "--csv", tmp_path), "--csv"),
    ):
        code, _, err = janus("bench", "table", *words)
        assert code == 2 and says in err


def test_a_judge_with_a_known_mean_is_recovered_over_seeds(tmp_path):
    """Rows differ, rubrics and runs differ within a row; the mean of all of it is 3."""
    made = read_bench(write_rows(tmp_path / "many.jsonl", [bench_row(number) for number in range(50)]))
    inside = 0
    for seed in range(30):
        draw = np.random.default_rng(seed)
        of_rows = draw.choice([2, 3, 4], len(made))
        path = judged(tmp_path / str(seed), made, lambda n, k, r, d=draw, of=of_rows: int(of[n] + d.integers(-1, 2)))
        (whole, *_) = tables.groups(judgements.read(path, "absolute"), "m", {})
        inside += whole.low <= 3 <= whole.high
        assert whole.high - whole.low < 0.7
    assert inside >= 26


def test_a_known_mean_lies_in_its_interval():
    """Of 200 samples whose mean is known, about 95 % of the intervals hold it."""
    generator = np.random.default_rng(1)
    inside = 0
    for _ in range(200):
        low, high = mean_interval(generator.choice([1, 2, 3, 4, 5], 60, p=[0.1, 0.1, 0.2, 0.3, 0.3]))
        inside += low <= 3.6 <= high
    assert 180 <= inside <= 198
    assert mean_interval(np.array([2.0, 2.0])) == (2.0, 2.0)
    assert np.isnan(mean_interval(np.array([]))).all()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", "judgements.jsonl:2: is damaged: allowed: an object"),
        ('{"id": "0", "run": 0, "reason": "", "rubric": 0}', "judgements.jsonl:2: is damaged: score is missing"),
    ],
)
def test_a_damaged_line_of_verdicts_is_named(tmp_path, rows, line, message):
    directory = judged(tmp_path / "m", rows, lambda *_: 3)
    path = directory / judgements.JUDGEMENTS
    path.write_text(f"{path.read_text().splitlines()[0]}\n{line}\n")
    with pytest.raises(ConfigError, match=message):
        judgements.read(directory, "absolute")


def test_damaged_settings_and_a_directory_given_twice_are_named(tmp_path, rows):
    directory = judged(tmp_path / "m", rows, lambda *_: 3)
    with pytest.raises(ConfigError, match=r"m/\.\./m: is given twice"):
        tables.names_of([directory, tmp_path / "m" / ".." / "m"])
    path = directory / judgements.SETTINGS
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != "runs"}))
    with pytest.raises(ConfigError, match=r"settings.json: is damaged: runs is missing"):
        judgements.read(directory, "absolute")


def test_judges_with_other_limits_of_tokens_do_not_compare(tmp_path, rows):
    made = [
        judgements.read(judged(tmp_path / f"{most}", rows, lambda *_: 3, max_completion_tokens=most), "absolute")
        for most in (16, 1024)
    ]
    notes = tables.table(made, [tables.groups(one, one.path.name, {}) for one in made]).notes
    assert any("max_completion_tokens differ, so their means do not compare" in note for note in notes)


def test_a_prompt_of_a_set_that_cannot_be_read_is_named(tmp_path):
    path = write_rows(tmp_path / "set.jsonl", [{"prompt": "Why?"}, {"prompt": 5}])
    with pytest.raises(DataError, match=r"set.jsonl:2: column 'prompt' must be a string"):
        tables.read_set(path)
