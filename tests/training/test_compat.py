"""The switches of `compat:`: each does what the published trainers did, and nothing else."""

import dataclasses
import functools
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.checkpoint.hf.write import save_hf
from janus_jax.cli.main import main
from janus_jax.config.run import RunConfig
from janus_jax.data.padding import Padding
from janus_jax.data.rows import RowFormat
from janus_jax.data.sample import write_sample
from janus_jax.errors import ConfigError
from janus_jax.model.mistral import Compute
from janus_jax.objectives import metric_values
from janus_jax.objectives.orpo import ORPO
from janus_jax.parallel.mesh import NOWHERE
from janus_jax.training import replay
from janus_jax.training.optimizer import AdamW, Schedule
from janus_jax.training.run import train
from janus_jax.training.setup import prepare
from tests.support.models import random_params
from tests.support.tolerances import assert_within
from tests.support.training_examples import TINY, random_examples, write_dataset


def config(root, name, run, **changes):
    values = {
        "run": {"dir": str(run), "seed": 3},
        "init": {"from": str(root / "model")},
        "data": {"dir": str(root / name)},
        "batch": {"rows": 16, "row_length": 64, "max_sequence_length": 32, "microbatches": 2},
        "objective": {"name": "dpo"},
        "schedule": {"name": "cosine", "learning_rate": 3e-3, "warmup_steps": 2, "steps": 4},
        "mesh": {"data": 8, "fsdp": 1, "tensor": 1},
        "precision": {"compute": "float32"},
        "logging": {"tensorboard": False, "curves": False},
    }
    for key, value in changes.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) and key in values else value
    return RunConfig.model_validate(values)


PAIRS = 40


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for kind in ("sft", "dpo"):
        write_dataset(root / kind, {"train": random_examples(PAIRS, pairs=kind == "dpo", seed=1)}, kind=kind)
    save_hf(random_params(TINY), TINY, root / "model")
    return root


def unsharded(setup):
    """The step's functions without a mesh, for values on one device: they compile in a fraction of the time."""
    return dataclasses.replace(setup.program.functions, compute=Compute(dtype=jnp.float32))


def on_host(tree):
    return jax.tree.map(np.asarray, tree)


# --- token_boundary


def test_data_of_the_other_boundary_is_refused_with_the_command_that_builds_it_right(tmp_path, monkeypatch, capsys):
    """The command is run as it stands in the message."""
    monkeypatch.chdir(tmp_path)

    def janus(line: str) -> None:
        monkeypatch.setattr("sys.argv", shlex.split(line))
        with pytest.raises(SystemExit) as done:
            main()
        assert not done.value.code, capsys.readouterr().err

    write_sample("sft", "my rows")
    janus(
        "janus data build --derive dpo --seed 3 --template chatml --source 'my rows/train.jsonl' "
        "--validation-source 'my rows/validation.jsonl' --out data"
    )
    batch = {"row_length": 2048, "max_sequence_length": 1024}
    compat = {"token_boundary": "joint"}
    start = {"init": {"from": None}, "model": {"preset": "tiny"}}
    built = functools.partial(config, Path(), run="run", batch=batch, **start)
    prepare(built("data"))
    with pytest.raises(ConfigError) as refusal:
        prepare(built("data", compat=compat))
    message = str(refusal.value)
    assert message.startswith("data.dir=data: was built with token boundary separate, but compat.token_boundary=joint;")
    janus(message[message.index("janus data build") :])
    setup = prepare(built("data_joint", compat=compat))
    manifest = setup.loader.dataset.manifest
    assert (manifest.boundary, manifest.template, list(manifest.splits)) == ("joint", "chatml", ["train", "validation"])
    assert (manifest.kind, manifest.derived) == ("dpo", {"seed": 3, "all_pairs": False})
    held_out = {"data": {"eval_dir": "data"}, "eval": {"every_steps": 1}}
    with pytest.raises(ConfigError, match=r"data\.eval_dir=data: was built with token boundary separate"):
        prepare(built("data_joint", compat=compat, **held_out))


# --- overlong_pairs


LONGEST = 18
"""Tokens of a prompt with its longer response, of at most 24."""


def over_long() -> list[int]:
    examples = random_examples(PAIRS, pairs=True, seed=1)
    return [e.example_id for e in examples if len(e.prompt) + max(len(e.chosen), len(e.rejected)) > LONGEST]


