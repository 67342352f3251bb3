"""A plan is of the trainer's own step, and what it says of memory and shapes is what the trainer has.

More meshes and objectives, compiled: `pytest -n 0 -m slow tests/planning`.
"""

import functools
import hashlib
import itertools
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

from janus_jax.errors import ConfigError
from janus_jax.parallel.host_memory import host_memory
from janus_jax.planning import compile, plan
from janus_jax.planning.inputs import find_inputs
from janus_jax.planning.timing import made_up_batch, time_step
from janus_jax.training.setup import prepare
from tests.support.run_configs import run_config

MESHES = {"fsdp": {}, "all axes": {"data": 1, "fsdp": 2, "tensor": 2, "context": 2}}
RATE = {"schedule": {"epochs": None, "steps": 6, "warmup_steps": 2, "learning_rate": 1e-3}}
HALF = {"optimizer": {"moments": "bfloat16"}}


@pytest.fixture(scope="module")
def planned_here(data):
    """A function that plans a run on cpu:8, once for all tests: no plan depends on run.dir."""

    @functools.cache
    def of(kind, changes):
        return plan(run_config(data, data / "run", kind, **json.loads(changes)), "cpu:8")

    return lambda kind, **changes: of(kind, json.dumps(changes))


def test_a_mesh_of_ones_own_is_planned_and_timed(data, tmp_path, uncompiled):
    """Axes in another order and devices in another one, sizes that the configuration does not have."""
    run = run_config(data, tmp_path / "run", "sft", mesh=MESHES["fsdp"])
    here = np.asarray(jax.devices())
    same = Mesh(here.reshape(2, 4).T, ("fsdp", "tensor"))
    timed = time_step(run, mesh=same, steps=1).plan
    planned = plan(run, "cpu:8", mesh=same)
    assert planned.mesh == timed.mesh == {"data": 1, "fsdp": 4, "tensor": 2, "context": 1}
    assert planned.program_sha256 == timed.program_sha256
    usual = plan(run_config(data, tmp_path / "run", "sft", mesh={"data": 1, "fsdp": 4, "tensor": 2}), "cpu:8")
    assert planned.memory.arguments == usual.memory.arguments and planned.mesh == usual.mesh
    assert planned.program_sha256 == usual.program_sha256  # lowered; only where its parts run differs
    turned = Mesh(here.reshape(2, 4), ("tensor", "fsdp"))
    assert plan(run, "cpu:8", mesh=turned).memory.arguments == planned.memory.arguments


@pytest.mark.parametrize(
    ("axes", "count", "message"),
    [(("fsdp", "model"), 8, "unknown axis 'model'; allowed: data, fsdp"), (("fsdp", "tensor"), 4, "its 4 devices")],
)
def test_a_mesh_of_ones_own_has_known_axes_and_all_devices(axes, count, message, data, tmp_path):
    own = Mesh(np.asarray(jax.devices()[:count]).reshape(-1, 2), axes)
    with pytest.raises(ConfigError, match=message):
        plan(run_config(data, tmp_path / "run", "sft"), "cpu:8", mesh=own)


def sha256(lowered) -> str:
    return hashlib.sha256(lowered.as_text().encode()).hexdigest()


@pytest.mark.parametrize(
    ("mesh", "kind"),
    [
        ("fsdp", "sft"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("fsdp", "dpo"), ("all axes", "sft"), ("all axes", "dpo"))
        ),
    ],
)
def test_the_planned_program_is_the_one_that_the_trainer_runs(mesh, kind, data, tmp_path, planned_here):
    """Lowered on its own, from what `prepare` finds, for the real state and a real batch."""
    run = run_config(data, tmp_path / "run", kind, mesh=MESHES[mesh])
    setup = prepare(run)
    state = setup.program.init(setup.initial_params("float32"))
    batch = next(iter(setup.loader.batches(steps=1))).batch
    planned = planned_here(kind, mesh=MESHES[mesh])
    assert planned.program_sha256 == sha256(setup.program.train.lower(state, batch))
    assert planned.steps_per_epoch == setup.loader.steps(0) and planned.assumed == ()
    on_first = {
        name: sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))
        for name, tree in (("parameters", state.params), ("moments", state.optimizer), ("batch", batch))
    }
    assert planned.memory.arguments == on_first
    assert planned.memory.peak is not None and planned.memory.peak > sum(on_first.values())
    state_and_batches = setup.loader.host_bytes + sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert planned.memory.host > state_and_batches and planned.memory.host_present == host_memory()
    assert planned.fits and planned.bound is None and planned.memory.usable is None


