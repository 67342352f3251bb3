"""What a run writes while it grows: in its directory, or through a local one into a bucket."""

import contextlib
import json
import sys
import time
import types

import pytest

from janus_jax.checkpoint.run_dir import RunDir
from janus_jax.errors import LostLockError, StorageError
from janus_jax.storage import bucket as bucket_module
from janus_jax.storage import parts
from janus_jax.storage.bucket import BucketPath, Prefix
from janus_jax.storage.local import place, write_whole
from janus_jax.training.curves import draw_run
from janus_jax.training.history import lines
from janus_jax.training.outputs import Outputs
from tests.support.faulty_bucket import refusing
from tests.support.run_configs import run_config


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(parts, "EVERY_S", 0.05)
    monkeypatch.setattr(parts, "PART_BYTES", 300)
    monkeypatch.setattr(parts.tempfile, "tempdir", str(tmp_path))


def train(run, resumed_at, last_step, scale, pause_s=0.0, error=None, **logging):
    """A start that logs a loss of `scale` times the step, and ends with an error if one is given."""
    with contextlib.suppress(type(error)) if error else contextlib.nullcontext():
        with Outputs(run, resumed_at, main=True, notify=pytest.fail) as outputs:
            writers = outputs.writers(run_config(place("data"), run.path, logging=logging))
            for step in range(resumed_at + 1, last_step + 1):
                for writer in writers:
                    writer.write("train", step, {"loss": scale * step})
                time.sleep(pause_s)
            for writer in writers:
                writer.close()
            if error:
                raise error
    return outputs


def steps_and_losses(run):
    return [(record["step"], record["loss"]) for record in (json.loads(line.text) for line in lines(run))]


def events(directory):
    """(step, value) of all scalars and the steps of restarts, as the files of a directory in order hold them."""
    from tensorboard.compat.proto.event_pb2 import Event

    for path in sorted(directory.iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):
            size = int.from_bytes(content[at : at + 8], "little")
            event = Event.FromString(content[at + 12 : at + 12 + size])
            assert at or event.file_version == "brain.Event:2"  # what every event file begins with
            at += size + 16
            if event.HasField("session_log"):
                yield "restart", event.step
            yield from ((value.simple_value, event.step) for value in event.summary.value)
        assert at == len(content)


@pytest.fixture
def trained(bucket):
    """A run in a bucket: six steps, then a second start after step 4 to step 8."""
    run = RunDir(BucketPath(f"{bucket}/runs/mine"))
    train(run, 0, 6, 1.0, pause_s=0.1, tensorboard=True)
    train(run, 4, 8, 100.0, tensorboard=True)
    return run


def copied(run, directory):
    prefix = Prefix(run.path)
    prefix.download(prefix.list(), directory)
    return RunDir(directory)


def test_a_resumed_run_in_a_bucket_has_the_records_of_an_uninterrupted_one(trained, tmp_path):
    expected = [(step, float(step)) for step in range(1, 5)] + [(step, 100.0 * step) for step in range(5, 9)]
    assert steps_and_losses(trained) == expected
    here = copied(trained, tmp_path / "copy")
    assert steps_and_losses(here) == expected
    assert len(list(here.tensorboard.iterdir())) >= 3  # the first start wrote several parts
    first, second = [(float(s), s) for s in range(1, 7)], [(100.0 * s, s) for s in range(5, 9)]
    assert list(events(here.tensorboard)) == [("restart", 0), *first, ("restart", 5), *second]


def test_tensorboard_shows_what_counts(trained, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(copied(trained, tmp_path / "copy").tensorboard))
    shown.Reload()
    expected = [(step, float(step)) for step in range(1, 5)] + [(step, 100.0 * step) for step in range(5, 9)]
    assert [(point.step, point.value) for point in shown.Scalars("train/loss")] == expected


def test_a_copy_of_a_bucket_run_goes_on_in_a_local_directory(trained, tmp_path):
    here = copied(trained, tmp_path / "copy")
    train(here, 6, 7, 7.0)
    expected = [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (5, 500.0), (6, 600.0), (7, 49.0)]
    assert steps_and_losses(here) == expected
    assert not here.metrics_parts.exists() and len(here.metrics.read_text().splitlines()) == 7


