"""Steps in a bucket: saved, kept, deleted, set aside; and what a bucket that refuses does to a save.

More files that are damaged or refused: `pytest -n 0 -m slow tests/checkpoint/test_bucket_steps.py`.
"""

import contextlib

import jax
import pytest

from janus_jax.checkpoint.checksums import ITEM
from janus_jax.checkpoint.damage import newest_good
from janus_jax.checkpoint.run_dir import committed_steps
from janus_jax.checkpoint.state import Checkpoints
from janus_jax.errors import DamagedError, StorageError
from janus_jax.parallel.mesh import MeshShape, build_mesh
from janus_jax.storage import bucket as bucket_module
from janus_jax.storage import trees
from janus_jax.storage.bucket import Prefix
from janus_jax.storage.local import place
from tests.support.faulty_bucket import refusing, slow
from tests.support.runs import assert_equal_trees
from tests.support.states import STATE_META, abstract, placed_state


@pytest.fixture(scope="module")
def state():
    return placed_state(build_mesh(MeshShape(1, 8, 1)))


@pytest.fixture(scope="module")
def saved():
    """The objects of `steps`, once they were saved: to write them again takes a quarter of the time."""
    return dict[str, bytes]()


@pytest.fixture
def steps(bucket, state, saved):
    """URL of the steps 3 and 7 of one run; parameters are multiplied by the step. Step 2 was pushed out."""
    prefix = Prefix(directory := f"{bucket}/run/checkpoints")
    for name, content in saved.items():
        prefix.write(name, content)
    if not saved:
        with contextlib.closing(Checkpoints(directory, keep=2)) as checkpoints:
            for step in (2, 3, 7):
                save(checkpoints, step, state)
            checkpoints.wait()
        saved.update({item.name: prefix.read(item) for item in prefix.list()})
    return directory


def save(checkpoints, step, state):
    params = jax.tree.map(lambda leaf: leaf * step, state[0])
    checkpoints.save(step, params=params, optimizer=state[1], data={"epoch": 1, "row": step}, meta=STATE_META)
    checkpoints.poll()


def names(directory):
    return Prefix(directory).children()


def replace(directory, name, change):
    prefix = Prefix(directory)
    item = prefix.find(name)
    prefix.write(name, change(prefix.read(item)), item.generation)


def go_on(directory, state, lines):
    """What a run does: (step, restored)."""
    while True:
        newest = newest_good(place(directory), lines.append)
        assert newest is not None
        with contextlib.closing(Checkpoints(directory, keep=2, notify=lines.append)) as checkpoints:
            try:
                step = newest[0]
                return step, checkpoints.restore(step, params=abstract(state[0]), optimizer=abstract(state[1]))
            except DamagedError as error:
                checkpoints.set_aside(step, error)


def test_steps_are_kept_deleted_restored_and_described_anew(steps, state):
    assert names(steps) == ["3", "7"]
    with contextlib.closing(Checkpoints(steps, keep=2)) as checkpoints:
        assert checkpoints.latest_step() == 7
        checkpoints.replace_meta(7, {**STATE_META, "more": 1})
    step, (params, optimizer, data, meta) = go_on(steps, state, [])
    assert (step, data, meta["more"]) == (7, {"epoch": 1, "row": 7}, 1)
    assert_equal_trees(params, jax.tree.map(lambda leaf: leaf * 7, state[0]))
    assert_equal_trees(optimizer, state[1])
    assert jax.tree.structure(optimizer) == jax.tree.structure(state[1])


