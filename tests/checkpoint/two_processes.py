"""What each of two processes of one device does for test_state.py: save a step and an export, load both."""

import errno
import resource
import sys
from pathlib import Path


def main(port: str, process: str, directory: Path) -> None:
    from janus_jax.parallel import processes

    processes.start(processes.RuntimeOptions(f"127.0.0.1:{port}", 2, int(process), 1))
    from orbax.checkpoint._src.path import atomicity

    from janus_jax.checkpoint import state
    from janus_jax.checkpoint.hf.read import load_hf, save_hf
    from janus_jax.checkpoint.restore import restore_item
    from janus_jax.checkpoint.state import Checkpoints
    from janus_jax.checkpoint.stored_model import open_model
    from janus_jax.errors import DamagedError, JanusError, StorageError
    from janus_jax.model.mistral import param_specs
    from janus_jax.parallel.mesh import MeshShape, build_mesh, merge_rules, param_shardings
    from tests.support.states import STATE_META, STATE_MODEL, abstract, placed_state

    mesh = build_mesh(MeshShape(1, 2, 1))
    params, optimizer = placed_state(mesh)
    checkpoints = Checkpoints(directory / "run" / "checkpoints", keep=2)
    checkpoints.save(5, params=params, optimizer=optimizer, data={"epoch": 0, "row": 40}, meta=STATE_META)
    checkpoints.wait()
    assert checkpoints.latest_step() == 5
    result, found_optimizer, *_ = checkpoints.restore(5, params=abstract(params), optimizer=abstract(optimizer))
    same_shards(result, params)
    same_shards(found_optimizer, optimizer)
    checkpoints.save(6, params=params, optimizer=optimizer, data={"epoch": 0, "row": 48}, meta=STATE_META)
    checkpoints.wait()
    if int(process) == 1:  # what it reads is damaged, what process 0 reads is not
        state.restore_item = damaged
    try:
        checkpoints.restore(6, params=abstract(params), optimizer=abstract(optimizer))
    except DamagedError as error:
        checkpoints.set_aside(6, error)  # on both, and neither waits for the other
    else:
        raise AssertionError("a step of which one process could not read its part was restored")
    state.restore_item = restore_item
    assert checkpoints.latest_step() == 5
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if int(process) == 1:  # its disk is full
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    checkpoints.save(7, params=params, optimizer=optimizer, data={"epoch": 0, "row": 56}, meta=STATE_META)
    try:
        checkpoints.wait()
    except StorageError as error:  # on both, at once
        assert "7: cannot be written" in str(error) and "of step 5" in str(error), error
    else:
        raise AssertionError("a step of which one process could not write its part was committed")
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    if int(process) == 0:  # it alone makes directories
        (directory / "run" / "checkpoints" / "8").write_text("in the way")
    try:
        checkpoints.save(8, params=params, optimizer=optimizer, data={"epoch": 0, "row": 64}, meta=STATE_META)
    except StorageError as error:  # on both, at once
        assert "8: cannot be written: it exists already" in str(error), error
    else:
        raise AssertionError("a step whose directory could not be made was saved")
    (directory / "run" / "checkpoints" / "8").unlink(missing_ok=True)
    finalize = atomicity.AtomicRenameTemporaryPath.finalize
    if int(process) == 0:  # the disk is full when it alone commits the step
        atomicity.AtomicRenameTemporaryPath.finalize = unable
    checkpoints.save(9, params=params, optimizer=optimizer, data={"epoch": 0, "row": 72}, meta=STATE_META)
    try:
        checkpoints.wait()
    except StorageError as error:
        assert "9: cannot be written" in str(error) and "No space left on device" in str(error), error
    else:
        raise AssertionError("a step that could not be committed was saved")
    atomicity.AtomicRenameTemporaryPath.finalize = finalize
    checkpoints.save(10, params=params, optimizer=optimizer, data={"epoch": 0, "row": 80}, meta=STATE_META)
    checkpoints.wait()
    assert checkpoints.latest_step() == 10
    checkpoints.close()

    save_hf(params, STATE_MODEL, directory / "export", max_shard_size="6KB")
    try:
        save_hf(params, STATE_MODEL, directory / "export")
    except JanusError:
        pass  # the refusal of process 0 reaches both, and neither waits for the other
    else:
        raise AssertionError("a directory that holds something was written over")
    shardings = param_shardings(param_specs(STATE_MODEL), mesh, merge_rules({}))
    same_shards(load_hf(directory / "export", shardings=shardings)[1], params)
    same_shards(open_model(directory / "run").load(shardings=shardings), params)


async def unable(*arguments, **options):
    raise OSError(errno.ENOSPC, "No space left on device")


def damaged(item, abstract):
    from janus_jax.errors import DamagedError

    raise DamagedError(item, "is damaged and cannot be read")


def same_shards(ours, theirs) -> None:
    import jax
    import numpy as np

    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        for a, b in zip(x.addressable_shards, y.addressable_shards, strict=True):
            np.testing.assert_array_equal(np.asarray(a.data), np.asarray(b.data))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
