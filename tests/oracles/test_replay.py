"""TRL's own runs, replayed through packed rows: every loss, gradient norm, gradient and final weight.

pytest replays the runs in `QUICK`; `pytest -n 0 -m slow tests/oracles` the others.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from janus_jax.data.rows import RowFormat
from janus_jax.errors import DataError
from janus_jax.objectives import Objective
from janus_jax.objectives.dpo import DPO
from janus_jax.objectives.sft import SFT
from janus_jax.objectives.simpo import SimPO
from janus_jax.training import replay as entry
from janus_jax.training.optimizer import AdamW, Schedule
from tests.oracles import recordings, replay_dir
from tests.oracles.record_orpo_padding import CASES as PADDED
from tests.oracles.record_trl import CASES, LEARNING_RATE, WARMUP_STEPS, Case

GOLDENS = Path(__file__).parent / "goldens"
TOLERANCE = 1e-4
QUICK = {
    *("sft_accumulated_window", "dpo_accumulated_window", "dpo_ipo", "dpo_sft_accumulated", "simpo_sft_accumulated"),
    *("orpo_accumulated_window", "rm_accumulated_window", *PADDED),
}
"""Of each trainer: accumulation, sliding window, tied embeddings, settings that are not the defaults."""


@pytest.fixture(autouse=True, scope="module")
def quick_compiling():
    """These tests compile far longer than they run."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def schedule_of(case: Case) -> Schedule:
    return Schedule(LEARNING_RATE, case.steps, WARMUP_STEPS, case.schedule)


def objective_of(case: Case, **wrong) -> Objective:
    return replay_dir.objective_of(case.kind, **{**case.settings, **wrong})


def replay(directory: Path, case: Case, *, share_prompts: bool = True) -> replay_dir.Worst:
    optimizer = AdamW(weight_decay=case.weight_decay, clip_norm=case.clip_norm)
    recording = recordings.read(directory)
    return replay_dir.replay(recording, objective_of(case), schedule_of(case), optimizer, share_prompts=share_prompts)


def first_loss(directory: Path, objective: Objective, scratch: Path) -> float:
    """Of the first step, without the gradients that would take most of the time to compile."""
    config, recording = replay_dir.config_of(directory, objective), recordings.read(directory)
    form = RowFormat(objective.head, objective.branches, padding=replay_dir.padding_of(recording, objective))
    model = replay_dir.as_hf(directory, "init", config, scratch)
    functions, initial, batches = entry._prepare(
        objective, model, recording.steps[:1], AdamW(), Schedule(0.0, 1), None, 0, form
    )
    return float(jax.jit(lambda params, batch: functions.gradients(params, batch)[0])(initial, next(batches)))


def copy_of(name: str, target: Path) -> Path:
    """A golden to tamper with, without its first gradients."""
    return Path(shutil.copytree(GOLDENS / name, target / name, ignore=shutil.ignore_patterns("grads.safetensors")))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in (*CASES, *PADDED)]
)
def test_packed_rows_follow_the_trainer_for_a_whole_run(name):
    case = (CASES | PADDED)[name]
    worst = replay(GOLDENS / name, case)
    assert worst.steps >= 20
    assert worst.loss <= TOLERANCE
    assert worst.grad_norm <= TOLERANCE
    assert worst.weights <= TOLERANCE
    assert (worst.gradients is not None) == case.gradients
    assert worst.gradients is None or worst.gradients <= TOLERANCE
    assert (worst.metrics is not None) == (case.kind != "sft")
    assert worst.metrics is None or worst.metrics <= TOLERANCE
    assert worst.within(TOLERANCE)


