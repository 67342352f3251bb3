"""Two processes of four devices train as one of eight does, and notice when they are left alone."""

import json
import socket

import numpy as np
import pytest

from janus_jax.checkpoint.convert import check
from janus_jax.config.run import to_yaml
from janus_jax.training.run import train
from tests.support import processes
from tests.support.run_configs import ONE_LAYER, run_config
from tests.support.runs import assert_equal_trees, final_params, losses
from tests.support.training_examples import random_examples, write_dataset

pytestmark = pytest.mark.usefixtures("programs")

STOP, STEPS = 4, 6
SCHEDULE = {"epochs": None, "steps": STEPS}
KINDS = ("sft", "dpo")


def recipe(root, run, kind):
    """SFT answers prompts too, before the first step, after step `STOP` and at the end."""
    samples = {"prompts": str(root / "prompts.txt"), "systems": ["a", ""], "every_steps": STOP, "max_new_tokens": 4}
    answering = {"samples": samples, "model": {"vocab_size": 32_000}}  # that of the tokenizer
    changes = answering if kind == "sft" else {"batch": {"rows": None, "examples": 10}}
    return run_config(root, run, kind, schedule=SCHEDULE, **changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A directory with data sets, runs that two processes stopped at step `STOP`, the rows that each read, and a
    run of one step that they exported."""
    root = tmp_path_factory.mktemp("processes")
    configs = {}
    (root / "prompts.txt").write_text("What?\nAnd why?\n")
    for kind in KINDS:
        splits = {
            "train": random_examples(40, pairs=kind == "dpo", seed=1),
            "validation": random_examples(9, pairs=kind == "dpo", seed=2),
        }
        write_dataset(root / kind, splits, kind=kind)
        config = recipe(root, root / f"run_{kind}", kind)
        configs[kind] = (config.model_dump(mode="json", by_alias=True), STOP)
    export = {"export": {"hf": True, "max_shard_size": "20KB"}, "eval": {"every_steps": None}}
    exported = run_config(root, root / "exported", schedule={"epochs": None, "steps": 1, "warmup_steps": 0}, **export)
    configs["exported"] = (exported.model_dump(mode="json", by_alias=True), 1)
    (root / "configs.json").write_text(json.dumps(configs))
    port = processes.free_port()
    processes.run(*(["-m", "tests.support.processes", "train", port, i, root] for i in range(2)))
    return root


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_and_one_resumes_as_if_one_had_trained_all_along(trained, tmp_path, kind):
    with processes.noting_rows() as expected:
        whole = train(recipe(trained, tmp_path, kind), writers=())
    assert expected[0].epoch == 0 and expected[-1].epoch > 0  # an epoch ends on the way

    parts = [
        [processes.Rows(**row) for row in json.loads((trained / f"rows.{kind}.{i}.json").read_text())] for i in range(2)
    ]
    assert len(parts[0]) == len(parts[1]) == STOP
    assert all(a.examples and b.examples and not {*a.examples} & {*b.examples} for a, b in zip(*parts, strict=True))
    joined = [processes.Rows.joined(both) for both in zip(*parts, strict=True)]

    run = trained / f"run_{kind}"
    stopped_evaluation = [line for line in _lines(run) if line["kind"] == "eval"]
    with processes.noting_rows() as rest:
        resumed = train(recipe(trained, run, kind), writers=())
    assert resumed.resumed_from == STOP
    assert joined + rest == expected
    assert [*losses(run)] == [*losses(tmp_path)] == [*range(1, STEPS + 1)]
    np.testing.assert_allclose([*losses(run).values()], [*losses(tmp_path).values()], rtol=1e-5)
    if kind == "dpo":
        for name in ("train", "eval"):
            ours, theirs = (np.load(place / "reference" / f"{name}.npz")["logps"] for place in (run, tmp_path))
            assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()
    for ours, theirs in [
        (resumed.evaluation, whole.evaluation),
        (stopped_evaluation[0], next(line for line in _lines(tmp_path) if line["kind"] == "eval")),
    ]:
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    if kind == "sft":
        assert [*_texts(run)] == [*_texts(tmp_path)] == [0, STOP, STEPS]
        assert _texts(run) == _texts(tmp_path)


def test_the_export_of_a_run_of_two_processes_is_its_last_step(trained):
    export = trained / "exported" / "exports" / "1"
    assert len([*export.glob("*.safetensors")]) > 2 and (export / "tokenizer.json").exists()
    assert check(trained / "exported", export) == []


def _texts(run):
    """Step -> its answers."""
    files = {int(path.stem): path for path in (run / "samples").iterdir()}
    lines = {step: map(json.loads, files[step].read_text().splitlines()) for step in sorted(files)}
    return {step: [(line["messages"], line["answers"][0]["text"]) for line in lines[step]] for step in lines}


def _lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_extend_and_stop_early_as_one_does(tmp_path):
    """Bit for bit where they are interrupted; beside one process, within rounding."""
    splits = {name: random_examples(count, pairs=False, seed=1) for name, count in (("train", 40), ("validation", 5))}
    write_dataset(tmp_path / "sft", splits, kind="sft")
    schedule = {"name": "linear", "min_rate_ratio": 0.1, "warmup_steps": 1, "epochs": None, "steps": 4}
    longer = {"steps": 8, "extend": "restart"}
    evaluation = {"every_steps": 1, "stop_after": 2, "stop_min_change": 9.0}  # only the first improves

    def config(name, changes=None, **sections):
        run = {"schedule": schedule | (changes or {}), "model": ONE_LAYER, "eval": {"every_steps": None}, **sections}
        return run_config(tmp_path, tmp_path / name, **run)

    stages = {
        "begin whole": (config("whole"), None),
        "extend whole": (config("whole", longer), None),
        "begin parts": (config("parts"), 3),
        "extend parts": (config("parts", longer), 6),
        "end parts": (config("parts", longer), None),
        "early": (config("early", longer | {"extend": None}, eval=evaluation), None),
    }
    stored = {name: (one.model_dump(mode="json", by_alias=True), until) for name, (one, until) in stages.items()}
    (tmp_path / "configs.json").write_text(json.dumps(stored))
    port = processes.free_port()
    processes.run(*(["-m", "tests.support.processes", "train", port, i, tmp_path] for i in range(2)))
    assert [*losses(tmp_path / "whole")] == [*range(1, 9)]
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert_equal_trees(final_params(tmp_path / "parts"), final_params(tmp_path / "whole"))

    for changes in ({}, longer):
        train(config("alone", changes), writers=())
    train(config("early alone", longer | {"extend": None}, eval=evaluation), writers=())
    for ours, alone in (("whole", "alone"), ("early", "early alone")):
        both = [[*losses(tmp_path / name).values()] for name in (ours, alone)]
        np.testing.assert_allclose(*both, rtol=1e-5)
        both = [[line.get("learning_rate") for line in _lines(tmp_path / name)] for name in (ours, alone)]
        assert both[0] == both[1]
    both = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("early", "early alone")]
    assert [summary["step"] for summary in both] == [3, 3]
    assert all(summary["ended"].startswith("eval.stop_after: 2 evaluations in a row") for summary in both)


def test_a_process_whose_peer_ends_without_a_word_ends_with_13_and_names_it():
    port = processes.free_port()
    alone, gone = processes.launch(*(["-m", "tests.support.processes", "wait", port, i] for i in range(2)))
    assert gone == (0, "")
    host = socket.gethostname()
    lost = f"error: process 1 (host {host}) is lost: it ended without a word; start the run again\n"
    assert alone == (13, lost)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("data.dir=DIR/nowhere", "DIR/nowhere: no such directory; `janus data build` makes one\n"),
        ("run.dir=DIR/recipe.yaml/run", "run.dir DIR/recipe.yaml/run: cannot be written: DIR/recipe.yaml is a file\n"),
        ("run.dir=DIR/sft", "run.dir=DIR/sft: holds manifest.json: a data set or a model, not a run\n"),
    ],
)
def test_bad_input_at_one_of_two_processes_ends_both_with_its_code(mistake, message, trained, tmp_path):
    port, both = processes.free_port(), []
    weights = {"model": None, "init": {"from": str(trained / "run_sft")}}  # the other process reads them meanwhile
    (trained / "recipe.yaml").write_text(to_yaml(run_config(trained, tmp_path / "run", schedule=SCHEDULE, **weights)))
    for i, own in enumerate(([], [mistake.replace("DIR", str(trained))])):
        flags = ["--coordinator", f"127.0.0.1:{port}", "--num-processes", 2, "--process-id", i, "--devices", 4]
        both.append(["-m", "janus_jax.cli", "train", trained / "recipe.yaml", *own, *flags])
    message = message.replace("DIR", str(trained))
    assert processes.launch(*both) == [(2, f"error: process 1: {message}"), (2, f"error: {message}")]
    assert not (tmp_path / "run").exists()
