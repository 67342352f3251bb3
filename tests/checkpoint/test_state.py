"""Training state on disk: any mesh, any Orbax, whole steps only."""

import contextlib
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from etils import epath

from janus_jax.checkpoint.hf.read import save_hf
from janus_jax.checkpoint.item import ItemReader
from janus_jax.checkpoint.state import CHUNK_BYTES, Checkpoints
from janus_jax.checkpoint.stored_model import open_model
from janus_jax.errors import ConversionError, StorageError
from janus_jax.parallel.mesh import MeshShape, build_mesh
from janus_jax.storage.local import absolute
from tests.support import processes
from tests.support.models import assert_same_bits, random_params, read_tensors
from tests.support.states import STATE_META, STATE_MODEL, abstract, placed_state


def assert_same_tree(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.fixture
def run(tmp_path):
    """A run with steps 3 and 7 saved on a mesh of 8 fsdp shards."""
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", keep=2)
    params, optimizer = placed_state(build_mesh(MeshShape(1, 8, 1)))
    for step in (3, 7):
        scaled = jax.tree.map(lambda leaf, step=step: leaf * step, params)
        checkpoints.save(step, params=scaled, optimizer=optimizer, data={"epoch": 1, "row": step}, meta=STATE_META)
    checkpoints.close()
    return tmp_path / "run"


def test_state_of_one_mesh_restores_on_another(run):
    params, optimizer = placed_state(build_mesh(MeshShape(1, 8, 1)))
    target = placed_state(build_mesh(MeshShape(2, 2, 2)))
    checkpoints = Checkpoints(run / "checkpoints", keep=2)
    assert checkpoints.latest_step() == 7
    result, found_optimizer, data, meta = checkpoints.restore(
        7, params=abstract(target[0]), optimizer=abstract(target[1])
    )
    checkpoints.close()
    assert_same_tree(result, jax.tree.map(lambda leaf: leaf * 7, params))
    assert_same_tree(found_optimizer, optimizer)
    for leaf, wanted in zip(jax.tree.leaves((result, found_optimizer)), jax.tree.leaves(target), strict=True):
        assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)
    assert len(result["lm_head"].sharding.device_set) == 8
    assert data == {"epoch": 1, "row": 7}
    assert meta == json.loads(json.dumps(STATE_META))


def test_a_path_is_no_pattern(tmp_path):
    """Orbax merges what its processes wrote, and finds it by `glob`."""
    directory = tmp_path / "[v1] *?#%41{}é'\"\n" / "run"
    params, optimizer = {"w": jnp.arange(4.0)}, {"m": jnp.ones(3)}
    with contextlib.closing(Checkpoints(directory, keep=1)) as checkpoints:
        checkpoints.save(1, params=params, optimizer=optimizer, data={}, meta={})
        checkpoints.wait()
        result, *_ = checkpoints.restore(1, params=abstract(params), optimizer=abstract(optimizer))
    assert_same_tree(result, params)
    assert_same_tree(ItemReader(absolute(directory) / "1" / "params").read(("w",)), params["w"])