@pytest.mark.parametrize(("name", "other"), [("orpo_padding_trl", "axolotl"), ("orpo_padding_axolotl", "trl")])
def test_padding_counts_as_in_its_own_trainer_alone(name, other, tmp_path):
    logged = recordings.read_log(GOLDENS / name)[0]["loss"]
    assert abs(first_loss(GOLDENS / name, objective_of(PADDED[name]), tmp_path / "own") - logged) <= TOLERANCE * logged
    for number, padding in enumerate((None, other)):
        loss = first_loss(GOLDENS / name, objective_of(PADDED[name], padding=padding), tmp_path / str(number))
        assert abs(loss - logged) > 10 * TOLERANCE * logged


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpo_ipo", "orpo", "rm"])
def test_a_copy_of_the_prompt_for_each_branch_changes_nothing(name):
    """tests/objectives/test_shared_prompts.py compares copies with shared prompts for every objective over pairs."""
    assert replay(GOLDENS / name, CASES[name], share_prompts=False).within(TOLERANCE)


@pytest.mark.parametrize("name", [*CASES, *PADDED])
def test_goldens_exercise_what_their_case_says(name):
    case, recording = (CASES | PADDED)[name], recordings.read(GOLDENS / name)
    batches = load_file(GOLDENS / name / "batches.safetensors")
    assert case.kind in recording.objectives
    assert {len(step) for step in recording.steps} == {case.accumulation}
    examples = [e for step in recording.steps for micro in step for e in micro]
    sequences = [len(e["prompt"]) + len(e["chosen"]) for e in examples]
    assert len(set(sequences)) > 5
    assert len({tuple(e["prompt"] + e["chosen"]) for e in examples}) == len(examples)  # nothing to learn by heart
    assert all(e[branch][-1] == 2 for e in examples for branch in ("chosen", "rejected") if branch in e)
    if case.kind != "sft":
        assert sum(len(e["chosen"]) != len(e["rejected"]) for e in examples) > len(examples) // 2
    if case.window:
        assert sum(length > case.window for length in sequences) > len(sequences) // 2
    if case.accumulation > 1:
        assert any(len({sum(len(e["chosen"]) for e in micro) for micro in step}) > 1 for step in recording.steps)
    assert len({e.get("margin", 0.0) for e in examples}) == (len(examples) if case.margin else 1)
    padding = {int(i) for k, v in batches.items() if k.endswith("input_ids") for i in v[_attention(batches, k) == 0]}
    assert padding == {2 if case.pad_is_eos else 3}
    assert json.loads((GOLDENS / name / "config.json").read_text())["tie_word_embeddings"] == case.tied
    norms = [e["grad_norm"] for e in recording.log]
    share = 0.3 if name in PADDED else 0.5  # padding is soon learned
    assert min(norms[-5:]) > share * max(norms[:5])  # late steps still say something
    assert min(abs(e["loss"]) for e in recording.log) > 0.3  # and a relative error of the loss means something


def _attention(batches, key):
    return batches[key.replace("input_ids", "attention_mask")]


def test_goldens_are_small():
    cases = CASES | PADDED
    sizes = {name: sum(f.stat().st_size for f in (GOLDENS / name).iterdir()) for name in cases}
    assert max(sizes.values()) < 300_000
    assert sum(sizes.values()) < 4_000_000
    assert {path.name for path in GOLDENS.iterdir()} == {*cases, "adamw_8bit"}


@pytest.mark.parametrize("name", [n for n, case in (CASES | PADDED).items() if case.clip_norm != 1.0])
def test_some_steps_are_clipped_and_some_are_not(name):
    clipped = [e["grad_norm"] > (CASES | PADDED)[name].clip_norm for e in recordings.read_log(GOLDENS / name)]
    assert 5 <= sum(clipped) <= 15


def test_the_hinge_holds_back_some_pairs():
    """Where no pair is beyond the hinge, the loss is 1 - margin on average: it would be no other than a line."""
    log = recordings.read_log(GOLDENS / "dpo_hinge")
    assert sum(e["loss"] > 1 - e["rewards/margins"] + 1e-3 for e in log) >= 5