def test_a_local_run_goes_on_in_a_bucket(bucket, tmp_path):
    here, remote = RunDir(tmp_path / "run"), RunDir(BucketPath(f"{bucket}/run"))
    here.path.mkdir()
    train(here, 0, 3, 1.0)
    assert sorted(path.name for path in here.path.iterdir()) == ["metrics.jsonl"]
    Prefix(remote.path).upload(here.path, ["metrics.jsonl"])
    train(remote, 2, 4, 10.0)
    assert steps_and_losses(remote) == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)]


def test_a_start_replaces_samples_of_an_earlier_one(bucket):
    """Of steps that it makes again; a file of a profile would get another name."""
    run = RunDir(BucketPath(f"{bucket}/runs/mine"))
    for content in ("of the first start", "of the second"):
        with Outputs(run, 0, main=True, notify=pytest.fail) as outputs:
            outputs.local.samples.mkdir()
            write_whole(outputs.local.samples / "2.jsonl", content)
    assert parts.contents(run.samples) == {"2.jsonl": b"of the second"}


def test_profiles_and_wandbs_files_come_along_and_nothing_stays_here(bucket, tmp_path, monkeypatch):
    def init(dir, config, name, resume):
        assert (name, resume, config["run"]["dir"]) == ("mine", "allow", f"{bucket}/mine")
        files = place(dir) / "wandb" / "run-1" / "files"
        files.mkdir(parents=True)
        finish = lambda: (files / "output.log").write_text("all")  # noqa: E731
        return types.SimpleNamespace(log=lambda values, step: None, finish=finish)

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    run = RunDir(BucketPath(f"{bucket}/mine"))
    outputs = train(run, 0, 1, 1.0, wandb=True)
    with Outputs(run, 0, main=False, notify=pytest.fail):  # of a process that writes no metrics
        pass
    with Outputs(run, 0, main=False, notify=pytest.fail) as other:
        (other.local.profile / "plugins").mkdir(parents=True)
        (other.local.profile / "plugins" / "host.xplane.pb").write_bytes(b"trace")
    names = [item.name for item in Prefix(run.path).list()]
    assert names == [names[0], "profile/plugins/host.xplane.pb", "wandb/run-1/files/output.log"]
    assert names[0].startswith("metrics/")
    assert outputs.failed == 0 and not list(tmp_path.glob("*janus_run*"))


def test_every_end_uploads_the_rest_but_that_of_a_run_whose_directory_is_anothers(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "EVERY_S", 60)
    run = RunDir(BucketPath(f"{bucket}/mine"))
    train(run, 0, 2, 1.0, error=LostLockError("mine", "taken over"))
    assert lines(run) is None
    train(run, 0, 2, 1.0, error=StorageError("mine", "full"))
    assert len(lines(run)) == 2 and not list(tmp_path.glob("*janus_run*"))


def test_uploads_that_fail_at_the_end_are_counted(bucket, proxy, monkeypatch):
    monkeypatch.setattr(bucket_module, "RETRY_S", 0.3)
    notes = []
    with Outputs(RunDir(BucketPath(f"{bucket}/mine")), 0, main=False, notify=notes.append) as outputs:
        outputs.local.profile.mkdir(parents=True)
        (outputs.local.profile / "trace").write_bytes(b"trace")
        proxy.refusal = refusing(403, "profile")
        outputs.close()
        assert outputs.failed > 0 and len(notes) == 2
    assert len(notes) == 2  # closed once


def test_curves_of_a_run_in_a_bucket(trained, bucket, janus, tmp_path):
    notes: list[str] = []
    run = types.SimpleNamespace(fills=[1.0], dir=trained, print=notes.append)
    write_whole(trained.config, "objective: {name: sft}\n")
    for _ in range(2):  # a picture is replaced
        draw_run(run)
    assert notes == []
    (picture,) = [item for item in Prefix(trained.path).list() if item.name == "curves.png"]
    assert Prefix(trained.path).read(picture).startswith(b"\x89PNG")
    code, out, err = janus("runs", "plot", trained.path, "--out", tmp_path / "a.svg")
    assert (code, err) == (0, "") and "mine" in (tmp_path / "a.svg").read_text()
    assert f"curves of {trained.path}" in " ".join(out.split())
    code, _, err = janus("runs", "plot", trained.path, "--out", f"{bucket}/a.svg")
    assert (code, err) == (0, "") and "mine" in Prefix(bucket).read(Prefix(bucket).find("a.svg")).decode()
    code, _, err = janus("runs", "plot", f"{bucket}/none", "--out", tmp_path / "b.svg")
    assert code == 2 and err.startswith(f"error: {bucket}/none: no such directory")
