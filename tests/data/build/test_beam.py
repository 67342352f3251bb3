"""A build on Beam writes the files of the local build, byte for byte, and fails as it fails.

The local build is proven by its own tests against raw sentencepiece; here it is the other side of the comparison.
"""

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
from typer.testing import CliRunner

from janus_jax.cli.data import app
from janus_jax.data.build import token_files
from janus_jax.data.build.beam.runner import Runner
from janus_jax.data.build.derive import Derivation
from janus_jax.data.build.pipeline import build
from janus_jax.data.build.ratings import Ratings
from janus_jax.data.dataset import TokenizedDataset
from janus_jax.errors import ConfigError, DataError, JanusError, StorageError
from janus_jax.storage.bucket import Prefix
from tests.support.beams import contents, needs_beam
from tests.support.real_rows import real_rows
from tests.support.records import pair_records, sft_records, write_records
from tests.support.repository import ROOT

SAMPLE = ROOT / "janus_jax" / "data" / "assets" / "sample"


def both(tmp_path: Path, source, processes: int = 1, **options) -> Path:
    """Builds locally and on Beam, requires equal files, and returns the directory."""
    build(source, tmp_path / "local", **options)
    build(source, tmp_path / "beam", runner=Runner(), processes=processes, **options)
    local, beam = contents(tmp_path / "local"), contents(tmp_path / "beam")
    assert local and sorted(local) == sorted(beam)
    assert [name for name in local if local[name] != beam[name]] == []
    return tmp_path / "beam"


@pytest.fixture
def faulty(tmp_path) -> Path:
    """Two files of train and one of test: repeats, bad records, marks, columns that are not read, held-out prompts."""
    source = tmp_path / "source"
    source.mkdir()
    records = [record | {"extra": "x"} for record in sft_records()]
    bad = [{"system": "s", "prompt": "p"}, {"prompt": "Is it?", "output": "[INST] It is </s>"}, *records[:2]]
    write_records(source / "train-00000-of-00002.jsonl", records[1:] + bad)
    write_records(source / "train-00001-of-00002.jsonl", [*bad[::-1], records[0], {"prompt": 3, "output": "x"}])
    write_records(source / "test.jsonl", [records[2], {"prompt": "Only here?", "output": "Yes."}, {"prompt": "No."}])
    return source


@needs_beam
def test_splits_counts_and_places_are_those_of_the_local_build(tmp_path, faulty, monkeypatch):
    monkeypatch.setattr(token_files, "EXAMPLES_PER_FILE", 3)
    monkeypatch.setattr("janus_jax.data.build.tfds_builder.RECORDS_PER_FILE", 3)
    monkeypatch.setattr("janus_jax.data.build.beam.graph._BLOCK", 2)
    options = {"dedupe": True, "validation_fraction": 0.4, "validation_seed": 3}
    out = both(tmp_path, faulty, kind="sft", skip_bad=True, **options)
    splits = json.loads((out / "manifest.json").read_text())["splits"]
    dropped = splits["train"]["dropped"]
    assert (dropped["missing_field"], dropped["wrong_type"], splits["test"]["dropped"]) == (2, 1, {"missing_field": 1})
    assert dropped.get("repeated_record", 0) + splits["validation"]["dropped"].get("repeated_record", 0) == 5
    assert splits["train"]["unread"] == {"extra": 9}
    assert len(TokenizedDataset(out, "validation")) == splits["validation"]["examples"] > 1


@needs_beam
@pytest.mark.parametrize("options", [{"kind": "dpo"}, {"kind": "rm", "all_pairs": True, "fraction": 0.3}])
def test_derived_pairs_are_those_of_the_local_build(tmp_path, options):
    derivation = Derivation(5, options.get("all_pairs", False))
    source, fraction = SAMPLE / "train.jsonl", options.get("fraction")
    both(tmp_path, source, kind=options["kind"], derive=derivation, validation_fraction=fraction)


@needs_beam
def test_pairs_keep_margins_and_ratings_and_their_first_token(tmp_path):
    pairs = [one | {"score_chosen": 7 - i, "score_rejected": i} for i, one in enumerate(pair_records())]
    pairs.append(pairs[0] | {"prompt": "Else?", "margin": -2.5})
    source = write_records(tmp_path / "pairs.jsonl", pairs)
    out = both(tmp_path, source, kind="orpo", ratings=Ratings(0.5, False), bos=False)
    train = json.loads((out / "manifest.json").read_text())["splits"]["train"]
    assert (train["margins"], train["notes"]["negative_margin"]) == (1, 1) and train["dropped"]["margin_too_small"] == 1


