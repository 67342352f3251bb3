"""Directories that are whole or absent."""

import contextlib
import errno
import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from etils import epath

from janus_jax.errors import StorageError
from janus_jax.storage.local import (
    absolute,
    as_path,
    atomic_directory,
    require_free,
    unwritable,
    whole_file,
    write_json,
    write_whole,
)
from tests.support.repository import ROOT


def tree(root: Path) -> dict[str, str | None]:
    """Everything below `root`: contents of files, None for directories."""
    return {str(p.relative_to(root)): p.read_text() if p.is_file() else None for p in sorted(root.rglob("*"))}


def test_a_finished_directory_is_there_whole_and_nothing_beside_it(tmp_path):
    with atomic_directory(tmp_path / "a" / "b") as directory:
        (directory / "x").write_text("1")
        assert not (tmp_path / "a" / "b").exists()  # nothing to be seen before the end
        assert directory.parent == tmp_path / "a"  # on the same file system, so that renaming is one act
    assert tree(tmp_path) == {"a": None, "a/b": None, "a/b/x": "1"}
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_of_a_directory_that_failed(tmp_path, error):
    with pytest.raises(error), atomic_directory(tmp_path / "a" / "b" / "c") as directory:
        (directory / "x").write_text("1")
        raise error
    assert tree(tmp_path) == {}


def test_parents_that_were_there_or_got_another_child_stay(tmp_path):
    (tmp_path / "old").mkdir()
    with pytest.raises(ValueError), atomic_directory(tmp_path / "old" / "new" / "c"):
        (tmp_path / "old" / "new" / "other").write_text("2")
        raise ValueError
    assert tree(tmp_path) == {"old": None, "old/new": None, "old/new/other": "2"}


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_what_is_there_is_refused_and_kept(tmp_path, kind):
    target = tmp_path / "out"
    if kind == "file":
        target.write_text("mine")
    else:
        target.mkdir()
        (target / "x").write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(StorageError, match="out: exists and is not empty"):
        require_free(target)
    with pytest.raises(StorageError, match="out: exists and is not empty") as refused, atomic_directory(target):
        raise AssertionError("entered")
    assert refused.value.exit_code == 14
    assert tree(tmp_path) == before


def test_an_empty_directory_is_taken(tmp_path):
    (tmp_path / "out").mkdir()
    require_free(tmp_path / "out")
    with atomic_directory(tmp_path / "out") as directory:
        (directory / "x").write_text("1")
    assert tree(tmp_path) == {"out": None, "out/x": "1"}


def test_a_target_filled_meanwhile_by_another_is_not_lost(tmp_path):
    target = tmp_path / "out"
    with pytest.raises(StorageError, match="out: exists and is not empty"), atomic_directory(target) as directory:
        (directory / "x").write_text("ours")
        target.mkdir()
        (target / "x").write_text("theirs")
    assert tree(tmp_path) == {"out": None, "out/x": "theirs"}


def test_a_parent_that_is_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file/out: cannot be written: File exists"):
        with atomic_directory(tmp_path / "file" / "out"):
            raise AssertionError("entered")
    assert tree(tmp_path) == {"file": ""}


def test_paths_below_home_and_relative_ones_are_meant(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with atomic_directory("~/home"), atomic_directory(os.path.join("here", "x")):
        pass
    assert tree(tmp_path) == {"here": None, "here/x": None, "home": None}
    assert as_path("~/home").is_dir()


def test_bucket_urls_stay_urls():
    assert str(as_path("gs://bucket/a/~b")) == "gs://bucket/a/~b"


def test_a_text_is_replaced_at_once(tmp_path):
    write_whole(tmp_path / "a.json", "old")
    write_whole(tmp_path / "a.json", "new")
    assert tree(tmp_path) == {"a.json": "new"}
    with pytest.raises(ValueError), whole_file(tmp_path / "a.json") as file:
        file.write(b"half")
        raise ValueError
    assert tree(tmp_path) == {"a.json": "new"}


def test_a_link_stays_and_a_device_is_written_directly(tmp_path):
    (tmp_path / "a.json").write_text("old")
    (tmp_path / "link").symlink_to("a.json")
    (tmp_path / "null").symlink_to(os.devnull)
    for name in ("link", "null"):
        write_whole(tmp_path / name, "new")
        assert (tmp_path / name).is_symlink()
    assert (tmp_path / "a.json").read_text() == "new" and Path(os.devnull).is_char_device()


def test_a_text_that_cannot_be_written_is_refused_by_its_name(tmp_path):
    with pytest.raises(StorageError, match=rf"^{tmp_path}/none/a\.json: cannot be written: No such file or directory$"):
        write_whole(tmp_path / "none" / "a.json", "new")


def test_what_json_does_not_have_is_null(tmp_path):
    write_json(tmp_path / "a.json", {"a": [math.nan, (1.0, -math.inf)], "b": {"c": 2}})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [None, [1.0, None]], "b": {"c": 2}}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("File too large")])
