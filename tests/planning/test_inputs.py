"""What the planner takes from data and configuration is what the trainer has."""

import pytest

from janus_jax.errors import ConfigError, ConversionError
from janus_jax.planning import bounds, compile
from janus_jax.planning.chips.slices import devices, find_slice, load_chips
from janus_jax.planning.inputs import find_inputs
from janus_jax.planning.search.candidates import InputsCache, batches
from janus_jax.training.setup import prepare
from tests.support.models import random_params
from tests.support.run_configs import run_config
from tests.support.training_examples import random_examples, write_dataset


@pytest.mark.parametrize(
    ("kind", "rows"),
    [("dpo", 16), *(pytest.param(*case, marks=pytest.mark.slow) for case in (("sft", 16), ("sft", 64), ("dpo", 64)))],
)
def test_the_planned_evaluation_is_the_one_that_the_trainer_runs(kind, rows, data, tmp_path):
    """Lowered for a real batch: held-out rows may hold more or fewer examples than those of training."""
    write_dataset(tmp_path / "short", {"validation": random_examples(80, pairs=kind == "dpo", seed=5)}, kind=kind)
    for eval_dir in (None, str(tmp_path / "short")):
        run = run_config(
            data, tmp_path / "run", kind, eval={"every_steps": 1, "rows": rows}, data={"eval_dir": eval_dir}
        )
        setup = prepare(run)
        batch = next(iter(setup.eval_loader.batches(steps=1))).batch
        real = setup.program.evaluate.lower(setup.program.abstract_state().params, batch).as_text()
        config, mesh = compile.resolve_mesh(run, devices(find_slice("cpu:8")), None)
        result = find_inputs(config, 8)
        program = compile.program_of(config, result, mesh)
        planned = compile._evaluation(config, result, program)
        assert planned is not None and program.evaluate.lower(*planned).as_text() == real


@pytest.mark.parametrize("examples", [20, 300, None])
def test_tokens_of_a_mixture_are_those_that_are_drawn(examples, tmp_path):
    for name, count in (("a", 150), ("b", 150)):
        write_dataset(tmp_path / name, {"train": random_examples(count, pairs=False, seed=len(name))}, kind="sft")
    parts = [{"dir": str(tmp_path / name), "weight": weight} for name, weight in (("a", 1.0), ("b", 9.0))]
    mixed = {"dir": None, "mixture": parts, "examples": examples}
    run = run_config(tmp_path, tmp_path / "run", "sft", data=mixed, eval={"every_steps": None})
    result, loader = find_inputs(run, 8), prepare(run).loader
    steps = loader.steps(0)
    held = sum(int((loaded.batch.segment > 0).sum()) for loaded in loader.batches(steps=steps))
    assert result.steps_per_epoch == steps and result.tokens_per_step == pytest.approx(held / steps)
    assert result.tokens_per_step <= 8 * 64


@pytest.mark.parametrize("wrong", ["missing", "other"])
def test_a_reference_that_training_refuses_is_refused(wrong, data, tmp_path):
    path = tmp_path / "reference"
    if wrong == "other":
        from janus_jax.checkpoint.hf.read import save_hf
        from tests.support.states import STATE_MODEL

        save_hf(random_params(STATE_MODEL), STATE_MODEL, path)
    else:
        path.mkdir()
    run = run_config(data, tmp_path / "run", "dpo", reference={"from": str(path)})
    with pytest.raises((ConfigError, ConversionError)) as refused:
        prepare(run)
    with pytest.raises(type(refused.value)) as planned:
        find_inputs(run, 8)
    assert str(planned.value) == str(refused.value)
    elsewhere = run_config(data, tmp_path / "run", "dpo", reference={"from": str(tmp_path / "gone")})
    assert find_inputs(elsewhere, 8).assumed[-1].endswith("the reference has the shape of the trained model")


def test_a_reference_that_scores_each_batch_costs_a_forward_pass(data, tmp_path):
    """A third of what the model asks for: two operations a parameter and token where training has six."""
    bound = {}
    for mode in ("precompute", "online"):
        run = run_config(data, tmp_path / "run", "dpo", reference={"mode": mode})
        result = find_inputs(run, 8)
        flops = bounds.step_flops(run, result)
        assert flops.reference == (pytest.approx(flops.model / 3) if mode == "online" else 0)
        assert bounds.step_flops(run, result, scores=False).reference == 0
        bound[mode] = bounds.step_bound(run, result, **places(batch=4, length=1, mlp=2))
        assert bound[mode].compute_s == pytest.approx(flops.total / 8 / 197e12)
    assert bound["online"].hbm_s > bound["precompute"].hbm_s


def test_work_that_rules_do_not_divide_is_done_by_every_device(data, tmp_path):
    run = run_config(data, tmp_path / "run", "sft")
    result = find_inputs(run, 8)
    whole, half = (bounds.step_bound(run, result, **places(batch=4, length=1, mlp=mlp)) for mlp in (2, 1))
    assert half.compute_s == pytest.approx(2 * whole.compute_s)


def places(**ways):
    target = find_slice("v5litepod-8")
    named = {"embed": 2, "q_heads": 2, "kv_heads": 2, "vocab": 2, "head_dim": 1, "layers": 1, **ways}
    common = {"devices": 8, "parameter_shards": 4, "ici_bytes": 0.0, "dcn_bytes": 0.0, "num_slices": 1}
    return {"shards": named, "target": target, "chip": load_chips().chips["v5e"], **common}


def test_microbatches_stay_where_they_decide_what_is_computed(data, tmp_path):
    run = run_config(data, tmp_path / "run", "sft", compat={"token_mean": "per_microbatch"}, batch={"microbatches": 2})
    inputs = InputsCache(8)
    assert list(batches(run, 4, None, inputs)) == [{"batch.microbatches": 2}]
    rows = inputs(run).shape.rows
    assert list(batches(run, 4, (rows // 4,), inputs)) == [{"batch.microbatches": 2}]
    assert list(batches(run, 4, (rows,), inputs)) == []
    assert len(list(batches(run_config(data, tmp_path / "run", "sft"), 4, None, inputs))) > 1


def test_samples_are_those_of_the_prompts_where_they_are_here(data, tmp_path):
    (tmp_path / "p.txt").write_text("a\na b c\n")
    section = {"prompts": str(tmp_path / "p.txt"), "systems": ["x", "y"], "max_new_tokens": 9}
    model, batch = {"vocab_size": 32_000}, {"row_length": 96}
    result = find_inputs(run_config(data, tmp_path / "run", "sft", samples=section, model=model, batch=batch), 8)
    assert result.samples is not None and (result.samples["rows"], result.samples["new"]) == (4, 9)
    assert 3 < result.samples["prompt"] < 96 and not any("samples" in text for text in result.assumed)
    section["prompts"] = "gone.txt"
    result = find_inputs(run_config(data, tmp_path / "run", "sft", samples=section, model=model, batch=batch), 8)
    assert result.samples == {"rows": 32, "prompt": 95, "new": 9}
    assert [text for text in result.assumed if "samples" in text] == [
        "samples.prompts=gone.txt or the data set is not on this machine; the longest prompt has 95 tokens, and 32 "
        "answers grow at the same time"
    ]
    assert find_inputs(run_config(data, tmp_path / "run", "sft"), 8).samples is None