def test_stock_orbax_restores_without_this_package(run):
    """A process that imports orbax alone reads every item of the newest step."""
    script = """
import sys, jax, numpy as np, orbax.checkpoint as ocp
manager = ocp.CheckpointManager(sys.argv[1])
step = manager.latest_step()
args = ocp.args.Composite(
    params=ocp.args.StandardRestore(), optimizer=ocp.args.StandardRestore(), data=ocp.args.JsonRestore(),
    meta=ocp.args.JsonRestore())
found = manager.restore(step, args=args)
assert not any(name.startswith("janus_jax") for name in sys.modules)
print(step, found.data["row"], found.meta["config"]["run"]["seed"], found.params["layers"]["attention"]["q"].shape,
      float(np.asarray(found.params["embedding"], np.float64).sum()))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(run / "checkpoints")], capture_output=True, text=True, check=True
    )
    total = float((np.asarray(random_params(STATE_MODEL)["embedding"]) * 7).astype(np.float64).sum())
    *start, last = done.stdout.split(maxsplit=7)
    assert " ".join(start) == "7 7 3 (2, 16, 4, 8)"
    assert float(last) == total


def test_only_whole_steps_are_listed(run):
    whole = run / "checkpoints" / "7"
    (run / "checkpoints" / "9").mkdir()  # begun
    (run / "checkpoints" / "11.orbax-checkpoint-tmp-0").mkdir()
    (whole / "commit_success.txt").unlink()  # never committed
    checkpoints = Checkpoints(run / "checkpoints", keep=2)
    assert checkpoints.latest_step() == 3
    with pytest.raises(ConversionError, match="no step 7; existing steps: 3"):
        checkpoints.restore(7, params={}, optimizer={})
    params, optimizer = placed_state(build_mesh(MeshShape(1, 8, 1)))
    checkpoints.save(7, params=params, optimizer=optimizer, data={}, meta=STATE_META)  # the number is free again
    checkpoints.wait()
    assert checkpoints.latest_step() == 7
    checkpoints.close()


def test_the_newest_steps_are_kept(run):
    checkpoints = Checkpoints(run / "checkpoints", keep=2)
    params, optimizer = placed_state(build_mesh(MeshShape(1, 8, 1)))
    checkpoints.save(8, params=params, optimizer=optimizer, data={}, meta=STATE_META)
    checkpoints.close()
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["7", "8"]


def test_arrays_may_be_donated_while_a_save_is_under_way(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    params, optimizer = placed_state(build_mesh(MeshShape(1, 8, 1)))
    expected = jax.device_get(params)
    wanted = abstract(params), abstract(optimizer)
    checkpoints.save(1, params=params, optimizer=optimizer, data={}, meta=STATE_META)
    jax.block_until_ready(jax.jit(lambda tree: jax.tree.map(jnp.zeros_like, tree), donate_argnums=0)(params))
    checkpoints.wait()
    result, *_ = checkpoints.restore(1, params=wanted[0], optimizer=wanted[1])
    checkpoints.close()
    assert_same_bits(result, expected)


def test_another_model_or_optimizer_is_refused_by_name(run):
    params, optimizer = placed_state(build_mesh(MeshShape(1, 8, 1)))
    checkpoints = Checkpoints(run / "checkpoints", keep=2)
    wanted = abstract(params), abstract(optimizer)
    short = {
        **wanted[0],
        "final_norm": jax.ShapeDtypeStruct((8,), jnp.float32, sharding=wanted[0]["final_norm"].sharding),
    }
    with pytest.raises(ConversionError, match=r"7/params: final_norm has shape \[16\]; needed: \[8\]"):
        checkpoints.restore(7, params=short, optimizer=wanted[1])
    tied = {name: leaf for name, leaf in wanted[0].items() if name != "lm_head"}
    with pytest.raises(ConversionError, match="7/params: lm_head is stored but not needed"):
        checkpoints.restore(7, params=tied, optimizer=wanted[1])
    with pytest.raises(ConversionError, match=r"7/optimizer: .*another model or optimizer"):
        checkpoints.restore(7, params=wanted[0], optimizer=abstract(jax.jit(optax.sgd(0.1, 0.9).init)(params)))
    checkpoints.close()


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file/checkpoints"):
        Checkpoints(tmp_path / "file" / "checkpoints", keep=1)


def test_a_stacked_leaf_is_stored_one_layer_a_chunk(tmp_path):
    """So that one layer can be read without the others; a leaf without layers is cut by size only."""
    big = {
        "layers": {"w": jnp.zeros((3, 64, 32))},
        "embedding": jnp.zeros((64, 32)),
        "head": jnp.zeros((CHUNK_BYTES // 1024 + 256, 256)),
    }
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, params=big, optimizer={"count": jnp.int32(0)}, data={}, meta={})
    checkpoints.close()
    stored = ocp.PyTreeCheckpointHandler().metadata(epath.Path(tmp_path / "1" / "params")).tree
    assert stored["layers"]["w"].storage.chunk_shape == (1, 64, 32)
    assert stored["embedding"].storage.chunk_shape == (64, 32)
    assert np.prod(stored["head"].storage.chunk_shape) * 4 <= CHUNK_BYTES < big["head"].nbytes


def test_two_processes_save_and_one_restores(tmp_path):
    """Two processes write a step and an export; this one process of eight devices reads the same values."""
    port = processes.free_port()
    processes.run(*(["-m", "tests.checkpoint.two_processes", port, i, tmp_path] for i in range(2)))
    mesh = build_mesh(MeshShape(2, 2, 2))
    params, optimizer = placed_state(mesh)
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", keep=1)
    result, found_optimizer, data, _ = checkpoints.restore(5, params=abstract(params), optimizer=abstract(optimizer))
    checkpoints.close()
    assert_same_tree(result, params)
    assert_same_tree(found_optimizer, placed_state(build_mesh(MeshShape(1, 8, 1)))[1])
    assert data == {"epoch": 0, "row": 40}
    save_hf(params, STATE_MODEL, tmp_path / "here")
    assert read_tensors(tmp_path / "export") == read_tensors(tmp_path / "here")
    assert_same_bits(open_model(tmp_path / "run").load(), params)


def test_saving_cuts_nothing_out_on_the_devices(tmp_path, monkeypatch):
    """With replicas Orbax would by default: a part of the state on top of it, on devices that a step fills."""
    from orbax.checkpoint._src.serialization import replica_slices

    mesh = jax.sharding.Mesh(np.asarray(jax.devices()).reshape(2, 4), ("data", "fsdp"))
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    params = {"w": jax.device_put(np.arange(8 * 1024, dtype=np.float32).reshape(8, 1024), where)}
    cut, original = [], replica_slices.ReplicaSlice.data
    monkeypatch.setattr(replica_slices.ReplicaSlice, "data", lambda self: cut.append(self.slice_args) or original(self))
    with contextlib.closing(Checkpoints(tmp_path / "checkpoints", keep=1)) as checkpoints:
        checkpoints.save(1, params=params, optimizer={"mu": params}, data={}, meta={})
        checkpoints.wait()
        assert cut and set(cut) == {None}
        shape = {"w": jax.ShapeDtypeStruct((8, 1024), np.float32, sharding=where)}
        result, *_ = checkpoints.restore(1, params=shape, optimizer={"mu": shape})
    assert np.array_equal(result["w"], params["w"])
