"""An export comes whole and verified, or not at all; nothing that exists is overwritten."""

import argparse
import json

import pytest

from janus_jax.errors import ConfigError, StorageError
from launch.commands import pull
from launch.errors import CloudError, Kind
from launch.runs import pull as logic
from tests.support.launches import Store, context, run_record

RUN = "gs://bkt/runs/demo"


@pytest.fixture
def store() -> Store:
    store = Store()
    store.put("gs://bkt/launch/demo/run.json", run_record(run_dir=RUN).dumps().encode())
    for step in (25, 75):
        export(store, step)
        store.put(f"{RUN}/checkpoints/{step}/commit_success.txt", b"")
    store.put(f"{RUN}/checkpoints/50/commit_success.txt", b"")
    store.put(f"{RUN}/checkpoints/60/params/x", b"")  # a save that was cut off
    return store


def tensors(*names: str) -> bytes:
    header = json.dumps({name: {} for name in names}).encode()
    return len(header).to_bytes(8, "little") + header + b"weights"


def export(store, step):
    report = {"verify": "digest", "sha256": {"a": "0", "b": "1"}}
    files = {"config.json": b"{}", "conversion_report.json": json.dumps(report).encode()}
    files |= {"model-1.safetensors": tensors("a"), "model-2.safetensors": tensors("b")}
    files |= {"additional_chat_templates/tool.jinja": b"t"}
    for name, content in files.items():
        store.put(f"{RUN}/exports/{step}/{name}", content)


def run(store, *words, dry_run=False):
    made = context(store)
    made.dry_run = dry_run
    parser = argparse.ArgumentParser()
    pull.add(parser)
    pull.run(made, parser.parse_args([str(word) for word in words]))
    return made.__dict__["lines"]


def test_the_newest_export_comes_with_all_its_files(store, tmp_path):
    lines = run(store, tmp_path / "out" / "model")
    files = {path.relative_to(tmp_path / "out/model").as_posix() for path in (tmp_path / "out/model").rglob("*.*")}
    assert files == {
        "config.json",
        "conversion_report.json",
        "model-1.safetensors",
        "model-2.safetensors",
        "additional_chat_templates/tool.jinja",
    }
    assert "exports/75" in lines[0] and "verified" in lines[1] and "tensor by tensor" in lines[1]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model"]


def test_again_it_says_that_it_is_there(store, tmp_path):
    run(store, tmp_path / "model")
    assert "is there already" in run(store, tmp_path / "model")[0]


def test_a_run_directory_and_a_step_can_be_named(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(store, RUN, "--step", 25)
    assert (tmp_path / "exports" / "demo-25" / "config.json").is_file()


@pytest.mark.parametrize("before", ["a file", "another export", "a changed file"])
def test_what_exists_is_never_overwritten(store, tmp_path, before):
    target = tmp_path / "model"
    if before == "a file":
        target.write_text("mine")
    elif before == "another export":
        run(store, RUN, target, "--step", 25)
        store.put(f"{RUN}/exports/75/config.json", b"{} ")
    else:
        run(store, target)
        (target / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="exists, and is not"):
        run(store, target)
    assert target.exists()


@pytest.mark.parametrize("damage", ["short", "changed", "missing"])
def test_a_copy_that_is_not_what_the_bucket_lists_is_not_kept(store, tmp_path, monkeypatch, damage):
    from tests.support.launches import FakeBucket

    download = FakeBucket.download

    def damaged(self, name, target):
        download(self, name, target)
        path = target / "config.json"
        {"short": lambda: path.write_bytes(b"{"), "changed": lambda: path.write_bytes(b"[]"), "missing": path.unlink}[
            damage
        ]()

    monkeypatch.setattr(FakeBucket, "download", damaged)
    with pytest.raises(StorageError, match=r"config\.json"):
        run(store, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_an_export_that_lacks_a_file_in_the_bucket_is_noticed(store, tmp_path):
    del store.objects[f"{RUN}/exports/75/model-2.safetensors"]
    with pytest.raises(StorageError, match="tensor b is in no file"):
        run(store, tmp_path / "model")


def test_a_copy_that_was_cut_off_goes_on_and_a_strange_directory_does_not(store, tmp_path):
    store.refusal = lambda call, url: CloudError(Kind.UNAVAILABLE, url, "503") if call == "download" else None
    with pytest.raises(CloudError):
        run(store, tmp_path / "model")
    assert (tmp_path / "model.partial").is_dir()
    store.refusal = lambda call, url: None
    run(store, tmp_path / "model")
    (tmp_path / "other.partial").mkdir()
    (tmp_path / "other.partial" / "mine").write_text("")
    with pytest.raises(ConfigError, match=r"other\.partial"):
        run(store, tmp_path / "other")


def test_too_little_room_is_said_before_the_copy(store, tmp_path, monkeypatch):
    monkeypatch.setattr(logic.shutil, "disk_usage", lambda path: type("", (), {"free": 3})())
    with pytest.raises(StorageError, match="needed"):
        run(store, tmp_path / "model")
    assert not [call for call in store.calls if call.startswith("download")]


def test_a_step_that_is_not_there_is_refused_with_those_that_are(store, tmp_path):
    with pytest.raises(ConfigError, match="25, 50, 75"):
        run(store, tmp_path / "model", "--step", 60)


def test_a_step_without_export_is_converted_where_janus_is_installed(store, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        logic.subprocess, "run", lambda words, check: calls.append(words) or type("", (), {"returncode": 0})()
    )
    run(store, tmp_path / "model", "--step", 50, "--dtype", "bfloat16")
    assert calls[0][1:] == [
        *("-m", "janus_jax.cli", "convert", "to-hf", RUN, str(tmp_path / "model"), "--step", "50"),
        *("--dtype", "bfloat16"),
    ]
    monkeypatch.setattr(logic, "_installed", lambda: False)
    with pytest.raises(ConfigError, match=r"janus convert to-hf .* --step 50"):
        run(store, tmp_path / "model", "--step", 50)


def test_without_an_export_it_says_which_step_can_be_converted(store, tmp_path):
    for url in [url for url in store.objects if "/exports/" in url]:
        del store.objects[url]
    with pytest.raises(ConfigError, match="--step 75"):
        run(store, tmp_path / "model")


def test_a_dry_run_writes_nothing(store, tmp_path):
    assert "rsync" in run(store, tmp_path / "model", dry_run=True)[0]
    assert not list(tmp_path.iterdir())