@pytest.mark.parametrize(
    ("name", "wrong"), [("dpo_accumulated_window", {"settings": {"beta": 0.1}}), ("sft", {"schedule": "linear"})]
)
def test_a_replay_with_a_wrong_setting_fails(name, wrong, tmp_path):
    worst = replay(copy_of(name, tmp_path), dataclasses.replace(CASES[name], **wrong))
    assert not worst.within(10 * TOLERANCE)
    assert worst.gradients is None


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("sft_accumulated_window", {"normaliser": "per_microbatch"}),
        ("dpo_ipo", {"beta": 0.5}),
        ("dpo_sft_accumulated", {"sft_weight": 0.3}),
        ("simpo_sft_accumulated", {"gamma": 0.5}),
        ("orpo_accumulated_window", {"nll": "response"}),
        ("rm_accumulated_window", {"center_weight": 0.0}),
    ],
)
def test_a_wrong_setting_gives_the_first_step_another_loss(name, wrong, tmp_path):
    """The right one gives this loss: in the whole runs above, and by `first_loss` in `test_margins_of_pairs_count`."""
    logged = recordings.read_log(GOLDENS / name)[0]["loss"]
    other = first_loss(GOLDENS / name, objective_of(CASES[name], **wrong), tmp_path / "wrong")
    assert abs(other - logged) > 10 * TOLERANCE * logged


def test_a_first_step_without_the_window_has_another_loss(tmp_path):
    name = "sft_accumulated_window"
    directory = copy_of(name, tmp_path)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"sliding_window": None}))
    logged = recordings.read_log(directory)[0]["loss"]
    loss = first_loss(directory, objective_of(CASES[name]), tmp_path / "scratch")
    assert abs(loss - logged) > 10 * TOLERANCE * logged


def test_margins_of_pairs_count(tmp_path):
    """Only the first step: the recorded margins are read, and without them the loss is another one."""
    directory, objective = copy_of("rm_margin", tmp_path), objective_of(CASES["rm_margin"])
    logged = recordings.read_log(directory)[0]["loss"]
    assert abs(first_loss(directory, objective, tmp_path / "with") - logged) <= TOLERANCE * logged
    batches = load_file(directory / "batches.safetensors")
    save_file({k: v for k, v in batches.items() if not k.endswith("margin")}, directory / "batches.safetensors")
    assert abs(first_loss(directory, objective, tmp_path / "without") - logged) > 10 * TOLERANCE * logged


def test_nothing_is_within_tolerance_of_nan():
    good = replay_dir.Worst(steps=1, loss=0.0, grad_norm=0.0, weights=0.0, element=0.0, gradients=None, metrics=None)
    assert good.within(TOLERANCE)
    for field in ("loss", "grad_norm", "weights", "gradients"):
        assert not dataclasses.replace(good, **{field: float("nan")}).within(TOLERANCE)
        assert not dataclasses.replace(good, **{field: 2 * TOLERANCE}).within(TOLERANCE)
    trees = {"a": np.ones(2), "b": np.array([np.nan, 1.0]), "c": np.ones(1)}, {k: np.ones(1) for k in "abc"}
    assert np.isnan(replay_dir._worst_tensor(lambda a, b: np.abs(a - b).max(), *trees))


def test_another_schedule_is_named_by_its_first_step():
    log = recordings.read_log(GOLDENS / "dpo_pad_is_eos")
    right = schedule_of(CASES["dpo_pad_is_eos"])
    assert replay_dir.schedule_difference(right, log) is None
    assert "step 4: " in replay_dir.schedule_difference(dataclasses.replace(right, name="cosine"), log)
    assert "step 1: " in replay_dir.schedule_difference(dataclasses.replace(right, warmup_steps=2), log)


# --- The command: what it refuses, and the flags


def test_the_command_refuses_a_log_of_another_run(tmp_path, capsys):
    directory = copy_of("sft", tmp_path)
    (directory / "log.json").write_text(json.dumps(recordings.read_log(directory)[:-1]))
    assert replay_dir.main([str(directory)]) == 2
    assert "log.json has 19 steps, batches.safetensors 20" in capsys.readouterr().err
    assert replay_dir.main([str(tmp_path / "absent")]) == 2