def test_pairs_that_are_too_long_count_in_the_mean_and_teach_nothing(data, tmp_path):
    n, k = PAIRS, len(over_long())
    assert 5 < k < n - 5
    batch = {"rows": None, "examples": n, "max_sequence_length": LONGEST, "max_segments": n}
    setups = {
        policy: prepare(config(data, "dpo", tmp_path, batch=batch, compat={"overlong_pairs": policy}))
        for policy in ("drop", "zero_grad")
    }
    functions = unsharded(setups["drop"])
    params = on_host(setups["drop"].initial_params("float32"))
    other = jax.tree.map(lambda leaf: leaf * 0.9, params)

    @jax.jit
    def run(params, other, batch):
        """Against a reference that prefers otherwise, so that the margins are not zero."""
        return functions.gradients(
            params, dataclasses.replace(batch, reference_logps=functions.reference(other, batch))
        )

    loaded = {policy: next(setup.loader.batches()) for policy, setup in setups.items()}
    assert (loaded["drop"].examples, loaded["zero_grad"].examples) == (n - k, n)
    kept, zeroed = (run(params, other, on_host(loaded[policy].batch)) for policy in ("drop", "zero_grad"))
    assert abs(kept[0] - np.log(2)) > 1e-3
    np.testing.assert_allclose(zeroed[0], ((n - k) * kept[0] + k * np.log(2)) / n, rtol=1e-5)
    for ours, rest in zip(jax.tree.leaves(zeroed[1]), jax.tree.leaves(kept[1]), strict=True):
        expected = np.asarray(rest) * (n - k) / n
        assert np.abs(expected).max() > 0
        assert_within(ours, expected)
    ids, valid = (
        np.asarray(field) for field in (loaded["zero_grad"].batch.example_id, loaded["zero_grad"].batch.valid)
    )
    assert sorted(ids[valid].tolist()) == list(range(n))
    for name in ("rewards/margins", "rewards/accuracies"):  # no margin: not a win
        assert zeroed[2][name][1] == n
        np.testing.assert_allclose(zeroed[2][name][0], kept[2][name][0], rtol=1e-5)


def test_a_run_says_how_many_pairs_taught_nothing(data, tmp_path):
    changes = {"batch": {"max_sequence_length": LONGEST}, "reference": {"mode": "online"}}
    compat = {"overlong_pairs": "zero_grad"}
    summary = train(config(data, "dpo", tmp_path / "run", compat=compat, **changes), writers=(), until_step=0)
    assert summary.overlong == {"dropped": 0, "truncated": 0, "zeroed": len(over_long())}


# --- token_mean


def test_a_run_averages_the_means_of_its_microbatches_if_told_to(data, tmp_path):
    """The loss of the first step, against token sums and counts of single microbatches."""
    losses = {}
    for mean in ("global", "per_microbatch"):
        changes = {"objective": {"name": "sft"}, "compat": {"token_mean": mean}, "batch": {"row_length": 32}}
        setup = prepare(config(data, "sft", tmp_path, **changes))
        params, whole = on_host(setup.initial_params("float32")), on_host(next(setup.loader.batches()).batch)
        step = unsharded(setup).gradients
        losses[mean] = jax.jit(lambda params, batch, step=step: step(params, batch)[0])(params, whole)
    evaluate = jax.jit(unsharded(setup).evaluate)
    single = [evaluate(params, jax.tree.map(lambda field, m=m: field[m : m + 1], whole)) for m in range(2)]
    ((name, _),) = setup.objective.loss_terms.items()
    sums, counts = np.asarray([metrics[name] for metrics in single], np.float64).T
    np.testing.assert_allclose(losses["global"], sums.sum() / counts.sum(), rtol=1e-5)
    np.testing.assert_allclose(losses["per_microbatch"], np.mean(sums / counts), rtol=1e-5)
    assert len(set(counts)) > 1 and abs(losses["global"] - losses["per_microbatch"]) > 1e-3


# --- orpo_padding


@pytest.mark.parametrize("padding", ["trl", "axolotl"])
def test_a_run_counts_padding_as_a_replay_of_recorded_runs(data, tmp_path, padding):
    """Of one pair in each microbatch, as `tests/oracles` compares it with the trainers."""
    changed = config(
        data,
        "dpo",
        tmp_path,
        objective={"name": "orpo", "nll": "prompt_and_response"},
        compat={"orpo_padding": padding},
        batch={"rows": 32, "max_sequence_length": 24},
        optimizer={"clip_norm": None},
    )
    setup = prepare(changed)
    functions, batch = setup.program.functions, on_host(next(setup.loader.batches()).batch)
    functions = dataclasses.replace(functions, compute=dataclasses.replace(functions.compute, place=NOWHERE))
    params = on_host(setup.initial_params("float32"))
    loss = jax.jit(lambda params, batch: functions.gradients(params, batch)[0])(params, batch)

    examples = random_examples(PAIRS, pairs=True, seed=1)
    read = [examples[i] for i in batch.example_id[batch.valid]]
    assert len(read) > 30
    step = [[{name: getattr(e, name) for name in ("prompt", "chosen", "rejected")}] for e in read]
    recorded = Padding(padding, 2, 64 if padding == "axolotl" else None)
    objective = ORPO(nll="prompt_and_response", padding=padding, normaliser="per_microbatch")
    form, rates = RowFormat("lm", 2, padding=recorded), Schedule(0.0, 1)
    functions, _, batches = replay._prepare(objective, data / "model", [step], AdamW(), rates, None, 0, form)
    metrics = jax.jit(functions.evaluate)(params, next(batches))  # compiles without a backward pass
    np.testing.assert_allclose(loss, metric_values(metrics, objective)["loss"], rtol=1e-5)


