"""Meshes and rules: the same numbers on every mesh, and errors that name axis and size.

More meshes: `pytest -n 0 -m slow tests/parallel/test_mesh.py tests/training/test_meshes.py`.
"""

import dataclasses

import jax
import pytest

from janus_jax.data.rows import pack
from janus_jax.errors import ConfigError
from janus_jax.model.mistral import Compute, param_specs
from janus_jax.objectives.dpo import DPO
from janus_jax.objectives.sft import SFT
from janus_jax.parallel import mesh as meshes
from janus_jax.parallel.mesh import DEFAULT_RULES, MeshShape, build_mesh, merge_rules, param_shardings, partition_spec
from tests.support.packed import ROW_LENGTH, in_microbatches, initial_params, rows_of, step_functions, with_reference
from tests.support.tolerances import assert_within
from tests.support.training_examples import TINY, random_examples


@pytest.fixture(scope="module")
def case(request):
    objective = SFT() if request.param == "sft" else DPO()
    examples = random_examples(20, pairs=objective.branches == 2, seed=3)
    batch = in_microbatches(with_reference(pack(rows_of(examples, 16), row_length=ROW_LENGTH, max_segments=4)), 2)
    params = initial_params(TINY, jax.random.key(0))
    loss, grads, _ = jax.jit(step_functions(objective).gradients)(params, batch)
    return objective, batch, params, (loss, grads)


@pytest.mark.parametrize(
    ("case", "shape"),
    [
        ("dpo", (1, 2, 2, 2)),
        *(pytest.param("dpo", shape, marks=pytest.mark.slow) for shape in ((8, 1, 1, 1), (1, 8, 1, 1), (2, 2, 2, 1))),
        pytest.param("sft", (1, 2, 2, 2), marks=pytest.mark.slow),
    ],
    indirect=["case"],
    ids=str,
)
def test_loss_and_gradients_are_the_same_on_every_mesh(case, shape):
    objective, batch, params, expected = case
    mesh = build_mesh(MeshShape(*shape))
    shardings = param_shardings(param_specs(TINY), mesh, DEFAULT_RULES)
    rows = meshes.batch_sharding(mesh, DEFAULT_RULES, (None, "batch"))
    compute = Compute(dtype="float32", place=meshes.Placement(mesh, DEFAULT_RULES))
    step = jax.jit(step_functions(objective, compute=compute).gradients, out_shardings=(None, shardings, None))
    loss, grads, _ = step(jax.device_put(params, shardings), jax.device_put(batch, rows))
    assert_within((loss, grads), expected)


def test_sharded_parameters_really_are_spread():
    mesh = build_mesh(MeshShape(2, 2, 2, 1))
    shardings = param_shardings(param_specs(TINY), mesh, DEFAULT_RULES)
    params = jax.device_put(initial_params(TINY, jax.random.key(0)), shardings)
    q = params["layers"]["attention"]["q"]
    assert q.addressable_shards[0].data.shape == (2, 16, 2, 8)


def test_two_dimensions_on_one_mesh_axis_are_refused():
    rules = merge_rules({"vocab": "fsdp"})
    with pytest.raises(ConfigError, match=r"two dimensions to mesh axis 'fsdp'.*'embed'"):
        partition_spec(("vocab", "embed"), rules)


def test_a_dimension_that_does_not_divide_is_named_with_its_size():
    mesh = build_mesh(MeshShape(1, 2, 4, 1))
    odd = dataclasses.replace(TINY, num_heads=6, num_kv_heads=6)
    with pytest.raises(ConfigError, match=r"tensor=4 does not divide kv_heads=6 of parameter layers\.attention\.k"):
        param_shardings(param_specs(odd), mesh, DEFAULT_RULES)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (MeshShape(3, 1, 1, 1), "needs 3 devices, but there are 8; --devices 3 simulates 3 devices on the CPU"),
        (MeshShape(-1, 3, 1, 1), "fsdp=3 .* does not divide 8 devices; --devices 3 simulates"),
        (MeshShape(-1, -1, 1, 1), "at most one is -1"),
        (MeshShape(0, 8, 1, 1), "data=0 .*: sizes are positive"),
    ],
)
def test_a_mesh_that_does_not_match_the_devices_is_refused(shape, message):
    with pytest.raises(ConfigError, match=message):
        build_mesh(shape)
    with pytest.raises(ConfigError) as caught:  # a plan's devices: no flag brings others
        build_mesh(shape, jax.devices())
    assert "--devices" not in str(caught.value)


def test_rows_that_do_not_divide_name_the_way_out():
    mesh = build_mesh(MeshShape(2, 4, 1, 1))
    meshes.check_rows(16, mesh, DEFAULT_RULES, "batch.rows")
    with pytest.raises(ConfigError, match=r"batch\.rows: 12 rows .* 8 row shards .*mesh\.tensor or mesh\.context"):
        meshes.check_rows(12, mesh, DEFAULT_RULES, "batch.rows")


def test_the_multiple_that_is_named_is_one_of_all_microbatches():
    mesh = build_mesh(MeshShape(2, 4, 1, 1))
    with pytest.raises(ConfigError, match="use a multiple of 16, fewer microbatches"):
        meshes.check_rows(12, mesh, DEFAULT_RULES, "batch.rows", 2)
    meshes.check_rows(16, mesh, DEFAULT_RULES, "batch.rows", 2)


def test_unknown_names_in_rules_are_refused():
    with pytest.raises(ConfigError, match=r"sharding\.heads: unknown logical axis"):
        merge_rules({"heads": "tensor"})
    with pytest.raises(ConfigError, match=r"sharding\.mlp: unknown mesh axis 'model'"):
        merge_rules({"mlp": "model"})
