"""Runs over mixtures: they resume bit for bit, their reference covers what they read, and shares belong to the run."""

import json
import re

import jax
import numpy as np
import pytest

from janus_jax.checkpoint.stored_model import open_model
from janus_jax.config.run import RunConfig, load_config
from janus_jax.data.from_config import open_held_out
from janus_jax.errors import ConfigError, DataError
from janus_jax.training.run import train
from tests.support.run_configs import ONE_LAYER
from tests.support.training_examples import random_examples, write_dataset

pytestmark = pytest.mark.usefixtures("programs")

SIZES = (31, 9, 14)
BATCH = {"examples": 8, "row_length": 64, "max_sequence_length": 32, "microbatches": 2}
SCHEDULE = {"name": "constant", "learning_rate": 1e-2, "warmup_steps": 1, "epochs": 3}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    root = tmp_path_factory.mktemp("parts")
    for number, size in enumerate(SIZES):
        splits = {"train": random_examples(size, pairs=True, seed=number)}
        splits["validation"] = random_examples(3, pairs=True, seed=10 + number)
        write_dataset(root / str(number), splits, kind="dpo")
    return root


def mixture(parts, *weights, examples=24):
    mixture = [{"dir": str(parts / str(number)), "weight": weight} for number, weight in enumerate(weights)]
    return {"mixture": mixture, "examples": examples}


def config(data, run, **changes):
    values = {
        "run": {"dir": str(run), "seed": 3},
        "model": ONE_LAYER,
        "data": data,
        "batch": BATCH,
        "objective": {"name": "dpo"},
        "schedule": SCHEDULE,
        "mesh": {"data": 2, "fsdp": 2, "tensor": 2},
        "precision": {"compute": "float32"},
        "eval": {"every_steps": 5, "rows": 4},
        "logging": {"tensorboard": False, "curves": False},
        **changes,
    }
    return RunConfig.model_validate(values)


def records(run, kind="train"):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def losses(run):
    return [line["loss"] for line in records(run)]


@pytest.fixture(scope="module")
def whole(parts, tmp_path_factory):
    run = tmp_path_factory.mktemp("run") / "run"
    train(config(mixture(parts, 2, 1, 1), run), writers=())
    return run


@pytest.mark.parametrize("stop", [3, 7])
def test_a_stopped_run_resumes_bit_for_bit_inside_and_at_the_end_of_an_epoch(parts, whole, tmp_path, stop):
    assert len(losses(whole)) == 9  # 24 pairs an epoch, 8 a step
    train(config(mixture(parts, 2, 1, 1), tmp_path / "run"), until_step=stop, writers=())
    resumed = train(config(mixture(parts, 2, 1, 1), tmp_path / "run"), writers=())
    assert resumed.resumed_from == stop
    assert losses(tmp_path / "run") == losses(whole)
    ours, theirs = (jax.tree.leaves(open_model(run).load_host()) for run in (tmp_path / "run", whole))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
    (position,) = (tmp_path / "run" / "checkpoints" / "9" / "data").rglob("metadata")
    assert len(position.read_text()) < 100


def test_the_reference_pass_scores_what_the_run_reads_and_equals_online_scores(parts, whole, tmp_path):
    online = config(mixture(parts, 2, 1, 1), tmp_path / "online", reference={"mode": "online"})
    train(online, writers=())
    assert losses(tmp_path / "online")[:3] == losses(whole)[:3]  # the first epoch: the very same rows
    np.testing.assert_allclose(losses(tmp_path / "online"), losses(whole), rtol=1e-4)
    with np.load(whole / "reference" / "train.npz") as stored:
        scored = np.isfinite(stored["logps"]).all(1)
    # three epochs of 12, 6, 6: 36 draws of 31 pairs, 18 of 9 and 18 of 14 reach every pair of each part
    assert scored.shape == (sum(SIZES),) and scored.all()
    short = config(mixture(parts, 2, 1, 1), tmp_path / "short", schedule={**SCHEDULE, "epochs": 1})
    train(short, writers=(), until_step=0)
    with np.load(tmp_path / "short" / "reference" / "train.npz") as stored:
        assert np.isfinite(stored["logps"]).all(1).sum() == 24


def test_a_run_that_ends_inside_an_epoch_scores_no_more_than_it_reads(parts, tmp_path):
    schedule = {**SCHEDULE, "epochs": None, "steps": 1, "warmup_steps": 0}
    train(config(mixture(parts, 2, 1, 1), tmp_path / "run", schedule=schedule), writers=(), until_step=0)
    with np.load(tmp_path / "run" / "reference" / "train.npz") as stored:
        assert np.isfinite(stored["logps"]).all(1).sum() == 8