# --- bfloat16_weights


RATE = 3e-4


@functools.cache
def one_step(data, *, bfloat16_weights):
    """Weights before and after one AdamW step without clipping, and its gradients, as flat float32.

    Both kinds of weights start from the same numbers, which bfloat16 can hold.
    """
    changed = config(
        data,
        "sft",
        data / "run",
        objective={"name": "sft"},
        compat={"bfloat16_weights": bfloat16_weights},
        optimizer={"clip_norm": None},
        schedule={"name": "constant", "learning_rate": RATE, "warmup_steps": 0},
        batch={"microbatches": 1},
    )
    setup = prepare(changed)
    functions, batch = unsharded(setup), on_host(next(setup.loader.batches()).batch)
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), setup.initial_params("float32"))
    start = on_host(jax.tree.map(lambda x: x.astype(setup.config.params_dtype), rounded))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(start)} == {setup.config.params_dtype}

    @jax.jit
    def run(start, batch):
        return functions.train(functions.init(start), batch)[0].params, functions.gradients(start, batch)[1]

    after, gradients = run(start, batch)
    return [
        np.concatenate([np.asarray(x, np.float32).ravel() for x in jax.tree.leaves(t)])
        for t in (start, after, gradients)
    ]


def torch_step(before, gradients, dtypes, scratch):
    """The weights after one step of torch.optim.AdamW, by name of their dtype, as float32.

    In a process of its own: its optimizers import triton where it has one, which cannot be beside JAX everywhere.
    """
    code = f"""
import sys, numpy as np, torch
given = np.load(sys.argv[1])
for name in sys.argv[2:]:
    weights = torch.nn.Parameter(torch.tensor(given["before"]).to(getattr(torch, name)))
    weights.grad = torch.tensor(given["gradients"]).to(weights.dtype)
    torch.optim.AdamW([weights], lr={RATE}, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0).step()
    np.save(sys.argv[1] + name, weights.detach().float().numpy())
"""
    given = scratch / "given.npz"
    np.savez(given, before=before, gradients=gradients)
    subprocess.run([sys.executable, "-c", code, given, *dtypes], check=True)
    return [np.load(f"{given}{name}.npy") for name in dtypes]


def ulp(x):
    """The distance between bfloat16 numbers near x: 8 bits of mantissa, the leading one included."""
    return np.exp2(np.floor(np.log2(np.maximum(np.abs(x), 1e-30))) - 7)


def test_a_step_on_bfloat16_weights_is_that_of_torch(data, tmp_path):
    before, after, gradients = one_step(data, bfloat16_weights=True)
    assert (gradients == np.asarray(jnp.asarray(gradients, jnp.bfloat16), np.float32)).all()  # torch sees the same
    # With float32 moments, as here: the float32 step, rounded once. Ties aside, bit for bit.
    full, half = torch_step(before, gradients, ["float32", "bfloat16"], tmp_path)
    rounded = np.asarray(jnp.asarray(full, jnp.bfloat16), np.float32)
    assert (after == rounded).mean() > 0.999
    assert (np.abs(after - rounded) <= ulp(rounded)).all()
    # torch keeps the moments of bfloat16 weights in bfloat16: five roundings of an update by half an ulp each (m, v's
    # root, the root, its correction, eps), and one of the weight on either side.
    assert (np.abs(after - half) <= ulp(half) + 5 * 2.0**-8 * RATE).all()
    assert (after != before).any()


def test_bfloat16_weights_lose_small_updates_and_float32_weights_keep_them(data):
    before, after, _ = one_step(data, bfloat16_weights=True)
    kept_before, kept_after, gradients = one_step(data, bfloat16_weights=False)
    np.testing.assert_array_equal(before, kept_before)
    # The first step of Adam is the rate, whatever the gradient, unless that is as small as eps.
    moves = np.abs(gradients) > 1e-6
    small = moves & (ulp(before) / 4 > 1.001 * RATE)  # half the distance to the nearer neighbour, also at powers of 2
    assert small.sum() > 1000
    assert (after == before)[small].all()
    assert (np.abs(kept_after - kept_before)[small] > 0.98 * RATE).all()
    assert (after != before)[moves & (ulp(before) < RATE)].all()