def test_a_planned_program_that_is_not_compiled_is_the_one_that_the_trainer_runs(data, tmp_path, uncompiled):
    """Of pairs, over all axes."""
    run = run_config(data, tmp_path / "run", "dpo", mesh=MESHES["all axes"])
    setup = prepare(run)
    batch = next(iter(setup.loader.batches(steps=1))).batch
    lowered = setup.program.train.lower(setup.program.abstract_state(), batch)
    assert plan(run, "cpu:8").program_sha256 == sha256(lowered)


def test_another_rate_mesh_or_dtype_is_another_program(data, tmp_path, uncompiled):
    changes = ({}, RATE, {"mesh": {"data": 8, "fsdp": 1, "tensor": 1}, "batch": {"microbatches": 1}}, HALF)
    plans = [plan(run_config(data, tmp_path / "run", "sft", **each), "cpu:8") for each in changes]
    assert len({each.program_sha256 for each in plans}) == 4
    wide, *_, narrow = (each.memory.arguments["moments"] for each in plans)
    assert narrow == pytest.approx(wide / 2, rel=0.01)


def test_compiled_programs_are_neither_taken_from_jax_s_cache_nor_left_there(tmp_path):
    """The compiler says nothing of a program that comes from there."""
    compilation_cache.reset_cache()
    values = {"jax_compilation_cache_dir": str(tmp_path), "jax_persistent_cache_min_compile_time_secs": 0.0}
    before = {name: getattr(jax.config, name) for name in values}
    try:
        for name, value in values.items():
            jax.config.update(name, value)
        triple, fourfold = jax.jit(lambda x: x * 3), jax.jit(lambda x: x * 4)
        triple.lower(1.0).compile()
        (entry,) = tmp_path.glob("*-cache")
        entry.write_bytes(b"not a program")
        for function in (triple, fourfold):
            jax.clear_caches()
            assert compile.compile_step(function, (1.0,), "cpu:8", on_tpu=False).executable is not None
            assert list(tmp_path.glob("*-cache")) == [entry] and entry.read_bytes() == b"not a program"
        jax.clear_caches()
        with pytest.warns(UserWarning, match="compilation cache entry"):  # afterwards it is in use again
            triple.lower(1.0).compile()
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def test_what_is_not_here_is_assumed_and_said(data, tmp_path):
    run = run_config(data, tmp_path / "run", "dpo", data={"dir": "nowhere"}, batch={"rows": None, "examples": 12})
    inputs = find_inputs(run, 8)
    assert inputs.steps_per_epoch is None and inputs.shape.rows % 8 == 0 and inputs.shared_slots > 0
    assert any("data set is not on this machine" in text for text in inputs.assumed)
    away = run.model_copy(update={"model": None, "init": type(run.init).model_validate({"from": "runs/away"})})
    assert any(text.startswith("init.from=runs/away is not on this machine") for text in find_inputs(away, 8).assumed)
    assert find_inputs(away, 8).model.num_layers == 32


def test_rows_of_the_embedding_that_no_token_uses_are_noted(data, tmp_path):
    run = run_config(data, tmp_path / "run", "dpo")
    assert find_inputs(run, 8).notes == ()
    assert run.model is not None
    larger = run.model_copy(update={"model": run.model.model_copy(update={"vocab_size": 32000})})
    assert "of the 32,000 rows of the embedding" in find_inputs(larger, 8).notes[0]


def test_shared_slots_are_those_of_the_fullest_row(data, tmp_path):
    """Known from the plan of rows: counted here in the rows themselves."""
    run = run_config(data, tmp_path / "run", "dpo")
    setup, most = prepare(run), 0
    for loader in (setup.loader, setup.eval_loader):
        for loaded in itertools.chain(*(loader.epoch(number) for number in range(loader.epochs or 1))):
            shared = (loaded.batch.segment > 0) & (loaded.batch.branch == 0)
            most = max(most, int(shared.sum(-1).max()))
    assert find_inputs(run, 8).shared_slots == most > 0


