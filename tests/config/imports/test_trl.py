"""What TRL's keys become."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from janus_jax.errors import ConfigError
from tests.support.recipes import imported, verdicts

SMALL = {"model_name_or_path": "a/b", "dataset_name": "c/d", "per_device_train_batch_size": 2}


@pytest.mark.parametrize(
    ("keys", "objective", "rate"),
    [
        ({"packing": True}, "sft", 2e-5),
        ({"precompute_ref_log_probs": True}, "dpo", 1e-6),
        ({"max_completion_length": 100}, "orpo", 1e-6),
        ({"center_rewards_coefficient": 0.01}, "rm", 1e-4),
    ],
)
def test_trainer_is_known_by_its_keys(keys: dict[str, Any], objective: str, rate: float, tmp_path: Path) -> None:
    _, report = imported(tmp_path, "x.json", json.dumps(SMALL | keys), devices=1)
    assert report["objective"] == report["config"]["objective"]["name"] == objective
    assert report["config"]["schedule"] == {"name": "linear", "learning_rate": rate, "warmup_steps": 0, "epochs": 3}


def test_trainer_that_is_not_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not say its trainer; give --objective"):
        imported(tmp_path, "x.yaml", SMALL)
    _, report = imported(tmp_path, "x.yaml", SMALL, objective="orpo", devices=1)
    assert report["config"]["objective"] == {"name": "orpo", "beta": 0.1, "nll": "prompt_and_response"}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"packing": True, "gradient_accumulation_steps": 2}, {"batch.rows": 16, "batch.row_length": 1024}),
        ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2]}, {"objective.sft_weight": 0.2}),
        ({"label_smoothing": 0.1}, {"objective.label_smoothing": None}),
        ({"label_smoothing": 0.1, "loss_type": ["robust"]}, {"objective.label_smoothing": 0.1}),
        ({"warmup_steps": 0.1, "packing": False}, {"schedule.warmup_ratio": 0.1}),
        ({"warmup_ratio": 0.1, "packing": False}, {"schedule.warmup_ratio": 0.1}),
        ({"eval_strategy": "steps", "eval_steps": 9, "packing": False}, {"eval.every_steps": 9}),
        (
            {
                "packing": False,
                "lr_scheduler_type": "warmup_stable_decay",
                "lr_scheduler_kwargs": {"num_decay_steps": 5},
            },
            {"schedule.name": "wsd", "schedule.decay_steps": 5},
        ),
        (
            {"packing": False, "lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": '{"min_lr": 2e-6}'},
            {"schedule.min_rate_ratio": 0.1},
        ),
    ],
)
def test_numbers(keys: dict[str, Any], expected: dict[str, Any], tmp_path: Path) -> None:
    _, report = imported(tmp_path, "x.yaml", SMALL | keys, devices=4, **_objective(keys))
    for key, value in expected.items():
        section, name = key.split(".")
        assert report["config"].get(section, {}).get(name) == value, key
    assert not report["refused"]


@pytest.mark.parametrize(
    ("name", "kwargs", "defect", "ratio"),
    [
        ("cosine_with_min_lr", None, "needs either min_lr or min_lr_rate in lr_scheduler_kwargs", None),
        ("cosine_with_min_lr", {"min_lr": 1e-7, "min_lr_rate": 0.1}, "needs either min_lr or min_lr_rate in", 0.1),
        ("cosine_with_min_lr", {"min_lr_rate": 0.2}, "", 0.2),
        ("cosine_with_min_lr", {"min_lr": 1e-7}, "", 0.1),
        ("cosine", {"min_lr_rate": 0.2}, "this schedule has no min_lr_rate", 0.2),
    ],
)
def test_lowest_rate_of_a_schedule(
    name: str, kwargs: dict[str, float] | None, defect: str, ratio: float | None, tmp_path: Path
) -> None:
    from transformers import get_scheduler

    keys = {"lr_scheduler_type": name, "lr_scheduler_kwargs": kwargs, "learning_rate": 1e-6}
    _, report = imported(tmp_path, "x.yaml", SMALL | keys, devices=1, objective="dpo")
    assert report["config"]["schedule"].get("min_rate_ratio") == ratio
    stops = [one for one in report["defects"] if one.startswith(f"lr_scheduler_type = {name}: ")]
    assert [defect in one for one in stops] == [True] * bool(defect)
    assert verdicts(report)["lr_scheduler_type"] == ("kept" if kwargs else "approximated")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-6)
    with pytest.raises((TypeError, ValueError)) if defect else contextlib.nullcontext():
        rates = get_scheduler(name, optimizer, 0, 10, kwargs)
        for _ in range(10):
            optimizer.step()
            rates.step()
        assert rates.get_last_lr() == [pytest.approx(1e-6 * (ratio or 0.0))]


@pytest.mark.parametrize("loss", ["sigmoid", "hinge", "ipo"])
def test_label_smoothing_is_advised_where_the_loss_has_it(loss: str, tmp_path: Path) -> None:
    keys = SMALL | {"loss_type": loss, "label_smoothing": 0.1}
    _, report = imported(tmp_path, "x.yaml", keys, devices=1, objective="dpo")
    line = next(one for one in report["defects"] if one.startswith("label_smoothing = 0.1: the loss "))
    advice = "objective.label_smoothing=0.1"
    assert (advice in line) == (loss == "sigmoid")
    with pytest.raises(ConfigError) if loss != "sigmoid" else contextlib.nullcontext():
        imported(tmp_path, "x.yaml", keys, devices=1, objective="dpo", overrides=[advice])


def test_one_key_that_sets_two_names_both(tmp_path: Path) -> None:
    _, report = imported(tmp_path, "x.yaml", SMALL | {"loss_type": ["sigmoid", "sft"]}, devices=1, objective="dpo")
    row = next(row for row in report["keys"] if row["key"] == "loss_type")
    assert row["ours"] == "objective.loss = sigmoid, objective.sft_weight = 1"
    assert report["config"]["objective"]["sft_weight"] == 1.0


def _objective(keys: dict[str, Any]) -> dict[str, str]:
    return {} if "packing" in keys else {"objective": "dpo"}


def test_command_overrides_its_file(tmp_path: Path) -> None:
    (tmp_path / "conf.yaml").write_text("model_name_or_path: a/b\nlearning_rate: 1.0e-5\nbeta: 0.3\n")
    command = "accelerate launch --num_processes 8 -m trl dpo --config conf.yaml --learning_rate=2e-5 --output_dir o"
    _, report = imported(tmp_path, "x.sh", command)
    assert report["config"]["schedule"]["learning_rate"] == 2e-5
    assert report["config"]["objective"]["beta"] == 0.3 and report["config"]["batch"]["examples"] == 64
    assert "learning_rate: the command line overrides conf.yaml" in report["defects"]
    assert verdicts(report)["accelerate --num_processes"] == "kept"


@pytest.mark.parametrize(
    ("objective", "keys", "refused"),
    [
        ("sft", {"use_peft": True, "lora_r": 8}, ["lora_r", "use_peft"]),
        ("dpo", {"loss_type": ["apo_zero"]}, ["loss_type"]),
        ("dpo", {"f_divergence_type": "js_divergence"}, ["f_divergence_type"]),
        ("sft", {"completion_only_loss": False}, ["completion_only_loss"]),
        ("sft", {"packing": True, "packing_strategy": "wrapped"}, ["packing_strategy"]),
        ("sft", {"frobnicate": 1}, ["frobnicate"]),
    ],
)
def test_what_is_not_here(objective: str, keys: dict[str, Any], refused: list[str], tmp_path: Path) -> None:
    _, report = imported(tmp_path, "x.yaml", SMALL | keys, devices=1, objective=objective)
    assert sorted(report["refused"]) == refused


@pytest.mark.parametrize(
    ("command", "devices"),
    [
        ("trl sft", None),
        ("trl sft --num_processes 4", 4),
        ("trl sft --accelerate_config zero2", 8),
        ("trl sft --accelerate_config single_gpu", 1),
        ("trl sft --accelerate_config zero2 --num_processes 2", 2),
        ("trl sft --accelerate_config mine.yaml", 6),
        ("accelerate launch --config_file mine.yaml trl/scripts/sft.py", 6),
        ("accelerate launch --config_file alone.yaml trl/scripts/sft.py", 1),
        ("accelerate launch --config_file absent.yaml trl/scripts/sft.py", None),
        ("accelerate launch --config_file zero2 trl/scripts/sft.py", None),  # names are of trl alone
    ],
)
def test_devices_of_accelerate(command: str, devices: int | None, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("distributed_type: FSDP\nnum_processes: 6\n")
    (tmp_path / "alone.yaml").write_text("distributed_type: 'NO'\nnum_processes: 8\n")
    (tmp_path / "None").write_text("num_processes: 3\n")
    options = "--model_name_or_path a/b --dataset_name c/d"
    _, report = imported(tmp_path, "x.sh", f"{command} {options}")
    assert report["config"]["batch"] == report["config"]["batch"] | {"examples": 8 * (devices or 1)}
    assert any(one.startswith("devices: ") for one in report["by_hand"]) == (devices is None)


@pytest.mark.parametrize(
    ("command", "key"),
    [
        ("accelerate launch --num_processes 4 trl/scripts/dpo.py", "accelerate --num_processes"),
        ("torchrun --nnodes 2 --nproc_per_node 2 trl/scripts/dpo.py", "torchrun --nproc_per_node"),
        ("CUDA_VISIBLE_DEVICES=0,1,2,3\npython trl/scripts/dpo.py", "CUDA_VISIBLE_DEVICES"),
        ("trl dpo --num_processes 4", "num_processes"),
    ],
)
def test_devices_of_the_file_are_kept_or_replaced(command: str, key: str, tmp_path: Path) -> None:
    script = f"{command} --model_name_or_path a/b --dataset_name c/d"
    for devices, batch, verdict, note in (
        (None, 32, "kept", "the batch is computed with them"),
        (4, 32, "kept", "the batch is computed with them"),
        (8, 64, "not needed", "--devices 8 replaces it"),
    ):
        _, report = imported(tmp_path, "x.sh", script, devices=devices)
        assert report["config"]["batch"]["examples"] == batch
        row = next(row for row in report["keys"] if row["key"] == key)
        assert (row["verdict"], row["note"]) == (verdict, note)
        replaced = [{"key": "--devices", "old": 4, "new": 8}] if devices == 8 else []
        assert report["overrides"] == replaced


def test_negated_options_are_those_of_switches_that_are_on(tmp_path: Path) -> None:
    options = "--model_name_or_path a/b --dataset_name c/d --no_packing --no_gradient_checkpointing --no_learning_rate"
    _, report = imported(tmp_path, "x.sh", f"trl sft {options}", devices=1)
    assert report["refused"] == ["no_packing", "no_learning_rate"] and report["config"]["remat"] == "none"
    assert any(one.startswith("no_packing: TRL 1.16 has no such key and stops") for one in report["defects"])
    keys = SMALL | {"packing": True, "no_gradient_checkpointing": True}
    _, report = imported(tmp_path, "x.yaml", keys, devices=1)
    assert report["refused"] == ["no_gradient_checkpointing"] and report["config"]["remat"] == "full"


@pytest.mark.parametrize(
    ("named", "ours", "by_hand"),
    [
        ("train", None, False),
        ("validation", "validation", False),
        ("train_prefs", None, True),
        ("test_sft", "test", True),
    ],
)
def test_splits_are_those_of_builds(named: str, ours: str | None, by_hand: bool, tmp_path: Path) -> None:
    keys = {"packing": True, "dataset_train_split": named}
    _, report = imported(tmp_path, "x.yaml", SMALL | keys, devices=1)
    assert report["config"]["data"].get("split") == ours
    line = (
        f"data: dataset_train_split = {named}: give --source the files of that split alone, as {ours or 'train'}=PATH"
    )
    assert (line in report["by_hand"]) == by_hand
    assert verdicts(report)["dataset_train_split"] == ("by hand" if by_hand else "kept")


@pytest.mark.parametrize(
    ("named", "ours", "by_hand"),
    [
        (None, "test", ""),
        ("train_prefs", "train", ""),  # the same as the training split, as the file says
        ("train", "test", "give --validation-source the files of that split alone, as test=PATH"),
        ("held_out", "validation", "give --validation-source the files of that split alone, as validation=PATH"),
        ("DevSets", "validation", "give --validation-source the files of that split alone, as validation=PATH"),
        ("prefs_v2", "test", "give --validation-source the files of that split alone, as test=PATH"),
        ("train_small", "test", "give --validation-source the files of that split alone, as test=PATH"),
        ("train[:5%]", "test", "write its records to a file and give that, as --validation-source test=FILE"),
        ("test+dev", "validation", "write its records to a file and give that, as --validation-source validation=FILE"),
    ],
)
def test_held_out_split_is_never_the_training_data_by_guess(
    named: str | None, ours: str, by_hand: str, tmp_path: Path
) -> None:
    keys = {
        "packing": True,
        "eval_strategy": "steps",
        "dataset_test_split": named,
        "dataset_train_split": "train_prefs",
    }
    _, report = imported(tmp_path, "x.yaml", SMALL | keys, devices=1)
    assert report["config"]["data"]["eval_split"] == ours
    lines = [one for one in report["by_hand"] if one.startswith(f"data: dataset_test_split = {named}: ")]
    assert [by_hand in one for one in lines] == [True] * bool(by_hand)


@pytest.mark.parametrize(("held_out", "ours"), [("test_sft", "validation"), ("test", "validation"), ("train", "train")])
def test_held_out_split_is_no_other_name_of_the_training_split(held_out: str, ours: str, tmp_path: Path) -> None:
    keys = {"packing": True, "eval_strategy": "steps", "dataset_test_split": held_out}
    _, report = imported(tmp_path, "x.yaml", SMALL | keys | {"dataset_train_split": "test_prefs"}, devices=1)
    assert (report["config"]["data"]["split"], report["config"]["data"]["eval_split"]) == ("test", ours)


def test_data_sets_of_several_splits_are_done_by_hand(tmp_path: Path) -> None:
    data = {"datasets": [{"path": "a/b", "split": "train"}, {"path": "c/d", "split": "test"}], "packing": True}
    _, report = imported(tmp_path, "x.yaml", data | {"model_name_or_path": "a/b"}, devices=1)
    assert report["config"]["data"]["split"] == "train"
    line = "data.split: the data sets have the splits train, test; a run reads the same split of every data set"
    assert any(one.startswith(line) for one in report["by_hand"])
    files = "give --source the files of that split alone, as train=PATH"
    assert f"data: datasets[1].split = test: {files}" in report["by_hand"]
    own = verdicts(report)
    assert (own["datasets[0].split"], own["datasets[1].split"]) == ("kept", "approximated")


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    keys = {"packing": True, "hub_token": "hf_9a8b", "env": {"HF_TOKEN": "hf_7c6d", "MODE": "shown"}}
    recipe, report = imported(tmp_path, "x.yaml", SMALL | keys, devices=1)
    assert "hf_" not in str(report) + recipe.text and "shown" in str(report)