def test_held_out_are_all_examples_of_all_parts(parts, tmp_path):
    held_out = open_held_out(config(mixture(parts, 2, 1, 1), tmp_path))
    assert held_out is not None
    read = [example.rejected.tolist() for example in held_out.read(range(len(held_out)))]
    expected = [random_examples(3, pairs=True, seed=10 + number) for number in range(len(SIZES))]
    assert read == [example.rejected.tolist() for examples in expected for example in examples]
    assert held_out.draw(np.arange(9), seed=3, epoch=5).tolist() == list(range(9))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda parts: mixture(parts, 1, 1, 1), r"holds a run with data.mixture = \[2.0, 1.0, 1.0\], not \[1.0, 1.0"),
        (lambda parts: mixture(parts, 2, 1, 1, examples=32), r"holds a run with data.examples = 24, not 32"),
        (lambda parts: {"dir": str(parts / "0")}, r"holds a run with data.mixture = \[2.0, 1.0, 1.0\], not null"),
    ],
)
def test_a_run_does_not_go_on_with_other_shares(parts, whole, data, message):
    with pytest.raises(ConfigError, match=message):
        train(config(data(parts), whole), writers=())


def test_other_parts_in_the_same_places_are_other_data(parts, whole, tmp_path):
    for number, size in enumerate(SIZES):
        splits = {name: random_examples(size, pairs=True, seed=50) for name in ("train", "validation")}
        directory = write_dataset(tmp_path / str(number), splits, kind="dpo")
        manifest = (directory / "manifest.json").read_text()
        (directory / "manifest.json").write_text(manifest.replace("random-dpo", "other-dpo"))
    with pytest.raises(ConfigError, match=r"holds a run on other data than .*/0, .*/1, .*/2 has now"):
        train(config(mixture(tmp_path, 2, 1, 1), whole), writers=())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"mixture": [{"dir": "a", "weight": 1}, {"dir": "b"}]}, "b has no weight, but other parts have"),
        ({"mixture": [{"dir": "a"}], "dir": "b"}, "data.dir and data.mixture are both given"),
        ({}, "neither data.dir nor data.mixture is given"),
        ({"dir": "a", "examples": 5}, "data.examples = 5: allowed only with weights in data.mixture"),
        ({"mixture": [{"dir": "a"}], "examples": 5}, "data.examples = 5: allowed only with weights"),
        ({"mixture": [{"dir": "a", "weight": 0}]}, "greater than 0"),
        ({"mixture": []}, "at least 1 item"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(data, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        config(data, tmp_path / "run")


def test_neighbours_of_a_mixture_cannot_be_kept_together(parts, tmp_path):
    with pytest.raises(ValueError, match=r"batch.keep_together = 2: allowed with data.mixture: 1"):
        config(mixture(parts, 1, 1, 1), tmp_path, batch={**BATCH, "keep_together": 2})


def test_a_part_that_is_none_is_named(parts, tmp_path):
    data = {"mixture": [{"dir": str(parts / "0")}, {"dir": str(tmp_path / "absent")}]}
    with pytest.raises(DataError, match="absent: no such directory"):
        train(config(data, tmp_path / "run"), writers=())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("mixture: [{dri: a}]", "data.mixture.0.dri: unknown key; did you mean 'data.mixture.0.dir'?"),
        ("mixture: [{dir: a, weight: -1}]", "data.mixture.0.weight = -1: allowed: a number > 0"),
        ("mixture: [{dir: a, weight: .nan}]", "data.mixture.0.weight = .nan: allowed: a number > 0 or null"),
        ("mixture: [a]", "data.mixture.0 = a: allowed: a section with the keys dir, weight"),
        ("mixture: []", "data.mixture = []: allowed: a list with at least one item, each a section"),
        ("mixture: a", "data.mixture = a: allowed: a list with at least one item, each a section"),
    ],
)
def test_a_mixture_that_is_written_wrongly_is_said_with_its_line(data, message, tmp_path):
    (tmp_path / "run.yaml").write_text(
        f"run: {{dir: r}}\nmodel: {{preset: tiny}}\ndata:\n  {data}\nobjective: {{name: rm}}\n"
        "batch: {rows: 8, row_length: 64, max_sequence_length: 32}\n"
        "schedule: {name: constant, learning_rate: 1.0e-5, epochs: 1}\n"
    )
    with pytest.raises(ConfigError, match=re.escape(message)) as refusal:
        load_config(tmp_path / "run.yaml")
    assert "run.yaml:4: " in str(refusal.value)
