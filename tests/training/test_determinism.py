"""What the docs promise of a run that goes on elsewhere: the same rows bit for bit, and losses within rounding.

The same layout is bit-equal: `test_kills.py`, `test_notices.py`.
"""

import json

import jax
import pytest

from janus_jax.parallel import preflight
from janus_jax.training.run import train
from tests.support import processes
from tests.support.run_configs import ONE_LAYER, run_config
from tests.support.runs import losses
from tests.support.training_examples import random_examples, write_dataset

STOPS = (4, 25, 46)
"""After each restart one step and 20 more are compared."""
FIRST, LATER = 1e-6, 1e-4
"""Relative differences of losses in float32: of the first step after a restart, of the 20 after it."""


def config(root, run, kind, mesh, stops=STOPS):
    return run_config(
        root,
        run,
        kind,
        model=ONE_LAYER,
        mesh=mesh,
        batch={"microbatches": 1},
        schedule={"epochs": None, "steps": stops[-1], "learning_rate": 1e-3},
        eval={"every_steps": None},
        logging={"every_steps": 1},
    )


def write_examples(root, kind):
    write_dataset(root / kind, {"train": random_examples(140, pairs=kind == "dpo", seed=1)}, kind=kind)


def require_promised(whole, run, expected, rows, stops=STOPS):
    """Losses of runs, and the rows that they read."""
    assert rows == expected and len(rows) == stops[-1] and len({row.epoch for row in rows}) > 2
    ours, theirs = losses(run), losses(whole)
    assert [*ours] == [*theirs] == [*range(1, stops[-1] + 1)]
    difference = {step: abs(ours[step] - theirs[step]) / abs(theirs[step]) for step in ours}
    assert not any(difference[step] for step in range(1, stops[0] + 1))  # the same mesh, bit for bit
    assert max(difference[step + 1] for step in stops[:-1]) <= FIRST
    assert 0 < max(difference.values()) <= LATER


@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize("stops", [STOPS[:2], pytest.param(STOPS, marks=pytest.mark.slow)], ids=len)
def test_a_run_that_goes_on_with_fewer_devices_and_then_with_others_reads_the_same_rows(stops, tmp_path, monkeypatch):
    """With others only if it is stopped twice: `pytest -n 0 -m slow tests/training/test_determinism.py`."""
    write_examples(tmp_path, "sft")
    first = {"data": 2, "fsdp": 2, "tensor": 2}
    with processes.noting_rows() as expected:
        train(config(tmp_path, tmp_path / "whole", "sft", first, stops), writers=())
    layouts = ((8, first), (4, {"data": 1, "fsdp": 2, "tensor": 2}), (8, {"data": 1, "fsdp": 8, "tensor": 1}))
    with processes.noting_rows() as rows:
        for (count, mesh), until in zip(layouts, stops, strict=False):
            monkeypatch.setattr(preflight, "devices", lambda count=count: jax.devices()[:count])
            done = train(config(tmp_path, tmp_path / "run", "sft", mesh, stops), until_step=until, writers=())
            assert done.step == until
    require_promised(tmp_path / "whole", tmp_path / "run", expected, rows, stops)


@pytest.mark.slow
def test_two_processes_then_one_then_four_read_the_same_rows(tmp_path):
    """2 x 4, 1 x 4 and 4 x 2 devices: `pytest -n 0 -m slow tests/training/test_determinism.py`, two minutes."""
    write_examples(tmp_path, "dpo")
    first = {"data": 2, "fsdp": 2, "tensor": 2}
    layouts = {
        (2, 4): {"whole": (first, STOPS[-1]), "0": (first, STOPS[0])},
        (1, 4): {"1": ({"data": 1, "fsdp": 2, "tensor": 2}, STOPS[1])},
        (4, 2): {"2": ({"data": 1, "fsdp": 8, "tensor": 1}, STOPS[2])},
    }
    read = {}
    for (count, devices), stages in layouts.items():
        configs = {}
        for name, (mesh, until) in stages.items():
            recipe = config(tmp_path, tmp_path / ("whole" if name == "whole" else "run"), "dpo", mesh)
            configs[name] = recipe.model_dump(mode="json", by_alias=True), until
        (tmp_path / "configs.json").write_text(json.dumps(configs))
        port = processes.free_port()
        processes.run(
            *(["-m", "tests.support.processes", "train", port, i, tmp_path, count, devices] for i in range(count))
        )
        for name in stages:
            parts = [json.loads((tmp_path / f"rows.{name}.{i}.json").read_text()) for i in range(count)]
            read[name] = [
                processes.Rows.joined([processes.Rows(**part) for part in step]) for step in zip(*parts, strict=True)
            ]
    require_promised(tmp_path / "whole", tmp_path / "run", read["whole"], read["0"] + read["1"] + read["2"])
