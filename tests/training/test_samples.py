"""Answers to fixed prompts while a run trains: the run is as without them, and the answers are those of its steps."""

import json
import os
import signal
import types

import jax
import pytest

from janus_jax.checkpoint.run_dir import RunDir
from janus_jax.checkpoint.stored_model import open_model
from janus_jax.errors import Preempted, StorageError
from janus_jax.generation.opened import open_engine
from janus_jax.generation.prompts import prompt_format
from janus_jax.generation.requests import Request
from janus_jax.generation.session import Session
from janus_jax.generation.stopping import StoppingOptions
from janus_jax.storage import parts
from janus_jax.storage.bucket import Prefix
from janus_jax.storage.local import place
from janus_jax.training import samples
from janus_jax.training.run import train
from tests.support.run_configs import ONE_LAYER, run_config
from tests.support.runs import assert_equal_trees, final_params, losses, metric_lines
from tests.support.training_examples import random_examples, write_dataset

pytestmark = pytest.mark.usefixtures("programs")

STEPS, SYSTEMS, TOKENS = 4, ["Be a pirate.", ""], 5
PROMPTS = [{"prompt": "Why?", "id": 7}, {"prompt": "And where to?\nTell me.", "answers": 1}]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    splits = {"train": random_examples(100, pairs=False, seed=1), "validation": random_examples(9, pairs=False, seed=2)}
    write_dataset(root / "sft", splits, kind="sft")
    (root / "prompts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in PROMPTS))
    return root


def config(data, run, samples=True, **changes):
    section = {"prompts": str(data / "prompts.jsonl"), "every_steps": 2, "systems": SYSTEMS, "max_new_tokens": TOKENS}
    settings = {
        "model": ONE_LAYER | {"vocab_size": 32_000},  # that of the tokenizer
        "schedule": {"epochs": None, "steps": STEPS, "learning_rate": 0.3},  # answers change
        "eval": {"every_steps": None},
        "checkpoint": {"every_steps": 2, "keep": 9},
        "samples": section if samples else None,
    }
    return run_config(data, run, "sft", **{**settings, **changes})


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory, programs):
    """A run with samples that nothing disturbs, what its console said, and what each sampling compiled and left."""
    run, sampled, seen = tmp_path_factory.mktemp("whole") / "run", samples.Sample._sample, []
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))

    def noting(self, run, prompts):
        before = len(jax.live_arrays()), len(compiled)
        sampled(self, run, prompts)
        new = [name for name in compiled[before[1] :] if "compile" in name]
        seen.append((len(jax.live_arrays()) - before[0], len(new)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples.Sample, "_sample", noting)
        summary = train(config(data, run), writers=())
    return run, summary, seen


def files(run):
    return {int(path.stem): path.read_bytes() for path in (run / "samples").iterdir()}


def records(run, step):
    return [json.loads(line) for line in files(run)[step].splitlines()]


def test_training_is_as_without_them_bit_for_bit(data, whole, tmp_path):
    train(config(data, tmp_path / "without", samples=False), writers=())
    assert losses(whole[0]) == losses(tmp_path / "without")
    assert_equal_trees(final_params(whole[0]), final_params(tmp_path / "without"))


def test_there_are_answers_before_the_first_step_every_so_many_and_at_the_end(whole):
    assert sorted(files(whole[0])) == [0, 2, 4]
    asked = [
        (record["step"], record.get("id"), record["system"], record["prompt_tokens"]) for record in records(whole[0], 2)
    ]
    assert [(step, number, system) for step, number, system, _ in asked] == [
        (2, 7, SYSTEMS[0]),
        (2, 7, ""),
        (2, None, SYSTEMS[0]),
        (2, None, ""),
    ]
    lines = [line for line in metric_lines(whole[0]) if line["kind"] == "samples"]
    assert [(line["step"], line["answers"]) for line in lines] == [(0, 4), (2, 4), (4, 4)]
    assert all(0 < line["tokens"] <= TOKENS and line["log_prob"] < 0 for line in lines)


def test_they_are_what_the_checkpoint_of_that_step_says(whole):
    """To `janus generate`, which reads the format of prompts from the run."""
    for step in (2, 4):
        model = open_model(whole[0], step)
        engine = open_engine(model, written := prompt_format(model), rows=4)
        told = records(whole[0], step)
        requests = [Request(written.encode(one["messages"]), stopping=StoppingOptions(TOKENS)) for one in told]
        texts = [""] * len(told)
        for event in engine.generate(requests):
            texts[event.request] += event.text
        assert texts == [one["answers"][0]["text"] for one in told] and any(texts)
        assert [len(request.ids) for request in requests] == [one["prompt_tokens"] for one in told]
    assert files(whole[0])[2] != files(whole[0])[4].replace(b'"step": 4', b'"step": 2')


def test_programs_are_compiled_once_and_the_copy_of_the_weights_is_gone(whole):
    (_, first), *others = whole[2]
    assert first > 0 and others == [(0, 0), (0, 0)], whole[2]
    assert whole[1].goodput["samples"] > 0


def test_a_notice_cuts_answers_off_and_the_run_makes_them_when_it_goes_on(data, whole, tmp_path, monkeypatch):
    submit, calls = Session.submit, []

    def told(self, number, request):
        calls.append(number)
        if len(calls) == 6:  # four at the start; then of step 2
            os.kill(os.getpid(), signal.SIGTERM)
        submit(self, number, request)

    monkeypatch.setattr(Session, "submit", told)
    with pytest.raises(Preempted, match="step 2 is saved; SIGTERM ended the run"):
        train(config(data, tmp_path / "run"), writers=())
    monkeypatch.undo()
    assert RunDir(tmp_path / "run").committed_steps() == [2] and sorted(files(tmp_path / "run")) == [0]
    (tmp_path / "run" / "samples" / "4.jsonl").write_text("of a start that was killed before it saved step 4")
    train(config(data, tmp_path / "run"), writers=())
    assert files(tmp_path / "run") == files(whole[0])
    assert losses(tmp_path / "run") == losses(whole[0])


def test_a_failed_write_ends_the_run_as_one_of_metrics_does(data, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "samples").write_text("a file")
    with pytest.raises(StorageError, match=r"run/samples: cannot be written"):
        train(config(data, tmp_path / "run"), writers=())


def test_answers_of_steps_that_are_made_again_are_forgotten(tmp_path, bucket):
    names = ["0.jsonl", "4.jsonl", "6.jsonl", "notes.txt"]
    (tmp_path / "samples").mkdir()
    for name in names:
        (tmp_path / "samples" / name).write_text("{}")
    Prefix(f"{bucket}/samples").upload(tmp_path / "samples", names)
    for step, kept in ((4, [0, 4]), (0, [])):
        for folder in (tmp_path, place(bucket)):
            assert samples._forget_later(types.SimpleNamespace(dir=RunDir(folder), step=step)) == kept
            assert parts.names(folder / "samples") == [*(f"{number}.jsonl" for number in kept), "notes.txt"]