def bad_builds(root: Path, faulty: Path):
    yield {"source": faulty, "kind": "sft"}  # every file has a bad record; that of test comes first by name
    yield {"source": write_records(root / "all.jsonl", [{"prompt": "p"}]), "kind": "sft", "skip_bad": True}
    one = write_records(root / "one.jsonl", sft_records())
    yield {"source": one, "kind": "dpo", "derive": Derivation()}
    same = write_records(root / "same.jsonl", [record | {"output": "Yes."} for record in sft_records()[:1]] * 2)
    yield {"source": same, "kind": "sft", "validation_fraction": 0.5}
    copy = write_records(root / "copy.jsonl", sft_records()[::-1])
    yield {"source": {"train": one, "test": copy}, "kind": "sft"}


@needs_beam
def test_bad_input_gives_the_error_of_the_local_build_and_leaves_nothing(tmp_path, faulty):
    messages = []
    (root := tmp_path / "more").mkdir()
    for options in bad_builds(root, faulty):
        before = sorted(tmp_path.rglob("*"))
        for runner in (None, Runner()):
            with pytest.raises(DataError) as caught:
                build(out=tmp_path / "out", runner=runner, **options)
            messages.append(str(caught.value))
            assert sorted(tmp_path.rglob("*")) == before
    assert messages[::2] == messages[1::2] and len(set(messages)) == 5
    assert "test.jsonl:3: column 'output'" in messages[0]


@needs_beam
def test_a_second_build_into_the_directory_is_refused(tmp_path):
    source = write_records(tmp_path / "rows.jsonl", sft_records())
    build(source, tmp_path / "out", kind="sft", runner=Runner())
    before = contents(tmp_path / "out")
    with pytest.raises(StorageError, match="exists and is not empty"):
        build(source, tmp_path / "out", kind="sft", runner=Runner())
    assert contents(tmp_path / "out") == before


@needs_beam
@pytest.mark.parametrize(
    ("runner", "message"),
    [
        (Runner("direct", ("no_such=1",)), "--beam-option no_such: Beam has no such option"),
        (Runner("direct", ("direct_num_workers=2",)), "is set by --runner and --processes"),
        (Runner("direct", ("=2",)), "allowed: KEY=VALUE"),
        (Runner("dataflow", ("project=p",)), "--beam-option temp_location: is missing"),
        (Runner("dataflow", ("temp_location=gs://b/t",)), "rows.jsonl: workers of --runner dataflow cannot read it"),
        (Runner("dataflow", ("temp_location=/mnt/t",)), "--runner dataflow: needs Google Cloud's packages"),
    ],
)
def test_options_are_checked_before_files_are_read(tmp_path, runner, message):
    with pytest.raises(ConfigError) as caught:
        build(tmp_path / "rows.jsonl", tmp_path / "out", kind="sft", runner=runner)
    assert message in str(caught.value) and caught.value.exit_code == 2


@needs_beam
def test_what_a_runner_raises_is_one_line(tmp_path):
    source = write_records(tmp_path / "rows.jsonl", sft_records())
    runner = Runner("NoSuchRunner", (f"temp_location={tmp_path}",))
    with pytest.raises(JanusError, match="--runner NoSuchRunner: the pipeline failed: ") as caught:
        build(source, tmp_path / "out", kind="sft", runner=runner)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


FULL_NAME = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
"""Beam's own runner of this machine by its full name: then it is one of those whose workers need shared storage."""


@needs_beam
def test_sources_exchanged_files_and_output_may_lie_in_a_bucket(bucket, faulty, monkeypatch):
    monkeypatch.setenv("NO_GCE_CHECK", "true")  # Beam would look for a service account first
    prefix = Prefix(f"{bucket}/raw")
    prefix.upload(faulty, sorted(path.name for path in faulty.iterdir()), lambda done: None)
    options = {"kind": "sft", "skip_bad": True, "dedupe": True}
    build(prefix.url, f"{bucket}/local", **options)
    runner = Runner(FULL_NAME, (f"temp_location={bucket}/tmp",))
    build(prefix.url, f"{bucket}/beam", runner=runner, **options)
    held = {kind: Prefix(f"{bucket}/{kind}") for kind in ("local", "beam", "tmp")}
    read = {kind: {one.name: prefix.read(one) for one in prefix.list()} for kind, prefix in held.items()}
    assert read["beam"] == read["local"] != {} and read["tmp"] == {}


