"""Two processes stop at the same step, whichever of them receives a signal, say so and go on: slow.

`pytest -n 0 -m slow tests/training/test_stops.py`; test_processes.py has one signal.
"""

import re

import pytest

from janus_jax.checkpoint.run_dir import RunDir
from janus_jax.config.run import to_yaml
from tests.support import processes
from tests.support.run_configs import ONE_LAYER, run_config
from tests.support.runs import assert_equal_trees, final_params, losses
from tests.support.training_examples import random_examples, write_dataset

pytestmark = pytest.mark.slow

STEPS = 30


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    splits = {
        name: random_examples(count, pairs=False, seed=count) for name, count in (("train", 40), ("validation", 9))
    }
    write_dataset(root / "sft", splits, kind="sft")
    return root


def recipe(data, run):
    schedule, mesh = {"epochs": None, "steps": STEPS}, {"data": 1, "fsdp": 2, "tensor": 1}
    return run_config(data, run, model=ONE_LAYER, schedule=schedule, mesh=mesh, logging={"every_steps": 1})


def two(config, stop_at):
    """Runs two processes; returns (exit code, output) of each."""
    file = config.run.dir + ".yaml"
    with open(file, "w") as stream:
        stream.write(to_yaml(config))
    port = processes.free_port()
    return processes.launch(*(["-m", "tests.support.processes", "stop", port, i, file, stop_at] for i in range(2)))


def test_sigterm_to_one_of_two_processes_stops_both_at_the_same_step(data, tmp_path):
    """After one SIGTERM at step 2. That one process finishes such a run as if alone: test_processes.py."""
    ended = two(recipe(data, tmp_path / "run"), 2)
    assert [code for code, _ in ended] == [10, 10], ended
    [step] = RunDir(tmp_path / "run").committed_steps()
    assert 2 <= step < STEPS
    for process, (_, output) in enumerate(ended):
        assert f"\nstopped: {tmp_path}/run: step {step} is saved; SIGTERM ended the run\nto go on" in "\n" + output
        assert re.search(rf"\nto go on: janus train \S+ --coordinator .* --process-id {process} --devices 1\n", output)
    assert [*losses(tmp_path / "run")] == [*range(1, step + 1)]


def test_two_processes_that_were_stopped_end_bit_for_bit_as_two_that_were_not(data, tmp_path):
    codes = [code for stop_at in (2, 12, 0) for code, _ in two(recipe(data, tmp_path / "run"), stop_at)]
    assert codes == [10, 10, 10, 10, 0, 0]
    assert [code for code, _ in two(recipe(data, tmp_path / "whole"), 0)] == [0, 0]
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert_equal_trees(final_params(tmp_path / "run"), final_params(tmp_path / "whole"))
