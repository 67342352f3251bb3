"""Data on gs://: what is read from there and written there is what a local path would have given, or nothing."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from janus_jax.cli.main import main
from janus_jax.data import fetch as data_staging
from janus_jax.data.build.pipeline import build
from janus_jax.data.dataset import Manifest, TokenizedDataset
from janus_jax.data.fetch import MANIFEST
from janus_jax.errors import DataError, StorageError
from janus_jax.storage import bucket as buckets
from janus_jax.storage import staging
from janus_jax.storage.bucket import Prefix
from janus_jax.text.tokenizer import load_tokenizer
from tests.support.buckets import fill
from tests.support.records import pair_records, sft_records, write_records
from tests.support.repository import ROOT
from tests.support.training_examples import random_examples, write_dataset


def tree(root):
    """Everything below a directory but hidden files, or below a URL."""
    if isinstance(root, str):
        prefix = Prefix(root)
        return {one.name: prefix.read(one) for one in prefix.list()}
    files = (path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def upload(directory, url):
    Prefix(url).upload(directory, tree(directory))


@pytest.fixture
def local(tmp_path):
    """A built data set of two splits."""
    splits = {name: random_examples(9, pairs=False, seed=seed) for seed, name in enumerate(("train", "validation"))}
    directory = write_dataset(tmp_path / "local", splits, kind="sft")
    (directory / "tfds").mkdir()
    (directory / "tfds" / "rows").write_text("not read by a run")
    return directory


@pytest.fixture
def url(bucket, local):
    """That data set in a bucket."""
    upload(local, f"{bucket}/data/x")
    return f"{bucket}/data/x"


def staged(tmp_path):
    return {name: content for name, content in tree(tmp_path / "cache").items() if not name.endswith(".lock")}


# ---- reading


def test_a_split_is_copied_once_with_what_it_takes_and_no_more(url, local, tmp_path, proxy):
    place = data_staging.dataset(url, "train")
    assert tree(place) == {name: content for name, content in tree(local).items() if name[:5] not in ("valid", "tfds/")}
    asked = len(proxy.requests)
    assert data_staging.dataset(f"{url}/", "train") == place
    objects = [path for _, path in proxy.requests[asked:] if re.search("/b/[^/]+/o", path)]
    assert ["manifest.json" in path for path in objects] == [True, True]  # what it is, and its content
    assert data_staging.dataset(url, "validation") == place
    assert tree(place) == {name: content for name, content in tree(local).items() if not name.startswith("tfds/")}
    copied = TokenizedDataset(place, "validation")
    for one, other in zip(copied.read(range(9)), TokenizedDataset(local, "validation").read(range(9)), strict=True):
        np.testing.assert_array_equal(one.chosen, other.chosen)


def test_a_local_directory_is_taken_as_it_is(local, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_staging.dataset(str(local), "train") == local == data_staging.dataset("~/local", "train")


def test_other_data_at_the_same_url_are_another_copy(url, local, tmp_path):
    before = data_staging.dataset(url, "train")
    prefix = Prefix(url)
    prefix.delete(prefix.list())
    other = write_dataset(tmp_path / "other", {"train": random_examples(4, pairs=False, seed=7)}, kind="sft")
    upload(other, url)
    after = data_staging.dataset(url, "train")
    assert after != before and tree(after) == tree(other) and tree(before)


def test_data_that_are_replaced_while_they_are_read_are_refused(url, tmp_path, proxy):
    def replace(method, path, answer):
        if "lengths.npy" in path and "alt=media" in path:
            proxy.rule = lambda method, path, answer: answer
            prefix = Prefix(url)
            one = prefix.find("manifest.json")
            prefix.write("manifest.json", prefix.read(one), one.generation)
        return answer

    proxy.rule = replace
    with pytest.raises(StorageError, match=f"^{url}: was replaced while it was read; start again$"):
        data_staging.dataset(url, "train")
    assert not any("train" in name for name in staged(tmp_path))
    assert TokenizedDataset(data_staging.dataset(url, "train"))


def test_a_copy_that_breaks_off_leaves_nothing_and_the_next_one_goes_through(url, tmp_path, proxy, monkeypatch):
    monkeypatch.setattr(buckets, "RETRY_S", 1.0)
    proxy.rule = lambda method, path, answer: None if ".array_record" in path and "alt=media" in path else answer
    with pytest.raises(StorageError, match=f"^{url}/train/tokens-\\S+: cannot be read: given up after") as broken:
        data_staging.dataset(url, "train")
    assert broken.value.exit_code == 14 and "\n" not in str(broken.value)
    assert not any("train" in name for name in staged(tmp_path))
    assert not list((tmp_path / "cache").rglob("*.incomplete"))
    proxy.rule = lambda method, path, answer: answer
    assert len(TokenizedDataset(data_staging.dataset(url, "train"))) == 9


def test_where_the_bucket_is_gone_an_old_copy_is_named_and_not_taken(url, monkeypatch):
    place = data_staging.dataset(url, "train")
    monkeypatch.setattr(buckets, "RETRY_S", 1.0)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=f"^{url}/manifest.json: cannot be read: given up .*a copy .*: {place}$"):
        data_staging.dataset(url, "train")


def test_what_is_no_data_set_is_said_by_its_url(bucket, url, local, tmp_path):
    with pytest.raises(StorageError, match=rf"^{bucket}/y/manifest\.json: cannot be read: no such object; `janus data"):
        data_staging.dataset(f"{bucket}/y", "train")
    prefix = Prefix(url)
    with staging.naming_urls():
        assert data_staging.dataset(url, "test")  # the reader knows which splits there are
    with pytest.raises(DataError, match=f"^{url}: has no split 'test'; there are: train, validation"):
        with staging.naming_urls():
            TokenizedDataset(data_staging.dataset(url, "test"), "test")
    prefix.delete([one for one in prefix.list() if one.name.startswith("validation/tokens")])
    with pytest.raises(
        DataError, match=rf"^{url}/validation: manifest, .* disagree: .* copy {tmp_path}/cache/data/\w+; "
    ):
        with staging.naming_urls():
            TokenizedDataset(data_staging.dataset(url, "validation"), "validation")
    prefix.delete([one for one in prefix.list() if one.name.startswith("train/")])
    with pytest.raises(StorageError, match=f"^{url}/train: cannot be read: no such object"):
        data_staging.dataset(url, "train")
    broken = prefix.find("manifest.json")
    prefix.write("manifest.json", b"{", broken.generation)
    with pytest.raises(DataError, match=rf"^{url}/manifest\.json: not a data set manifest"), staging.naming_urls():
        data_staging.dataset(url, "train")


def test_processes_that_start_together_make_one_copy(url, local, tmp_path, proxy):
    code = f"from janus_jax.data import fetch; print(fetch.dataset({url!r}, 'train'))"
    commands = [[sys.executable, "-c", code]] * 3
    running = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for command in commands]
    places = {process.communicate(timeout=300)[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0, 0] and len(places) == 1
    assert set(tree(Path(places.pop()))) == {name for name in tree(local) if name[:5] not in ("valid", "tfds/")}
    assert len([path for _, path in proxy.requests if "lengths.npy" in path and "alt=media" in path]) == 1


def test_without_locks_the_first_copy_stays(url, local, monkeypatch):
    def no_locks(file, operation):
        raise OSError("no locks available")

    def overtaken(prefix, objects, directory):
        monkeypatch.setattr(Prefix, "download", download)
        data_staging.dataset(url, "train")  # by another process, between the look and the copy
        download(prefix, objects, directory)

    download = Prefix.download
    monkeypatch.setattr(staging.fcntl, "flock", no_locks)
    monkeypatch.setattr(Prefix, "download", overtaken)
    place = data_staging.dataset(url, "train")
    assert set(tree(place)) == {name for name in tree(local) if name[:5] not in ("valid", "tfds/")}
    assert not list(place.rglob("*.incomplete"))


def test_what_a_killed_process_left_is_removed_by_the_next(url):
    place = data_staging.dataset(url, "train")
    (place / ".validation.0.incomplete").mkdir()
    (place / ".validation.0.incomplete" / "lengths.npy").touch()
    data_staging.dataset(url, "train")
    assert (place / ".validation.0.incomplete").is_dir()  # of somebody who may still be at work
    data_staging.dataset(url, "validation")
    assert not list(place.glob(".validation.*.incomplete")) and (place / "validation" / "lengths.npy").stat().st_size


def test_a_cache_that_cannot_be_written_is_said(url, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("JANUS_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match=r"file/data: cannot be written \(JANUS_CACHE\): Not a directory"):
        data_staging.dataset(url, "train")


# ---- writing


def test_an_upload_is_whole_and_its_manifest_comes_last(bucket, proxy, tmp_path):
    calls = []
    with staging.output(f"{bucket}/new", MANIFEST, lambda *now: calls.append(now)) as directory:
        fill(directory)
        expected = tree(directory)
    assert tree(f"{bucket}/new") == expected and not directory.exists()
    written = [path for method, path in proxy.requests if method == "POST"]
    assert len(written) == 12 + 2 + 1  # the marker, its list of files, files, the manifest
    assert calls == [("files", "upload", done, 13) for done in range(1, 14)]
    bodies = [path for method, path in proxy.requests if method in ("POST", "DELETE")]
    assert ".janus-upload.json" in bodies[-1] and "uploadType" in bodies[-2]


def test_a_place_that_holds_something_is_refused_and_kept(bucket, url):
    before = tree(url)
    Prefix(f"{bucket}/foreign").write("x", b"mine")
    Prefix(f"{bucket}/marked").write(staging.MARKER, b"not ours")
    for place, what in ((url, "manifest.json"), (f"{bucket}/foreign", "x"), (bucket, "data/x/manifest.json")):
        with pytest.raises(StorageError, match=rf"^{place}: exists and is not empty \(it holds {what}\)"):
            with staging.output(place, MANIFEST):
                raise AssertionError("entered")
    with pytest.raises(StorageError, match=r"marked: holds a \.janus-upload\.json that no upload wrote"):
        with staging.output(f"{bucket}/marked", MANIFEST):
            raise AssertionError("entered")
    assert tree(url) == before and tree(f"{bucket}/foreign") == {"x": b"mine"}
    assert staging.occupied(f"{bucket}/free") is None and tree(f"{bucket}/free") == {}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_work_that_fails_leaves_nothing_that_is_in_the_way(bucket, error):
    with pytest.raises(error), staging.output(f"{bucket}/new", MANIFEST) as directory:
        fill(directory)
        raise error
    assert set(tree(f"{bucket}/new")) == (set() if error is ValueError else {staging.MARKER})
    with staging.output(f"{bucket}/new", MANIFEST) as directory:
        fill(directory)
    assert len(tree(f"{bucket}/new")) == 13


def test_an_upload_that_breaks_off_removes_what_it_wrote(bucket, proxy, monkeypatch):
    monkeypatch.setattr(buckets, "RETRY_S", 1.0)
    writes = []

    def refuse_the_sixth(method, path, answer):
        if method == "POST":
            writes.append(path)
        return (403, b"{}") if len(writes) >= 6 and method == "POST" else answer

    proxy.rule = refuse_the_sixth
    with pytest.raises(StorageError, match=r"new/train/part-..: cannot be written: permission denied"):
        with staging.output(f"{bucket}/new", MANIFEST) as directory:
            fill(directory)
    assert tree(f"{bucket}/new") == {}


KILLED = """
import os, signal, sys
from janus_jax.storage import staging
from janus_jax.data.fetch import MANIFEST
from tests.support.buckets import fill
def kill(split, phase, done, total):
    if done == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
