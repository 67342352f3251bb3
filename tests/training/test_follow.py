"""One run, stopped and resumed, as a person follows it: banner, records, summary, picture."""

import contextlib
import io
import json
from types import SimpleNamespace

import pytest
from matplotlib.image import imread

from janus_jax.training.console import WIDTH
from janus_jax.training.curves import read_curves
from janus_jax.training.run import train
from tests.support.run_configs import ONE_LAYER, run_config
from tests.support.runs import metric_lines
from tests.support.training_examples import random_examples, write_dataset

STOP = 2
LONG = "a-run-directory-with-a-name-that-is-much-longer-than-a-line-of-the-console-" * 3


@pytest.fixture(scope="module")
def followed(tmp_path_factory, programs):
    """A DPO run of one epoch, what it printed until it stopped and after it resumed, and its summary."""
    root = tmp_path_factory.mktemp("follow")
    splits = {
        name: random_examples(count, pairs=True, seed=count) for name, count in (("train", 40), ("validation", 9))
    }
    write_dataset(root / "dpo", splits, kind="dpo")
    run = root / LONG / "run"
    changes = {"model": ONE_LAYER, "schedule": {"epochs": 1}, "logging": {"curves": True}, "eval": {"every_steps": 3}}
    config = run_config(root, run, "dpo", batch={"rows": None, "examples": 10}, **changes)
    printed, pictures = [], []
    for until in (STOP, None):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            summary = train(config, until_step=until)
        printed.append(out.getvalue().splitlines())
        pictures.append((run / "curves.png").read_bytes())
    return SimpleNamespace(run=run, first=printed[0], second=printed[1], summary=summary, pictures=pictures)


def test_the_banner_says_what_is_about_to_happen(followed):
    text = " ".join(line.strip() for line in followed.first)
    for fact in (
        "objective: dpo",
        "1 layer of width 32",
        "mesh data 2 x fsdp 2 x tensor 2",
        "attention: plain JAX",
        "40 examples; a step reads 10 examples in",
        "9 examples",
        "before the first step, every 3 steps",
        "steps:     4 (1 epoch of 4 steps)",
        "from random weights (run.seed=3)",
    ):
        assert fact in text, fact
    assert "after step 2, from its checkpoint in" in " ".join(line.strip() for line in followed.second)


def test_every_line_fits_and_none_comes_twice(followed):
    for lines in (followed.first, followed.second):
        assert max(map(len, lines)) <= WIDTH
        assert len({*lines}) == len(lines)


def test_the_first_evaluation_comes_before_the_first_step_and_once(followed):
    kinds = [(line["kind"], line["step"]) for line in metric_lines(followed.run)]
    assert kinds == [("eval", 0), ("train", 1), ("train", 2), ("train", 3), ("eval", 3), ("train", 4), ("eval", 4)]
    start = metric_lines(followed.run)[0]
    assert start["rewards/margins"] == 0 and start["rewards/ties"] == 1 and start["examples"] == 9
    assert start["left_out"] == 0
    assert any(line.startswith("eval  0/4  loss 0.6931  acc 0.00  ties 1.00") for line in followed.first)
    assert not any(line.startswith("eval  0/4") for line in followed.second)


def test_the_last_step_of_an_epoch_has_read_it(followed):
    epochs = [line["epoch"] for line in metric_lines(followed.run) if line["kind"] == "train"]
    assert epochs == [0.25, 0.5, 0.75, 1.0]


def test_the_summary_has_all_tokens_and_the_best_held_out_record(followed):
    lines = metric_lines(followed.run)
    stored = json.loads((followed.run / "summary.json").read_text())
    assert stored["tokens"] == sum(line["tokens"] for line in lines if line["kind"] == "train")
    best = min((line for line in lines if line["kind"] == "eval"), key=lambda line: line["loss"])
    assert stored["best"] == {name: value for name, value in best.items() if name != "kind"}
    assert followed.summary.best == stored["best"]


def test_the_picture_is_drawn_when_a_run_stops_and_again_at_its_end(followed, tmp_path):
    assert followed.pictures[0] != followed.pictures[1]
    (tmp_path / "curves.png").write_bytes(followed.pictures[1])
    assert imread(tmp_path / "curves.png").std() > 0.01
    curves = read_curves(followed.run)
    steps, accuracy = curves.points("eval", "rewards/accuracies")
    assert steps.tolist() == [0, 3, 4] and accuracy[0] == 0  # all ties
