"""Where everything in a run directory lies, and which of its steps count."""

from pathlib import Path

import pytest

from janus_jax.checkpoint.run_dir import ITEMS, RunDir, committed_steps, find_checkpoints, has_params, step_directory
from janus_jax.errors import ConversionError
from janus_jax.storage.bucket import BucketPath
from janus_jax.storage.local import fixed


def write_step(checkpoints: Path, step: int, items: tuple[str, ...] = ITEMS, *, committed: bool = True) -> Path:
    directory = checkpoints / str(step)
    for item in items:
        (directory / item).mkdir(parents=True)
    if committed:
        (directory / "commit_success.txt").touch()
    return directory


@pytest.mark.parametrize("path", [Path("runs/a"), BucketPath("gs://bucket/runs/a")])
def test_entries_lie_below_the_run_and_have_its_type(path):
    run = RunDir(path)
    entries = [run.config, run.tokenizer, run.metrics, run.tensorboard, run.checkpoints, run.exports, run.reference]
    entries += [run.profile, run.summary, run.export(3)]
    names = ["config.yaml", "tokenizer", "metrics.jsonl", "tensorboard", "checkpoints", "exports", "reference"]
    names += ["profile", "summary.json", "exports/3"]
    assert [str(entry) for entry in entries] == [f"{path}/{name}" for name in names]
    assert {type(entry) for entry in entries} == {type(path)}
    assert str(RunDir.of_step(run.checkpoints / "4").path) == str(path)


def test_only_whole_steps_count(tmp_path):
    run = RunDir(tmp_path)
    assert run.committed_steps() == []
    for step in (10, 2):
        write_step(run.checkpoints, step)
    write_step(run.checkpoints, 11, committed=False)
    write_step(run.checkpoints, 12, ITEMS[:3])
    (run.checkpoints / "13.incomplete").mkdir()
    assert run.committed_steps() == committed_steps(run.checkpoints) == [2, 10]
    assert step_directory(run.checkpoints, 2) == tmp_path / "checkpoints" / "2"
    with pytest.raises(ConversionError, match="no step 11; existing steps: 2, 10"):
        step_directory(run.checkpoints, 11)


def test_a_run_and_its_directory_of_checkpoints_name_the_same_steps(tmp_path):
    assert find_checkpoints(tmp_path) is None
    step = write_step(tmp_path / "checkpoints", 1)
    assert find_checkpoints(tmp_path) == find_checkpoints(tmp_path / "checkpoints") == tmp_path / "checkpoints"
    assert find_checkpoints(step) is None


def test_a_step_or_a_converted_directory_has_params(tmp_path):
    assert has_params(write_step(tmp_path, 1))
    assert has_params(write_step(tmp_path, 2, ("params", "meta"), committed=False))
    assert not has_params(write_step(tmp_path, 3, ("params",)))
    with pytest.raises(ConversionError, match="this step is incomplete"):
        has_params(write_step(tmp_path, 4, committed=False))


@pytest.mark.parametrize(
    ("run", "source", "reason"),
    [
        ("data", "data", "is data.dir="),
        ("data/run", "data", "lies in data.dir="),
        ("data/train/deep/run", "data", "lies in data.dir="),
        ("link/run", "data", "lies in data.dir="),
        ("data/../data/run", "data", "lies in data.dir="),
        ("data/run", "data/", "lies in data.dir="),
        ("run", "run/checkpoints/3", "lies in it, where the run writes"),
        ("run", "run/exports/3", "lies in it, where the run writes"),
        ("run", "to_checkpoints/3", "lies in it, where the run writes"),
        ("run", "data", None),
        ("data_run", "data", None),
        ("run", "run/data", None),
        ("absent/run", "absent", None),
        ("run", "gs://bucket/run", None),
        ("gs://bucket/run", "gs://bucket/run/", "is data.dir=gs://bucket/run/"),
        ("gs://bucket/run", "gs://bucket", "lies in data.dir"),
        ("gs://bucket/run", "gs://bucket/run/exports/3", "lies in it"),
        ("gs://bucket/run", "gs://bucket/run2", None),
        ("gs://bucket/run", "data", None),
    ],
)
def test_a_run_neither_lies_in_what_it_reads_nor_writes_over_it(tmp_path, monkeypatch, run, source, reason):
    monkeypatch.chdir(tmp_path)
    for directory in ("data/train", "run/checkpoints/3", "run/exports/3", "run/data"):
        Path(directory).mkdir(parents=True)
    Path("link").symlink_to("data")
    Path("to_checkpoints").symlink_to("run/checkpoints")
    refusal = RunDir(fixed(run)).clash({"init.from": None, "data.dir": source})
    assert (reason is None and refusal is None) or (reason is not None and refusal is not None and reason in refusal)