@needs_beam
def test_a_source_that_is_gone_before_it_is_copied_and_a_full_disk_here_are_named(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    write_records(tmp_path / "rows.jsonl", sft_records())
    prefix = Prefix(f"{bucket}/raw")
    prefix.upload(tmp_path, ["rows.jsonl"], lambda done: None)
    from janus_jax.data.build.beam import launch, scratch

    with pytest.raises(StorageError, match=r"^/dev/full: cannot be written: No space left on device$"):
        scratch.fetch(f"{prefix.url}/rows.jsonl", Path("/dev/full"))
    monkeypatch.setattr(launch, "original", lambda path: f"{prefix.url}/gone.jsonl")
    runner = Runner(FULL_NAME, (f"temp_location={bucket}/tmp",))
    with pytest.raises(StorageError, match=rf"^{prefix.url}/gone.jsonl: cannot be read: ") as caught:
        build(prefix.url, f"{bucket}/out", kind="sft", runner=runner)
    assert caught.value.exit_code == 14 and not Prefix(f"{bucket}/out").list()


@needs_beam
@pytest.mark.parametrize("name", ["checked", "encoded"])
def test_a_full_disk_is_an_error_of_storage(tmp_path, monkeypatch, name):
    monkeypatch.setattr(f"janus_jax.data.build.beam.scratch.{name}", lambda *_: "/dev/full")
    source = write_records(tmp_path / "rows.jsonl", sft_records())
    with pytest.raises(StorageError, match=r"^/dev/full: cannot be written: No space left on device$") as caught:
        build(source, tmp_path / "out", kind="sft", runner=Runner())
    assert caught.value.exit_code == 14 and not (tmp_path / "out").exists()


@needs_beam
def test_an_error_of_another_process_keeps_its_class(tmp_path, monkeypatch):
    monkeypatch.setattr(Runner, "scratch", lambda *_: "/proc/janus")
    source = write_records(tmp_path / "rows.jsonl", sft_records())
    with pytest.raises(StorageError, match=r"^/proc/janus/\S+: cannot be written: No such file or directory$"):
        build(source, tmp_path / "out", kind="sft", runner=Runner(), processes=2)


def test_every_line_of_a_worker_s_message_is_kept():
    try:
        try:
            raise ValueError("a cause")
        except ValueError as error:
            raise ConfigError("mine.yaml: 2 errors\n  mine.yaml:1: a\n  mine.yaml:2: b") from error
    except ConfigError:
        text = traceback.format_exc()
    with pytest.raises(ConfigError) as caught, Runner().errors():
        raise RuntimeError(f"{text.rstrip()} [while running 'read']\n\nDuring handling of this, another: x\n")
    assert str(caught.value) == "mine.yaml: 2 errors\n  mine.yaml:1: a\n  mine.yaml:2: b"


def test_without_beam_the_command_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    source = write_records(tmp_path / "rows.jsonl", sft_records())
    done = CliRunner().invoke(
        app, ["build", "--kind", "sft", "--source", str(source), "--out", str(tmp_path / "out"), "--runner", "direct"]
    )
    assert isinstance(done.exception, ConfigError) and "needs the package apache-beam" in str(done.exception)


@needs_beam
@pytest.mark.slow
@pytest.mark.parametrize("options", [{"kind": "sft"}, {"kind": "dpo", "validation_fraction": 0.1, "dedupe": True}])
def test_real_rows_in_several_processes(tmp_path, options):
    rows = real_rows(tmp_path)
    if rows is None:
        pytest.skip("JANUS_REAL_DATA is not set")
    lines = (rows.sft if options["kind"] == "sft" else rows.dpo).read_text().splitlines(keepends=True)
    (source := tmp_path / "rows").mkdir()
    for number in range(2):
        (source / f"train-{number:05d}-of-00002.jsonl").write_text("".join(lines[number::2]))
    both(tmp_path, source, processes=2, **options)


@needs_beam
@pytest.mark.slow
def test_a_killed_build_leaves_no_data_set_and_a_second_one_succeeds(tmp_path):
    source = write_records(tmp_path / "rows.jsonl", sft_records() * 2000)
    command = [sys.executable, "-m", "janus_jax.cli", "data", "build", "--kind", "sft", "--source", str(source)]
    command += ["--out", str(tmp_path / "out"), "--runner", "direct", "--processes", "2"]
    started = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True)
    while not list(tmp_path.glob(".out.*.incomplete/beam/checked/*")):
        assert started.poll() is None
        time.sleep(0.1)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    assert not (tmp_path / "out").exists()
    subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    assert len(TokenizedDataset(tmp_path / "out")) == 10_000
    build(source, tmp_path / "local", kind="sft")
    assert contents(tmp_path / "out") == contents(tmp_path / "local")
