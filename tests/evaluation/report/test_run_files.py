"""Run directories that are not whole: what is there is read, what is missing is named."""

import json
import shutil

import pytest

from janus_jax.evaluation.report import facts
from janus_jax.evaluation.report.facts import state
from janus_jax.evaluation.report.run_files import looks_like_a_run, read_run
from janus_jax.storage.bucket import Prefix
from janus_jax.storage.local import place
from tests.support.reported import answer_line, records, write_lines, write_run


def missing(run):
    return "\n".join(read_run(run, "run").missing)


def test_a_whole_run_lacks_nothing(tmp_path):
    run = read_run(write_run(tmp_path / "run"), "run")
    assert run.missing == () and state(run).text == "finished" and run.last_step == 20
    assert run.seconds["step"] == 90 and [start.finished for start in run.starts] == [False, True]
    assert run.starts[0].saved == (10,) and run.meta["template"] == "mistral-inst"


def test_a_run_that_goes_on_has_no_final_record(tmp_path):
    directory = write_run(tmp_path / "run", finished=False, checkpoints=())
    run = read_run(directory, "run")
    assert "summary.json is missing: the run is still going on, or was killed" in missing(directory)
    assert "no checkpoint is whole yet" in missing(directory)
    assert state(run).text == "no final record; step 20 is the newest"
    (directory / "lock.json").write_text(json.dumps({"host": "tpu-0", "pid": 7}))
    assert state(read_run(directory, "run")).text.startswith("going on, or killed: its lock names host tpu-0, pid 7")


def test_a_run_killed_before_its_first_record_is_a_run(tmp_path):
    directory = write_run(tmp_path / "run")
    for name in ("metrics.jsonl", "goodput.json", "summary.json"):
        (directory / name).unlink()
    shutil.rmtree(directory / "checkpoints")
    assert looks_like_a_run(directory)
    assert "no step was logged yet" in missing(directory) and "goodput.json is missing" in missing(directory)
    assert read_run(directory, "run").curves.empty
    (directory / "metrics.jsonl").touch()
    assert "the metrics are empty" in missing(directory)


@pytest.mark.parametrize("last", ['{"kind": "tr', "[1]", '{"kind": "train", "step": 1e400}', "\x00\x00", "[" * 9999])
def test_a_line_that_is_cut_short_is_left_out_and_named(tmp_path, last):
    directory = write_run(tmp_path / "run")
    with (directory / "metrics.jsonl").open("a") as file:
        file.write(last)
    run = read_run(directory, "run")
    assert f"metrics.jsonl:{len(records()) + 1}: is cut short" in missing(directory)
    assert len(run.curves.points("train", "loss")[0]) == 20


def test_of_many_bad_lines_the_rest_are_counted(tmp_path):
    directory = write_run(tmp_path / "run")
    (directory / "metrics.jsonl").write_text("x\n" * 10)
    assert missing(directory).count("is cut short") == 3 and "7 more lines" in missing(directory)


def test_values_that_are_not_finite_stay_gaps(tmp_path):
    lines = records()
    lines[3]["loss"] = None
    lines.append({"kind": "nonfinite", "step": 4, "loss": None, "batch": {"data/sft": [7]}})
    directory = write_run(tmp_path / "run", lines)
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 21, "loss": NaN, "grad_norm": Infinity}\n')
    run = read_run(directory, "run")
    assert run.missing == () and [one["step"] for one in run.nonfinite] == [4]


@pytest.mark.parametrize("name", ["summary.json", "goodput.json", "config.yaml"])
@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"\xff\xfe", b"null", b'!!float ""', b"!!timestamp x"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, content):
    directory = write_run(tmp_path / "run")
    (directory / name).write_bytes(content)
    assert f"{name} cannot be read, so nothing of it is shown" in missing(directory)


