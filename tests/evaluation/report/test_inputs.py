"""What is given is recognised by what it holds; all else is refused by name, and nothing is written."""

import json
import os
import sys

import pytest

from janus_jax.errors import DataError
from janus_jax.evaluation.bench.rows import read_bench
from janus_jax.evaluation.report import inputs
from tests.support.benches import bench_row, write_rows
from tests.support.judged import judged
from tests.support.reported import answer_line, table_json, write_lines, write_run


def test_each_kind_is_recognised_whatever_its_name(tmp_path):
    run = write_run(tmp_path / "a.json")
    table = write_lines(tmp_path / "b.jsonl", [table_json()])
    answers = write_lines(tmp_path / "c", [answer_line("Q?", "s", "A."), answer_line("R?", "", "B.")])
    one = write_lines(tmp_path / "d.json", [answer_line("Q?", "s", "A.")])
    read = inputs.read([str(path) for path in (run, table, answers, one)])
    assert [one.label for one in read.runs] == ["a.json"] and [one.label for one in read.results] == ["b.jsonl"]
    assert read.files == [("c", str(answers), 2), ("d.json", str(one), 1)] and len(read.answers) == 3


def test_directories_of_a_judge(tmp_path):
    rows = read_bench(write_rows(tmp_path / "bench.jsonl", [bench_row(number) for number in range(4)]))
    done = judged(tmp_path / "done", rows, lambda row, rubric, run: None if row == 0 else 4)
    begun = judged(tmp_path / "begun", rows, lambda row, rubric, run: 4)
    (begun / "judgements.jsonl").unlink()
    first, second = inputs.read([str(done), str(begun)]).results
    assert first.table.rows[0].values == [3, 6, 4] and first.paper and first.paper["place"].startswith("Table 2")
    assert any("warning: done: 6 of 24 verdicts failed" in note for note in first.table.notes)
    assert second.table.notes == ["warning: the judge has not come to its end, so no verdict is counted"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone", None, "gone: no such file or directory; allowed: a run.dir"),
        ("empty.json", "", "empty.json: is empty; allowed: "),
        ("words.txt", "hello", "words.txt: is not recognised; allowed: "),
        ("other.json", '{"results": {}}', "other.json: is not recognised; allowed: "),
        ("lm.json", '{"results": {}, "configs": {}}', "lm.json: holds results of lm-eval; give the table that"),
        ("zeros", "\0" * 9, "zeros: is not recognised"),
        ("deep.json", "[" * 9999, "deep.json: is not recognised"),
        ("columns.json", json.dumps(table_json(columns=[1])), "columns.json: columns: allowed: a list of texts"),
        ("rows.json", json.dumps(table_json(rows=[{"name": "x"}])), "rows.json: row 1: allowed: an object with name"),
        (
            "short.json",
            json.dumps(table_json(rows=[{"name": "x", "values": [1]}])),
            "short.json: row 1: values: allowed: 2 numbers, one for each column",
        ),
        (
            "text.json",
            json.dumps(table_json(rows=[{"name": "x", "values": [1, "high"]}])),
            'text.json: row 1: values has "high"; allowed: numbers and null',
        ),
    ],
)
def test_what_is_not_recognised_is_refused_in_one_line(janus, tmp_path, name, content, message):
    run = write_run(tmp_path / "run")
    if content is not None:
        (tmp_path / name).write_text(content)
    code, out, err = janus("report", run, tmp_path / name, "--out", tmp_path / "r.html")
    assert code == 2 and message in err and err.count("\n") == 1 and not out
    assert not list(tmp_path.glob("*r.html*")) and not list(tmp_path.glob(".*"))


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe: is no file and no directory"):
        inputs.read([str(tmp_path / "pipe")])


@pytest.mark.parametrize("given", ["", "X="])
def test_a_name_without_a_path_is_refused(given):
    with pytest.raises(DataError, match="names no path; allowed: PATH or NAME=PATH"):
        inputs.read([given])


def test_a_directory_of_runs_names_them(tmp_path):
    write_run(tmp_path / "runs" / "sft")
    with pytest.raises(DataError, match="it holds the runs sft: name them"):
        inputs.read([str(tmp_path / "runs")])


def test_names(tmp_path):
    one, two = write_run(tmp_path / "x" / "run"), write_run(tmp_path / "y=z" / "run")
    assert [run.label for run in inputs.read([str(one), str(two)]).runs] == ["x/run", "y=z/run"]
    assert [run.label for run in inputs.read([f"SFT={one}", f"<b>={two}"]).runs] == ["SFT", "<b>"]
    with pytest.raises(DataError, match="is given twice"):
        inputs.read([str(one), f"again={one}/"])
    with pytest.raises(DataError, match="A=: names two inputs"):
        inputs.read([f"A={one}", f"A={two}"])


def test_a_bad_line_of_answers_is_left_out_and_named(tmp_path):
    answers = write_lines(tmp_path / "a.jsonl", [answer_line("Q?", "s", "A."), {"x": 1}, {"x": 2}])
    read = inputs.read([str(answers)])
    assert len(read.answers) == 1 and read.notes == [
        f"{answers}:2 and 1 more lines: no answers to messages, or cut short; left out"
    ]


def test_the_command_writes_the_page_and_says_what_is_missing(janus, tmp_path):
    run = write_run(tmp_path / "run", finished=False)
    code, out, err = janus("report", f"mine={run}", "--out", tmp_path / "r.html", "--title", "T")
    assert code == 0 and "r.html: 1 run\n" in out
    assert err.startswith("note: mine: summary.json is missing") and err.count("\n") == 1
    assert "<title>T</title>" in (tmp_path / "r.html").read_text()
    for name, message in (("r.txt", "a name that ends in .html"), ("no/r.html", "is not a directory")):
        code, _, err = janus("report", "nowhere", "--out", tmp_path / name)
        assert code == 2 and message in err


def test_it_needs_no_device_library(tmp_path):
    import subprocess

    run = write_run(tmp_path / "run")
    code = (
        "import sys\nfrom janus_jax.evaluation.report import inputs, page\nfrom pathlib import Path\n"
        f"page.page(inputs.read([{str(run)!r}]), 't', Path('r.html'))\n"
        "print([name for name in ('jax', 'orbax', 'tensorflow', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr
