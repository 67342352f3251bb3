"""Faults of a stored step: it is named and set aside, and the last good one is taken. Faults are made on copies."""

import contextlib
import errno
import os
import re
import resource
import shutil
import time
from types import SimpleNamespace

import jax
import pytest
import tensorstore as ts

from janus_jax.checkpoint import retention
from janus_jax.checkpoint import state as state_module
from janus_jax.checkpoint.checksums import ITEM
from janus_jax.checkpoint.damage import newest_good, read_values
from janus_jax.checkpoint.digest import tensors
from janus_jax.checkpoint.state import Checkpoints
from janus_jax.checkpoint.stored_model import open_model
from janus_jax.errors import ConversionError, DamagedError, StorageError
from janus_jax.parallel.mesh import MeshShape, build_mesh
from janus_jax.storage.local import absolute
from janus_jax.training import hooks
from tests.support.runs import assert_equal_trees
from tests.support.states import STATE_META, abstract, placed_state, without_checksums


@pytest.fixture(scope="module")
def state():
    return placed_state(build_mesh(MeshShape(1, 8, 1)))


@pytest.fixture(scope="module")
def saved(tmp_path_factory, state):
    """Steps 3 and 7 of one run; parameters are multiplied by the step."""
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    with contextlib.closing(Checkpoints(directory, keep=2)) as checkpoints:
        for step in (3, 7):
            save(checkpoints, step, state)
    return directory


@pytest.fixture
def steps(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


def save(checkpoints, step, state, **meta):
    params = jax.tree.map(lambda leaf: leaf * step, state[0])
    data = {"epoch": 1, "row": step}
    checkpoints.save(step, params=params, optimizer=state[1], data=data, meta={**STATE_META, **meta})


def change_value(item, name):
    """One number of an array changes, as by a bit that flips where nothing watches over it."""
    store = {"driver": "ocdbt", "base": f"file://{item}/", "path": f"{name}/"}
    leaf = ts.open({"driver": "zarr", "kvstore": store}, open=True).result()
    first = (0,) * leaf.rank
    leaf[first].write(leaf[first].read().result() + 1).result()


def change_byte(file, old, new):
    content = file.read_bytes()
    assert old in content
    file.write_bytes(content.replace(old, new, 1))


def largest_file(item):
    return max(item.rglob("d/*"), key=lambda file: file.stat().st_size)


FAULTS = {
    "a value of params": (lambda step: change_value(step / "params", "embedding"), "params: embedding is not what was"),
    "a value of the optimizer": (
        lambda step: change_value(step / "optimizer", "1.mu.final_norm"),
        "optimizer: 1/mu/final_norm is not what was written",
    ),
    "a byte of data": (lambda step: change_byte(step / "data" / "metadata", b"7", b"6"), "data: is not what was"),
    "a byte of meta": (lambda step: change_byte(step / "meta" / "metadata", b"3", b"2"), "meta: is not what was"),
    "a byte of the checksums": (lambda step: change_byte(step / ITEM / "metadata", b"3", b"2"), f"{ITEM}: is not what"),
    "a truncated array": (lambda step: truncate(largest_file(step / "params")), "params: .*damaged"),
    "an array file that is gone": (lambda step: largest_file(step / "optimizer").unlink(), "optimizer: .*damaged"),
    "an empty index": (lambda step: (step / "params" / "manifest.ocdbt").write_bytes(b""), "params: "),
    "missing metadata": (lambda step: (step / "params" / "_METADATA").unlink(), "params: not an Orbax item"),
    "missing metadata of the optimizer": (lambda step: (step / "optimizer" / "_METADATA").unlink(), "optimizer: "),
    "an empty data file": (lambda step: (step / "data" / "metadata").write_bytes(b""), "data: cannot be read"),
    "a missing meta file": (lambda step: (step / "meta" / "metadata").unlink(), "meta: cannot be read"),
    "missing checksums": (lambda step: shutil.rmtree(step / ITEM), f"{ITEM}: cannot be read"),
    "a missing item": (lambda step: shutil.rmtree(step / "optimizer"), "optimizer does not exist"),
}


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def go_on(directory, state):
    """What a run does: (step, restored, lines)."""
    lines = []
    while True:
        newest = newest_good(absolute(directory), lines.append)
        assert newest is not None
        with contextlib.closing(Checkpoints(directory, keep=2, notify=lines.append)) as checkpoints:
            try:
                step = newest[0]
                return step, checkpoints.restore(step, params=abstract(state[0]), optimizer=abstract(state[1])), lines
            except DamagedError as error:
                checkpoints.set_aside(step, error)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_newest_step_is_named_and_kept_and_the_last_good_one_taken(steps, state, fault, capfd):
    damage, reason = FAULTS[fault]
    damage(steps / "7")
    step, (params, optimizer, data, _), lines = go_on(steps, state)
    assert (step, data["row"]) == (3, 3)
    assert_equal_trees(params, jax.tree.map(lambda leaf: leaf * 3, state[0]))
    assert_equal_trees(optimizer, state[1])
    (line,) = lines
    assert line.startswith(f"{steps / '7'}: ") and "kept as 7.damaged" in line
    assert re.match(reason, (steps / "7.damaged" / "damage.txt").read_text())
    assert sorted(path.name for path in steps.iterdir()) == ["3", "7.damaged"]
    assert "Traceback" not in capfd.readouterr().err


def test_if_no_step_is_good_all_that_were_tried_are_listed(steps, state):
    change_value(steps / "7" / "params", "embedding")
    (steps / "3" / "data" / "metadata").write_bytes(b"{")
    for _ in range(2):  # a second start does not begin the run anew either
        with pytest.raises(ConversionError) as caught:
            go_on(steps, state)
        for words in ("no whole checkpoint", "3.damaged: data: ", "7.damaged: params: embedding", "another run.dir"):
            assert words in str(caught.value)


def test_what_a_killed_save_leaves_is_no_step(steps, state):
    (steps / "9.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    shutil.copytree(steps / "7", steps / "8")
    (steps / "8" / "commit_success.txt").unlink()
    step, _, lines = go_on(steps, state)
    assert step == 7
    assert ["8" in line and "interrupted" in line for line in lines] == [True]
    with contextlib.closing(Checkpoints(steps, keep=2)) as checkpoints:
        save(checkpoints, 8, state)  # waits for the removal of what is left
    assert sorted(path.name for path in steps.iterdir()) == ["7", "8", "8.incomplete"]


def test_a_step_of_an_older_version_is_taken_with_a_note(steps, state):
    without_checksums(steps / "7")
    step, _, (line,) = go_on(steps, state)
    assert step == 7 and "older version" in line


def test_a_refusal_is_no_damage(steps, state, monkeypatch):
    """Too little memory, or a file that may not be read now, says nothing about the step."""
    from janus_jax.checkpoint import state as module

    refusals = {
        PermissionError(13, "Permission denied"): StorageError,
        ValueError("UNAVAILABLE: timeout"): StorageError,
        MemoryError("host"): MemoryError,
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"): jax.errors.JaxRuntimeError,
    }
    for cause, kind in refusals.items():

        def refuse(*_, cause=cause):
            raise cause

        monkeypatch.setattr(module, "restore_item", refuse)
        with pytest.raises(kind):
            go_on(steps, state)
    assert (steps / "7").is_dir()


def test_another_dtype_is_refused_by_name(steps, state):
    bfloat16 = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), state[0])
    with pytest.raises(ConversionError, match="7/params: embedding has dtype float32; needed: bfloat16"):
        go_on(steps, (bfloat16, state[1]))
    assert (steps / "7").is_dir()


@contextlib.contextmanager
def full_disk():
    """No file can grow past 2,000 bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_save_that_fails_stops_the_run_in_one_line(steps, state, capfd):
    with contextlib.closing(Checkpoints(steps, keep=1)) as checkpoints:
        with (
            full_disk(),
            pytest.raises(StorageError, match=r"checkpoints/9: cannot.*; .* whole checkpoint is of step 7"),
        ):
            save(checkpoints, 9, state)
            checkpoints.wait()
        save(checkpoints, 11, state)  # room was made
        checkpoints.wait()
    assert sorted(path.name for path in steps.iterdir()) == ["11"]
    shown = capfd.readouterr()
    assert not shown.out and "Traceback" not in shown.err


def test_a_run_can_go_on_after_a_save_that_failed(steps, state):
    lines = []
    with contextlib.closing(Checkpoints(steps, keep=1, on_error="continue", notify=lines.append)) as checkpoints:
        with full_disk():
            save(checkpoints, 9, state)
            save(checkpoints, 11, state)
            with pytest.raises(StorageError, match="11: cannot"):  # of the last save the end of the run has to know
                checkpoints.wait()  # while the disk is full: a save is written after save() returned
        assert checkpoints.failed == 2 and ["of step 7; the run goes on" in line for line in lines] == [True]
        save(checkpoints, 13, state)
        checkpoints.wait()
        assert checkpoints.latest_step() == 13


def test_the_last_save_of_a_run_is_made_once_more_if_it_failed(steps, state, monkeypatch):
    """Also when a notice ends the run. Only then does it fail."""
    with contextlib.closing(Checkpoints(steps, keep=1, on_error="continue", notify=lambda line: None)) as checkpoints:
        run = SimpleNamespace(
            checkpoints=checkpoints, step=9, saved_step=9, phase=lambda name: contextlib.nullcontext()
        )
        monkeypatch.setattr(hooks.Save, "_save", lambda self, run: save(checkpoints, run.step, state))
        hook = hooks.Save(hooks.every(1, 99), 99)
        with full_disk():
            save(checkpoints, 9, state)
            with pytest.raises(StorageError, match=r"9: cannot be written.* of step 7"):
                hook.at_end(run)
            assert checkpoints.failed == 2
            save(checkpoints, 9, state)
            while checkpoints.saving():
                time.sleep(0.01)
        hook.at_stop(run, None)
        assert (checkpoints.latest_step(), checkpoints.failed) == (9, 3)


def test_room_is_made_only_of_what_the_save_pushes_out(steps, state, monkeypatch):
    """The newest step is never deleted before the next one is whole."""
    free = retention._bytes_of(steps / "7") // 2
    monkeypatch.setattr(retention.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, free))
    lines = []
    with contextlib.closing(Checkpoints(steps, keep=2, notify=lines.append)) as checkpoints:
        save(checkpoints, 9, state)
        assert not (steps / "3").exists() and (steps / "7").exists()
        checkpoints.wait()
    assert ["3: deleted before the save of step 9" in line for line in lines] == [True]
    shutil.rmtree(steps / "7")
    with contextlib.closing(Checkpoints(steps, keep=1)) as checkpoints:
        with pytest.raises(StorageError, match=r"11: cannot be written: a checkpoint takes about .*is of step 9"):
            save(checkpoints, 11, state)
    assert (steps / "9").exists()


def test_a_disk_too_small_for_what_is_kept_is_said_before_training(steps, state, monkeypatch, tmp_path):
    """Steps that are there make room for later ones; before the first, the bytes of its arrays count."""

    def with_free(size):
        monkeypatch.setattr(retention.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, size))

    size = retention._bytes_of(steps / "7")
    used = size + retention._bytes_of(steps / "3")
    empty = tmp_path / "empty"
    arrays = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    with (
        contextlib.closing(Checkpoints(steps, keep=2)) as old,
        contextlib.closing(Checkpoints(empty, keep=retention.Retention(1, best=1))) as new,
    ):
        with_free(3 * size - used)
        assert old.space_note(*abstract(state)) is None
        with_free(3 * size - used - 1)
        assert "with checkpoint.keep=2 up to 3 are there" in old.space_note(*abstract(state))
        with_free(3 * arrays)
        assert new.space_note(*abstract(state)) is None
        with_free(3 * arrays - 1)
        note = new.space_note(*abstract(state))
        assert note.startswith(f"{empty}: a checkpoint takes about ") and "keep=1 and keep_best=1 up to 3" in note
        with_free(arrays // 2 - 1)  # not even if half of it could be compressed away
        with pytest.raises(StorageError, match=r"empty/3: cannot be written: a checkpoint takes about .*no checkpoint"):
            save(new, 3, state)
        with_free(arrays)
        save(new, 3, state)


def test_a_step_whose_directory_cannot_be_made_fails_at_once(steps, state, monkeypatch):
    """Before Orbax begins, in which the other processes would wait for the one that makes it."""
    with contextlib.closing(Checkpoints(steps, keep=2)) as checkpoints:
        (steps / "9").write_text("in the way")
        with pytest.raises(StorageError, match=r"9: cannot be written: it exists already; .*step 7"):
            save(checkpoints, 9, state)

        def refused(*_, **__):
            raise OSError(errno.EDQUOT, "Disk quota exceeded")

        with monkeypatch.context() as patch:
            patch.setattr(os, "mkdir", refused)
            with pytest.raises(StorageError, match="11: cannot be written: Disk quota exceeded"):
                save(checkpoints, 11, state)
        save(checkpoints, 11, state)
    assert sorted(path.name for path in steps.iterdir()) == ["11", "7", "9"]


def test_the_best_steps_stay(steps, state):
    kept = retention.Retention(1, best=1)
    for step, loss in ((8, 2.0), (9, 1.0), (10, 3.0)):  # opened anew each time: the metrics are on disk
        with contextlib.closing(Checkpoints(steps, keep=kept)) as checkpoints:
            save(checkpoints, step, state, evaluation={"loss": loss})
    assert sorted(int(path.name) for path in steps.iterdir()) == [9, 10]


def test_whoever_reads_a_damaged_step_is_told(steps):
    """To convert it, to start from it or to evaluate it; nothing is renamed, since other steps may be wanted."""
    change_value(steps / "7" / "params", "layers.mlp.up")
    model = open_model(steps)
    words = "params: layers/mlp/up.* is not what was written"
    for read in (model.load, model.load_host, lambda: [block for _, block in tensors(model)]):
        with pytest.raises(DamagedError, match=words):
            read()
    change_byte(steps / "7" / "meta" / "metadata", b"16", b"17")
    with pytest.raises(DamagedError, match="7/meta: is not what was written"):
        open_model(steps)
    assert [block.shape for _, block in tensors(open_model(steps, 3))] and (steps / "7").is_dir()


@pytest.mark.parametrize("killed_after", [1, 2, 3])
def test_a_kill_while_the_meta_of_a_step_is_replaced_damages_nothing(steps, monkeypatch, killed_after):
    """Its files are written one after another; between any two of them the step is whole, by the old or the new."""
    real, written = state_module.write_whole, []

    def write(path, text):
        if len(written) == killed_after:
            raise Killed
        written.append(path)
        real(path, text)

    monkeypatch.setattr(state_module, "write_whole", write)
    new = {**STATE_META, "evaluation": {"loss": 1.0}}
    with contextlib.closing(Checkpoints(steps, keep=2)) as checkpoints, contextlib.suppress(Killed):
        checkpoints.replace_meta(7, new)
    _, meta, record = read_values(steps / "7")
    assert record is not None and meta == (STATE_META if killed_after == 1 else new)
    edited = steps / "7" / "meta" / "metadata"
    edited.write_text(edited.read_text().replace("seed", "sead"))
    with pytest.raises(DamagedError, match="meta: is not what was written"):
        read_values(steps / "7")


class Killed(Exception):
    """Stands for the end of the process."""