with staging.output(sys.argv[1], MANIFEST, kill) as directory:
    fill(directory)
"""


@pytest.mark.parametrize("done", [1, 12])
def test_an_upload_that_was_killed_is_no_data_set_and_the_next_one_succeeds(bucket, done, tmp_path):
    place = f"{bucket}/new"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # what the killed one leaves is removed with it
    ended = subprocess.run([sys.executable, "-c", KILLED, place, str(done)], cwd=ROOT, timeout=300, env=environment)
    assert ended.returncode == -signal.SIGKILL
    left = tree(place)
    assert staging.MARKER in left and "manifest.json" not in left and len(left) > done
    with pytest.raises(StorageError, match=r"manifest\.json: cannot be read: .*; an upload to it has not finished"):
        data_staging.dataset(place, "train")
    with staging.output(place, MANIFEST) as directory:
        fill(directory, count=2)
    assert set(tree(place)) == {"manifest.json", "train/part-00", "train/part-01"}


def test_leftovers_among_which_somebody_put_a_file_are_refused(bucket):
    with pytest.raises(KeyboardInterrupt), staging.output(f"{bucket}/new", MANIFEST):
        raise KeyboardInterrupt
    Prefix(f"{bucket}/new").write("mine", b"")
    assert "it holds mine" in (staging.occupied(f"{bucket}/new") or "")


def test_of_two_uploads_to_one_place_the_later_one_wins_and_the_other_says_so(bucket):
    place = f"{bucket}/new"
    with pytest.raises(StorageError, match=r"new/\.janus-upload\.json: cannot be written: somebody else writes it"):
        with staging.output(place, MANIFEST) as directory:
            fill(directory, count=3)
            with staging.output(place, MANIFEST) as other:
                fill(other, count=1)
    assert set(tree(place)) == {"manifest.json", "train/part-00"}


def test_an_upload_that_is_overtaken_between_its_files_writes_no_manifest(bucket):
    place = f"{bucket}/new"

    def overtake(split, phase, done, total):
        if done == 1:
            Prefix(place).write("train/part-99", b"of somebody else")

    with pytest.raises(StorageError, match=f"^{place}: somebody else writes there at the same time"):
        with staging.output(place, MANIFEST, overtake) as directory:
            fill(directory, count=3)
    assert tree(place) == {"train/part-99": b"of somebody else"}


# ---- builds


@pytest.fixture
def rows(tmp_path, bucket):
    """A directory of sources, and its URL."""
    root = tmp_path / "rows"
    root.mkdir()
    write_records(root / "train.jsonl", sft_records())
    write_records(root / "validation.jsonl", sft_records()[:2])
    (root / "README.md").write_text("no rows")
    upload(root, f"{bucket}/raw")
    return root, f"{bucket}/raw"


def test_a_build_from_a_bucket_to_a_bucket_is_the_local_one(rows, bucket, tmp_path, monkeypatch, capfd):
    local, url = rows
    load_tokenizer().save(tmp_path / "tokenizer")
    upload(tmp_path / "tokenizer", f"{bucket}/model")
    Prefix(f"{bucket}/model").write("model.safetensors", b"weights are not fetched")
    build(local, tmp_path / "out", kind="sft")
    arguments = f"data build --kind sft --source {url} --out {bucket}/out --tokenizer {bucket}/model"
    monkeypatch.setattr(sys, "argv", ["janus", *arguments.split()])
    with pytest.raises(SystemExit) as done:
        main()
    assert not done.value.code, capfd.readouterr()
    made, expected = tree(f"{bucket}/out"), tree(tmp_path / "out")
    assert "sft data in gs://" in capfd.readouterr().out
    manifest, other = made.pop("manifest.json").decode(), expected.pop("manifest.json").decode()
    assert made == expected
    assert url in manifest and json.loads(manifest.replace(url, str(local))) == json.loads(other)
    fetched = set(Path(name).name for name in staged(tmp_path))
    assert {"train.jsonl", "tokenizer.model"} <= fetched and not {"README.md", "model.safetensors"} & fetched
    assert Manifest.load(data_staging.dataset(f"{bucket}/out", "train")).splits["validation"].examples == 2


def test_a_source_that_was_fetched_is_not_fetched_again(rows, proxy):
    first = staging.files(f"{rows[1]}/train.jsonl", lambda name: True)
    assert first.read_bytes() == (rows[0] / "train.jsonl").read_bytes()
    asked = len(proxy.requests)
    assert staging.files(f"{rows[1]}/train.jsonl", lambda name: True) == first
    assert not [path for _, path in proxy.requests[asked:] if "alt=media" in path]


def test_bad_rows_and_absent_sources_are_named_by_their_urls(rows, bucket, tmp_path):
    pairs = write_records(tmp_path / "pairs.jsonl", [*pair_records(), {"system": "", "prompt": "x", "chosen": "y"}])
    Prefix(f"{bucket}/more").upload(tmp_path, [pairs.name])
    with pytest.raises(DataError, match=rf"^{bucket}/more/pairs\.jsonl:6: column 'rejected' .* is missing"):
        build(f"{bucket}/more/pairs.jsonl", tmp_path / "out", kind="dpo")
    with pytest.raises(DataError, match=rf"^{bucket}/more: holds no file of records; .* not read: 1 of type \.txt$"):
        Prefix(f"{bucket}/more").delete(Prefix(f"{bucket}/more").list())
        Prefix(f"{bucket}/more").write("x.txt", b"")
        build(f"{bucket}/more", tmp_path / "out", kind="dpo")
    with pytest.raises(StorageError, match=f"^{bucket}/none: cannot be read: no such object, and nothing below it$"):
        build(f"{bucket}/none", tmp_path / "out", kind="dpo")
    assert not (tmp_path / "out").exists()


def test_the_command_refuses_an_occupied_place_before_it_reads(rows, bucket, proxy, monkeypatch, capfd):
    for out, code, message in (
        (rows[1], 2, f"error: --out {rows[1]}: exists and is not empty (it holds README.md); choose another place"),
        ("gs://absent-bucket/x", 14, "error: gs://absent-bucket/x: cannot be listed: no such bucket: absent-bucket"),
        ("s3://b/x", 2, "error: --out s3://b/x: allowed: a local or mounted directory, or gs://BUCKET/PATH"),
    ):
        arguments = f"data build --kind sft --source {rows[1]} --out {out}"
        monkeypatch.setattr(sys, "argv", ["janus", *arguments.split()])
        with pytest.raises(SystemExit) as done:
            main()
        out, error = capfd.readouterr()
        assert done.value.code == code and error.startswith(message) and error.count("\n") == 1 and not out
    assert not [path for _, path in proxy.requests if "alt=media" in path]