def test_a_full_disk_is_a_storage_error_whoever_says_it(tmp_path, error):
    with pytest.raises(StorageError, match="out: cannot be written: "), atomic_directory(tmp_path / "out") as directory:
        (directory / "part").touch()
        raise error
    assert list(tmp_path.iterdir()) == []


WRITER = """
import sys, time
from janus_jax.storage.local import atomic_directory
with atomic_directory(sys.argv[1]) as directory:
    (directory / "part").touch()
    print(directory, flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def writer(target):
    """A process that is writing `target`: yields its directory; killed at the end."""
    command = [sys.executable, "-c", WRITER, str(target)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            assert process.stdout is not None
            yield Path(process.stdout.readline().rstrip("\n"))
        finally:
            process.kill()


def test_what_other_threads_of_a_failed_writer_make_anew_is_removed_too(tmp_path):
    def late(directory):
        time.sleep(0.2)
        (directory / "params").mkdir(parents=True)

    with pytest.raises(StorageError, match="No space left"), atomic_directory(tmp_path / "out") as directory:
        thread = threading.Thread(target=late, args=[directory])
        thread.start()
        raise OSError(errno.ENOSPC, "No space left on device")
    thread.join()
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", ["out", "[ab]*"])
def test_what_a_killed_process_left_is_removed_by_the_next_for_the_same_target(tmp_path, name):
    with writer(tmp_path / name) as left:
        pass
    assert (left / "part").exists()
    # a lock may say nothing about processes of another host; other targets are none of its business
    others = [left.name.replace(f"{socket.gethostname()}.", "elsewhere."), left.name.replace(f".{name}.", ".a.", 1)]
    for other in others:
        (tmp_path / other).mkdir()
    with atomic_directory(tmp_path / name) as directory:
        (directory / "x").touch()
    assert {path.name for path in tmp_path.iterdir()} == {name, *others}


def test_what_a_living_process_writes_is_left_alone(tmp_path):
    with writer(tmp_path / "out") as at_work:
        with atomic_directory(tmp_path / "out") as directory:
            assert directory != at_work
        assert (at_work / "part").exists()


def test_a_refusal_names_the_directory_that_was_asked_for(tmp_path):
    with pytest.raises(StorageError) as refused, atomic_directory(tmp_path / "out") as directory:
        raise StorageError(directory / "part", "cannot be written")
    assert str(refused.value) == f"{tmp_path}/out/part: cannot be written"


NAMES = ["[a]", "*", "?", "a b", "a#b", "%41", "'", '"', "\n", "é日", "x.", "-x", "{a}", "a|b", "$H", "~", "x" * 255]


@pytest.mark.parametrize("name", NAMES)
def test_every_character_of_a_path_stands_for_itself(tmp_path, name):
    """Orbax finds its own files by `glob`, in paths that it has derived from the one that it got."""
    assert unwritable(tmp_path / name) is None
    with atomic_directory(tmp_path / name / name) as directory:
        (directory / "part_1").mkdir()
        (directory / "other").touch()
    write_whole(tmp_path / name / "file", "1")
    for path in (absolute(tmp_path / name), as_path(tmp_path / name)):
        (result,) = (epath.Path(path) / name).glob("part_*")
        assert os.fspath(result) == f"{tmp_path}/{name}/{name}/part_1" and [*result.parent.glob("absent*")] == []


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("x" * 256, "a name of 256 bytes is too long; allowed: at most 255"),
        ("é" * 128 + "/run", "a name of 256 bytes is too long; allowed: at most 255"),
        ("/tmp/" + "x/" * 2000, "bytes is too long; allowed: at most 3584"),
        ("a\\b", "holds a backslash"),
        ("a\0b", "holds a NUL character"),
        ("\udcff", "is not UTF-8 text"),
        ("/gs/bucket", "/gs in /gs/bucket looks like a URL"),
        ("/hf", "/hf in /hf looks like a URL"),
        ("logs:/run", "gs: in "),
    ],
)
def test_a_path_that_some_library_does_not_take_is_refused_before_any_work(path, reason):
    assert reason in (unwritable(path) or "")


def test_the_longest_file_name_can_be_written(tmp_path):
    write_whole(tmp_path / ("y" * 255), "1")
    assert (tmp_path / ("y" * 255)).read_text() == "1"