@pytest.mark.parametrize(
    ("topology", "changes", "message"),
    [
        ("v5e-17", {}, "v5e-17"),
        ("cpu:8", {"mesh": {"fsdp": 3}}, "needs 12 devices, but there are 8"),
        ("cpu:8", {"mesh": {"data": 1, "fsdp": 1, "tensor": 8}}, r"does not divide kv_heads"),
        ("cpu:8", {"batch": {"rows": 4}}, "do not divide over 4 row shards"),
        ("cpu:8", {"eval": {"rows": 3}}, r"eval.rows: 3 rows .* do not divide over 4 row shards"),
        (
            "cpu:8",
            {"batch": {"max_sequence_length": 64}, "model": {"max_position_embeddings": 32}},
            "is more than the mo",
        ),
        ("cpu:8", {"model": {"vocab_size": 50}}, "model.vocab_size = 50: the tokenizer of "),
        ("cpu:8", {"precision": {"attention": "splash"}}, "precision.attention=splash: cannot be"),
    ],
)
def test_what_cannot_be_trained_cannot_be_planned(topology, changes, message, data, tmp_path):
    with pytest.raises(ConfigError, match=message):
        plan(run_config(data, tmp_path / "run", "sft", **changes), topology)


def test_evaluation_of_more_rows_counts(data, tmp_path, planned_here):
    """Its own program on top of the moments, against what the trainer compiles."""
    run = run_config(data, tmp_path / "run", "sft", eval={"every_steps": 1, "rows": 512})
    planned = plan(run, "cpu:8")
    setup = prepare(run)
    params, batch = setup.initial_params("float32"), next(iter(setup.eval_loader.batches())).batch
    analysis = setup.program.evaluate.lower(params, batch).compile().memory_analysis()
    alone = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes + analysis.output_size_in_bytes
    assert planned.memory.evaluation == alone + planned.memory.arguments["moments"]
    assert planned.memory.needed == planned.memory.evaluation > planned.memory.peak
    without = planned_here("sft", mesh={}).memory
    assert without.evaluation is None and without.needed == without.peak == planned.memory.peak
    fewer = run_config(data, tmp_path / "run", "sft", eval={"every_steps": 1, "rows": 4})
    assert compile._evaluation(fewer, find_inputs(fewer, 8), None) is None


def test_the_planner_needs_neither_tensorflow_nor_a_second_jax(tmp_path):
    code = "import sys, janus_jax.planning; sys.exit('tensorflow' in sys.modules or 'seqio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.fixture(scope="module")
def timed_here(data):
    """A function that times steps of a run, once for all tests."""
    return functools.cache(lambda kind: time_step(run_config(data, data / "run", kind), steps=3))


@pytest.mark.parametrize("kind", ["sft", pytest.param("dpo", marks=pytest.mark.slow)])
def test_a_step_is_timed_on_the_devices_that_are_here(kind, timed_here):
    timing = timed_here(kind)
    assert (timing.devices, len(timing.seconds)) == (8, 3) and timing.plan.mesh["tensor"] == 2
    assert timing.tokens_per_s == timing.tokens_per_step / timing.median_s and timing.mfu is None
    assert 0 < timing.tokens_per_step <= 8 * 64


def test_the_plan_beside_a_timing_is_that_of_the_planner(timed_here, planned_here):
    timed, planned = timed_here("sft").plan, planned_here("sft", mesh={})
    assert planned.memory.needed == timed.memory.needed and planned.flops == timed.flops


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_made_up_rows_are_like_those_of_the_data(kind, data, tmp_path):
    inputs = find_inputs(run_config(data, tmp_path / "run", kind), 8)
    batch, tokens = made_up_batch(inputs, True)
    assert batch.tokens.shape == (inputs.shape.microbatches, inputs.shape.rows, inputs.shape.row_length)
    assert tokens == (batch.segment > 0).sum() and set(np.unique(batch.branch)) == set(range(3 if kind == "dpo" else 2))
    assert (batch.tokens < inputs.model.vocab_size).all()
    assert abs(tokens - inputs.tokens_per_step) <= 0.1 * inputs.tokens_per_step
    assert kind == "sft" or ((batch.segment > 0) & (batch.branch == 0)).sum(-1).max() <= inputs.shared_slots