@pytest.mark.parametrize(
    ("file", "named"),
    [
        ("batches.safetensors", "rm: "),
        ("log.json", "rm: "),
        ("config.json", "rm/config.json: "),
        ("init.safetensors", "init/model.safetensors: not a whole safetensors file"),
    ],
)
def test_the_command_refuses_damaged_files(file, named, tmp_path, capsys):
    directory = copy_of("rm", tmp_path)
    (directory / file).write_bytes(b"{")
    assert replay_dir.main([str(directory)]) == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("sft", "--beta 0.3", "sft has no setting beta; it has normaliser"),
        ("orpo", "--loss ipo", "orpo has no setting loss; it has beta, nll, normaliser, padding"),
        ("dpo", "--label-smoothing 0.7", "label_smoothing: Input should be less than 0.5"),
        ("dpo", "--loss hinge --label-smoothing 0.1", "loss hinge has no label smoothing"),
        ("sft", "--objective dpo", "layout sft replay sft; not dpo"),
        ("rm", "--objective simpo", "layout rm replay rm; not simpo"),
        ("orpo", "--objective rm", "2 labels (id2label); allowed: 1, the reward"),
    ],
)
def test_the_command_refuses_what_does_not_fit(name, flags, message, capsys):
    assert replay_dir.main([str(GOLDENS / name), *flags.split()]) == 2
    assert message in capsys.readouterr().err


def test_a_reward_that_was_read_before_the_end_is_refused(tmp_path, capsys):
    directory = copy_of("rm", tmp_path)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"pad_token_id": 2}))
    assert replay_dir.main([str(directory)]) == 2
    assert (
        "step 0, microbatch 0: a sequence ends with 2, which config.json has as pad_token_id" in capsys.readouterr().err
    )


def test_flags_reach_the_objective_and_the_optimizer(monkeypatch, capsys):
    """What the command replays with, without replaying."""
    seen = []

    def caught(recording, objective, schedule, optimizer, *, share_prompts):
        seen.append((objective, schedule, optimizer, share_prompts))
        return replay_dir.Worst(len(recording.log), 0.0, 0.0, 0.0, 0.0, None, None)

    monkeypatch.setattr(replay_dir, "replay", caught)
    for name, kind in [("sft", "sft"), ("dpo", "dpo"), ("orpo", "orpo"), ("rm", "rm")]:
        assert replay_dir.main([str(GOLDENS / name)]) == 0
        assert seen.pop() == (replay_dir.TRL_DEFAULTS[kind], Schedule(3e-3, 20, 3), AdamW(weight_decay=0.1), True)
    flags = "--objective simpo --beta 2 --gamma 1.2 --sft-weight 0.5 --clip-norm 0 --schedule linear --total-steps 60"
    assert replay_dir.main([str(GOLDENS / "orpo"), *flags.split(), "--no-share-prompts", "--b2", "0.95"]) == 0
    objective, schedule, optimizer, share_prompts = seen.pop()
    assert objective == SimPO(beta=2.0, gamma=1.2, sft_weight=0.5, normaliser="per_microbatch")
    assert (schedule.name, schedule.total_steps, optimizer.clip_norm, optimizer.b2) == ("linear", 60, None, 0.95)
    assert not share_prompts
    assert "another schedule" in capsys.readouterr().out


def test_a_model_without_architectures_is_that_of_the_objective(tmp_path):
    for name, architecture in [("orpo", "MistralForCausalLM"), ("rm", "MistralForSequenceClassification")]:
        directory, objective = copy_of(name, tmp_path), objective_of(CASES[name])
        config = json.loads((directory / "config.json").read_text())
        assert "architectures" not in config
        for silent in ({}, {"architectures": None}, {"architectures": []}):
            (directory / "config.json").write_text(json.dumps(config | silent))
            assert replay_dir.config_of(directory, objective)["architectures"] == [architecture]


@pytest.mark.parametrize(("kind", "objective"), [("sft", DPO()), ("dpo", SFT())])
def test_examples_of_the_other_kind_are_refused(kind, objective, tmp_path):
    config = replay_dir.config_of(GOLDENS / kind, objective)
    steps = recordings.read(GOLDENS / kind).steps[:1]
    with pytest.raises(DataError, match=f"objective {objective.name} reads"):
        entry.gradients(objective, replay_dir.as_hf(GOLDENS / kind, "init", config, tmp_path), steps[0])
