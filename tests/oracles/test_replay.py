"""TRL's own SFT and DPO runs, replayed through packed rows: every loss, gradient norm, gradient and final weight."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from janus_jax.errors import DataError
from janus_jax.objectives import SFT
from janus_jax.training import replay as entry
from janus_jax.training.optimizer import AdamW, Schedule
from tests.oracles import replay_dir
from tests.oracles.record_trl import CASES, LEARNING_RATE, WARMUP_STEPS, WEIGHT_DECAY, Case

GOLDENS = Path(__file__).parent / "goldens"
TOLERANCE = 1e-4


def schedule_of(case: Case) -> Schedule:
    return Schedule(LEARNING_RATE, case.steps, WARMUP_STEPS, case.schedule)


def replay(directory: Path, case: Case) -> replay_dir.Worst:
    optimizer = AdamW(weight_decay=WEIGHT_DECAY, clip_norm=case.clip_norm)
    return replay_dir.replay(directory, schedule_of(case), optimizer, case.beta)


def copy_of(name: str, target: Path) -> Path:
    """A golden to tamper with, without its first gradients."""
    return Path(shutil.copytree(GOLDENS / name, target / name, ignore=shutil.ignore_patterns("grads.safetensors")))


@pytest.mark.parametrize("name", CASES)
def test_packed_rows_follow_trl_for_a_whole_run(name):
    worst = replay(GOLDENS / name, CASES[name])
    assert worst.steps >= 20
    assert worst.loss <= TOLERANCE
    assert worst.grad_norm <= TOLERANCE
    assert worst.weights <= TOLERANCE
    assert worst.gradients is not None and worst.gradients <= TOLERANCE
    if CASES[name].kind == "dpo":
        assert worst.metrics is not None and worst.metrics <= TOLERANCE
    assert worst.within(TOLERANCE)


@pytest.mark.parametrize("name", CASES)
def test_goldens_exercise_what_their_case_says(name):
    case, log = CASES[name], replay_dir.read_log(GOLDENS / name)
    batches = load_file(GOLDENS / name / "batches.safetensors")
    kind, steps = replay_dir.read_steps(batches)
    assert kind == case.kind
    assert {len(step) for step in steps} == {case.accumulation}
    examples = [e for step in steps for micro in step for e in micro]
    sequences = [len(e["prompt"]) + len(e["chosen"]) for e in examples]
    assert len(set(sequences)) > 5
    assert len({tuple(e["prompt"] + e["chosen"]) for e in examples}) == len(examples)  # nothing to learn by heart
    assert all(e[branch][-1] == 2 for e in examples for branch in ("chosen", "rejected") if branch in e)
    if case.window:
        assert sum(length > case.window for length in sequences) > len(sequences) // 2
    if case.accumulation > 1:
        assert any(len({sum(len(e["chosen"]) for e in micro) for micro in step}) > 1 for step in steps)
    padding = {int(i) for k, v in batches.items() if k.endswith("input_ids") for i in v[_attention(batches, k) == 0]}
    assert padding == {2 if case.pad_is_eos else 3}
    norms = [e["grad_norm"] for e in log]
    assert min(norms[-5:]) > 0.5 * max(norms[:5])  # late steps still say something


def _attention(batches, key):
    return batches[key.replace("input_ids", "attention_mask")]


def test_some_steps_are_clipped_and_some_are_not():
    for name in ("sft_accumulated_window", "dpo_pad_is_eos"):
        clipped = [e["grad_norm"] > CASES[name].clip_norm for e in replay_dir.read_log(GOLDENS / name)]
        assert 5 <= sum(clipped) <= 15


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("dpo_accumulated_window", {"beta": 0.1}), ("sft", {"schedule": "linear"})],
)
def test_a_replay_with_a_wrong_setting_fails(name, wrong, tmp_path):
    worst = replay(copy_of(name, tmp_path), dataclasses.replace(CASES[name], **wrong))
    assert not worst.within(10 * TOLERANCE)
    assert worst.gradients is None


@pytest.mark.parametrize("ignored", ["window", "token counts"])
def test_a_first_step_that_ignores_what_the_golden_adds_has_another_loss(ignored, tmp_path):
    directory = copy_of("sft_accumulated_window", tmp_path)
    _, steps = replay_dir.read_steps(load_file(directory / "batches.safetensors"))
    if ignored == "window":
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(config | {"sliding_window": None}))
    objective = SFT(normaliser="per_microbatch" if ignored == "token counts" else "global")
    loss, _ = entry.gradients(objective, replay_dir._as_hf(directory, "init", tmp_path), steps[0])
    logged = replay_dir.read_log(directory)[0]["loss"]
    assert abs(loss - logged) > 10 * TOLERANCE * logged


def test_nothing_is_within_tolerance_of_nan():
    good = replay_dir.Worst(steps=1, loss=0.0, grad_norm=0.0, weights=0.0, element=0.0, gradients=None, metrics=None)
    assert good.within(TOLERANCE)
    for field in ("loss", "grad_norm", "weights", "gradients"):
        assert not dataclasses.replace(good, **{field: float("nan")}).within(TOLERANCE)
        assert not dataclasses.replace(good, **{field: 2 * TOLERANCE}).within(TOLERANCE)
    trees = {"a": np.ones(2), "b": np.array([np.nan, 1.0]), "c": np.ones(1)}, {k: np.ones(1) for k in "abc"}
    assert np.isnan(replay_dir._worst_tensor(lambda a, b: np.abs(a - b).max(), *trees))


def test_another_schedule_is_named_by_its_first_step():
    log = replay_dir.read_log(GOLDENS / "dpo_pad_is_eos")
    right = schedule_of(CASES["dpo_pad_is_eos"])
    assert replay_dir.schedule_difference(right, log) is None
    assert "step 4: " in replay_dir.schedule_difference(dataclasses.replace(right, name="cosine"), log)
    assert "step 1: " in replay_dir.schedule_difference(dataclasses.replace(right, warmup_steps=2), log)


# --- Reading recordings: ids and masks by hand


def micro(**fields) -> dict[str, np.ndarray]:
    return {f"step000.0.{name}": np.asarray(value) for name, value in fields.items()}


SFT_ROWS = {
    "input_ids": [[1, 5, 6, 2], [1, 7, 2, 2]],
    "attention_mask": [[1, 1, 1, 1], [1, 1, 1, 0]],  # the last </s> is padding
    "labels": [[-100, -100, 6, 2], [-100, 7, 2, -100]],
}
DPO_ROWS = {
    "input_ids": [[1, 5, 6, 2], [1, 5, 2, 2]],
    "attention_mask": [[1, 1, 1, 1], [1, 1, 1, 0]],
    "completion_mask": [[0, 0, 1, 1], [0, 0, 1, 0]],
}


def test_masks_split_sequences_and_padding_goes_by_the_attention_mask():
    first, second = {"prompt": [1, 5], "chosen": [6, 2]}, {"prompt": [1], "chosen": [7, 2]}
    assert replay_dir.read_steps(micro(**SFT_ROWS)) == ("sft", [[[first, second]]])
    pair = {"prompt": [1, 5], "chosen": [6, 2], "rejected": [2]}
    assert replay_dir.read_steps(micro(**DPO_ROWS)) == ("dpo", [[[pair]]])


def test_padding_on_the_left_is_taken_off_too():
    rows = micro(input_ids=[[3, 1, 5, 2]], attention_mask=[[0, 1, 1, 1]], labels=[[-100, -100, 5, 2]])
    assert replay_dir.read_steps(rows) == ("sft", [[[{"prompt": [1], "chosen": [5, 2]}]]])


def test_a_loss_over_the_whole_sequence_starts_at_its_second_token():
    rows = micro(input_ids=[[1, 5, 2]], attention_mask=[[1, 1, 1]], labels=[[1, 5, 2]])
    assert replay_dir.read_steps(rows) == ("sft", [[[{"prompt": [1], "chosen": [5, 2]}]]])


def test_steps_are_ordered_by_number_and_not_by_name():
    def rows(token):
        return {"input_ids": [[1, token]], "attention_mask": [[1, 1]], "labels": [[-100, token]]}

    keys = [("step1000", 10), ("step999", 9)] + [(f"step{i:03d}", 0) for i in range(999)]
    batches = {f"{step}.0.{name}": np.asarray(v) for step, token in keys for name, v in rows(token).items()}
    _, steps = replay_dir.read_steps(batches)
    assert [step[0][0]["chosen"] for step in steps[-2:]] == [[9], [10]]


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ({}, "steps are numbered \\[\\]"),
        ({"input_ids": np.zeros((1, 2))}, "key 'input_ids'"),
        (micro(input_ids=[[1]], attention_mask=[[1]]), "no known kind"),
        (micro(**SFT_ROWS) | {k.replace("000.0", "001.0"): v for k, v in micro(**DPO_ROWS).items()}, "dpo and sft"),
        ({k.replace("000.0", "001.0"): v for k, v in micro(**SFT_ROWS).items()}, "steps are numbered \\[1\\]"),
        ({k.replace("000.0", "000.1"): v for k, v in micro(**SFT_ROWS).items()}, "step 0: microbatches .* \\[1\\]"),
        (micro(**{k: v for k, v in SFT_ROWS.items() if k != "attention_mask"}), "'attention_mask' is missing"),
        (micro(**SFT_ROWS | {"attention_mask": [[1, 1, 1, 1]]}), "step 0, microbatch 0: "),
        (micro(**SFT_ROWS | {"attention_mask": [[1, 1, 1, 1], [0, 0, 0, 0]]}), "all padding"),
        (micro(**SFT_ROWS | {"labels": [[-100, 5, -100, 2], [-100, 7, 2, -100]]}), "to the end of its sequence"),
        (micro(**DPO_ROWS | {"input_ids": [[1, 5, 6, 2], [1, 4, 2, 2]]}), "share their prompt"),
        (micro(**{k: [*v, v[0]] for k, v in DPO_ROWS.items()}), "3 sequences cannot be pairs"),
    ],
)
def test_what_is_no_recording_is_refused(batches, message):
    with pytest.raises(DataError, match=message):
        replay_dir.read_steps(batches)


def test_the_command_refuses_a_log_of_another_run(tmp_path, capsys):
    directory = copy_of("sft", tmp_path)
    (directory / "log.json").write_text(json.dumps(replay_dir.read_log(directory)[:-1]))
    assert replay_dir.main([str(directory)]) == 2
    assert "log.json has 19 steps, batches.safetensors 20" in capsys.readouterr().err
    assert replay_dir.main([str(tmp_path / "absent")]) == 2
