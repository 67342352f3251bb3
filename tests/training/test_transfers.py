"""What a run moves between host and devices, it moves on purpose: an implicit transfer is a wait that nobody sees."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import pytest

from janus_jax.training import run as loop
from janus_jax.training.run import train
from tests.support.run_configs import ONE_LAYER, SIX_STEPS, run_config
from tests.support.training_examples import random_examples, write_dataset

pytestmark = pytest.mark.usefixtures("programs")

SPLITS = ("train", "validation")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for kind in ("sft", "dpo"):
        splits = {name: random_examples(24, pairs=kind == "dpo", seed=seed) for seed, name in enumerate(SPLITS)}
        write_dataset(root / kind, splits, kind=kind)
    return root


def config(data, run, kind, **changes):
    settings = {"model": ONE_LAYER, "schedule": SIX_STEPS, "checkpoint": {"every_steps": 2}}
    return run_config(data, run, kind, **{**settings, "eval": {"every_steps": 2}, **changes})


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (
            "sft",
            {
                "optimizer": {"on_nonfinite": "skip", "max_skipped": 3},
                "schedule": {"epochs": None, "steps": 12, "warmup_steps": 0},
            },
        ),
        ("dpo", {"reference": {"mode": "online"}}),
        pytest.param("sft", {"optimizer": {"moments": "bfloat16"}}, marks=pytest.mark.slow),
    ],
)
def test_steps_records_evaluation_and_saves_move_nothing_by_accident(data, tmp_path, monkeypatch, kind, changes):
    plain = loop._loop

    def guarded(*args):
        with jax.transfer_guard("disallow"):
            plain(*args)

    monkeypatch.setattr(loop, "_loop", guarded)
    summary = train(config(data, tmp_path / "run", kind, **changes), writers=(), until_step=3)
    assert summary.step == 3 and summary.evaluation["examples"] > 0


def test_a_step_that_reads_from_the_host_each_time_is_told_once(data, tmp_path, monkeypatch, capsys):
    plain = loop.prepare

    def prepared(*args):
        setup = plain(*args)
        step, program = setup.program.train, copy.copy(setup.program)
        vars(program)["train"] = lambda state, batch: (jnp.asarray(1), step(state, batch))[1]
        return dataclasses.replace(setup, program=program)

    monkeypatch.setattr(loop, "prepare", prepared)
    assert train(config(data, tmp_path / "run", "sft"), writers=(), until_step=3).step == 3
    captured = capsys.readouterr()
    assert (captured.out + captured.err).count("every step moves data from the host") == 1