@pytest.mark.parametrize(
    "name",
    [
        "data/metadata",
        "params/manifest.ocdbt",
        *(pytest.param(name, marks=pytest.mark.slow) for name in (f"{ITEM}/metadata", "optimizer/_METADATA")),
    ],
)
def test_a_damaged_newest_step_is_named_and_kept_and_its_number_saved_again(steps, state, name):
    replace(steps, f"7/{name}", lambda content: content[: len(content) // 2])
    lines = []
    assert go_on(steps, state, lines)[0] == 3 and len(lines) == 1, lines
    assert lines[0].startswith(f"{steps}/7: {name.partition('/')[0]}: ") and "it is kept as 7.damaged" in lines[0]
    assert names(steps) == ["3", "7.damaged"]
    assert {"commit_success.txt", "damage.txt", name} <= {item.name for item in Prefix(f"{steps}/7.damaged").list()}
    with contextlib.closing(Checkpoints(steps, keep=1)) as checkpoints:
        save(checkpoints, 7, state)
        checkpoints.wait()
    assert names(steps) == ["7", "7.damaged"]  # neither retention nor a start takes what is set aside
    assert go_on(steps, state, [])[0] == 7


def test_a_move_that_was_cut_off_is_made_again(steps, state, monkeypatch):
    replace(steps, "7/data/metadata", lambda content: b"{}")
    with monkeypatch.context() as killed:
        killed.setattr(trees.Prefix, "delete", lambda self, objects: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            newest_good(place(steps), [].append)
    with monkeypatch.context() as killed:
        copy = trees.Prefix.copy
        killed.setattr(trees.Prefix, "copy", lambda self, objects, to: copy(self, list(objects)[:3], to))
        killed.setattr(trees.Prefix, "delete", lambda self, objects: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            newest_good(place(steps), [].append)
    assert committed_steps(place(steps)) == [3, 7]
    assert go_on(steps, state, [])[0] == 3
    assert "7" not in names(steps)


def test_what_a_killed_save_leaves_is_no_step(steps, state):
    for step, gone in ((7, "commit_success.txt"), (3, "optimizer/")):
        prefix = Prefix(f"{steps}/{step}")
        prefix.delete([item for item in prefix.list() if item.name.startswith(gone)])
    lines = []
    with contextlib.closing(Checkpoints(steps, keep=2, notify=lines.append)):
        assert names(steps) == ["3.incomplete"]
    assert [line.partition(": ")[2] for line in sorted(lines)] == [
        "its write, copy or deletion was interrupted; it is kept as 3.incomplete",
        "its write or deletion was interrupted; its remains are removed",
    ]


@pytest.mark.parametrize(
    "status, what",
    [
        (503, "run/checkpoints/8/params/"),
        (403, "run/checkpoints/8/commit_success.txt"),
        (503, ""),
        pytest.param(403, "run/checkpoints/8/params/", marks=pytest.mark.slow),
        pytest.param(503, "run/checkpoints/8/commit_success.txt", marks=pytest.mark.slow),
        pytest.param(403, "", marks=pytest.mark.slow),
    ],
)
def test_a_bucket_that_refuses_during_a_save(steps, state, proxy, monkeypatch, status, what):
    """The arrays, the commit mark, or all of it. The last good step stays; the run stops or goes on, as it says."""
    monkeypatch.setattr(bucket_module, "RETRY_S", 0.5)
    lines = []
    with contextlib.closing(Checkpoints(steps, keep=2, on_error="continue", notify=lines.append)) as checkpoints:
        proxy.refusal = refusing(status, what)
        save(checkpoints, 8, state)
        save(checkpoints, 9, state)  # hears of the failure
        proxy.refusal = refusing(503, "never")
        save(checkpoints, 10, state)
        checkpoints.wait()
        assert checkpoints.failed == (1 if what else 2)
        assert all(line.startswith(steps) and "\n" not in line and len(line) < 500 for line in lines), lines
        text = [line for line in lines if "the newest whole checkpoint is of step 7; the run goes on" in line]
        assert len(text) == checkpoints.failed and "cannot be written" in text[0], lines
    assert committed_steps(place(steps))[-1] == 10
    assert "8" not in names(steps)


def test_a_bucket_that_refuses_ends_the_run_in_one_line(steps, state, proxy, monkeypatch):
    monkeypatch.setattr(bucket_module, "RETRY_S", 0.5)
    checkpoints = Checkpoints(steps, keep=2)
    proxy.refusal = refusing(403)
    with pytest.raises(StorageError, match=r"cannot be written: .*; the newest whole checkpoint is of step 7$"):
        save(checkpoints, 8, state)
        checkpoints.wait()
    checkpoints.close()
    proxy.refusal = refusing(503, "never")
    assert committed_steps(place(steps)) == [3, 7]


def test_a_run_that_ends_before_its_save_does_deletes_no_step(steps, state):
    """It may have lost the directory to another start, which keeps what it wants."""
    checkpoints = Checkpoints(steps, keep=1)
    save(checkpoints, 8, state)
    checkpoints.close()
    assert committed_steps(place(steps)) == [3, 7, 8]


def test_short_refusals_and_a_slow_bucket_cost_time_only(steps, state, proxy):
    proxy.refusal = refusing(503, "checkpoints/8/", times=1)
    with contextlib.closing(Checkpoints(steps, keep=1)) as checkpoints:
        save(checkpoints, 8, state)
        checkpoints.wait()
        proxy.refusal = slow(0.05)
        save(checkpoints, 9, state)
        checkpoints.wait()
    assert names(steps) == ["9"]
    proxy.refusal = refusing(503, "checkpoints/9", writes=False, times=2)
    assert go_on(steps, state, [])[0] == 9