@pytest.mark.parametrize("last", ["<<: [*a, *a]", "a: [*a, *a]"])
def test_a_configuration_of_aliases_is_not_expanded(tmp_path, last):
    """Lines of aliases to aliases are billions of values; an alias of itself has no end."""
    directory = write_run(tmp_path / "run")
    for text in (f"objective: {{name: sft}}\nx: &a {{y: 1}}\n{last}\n", "objective: {name: sft}\na: &a [*a]\n"):
        (directory / "config.yaml").write_text(text)
        run = read_run(directory, "run")
        assert "config.yaml cannot be read, so nothing of it is shown" in "\n".join(run.missing) and not run.config


def test_a_step_of_thousands_of_digits_is_none(tmp_path):
    directory = write_run(tmp_path / "run")
    (directory / "goodput.json").write_text(json.dumps({"starts": [{"saved": {"9" * 5000: 1, "3": 1}}]}))
    assert read_run(directory, "run").starts[0].saved == (3,)


@pytest.mark.parametrize(
    "account", [{"starts": 3}, {"starts": [None, {"seconds": "x"}]}, {"starts": [{"seconds": {"step": "long"}}]}]
)
def test_an_account_of_another_form_counts_as_none(tmp_path, account):
    directory = write_run(tmp_path / "run")
    (directory / "goodput.json").write_text(json.dumps(account))
    assert sum(read_run(directory, "run").seconds.values()) in (0, 100)


def test_samples_are_missed_where_the_configuration_asks_for_them(tmp_path):
    directory = write_run(tmp_path / "run", config={"samples": {"prompts": "p.jsonl"}})
    assert "no samples were written yet" in missing(directory)
    write_lines(directory / "samples" / "5.jsonl", [answer_line("Q?", "s", "A."), {"no": "answers"}])
    assert "samples/5.jsonl:2: no answers" in missing(directory)
    assert [one.step for one in read_run(directory, "run").samples] == [5]


def test_of_many_steps_the_first_and_the_newest_are_read(tmp_path):
    directory = write_run(tmp_path / "run")
    for step in range(0, 100, 5):
        write_lines(directory / "samples" / f"{step}.jsonl", [answer_line("Q?", "s", "A.")])
    run = read_run(directory, "run")
    steps = [one.step for one in run.samples]
    assert (steps[0], steps[-1], len(steps)) == (0, 95, 5) and "samples of 15 more steps" in missing(directory)


def test_a_checkpoint_without_its_mark_does_not_count(tmp_path):
    directory = write_run(tmp_path / "run", checkpoints=(10, 20))
    (directory / "checkpoints" / "20" / "commit_success.txt").unlink()
    assert read_run(directory, "run").checkpoints == (10,)


def test_a_run_in_a_bucket_reads_as_the_same_run_here(tmp_path, bucket):
    directory = write_run(tmp_path / "run", checkpoints=(10, 20))
    write_lines(directory / "samples" / "5.jsonl", [answer_line("Q?", "s", "A.")])
    (directory / "exports" / "20").mkdir(parents=True)
    (directory / "exports" / "20" / "config.json").write_text("{}")
    for item in directory.glob("checkpoints/*/*"):
        if item.is_dir():
            (item / "data").write_text("x")  # a bucket has no empty directories
    Prefix(f"{bucket}/run").upload(
        directory, [str(f.relative_to(directory)) for f in directory.rglob("*") if f.is_file()]
    )
    here, remote = read_run(directory, "run"), read_run(f"{bucket}/run", "run")
    assert remote.missing == () and looks_like_a_run(place(f"{bucket}/run"))
    for name in ("starts", "checkpoints", "exports", "samples", "summary", "config", "meta"):
        assert getattr(remote, name) == getattr(here, name), name
    assert remote.curves.points("eval", "loss")[1].tolist() == here.curves.points("eval", "loss")[1].tolist()
    groups = facts.places(remote, tmp_path / "r.html")
    assert [one.href for _, links, _ in groups for one in links] == ["", "", ""]
    assert groups[0][1][0].text == f"step 20: {bucket}/run/exports/20"
