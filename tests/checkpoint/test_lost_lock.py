"""A save that is under way when another start takes the run over: nothing is committed, nothing is deleted."""

import contextlib
import dataclasses
from pathlib import Path

import pytest

from janus_jax.checkpoint.run_dir import COMMITTED, committed_steps
from janus_jax.checkpoint.state import Checkpoints
from janus_jax.errors import LostLockError, StorageError
from janus_jax.parallel.mesh import MeshShape, build_mesh
from janus_jax.storage import bucket as bucket_module
from janus_jax.storage.bucket import Prefix
from janus_jax.storage.local import place
from janus_jax.storage.lock import held
from janus_jax.storage.lock_stores import Holder
from tests.support.faulty_bucket import refusing
from tests.support.states import STATE_META, placed_state


@pytest.fixture(scope="module")
def state():
    return placed_state(build_mesh(MeshShape(1, 8, 1)))


def take_over(run):
    """What another start does: it takes the lock, and saves step 8 itself. Returns its objects of that step."""
    other = dataclasses.replace(Holder.me(2), host="far", pid=4711, machine="far away", id="other")
    if "://" not in run:
        beside = Path(f"{run}/lock.json.new")
        beside.write_bytes(other.content())
        beside.replace(f"{run}/lock.json")
        return None
    prefix = Prefix(run)
    prefix.write("lock.json", other.content(), None)
    for name in AT_THE_END:
        prefix.write(f"checkpoints/8/{name}", b"the other start's", None)
    return at_the_end(run)


AT_THE_END = ("_CHECKPOINT_METADATA", "params/manifest.ocdbt", "optimizer/manifest.ocdbt")
"""What a save writes when all arrays are written."""


def at_the_end(run):
    """Generations of these objects, and of the commit mark, of step 8."""
    generations = {item.name: item.generation for item in Prefix(f"{run}/checkpoints/8").list()}
    return {name: generation for name, generation in generations.items() if name in (*AT_THE_END, COMMITTED)}


def save(checkpoints, step, state):
    checkpoints.save(step, params=state[0], optimizer=state[1], data={"row": step}, meta=STATE_META)


@pytest.mark.parametrize("moment", ["first", "last"])
@pytest.mark.parametrize("store", ["disk", "bucket"])
def test_a_start_that_lost_the_run_commits_no_step(store, moment, state, request, tmp_path):
    """Taken over when the guard is asked first, after the first array; and last, when only the commit is left."""
    run = f"{request.getfixturevalue('bucket')}/run" if store == "bucket" else str(tmp_path / "run")
    asked, calls, reached, theirs = [], [], [], []
    with held(f"{run}/lock.json", run) as lock:

        def guard():
            calls.append(len(asked))
            if asked and len(calls) == (1 if moment == "first" else asked[0]):
                if store == "bucket":
                    manifest = Prefix(f"{run}/checkpoints/8").find("params/manifest.ocdbt")
                    listing = (place(run) / "checkpoints/8/_CHECKPOINT_METADATA").read_text()
                    ready = manifest is not None and '"commit_timestamp_nsecs": null' not in listing
                    reached.append("last" if ready else "middle" if manifest else "first")
                theirs.append(take_over(run))
            lock.confirm()

        with contextlib.closing(Checkpoints(f"{run}/checkpoints", keep=1, guard=guard)) as checkpoints:
            save(checkpoints, 3, state)
            checkpoints.wait()
            asked.append(len(calls))
            calls.clear()
            save(checkpoints, 8, state)
            with pytest.raises(LostLockError, match=r"process 4711 on host far .* has taken it over"):
                checkpoints.wait()
    assert committed_steps(place(f"{run}/checkpoints")) == [3]
    if store == "bucket":
        assert reached == [moment] and at_the_end(run) == theirs[0] and COMMITTED not in theirs[0]


def test_no_step_is_committed_while_nobody_knows_whose_the_run_is(bucket, state, proxy, monkeypatch):
    monkeypatch.setattr(bucket_module, "RETRY_S", 0.5)
    run = f"{bucket}/run"
    with held(f"{run}/lock.json", run) as lock:
        checkpoints = Checkpoints(f"{run}/checkpoints", keep=1, guard=lock.confirm)
        proxy.refusal = refusing(503, "lock.json", writes=False)
        save(checkpoints, 8, state)
        with pytest.raises(StorageError, match=r"lock\.json: cannot be read"):
            checkpoints.wait()
        proxy.refusal = refusing(503, "never")
        checkpoints.close()
    assert committed_steps(place(f"{run}/checkpoints")) == []


def test_a_start_that_lost_the_run_deletes_no_step(bucket, state):
    run = f"{bucket}/run"
    with held(f"{run}/lock.json", run) as lock:
        with contextlib.closing(Checkpoints(f"{run}/checkpoints", keep=2, guard=lock.confirm)) as checkpoints:
            for step in (2, 3):
                save(checkpoints, step, state)
                checkpoints.wait()
        with contextlib.closing(Checkpoints(f"{run}/checkpoints", keep=1, guard=lock.confirm)) as checkpoints:
            take_over(run)
            checkpoints._delete_old()
    assert committed_steps(place(f"{run}/checkpoints")) == [2, 3]
