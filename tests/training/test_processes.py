"""Two processes of two devices train as one of four does, and notice when they are left alone.

Fine-tuning with answers to prompts, and more mistakes: `pytest -n 0 -m slow tests/training/test_processes.py`.
"""

import json
import socket

import jax
import numpy as np
import pytest

from janus_jax.checkpoint.convert import check
from janus_jax.checkpoint.run_dir import RunDir
from janus_jax.config.run import to_yaml
from janus_jax.parallel import preflight
from janus_jax.training.run import train
from tests.support import processes
from tests.support.run_configs import ONE_LAYER, run_config
from tests.support.runs import assert_equal_trees, final_params, losses
from tests.support.training_examples import random_examples, write_dataset

pytestmark = pytest.mark.usefixtures("programs")

STOP, STEPS = 4, 6
SCHEDULE = {"epochs": None, "steps": STEPS}


def recipe(root, run, kind, **more):
    """SFT answers prompts too, before the first step, after step `STOP` and at the end."""
    samples = {"prompts": str(root / "prompts.txt"), "systems": ["a", ""], "every_steps": STOP, "max_new_tokens": 4}
    answering = {"samples": samples, "model": ONE_LAYER | {"vocab_size": 32_000}}  # that of the tokenizer
    changes = answering if kind == "sft" else {"batch": {"rows": None, "examples": 10}, "model": ONE_LAYER}
    mesh = {"data": 1, "fsdp": 2, "tensor": 2}
    return run_config(root, run, kind, schedule=SCHEDULE, mesh=mesh, **changes, **more)


@pytest.fixture
def four_devices(monkeypatch):
    """In this process."""
    monkeypatch.setattr(preflight, "devices", lambda: jax.devices()[:4])


@pytest.fixture(scope="module", params=["dpo", pytest.param("sft", marks=pytest.mark.slow)])
def trained(request, tmp_path_factory):
    """(kind, a directory with a data set, a run that two processes stopped at step `STOP`, the rows that each read, a
    run that they exported, and one that SIGTERM to process 1 ended)."""
    root, kind = tmp_path_factory.mktemp("processes"), request.param
    (root / "prompts.txt").write_text("What?\nAnd why?\n")
    splits = {name: random_examples(n, pairs=kind == "dpo", seed=n) for name, n in (("train", 40), ("validation", 9))}
    write_dataset(root / kind, splits, kind=kind)
    export = {"export": {"hf": True, "max_shard_size": "20KB"}}
    configs = {
        "run": (recipe(root, root / "run", kind), STOP),
        "exported": (recipe(root, root / "exported", kind, **export), STEPS),
        "ended": (recipe(root, root / "ended", kind), "SIGTERM"),
    }
    stored = {name: (config.model_dump(mode="json", by_alias=True), until) for name, (config, until) in configs.items()}
    (root / "configs.json").write_text(json.dumps(stored))
    port = processes.free_port()
    processes.run(*(["-m", "tests.support.processes", "train", port, i, root, 2, 2] for i in range(2)))
    return kind, root


def test_two_processes_train_and_one_resumes_as_if_one_had_trained_all_along(trained, tmp_path, four_devices):
    kind, root = trained
    with processes.noting_rows() as expected:
        whole = train(recipe(root, tmp_path, kind), writers=())
    assert expected[0].epoch == 0 and expected[-1].epoch > 0  # an epoch ends on the way

    parts = [[processes.Rows(**row) for row in json.loads((root / f"rows.run.{i}.json").read_text())] for i in range(2)]
    assert len(parts[0]) == len(parts[1]) == STOP
    assert all(a.examples and b.examples and not {*a.examples} & {*b.examples} for a, b in zip(*parts, strict=True))
    joined = [processes.Rows.joined(both) for both in zip(*parts, strict=True)]

    run = root / "run"
    stopped_evaluation = [line for line in _lines(run) if line["kind"] == "eval"]
    with processes.noting_rows() as rest:
        resumed = train(recipe(root, run, kind), writers=())
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


def test_sigterm_to_one_of_two_processes_stops_both_at_the_same_step(trained):
    """tests/training/test_stops.py goes on with such a run."""
    _, root = trained
    [step] = RunDir(root / "ended").committed_steps()
    assert 2 <= step < STEPS
    ended = [json.loads((root / f"rows.ended.{i}.json").read_text()) for i in range(2)]
    assert ended == [[10, f"{root}/ended: step {step} is saved; SIGTERM ended the run"]] * 2
    assert [*losses(root / "ended")] == [*range(1, step + 1)]


def test_the_export_of_a_run_of_two_processes_is_its_last_step(trained):
    run = trained[1] / "exported"
    export = run / "exports" / str(STEPS)
    assert len([*export.glob("*.safetensors")]) > 2 and (export / "tokenizer.json").exists()
    assert check(run, export) == []


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
        ("run.dir=DIR/dpo", "run.dir=DIR/dpo: holds manifest.json: a data set or a model, not a run\n"),
    ],
)
@pytest.mark.slow
@pytest.mark.parametrize("trained", ["dpo"], indirect=True)
def test_bad_input_at_one_of_two_processes_ends_both_with_its_code(mistake, message, trained, tmp_path):
    """Of the whole command; test_same_inputs.py has one such mistake."""
    port, both, (kind, root) = processes.free_port(), [], trained
    weights = {"model": None, "init": {"from": str(root / "exported")}}  # the other process reads them meanwhile
    values = run_config(root, tmp_path / "run", kind, schedule=SCHEDULE, **weights)
    (root / "recipe.yaml").write_text(to_yaml(values))
    for i, own in enumerate(([], [mistake.replace("DIR", str(root))])):
        flags = ["--coordinator", f"127.0.0.1:{port}", "--num-processes", 2, "--process-id", i, "--devices", 4]
        both.append(["-m", "janus_jax.cli", "train", root / "recipe.yaml", *own, *flags])
    message = message.replace("DIR", str(root))
    assert processes.launch(*both) == [(2, f"error: process 1: {message}"), (2, f"error: {message}")]
    assert not (tmp_path / "run").exists()
