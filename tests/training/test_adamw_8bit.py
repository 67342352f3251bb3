"""Moments in 8 bits on meshes: the same numbers, bytes, and checkpoints. tests/oracles/test_adamw_8bit.py has the
numbers of bitsandbytes. Another mesh, and runs: `pytest -n 0 -m slow tests/training/test_adamw_8bit.py`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from janus_jax.checkpoint.hf.keys import key_table, leaves
from janus_jax.errors import ConfigError
from janus_jax.model.config import ModelConfig
from janus_jax.model.mistral import param_specs
from janus_jax.parallel.axes import DEFAULT_RULES, MeshShape
from janus_jax.parallel.mesh import build_mesh, param_shardings
from janus_jax.training.optimizer import AdamW
from janus_jax.training.program import local_bytes
from janus_jax.training.quantized import Quantized
from janus_jax.training.run import train
from tests.support.run_configs import TINY_MODEL, run_config
from tests.support.runs import assert_equal_trees, final_params
from tests.support.training_examples import random_examples, write_dataset

MODEL = ModelConfig(
    vocab_size=96, hidden_size=512, intermediate_size=768, num_layers=2, num_heads=8, num_kv_heads=4, head_dim=32
)
"""Rows of all its matrices hold whole blocks of 256, those of the attention's output one."""
ADAMW = AdamW(weight_decay=0.1, block=256)
SPECS = param_specs(MODEL, jnp.float32)


def gradients(step: int):
    random = np.random.default_rng(step)
    return jax.tree.map(lambda spec: random.normal(size=spec.shape).astype(np.float32), SPECS)


def two_steps(put=lambda tree, shardings: tree, shardings=None):
    chain = ADAMW.transformation(lambda _: jnp.float32(1e-3), SPECS)
    params = jax.tree.map(lambda spec: np.ones(spec.shape, np.float32), SPECS)
    params, state = put(params, shardings), jax.jit(chain.init)(params)
    where = None if shardings is None else ADAMW.state_shardings(state, SPECS, shardings)
    state = state if where is None else jax.device_put(state, where)
    outs = None if where is None else (shardings, where)
    step = jax.jit(chain.update, donate_argnums=1, out_shardings=outs)
    for number in (1, 2):
        updates, state = step(put(gradients(number), shardings), state, params)
    return updates, state[0]


@pytest.fixture(scope="module")
def alone():
    return two_steps()


@pytest.mark.parametrize(
    "sizes", [{"fsdp": 8}, pytest.param({"data": 2, "fsdp": 2, "tensor": 2}, marks=pytest.mark.slow)], ids=str
)
def test_a_step_gives_the_same_moments_on_every_mesh(alone, sizes):
    """Also with fsdp 8, where a row's blocks of 256 are cut into shards of 64."""
    mesh = build_mesh(MeshShape(**{"data": 1, "fsdp": 1} | sizes))
    shardings = param_shardings(SPECS, mesh, DEFAULT_RULES)
    updates, state = two_steps(jax.device_put, shardings)
    assert_equal_trees((state.mu, state.nu), (alone[1].mu, alone[1].nu))
    for mine, other in zip(jax.tree.leaves(updates), jax.tree.leaves(alone[0]), strict=True):
        np.testing.assert_allclose(mine, other, rtol=3e-7)
    gate, lies = state.mu["layers"]["mlp"]["gate"], shardings["layers"]["mlp"]["gate"]
    assert gate.codes.sharding.is_equivalent_to(lies, 3)
    whole_blocks = mesh.shape["fsdp"] <= 2
    expected = PartitionSpec(None, "fsdp" if whole_blocks else None, "tensor")
    assert gate.scales.sharding.is_equivalent_to(NamedSharding(mesh, expected), 3)
    assert ADAMW.moment_bytes(SPECS, shardings) == local_bytes((state.mu, state.nu))


def test_blocks_are_those_of_the_flat_tensors_of_a_hugging_face_file(alone):
    """Layer by layer: the scale of a block is the largest moment of 256 elements that follow each other in the file."""
    moments, first = leaves(alone[1].mu), {}
    for step in (1, 2):
        for path, gradient in leaves(gradients(step)).items():
            first[path] = 0.9 * first.get(path, 0) + 0.1 * np.asarray(gradient)
    for entry in key_table(MODEL):
        moment = moments[entry.path]
        if not isinstance(moment, Quantized):  # fewer than 4096 elements
            assert np.prod(entry.shape) < 4096
            continue
        at = slice(None) if entry.layer is None else entry.layer
        expected = np.abs(entry.to_torch(first[entry.path][at]).reshape(-1, 256)).max(1)
        scales = np.asarray(moment.scales[at])
        axes = len(entry.axes[-1])  # folded into the rows of the file, one axis of blocks here
        order = [axis if axis < entry.axes[-1][0] else axis - axes + 1 for axis in entry.axes[0]]
        stored = np.moveaxis(scales, entry.axes[-1][0], -1) if len(entry.axes) > 1 else scales
        assert len(order) == stored.ndim - (len(entry.axes) > 1) or len(entry.axes) == 1
        np.testing.assert_allclose(stored.reshape(-1), expected, rtol=0.01, err_msg=entry.key)


def config(root, run, mesh, **changes):
    model = TINY_MODEL | {"num_layers": 1, "hidden_size": 256, "num_heads": 4, "num_kv_heads": 4, "head_dim": 64}
    return run_config(
        root,
        run,
        model=model,
        mesh=mesh,
        schedule={"epochs": None, "steps": 4},
        eval={"every_steps": None},
        compat={"adamw_8bit": 256, "embedding_moments": "float32"},
        **changes,
    )


@pytest.mark.slow
def test_a_run_goes_on_bit_for_bit_and_on_another_mesh(tmp_path):
    write_dataset(tmp_path / "sft", {"train": random_examples(140, pairs=False, seed=1)}, kind="sft")
    mesh, other = {"data": 2, "fsdp": 2, "tensor": 2}, {"data": 1, "fsdp": 4, "tensor": 2}
    train(config(tmp_path, tmp_path / "whole", mesh), writers=())
    whole = final_params(tmp_path / "whole")
    for name, later in (("same", mesh), ("other", other)):
        train(config(tmp_path, tmp_path / name, mesh), until_step=2, writers=())
        train(config(tmp_path, tmp_path / name, later), writers=())
    assert_equal_trees(final_params(tmp_path / "same"), whole)
    for mine, expected in zip(jax.tree.leaves(final_params(tmp_path / "other")), jax.tree.leaves(whole), strict=True):
        assert np.linalg.norm(mine - expected) <= 1e-4 * np.linalg.norm(expected)
    changed = config(tmp_path, tmp_path / "whole", mesh).model_dump(by_alias=True)
    changed["compat"]["adamw_8bit"] = 2048
    with pytest.raises(ConfigError, match=r"holds a run with compat.adamw_8bit = 256, not 2048"):
        train(type(config(tmp_path, tmp_path / "whole", mesh)).model_validate(changed), writers=())
