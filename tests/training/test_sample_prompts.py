"""Prompts of samples: read as the data writes them, and refused before any device is used."""

import json

import pytest

from janus_jax.data.from_config import open_training
from janus_jax.errors import ConfigError, DataError
from janus_jax.generation import memory
from janus_jax.training import setup
from janus_jax.training.program import local_bytes
from janus_jax.training.sample_prompts import open_sample_prompts
from tests.support.run_configs import ONE_LAYER, run_config
from tests.support.training_examples import random_examples, write_dataset

MODEL = ONE_LAYER | {"vocab_size": 32_000}  # that of the tokenizer
TURNS = [{"role": role, "content": role} for role in ("user", "assistant", "user")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_dataset(root / "sft", {"train": random_examples(20, pairs=False)}, kind="sft")
    return root


def config(data, prompts, model=(), **section):
    changes = {"batch": {"row_length": 160}, "eval": {"every_steps": None}, "model": MODEL | dict(model)}
    return run_config(data, data / "run", "sft", samples={"prompts": str(prompts), **section}, **changes)


def opened(data, prompts, **section):
    run = config(data, prompts, **section)
    made = open_sample_prompts(run, run.model.build(), open_training(run))
    assert made is not None
    return made


def written(file, rows):
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


def test_every_prompt_comes_under_its_own_system_message_or_under_all_given_ones(data, tmp_path):
    file = written(tmp_path / "p.jsonl", [{"prompt": "a", "system": "s"}, {"messages": TURNS}])
    own = opened(data, file)
    assert [(one.prompt, one.system) for one in own.asked] == [(0, "s"), (1, "")] and not own.notes
    given = opened(data, file, systems=["x", ""])
    assert [(one.prompt, one.system) for one in given.asked] == [(0, "x"), (0, ""), (1, "x"), (1, "")]
    assert given.asked[0].messages == ({"role": "system", "content": "x"}, {"role": "user", "content": "a"})
    assert given.asked[3].messages == tuple(TURNS)
    assert given.notes == (f"samples.systems replaces the system message of 1 row of {file}",)
    assert [one.request.name for one in given.asked] == [0, 0, 1, 1]  # the same random numbers under each
    assert own.fingerprint != given.fingerprint == opened(data, file, systems=["x", ""]).fingerprint


def test_ids_are_those_of_training(data, tmp_path):
    (tmp_path / "p.txt").write_text("Why?")
    [asked] = opened(data, tmp_path / "p.txt", systems=["Be kind."]).asked
    chat = open_training(config(data, tmp_path / "p.txt")).chat_format()
    assert asked.request.ids == chat.encode_prompt("Be kind.", "Why?")


def test_what_is_used_otherwise_is_noted(data, tmp_path):
    rows = [{"prompt": "a", "id": 1, "source": "s", "answers": 1}, {"prompt": "a b c d", "source": "t"}]
    file = written(tmp_path / "p.jsonl", rows)
    prompts = opened(data, file, model={"max_position_embeddings": 40}, max_new_tokens=30)
    room = 40 - prompts.longest_prompt
    assert prompts.notes == (
        f"{file}: 'answers' of 1 row is no part of the prompt; it is left out, as the output has its own",
        f"{file}: 'source' of 2 rows is no part of the prompt; it is kept beside the answer",
        f"samples.max_new_tokens = 30: the longest prompt leaves room for {room} tokens, as the model's longest text "
        "is 40",
    )
    assert prompts.asked[0].rest == {"id": 1, "source": "s"}


LONG = json.dumps({"prompt": "word " * 200})
SHORT = '{"prompt": "a"}'
MISTAKES = {
    "no file": (None, {}, {}, "none.jsonl: cannot be read: No such file"),
    "no prompt": ('{"id": 1}', {}, {}, ":1: a row needs prompt"),
    "another type": (SHORT + '\n{"prompt": 3}', {}, {}, ":2: "),
    "empty": ("", {}, {}, "is empty; at least one prompt is needed"),
    "no messages": (SHORT + '\n{"messages": []}', {}, {}, ":2: "),
    "row": (f"{SHORT}\n{LONG}", {}, {}, " tokens; allowed: at most 159, for batch.row_length = 160"),
    "window": (LONG, {"max_position_embeddings": 32}, {}, "; allowed: at most 31 (the model's longest text is 32)"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_cannot_be_answered_is_refused_before_any_device_is_used(data, tmp_path, mistake, monkeypatch):
    text, model, section, message = MISTAKES[mistake]
    file = tmp_path / ("none.jsonl" if text is None else "prompts.jsonl")
    if text is not None:
        file.write_text(text)
    monkeypatch.setattr(setup.meshes, "build_mesh", lambda *_: pytest.fail("devices are asked for"))
    with pytest.raises((ConfigError, DataError)) as caught:
        setup.prepare(config(data, file, model=model, **section))
    assert message in str(caught.value) and caught.value.exit_code == 2
    assert str(caught.value).startswith(f"samples.prompts: {file}")


def test_what_does_not_fit_beside_the_run_is_refused_before_its_weights_are_read(data, tmp_path, monkeypatch):
    run = config(data, written(tmp_path / "p.jsonl", [{"prompt": str(n)} for n in range(64)]), rows=64)
    kept = local_bytes(setup.prepare(run).program.abstract_state())
    monkeypatch.setattr(memory, "free_bytes", lambda devices: kept + (1 << 20))
    with pytest.raises(ConfigError, match=r"^samples\.rows = 64: generation needs .*copy beside.*allowed: ") as caught:
        setup.prepare(run)
    assert caught.value.exit_code == 2
    monkeypatch.setattr(memory, "free_bytes", lambda devices: kept + (1 << 30))
    assert setup.prepare(run).samples is not None
