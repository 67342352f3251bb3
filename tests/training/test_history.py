"""The records of a run over all its starts, from files and from the parts of a bucket."""

import json
import math

import pytest

from janus_jax.checkpoint.run_dir import RunDir
from janus_jax.storage.local import finite, place, write_whole
from janus_jax.training.history import best_record, kept, last_records, lines, newest_start

FIRST, SECOND, THIRD = "1764246000.0aff", "1764246001.0000", "1764246002.ffff"


def text(*records):
    """Lines of (kind, step, loss)."""
    return "".join(json.dumps(finite({"kind": k, "step": s, "loss": loss})) + "\n" for k, s, loss in records)


def losses(run):
    return [json.loads(line.text)["loss"] for line in lines(run)]


@pytest.fixture(params=["local", "bucket"])
def run(request, tmp_path):
    """An empty run directory, local or in a bucket."""
    return RunDir(place(f"{request.getfixturevalue('bucket')}/run" if request.param == "bucket" else tmp_path / "run"))


def write(run, parts, whole=None):
    """Parts: (start, resumed at, number) -> text."""
    files = {run.metrics_part(*part): content for part, content in parts.items()}
    for file, content in {**files, **({run.metrics: whole} if whole else {})}.items():
        if not str(file).startswith("gs://"):
            file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, content)


def test_what_earlier_starts_wrote_after_the_step_of_a_later_one_does_not_count(run):
    write(
        run,
        {
            (FIRST, 0, 1): text(("eval", 0, 0.0), ("train", 1, 1.0), ("train", 2, 2.0)),
            (FIRST, 0, 2): text(("train", 3, 3.0), ("train", 4, 4.0)),
            (SECOND, 3, 1): text(("train", 4, 40.0), ("eval", 4, 41.0)),
            (SECOND, 3, 2): text(("train", 5, 50.0)),
            (THIRD, 4, 1): text(("train", 5, 500.0)),
        },
    )
    assert losses(run) == [0.0, 1.0, 2.0, 3.0, 40.0, 41.0, 500.0]
    assert last_records(run) == {"train": {"loss": 500.0}, "eval": {"loss": 41.0}}
    assert [json.loads(line)["step"] for line in kept(run, 3)] == [0, 1, 2, 3]
    assert kept(run, 0) == []  # a run that begins again has no past; its evaluation before the first step comes again
    assert newest_start(run) == 1764246002
    places = {f"{line.file}:{line.number}" for line in lines(run)}
    assert f"{run.metrics_parts}/{FIRST}-from-0-00002.jsonl:1" in places and len(places) == 7


def test_a_start_that_begins_the_run_anew_drops_all_before_it(run):
    write(run, {(FIRST, 0, 1): text(("eval", 0, 0.0), ("train", 1, 1.0)), (SECOND, 0, 1): text(("eval", 0, 9.0))})
    assert losses(run) == [9.0]


def test_metrics_jsonl_is_older_than_all_parts_and_may_be_cut_short(run):
    whole = text(("train", 1, 1.0), ("train", 2, 2.0), ("train", 3, 3.0)) + '{"kind": "tra'
    write(run, {}, whole)
    assert len(lines(run)) == 4 and last_records(run) == {"train": {"loss": 3.0}}
    write(run, {(FIRST, 2, 1): text(("train", 3, 30.0))}, whole)
    assert losses(run) == [1.0, 2.0, 30.0]


def test_a_directory_without_metrics_has_none_and_other_files_are_no_parts(run):
    assert lines(run) is None and last_records(run) == {} and best_record(run, 9) == {} and newest_start(run) == 0
    if not str(run.path).startswith("gs://"):
        run.metrics_parts.mkdir(parents=True)
    write_whole(run.metrics_parts / "notes.jsonl", "mine")
    assert lines(run) is None


def test_the_best_record_has_the_smallest_finite_loss_up_to_a_step(tmp_path):
    run = RunDir(tmp_path)
    held_out = [("eval", 0, 3.0), ("eval", 1, math.nan), ("eval", 2, 1.0), ("eval", 3, 1.0), ("eval", 4, 0.5)]
    write_whole(run.metrics, text(*held_out, *(("train", step, 0.0) for step in range(5))) + '{"kind": "ev')
    assert best_record(run, 3) == {"step": 2, "loss": 1.0}
    assert best_record(run, 4) == {"step": 4, "loss": 0.5}
