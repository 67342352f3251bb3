"""What axolotl's keys become; the published Janus runs are compared with our own files for them."""

from pathlib import Path
from typing import Any

import pytest

from janus_jax.config.imports.recipe import Recipe
from janus_jax.config.imports.source import flat
from janus_jax.config.imports.training_keys import COLUMNS, OTHER_COLUMNS, PROMPTS
from janus_jax.config.run import load_config
from janus_jax.data import schema
from janus_jax.errors import ConfigError
from janus_jax.text.template import TEMPLATES
from tests.support.recipes import BASE, PUBLISHED, imported, sft, verdicts

CONFIGS = Path(__file__).parents[3] / "configs"
SECTIONS = ("objective", "optimizer", "schedule", "precision", "remat")
DATA = [{"path": "a/b", "type": "chatml.intel"}]
SMALL = {"base_model": BASE, "learning_rate": 1e-5, "micro_batch_size": 3, "datasets": DATA}


def written(folder: Path, recipe: Recipe) -> Path:
    """A file with the configuration that a recipe became."""
    (folder / "ours.yaml").write_text(recipe.text)
    return folder / "ours.yaml"


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_file_becomes_our_run(name: str, tmp_path: Path) -> None:
    recipe, report = imported(tmp_path, name, PUBLISHED[name], devices=4)
    new, ours = load_config(written(tmp_path, recipe)), load_config(CONFIGS / f"{Path(name).stem}.yaml")
    cut = {"microbatches": ours.batch.microbatches}  # chosen for the devices
    assert new.batch.model_copy(update=cut) == ours.batch
    for section in SECTIONS:
        assert getattr(new, section) == getattr(ours, section), section
    assert verdicts(report).keys() == flat(name, PUBLISHED[name]).keys()
    assert not report["refused"]


def test_defects_of_the_published_dpo_file(tmp_path: Path) -> None:
    _, report = imported(tmp_path, "dpo.yml", PUBLISHED["dpo.yml"], devices=4)
    text = "\n".join(report["defects"])
    assert "prompt_format" in text and "{instruction}" in text and "KeyError" in text
    assert "chosen_format: YAML reads {chosen_response} as a mapping" in text
    assert "sets no beta" in text and "base_model is empty" in text
    assert any(one.startswith("init.from") for one in report["by_hand"])
    _, again = imported(tmp_path, "dpo.yml", PUBLISHED["dpo.yml"], devices=4, overrides=["init.from=runs/sft"])
    assert again["config"]["init"] == {"from": "runs/sft"} and not again["by_hand"]


def test_orpo_strategy_that_is_gone(tmp_path: Path) -> None:
    _, report = imported(tmp_path, "orpo.yml", PUBLISHED["orpo.yml"], devices=4)
    assert ["orpo.chat_template" in one for one in report["defects"]] == [True]
    assert "--template chatml" in report["commands"][-1]
    assert verdicts(report)["pad_to_sequence_len"] == "approximated"
    assert "--compat sets compat.orpo_padding" in str(report["keys"])


@pytest.mark.parametrize(
    ("key", "value"),
    [("pad_to_sequence_len", False), ("flash_attention", False), ("special_tokens", {"pad_token": "<unk>"})],
)
def test_padding_that_is_not_here_is_named(key: str, value: object, tmp_path: Path) -> None:
    _, report = imported(tmp_path, "orpo.yml", PUBLISHED["orpo.yml"] | {key: value}, devices=4, equal=True)
    assert "orpo_padding" not in report["config"]["compat"]
    assert any("count padding in its mean" in one for one in report["by_hand"])


@pytest.mark.parametrize(
    ("key", "value", "verdict"),
    [
        ("frobnicate", 3, "unknown"),
        ("adapter", "lora", "not supported"),
        ("neftune_noise_alpha", 5, "not supported"),
        ("optimizer", "lion_8bit", "not supported"),
        ("lr_scheduler", "rex", "not supported"),
        ("num_epochs", 1.5, "not supported"),
        ("train_on_inputs", True, "not supported"),
        ("load_in_4bit", True, "not supported"),
        ("model_type", "GemmaForCausalLM", "not supported"),
        ("lora_r", 8, "ignored"),
        ("dpo_beta", 0.3, "ignored"),
        ("saves_per_epoch", 2, "approximated"),
        ("rl_beta", 0.3, "ignored"),
        ("adapter", "", "not needed"),
        ("deepspeed", "zero3.json", "not needed"),
        ("optimizer", "paged_adamw_8bit", "approximated"),
        ("seed", 7, "kept"),
        ("chat_template", "phi_3", "not needed"),
        ("swanlab_project", "x", "not needed"),
        ("use_scattermoe", True, "not needed"),
        ("loss_watchdog_threshold", 5.0, "not needed"),
        ("plugins", ["axolotl.integrations.liger.LigerPlugin"], "not needed"),
        ("plugins", ["axolotl.integrations.spectrum.SpectrumPlugin"], "not supported"),
        ("spectrum_top_fraction", 0.5, "not supported"),
        ("kd_alpha", 0.9, "not supported"),
        ("early_stopping_patience", 3, "ignored"),
    ],
)
def test_one_verdict_for_a_key(key: str, value: Any, verdict: str, tmp_path: Path) -> None:
    _, report = imported(tmp_path, "x.yaml", SMALL | {key: value}, devices=1)
    assert verdicts(report)[key] == verdict
    assert (key in report["refused"]) == (verdict in ("unknown", "not supported"))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, {"batch.examples": 6, "schedule.warmup_ratio": 0.03, "batch.overlong": "drop", "run.seed": 42}),
        ({"gradient_accumulation_steps": 5, "tensor_parallel_size": 2}, {"batch.examples": 15}),
        ({"batch_size": 12}, {"batch.examples": 24, "batch.microbatches": 4}),
        ({"learning_rate": "5e-6"}, {"schedule.learning_rate": 5e-6}),
        ({"max_steps": 9}, {"schedule.steps": 9, "schedule.epochs": None}),
        ({"max_grad_norm": 0}, {"optimizer.clip_norm": None}),
        ({"cosine_min_lr_ratio": 0.1}, {"schedule.min_rate_ratio": 0.1}),
        ({"lr_scheduler": "constant", "warmup_steps": 5}, {"schedule.warmup_steps": 0}),
        ({"warmup_steps": 1}, {"schedule.warmup_steps": 2}),
        ({"rl": "ipo", "rl_beta": 0.2}, {"objective.loss": "ipo", "objective.beta": 0.2}),
        ({"rl": "dpo", "dpo_label_smoothing": 0.1}, {"objective.label_smoothing": None, "objective.beta": 0.1}),
        ({"rl": "dpo", "dpo_loss_type": ["robust"], "dpo_label_smoothing": 0.1}, {"objective.label_smoothing": 0.1}),
        ({"rl": "dpo", "dpo_beta": 0.3}, {"objective.beta": 0.3}),
        ({"rl": "dpo", "dpo_beta": 0.3, "rl_beta": 0.2}, {"objective.beta": 0.2}),
        ({"rl": "simpo", "simpo_gamma": 0.4}, {"objective.gamma": 0.4, "objective.sft_weight": 1.0}),
        ({"reward_model": True, "center_rewards_coefficient": 0.01}, {"objective.center_weight": 0.01}),
        ({"excess_length_strategy": "raise"}, {"batch.overlong": "error"}),
        (
            {"early_stopping_patience": 3, "save_steps": 8, "eval_steps": 4},
            {"eval.stop_after": 3, "eval.every_steps": 4},
        ),
        ({"early_stopping_patience": 3, "save_steps": 0.2, "eval_steps": 0.1}, {"eval.stop_after": None}),
        ({"fsdp_config": {"activation_checkpointing": True}}, {"remat": "full"}),
        ({"fsdp_config": {"fsdp_activation_checkpointing": True}}, {"remat": "full"}),
        ({"gradient_checkpointing": False, "fsdp_config": {"activation_checkpointing": True}}, {"remat": "full"}),
        (
            {"gradient_checkpointing": "offload", "fsdp_config": {"activation_checkpointing": True}},
            {"remat": "offload"},
        ),
        ({"bf16": False}, {"precision.compute": "float32"}),
        ({"save_steps": 20, "eval_steps": 0.1}, {"checkpoint.every_steps": 20, "eval.every_steps": None}),
    ],
)
def test_numbers(keys: dict[str, Any], expected: dict[str, Any], tmp_path: Path) -> None:
    _, report = imported(tmp_path, "x.yaml", SMALL | keys, devices=2)
    for key, value in expected.items():
        section, _, name = key.partition(".")
        written = report["config"].get(section, {})
        assert (written.get(name) if name else written) == value, key


@pytest.mark.parametrize(("saves", "evaluates", "stops"), [(10, 4, True), (8, 4, False), (0.2, 0.1, False)])
def test_early_stopping_needs_an_evaluation_at_each_save(
    saves: float, evaluates: float, stops: bool, tmp_path: Path
) -> None:
    keys = {"early_stopping_patience": 3, "save_steps": saves, "eval_steps": evaluates}
    _, report = imported(tmp_path, "x.yaml", SMALL | keys, devices=1)
    line = "early_stopping_patience: save_steps = 10 is no multiple of eval_steps = 4: the tool stops"
    assert (line in report["defects"]) == stops


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"warmup_steps": 10, "warmup_ratio": 0.1}, "warmup_steps and warmup_ratio are both given"),
        ({"save_steps": 100, "saves_per_epoch": 1}, "save_steps and saves_per_epoch are both given"),
        ({"eval_steps": 50, "evals_per_epoch": 4}, "eval_steps and evals_per_epoch are both given"),
        ({"test_datasets": DATA, "val_set_size": 0.1}, "test_datasets and val_set_size are both given"),
        ({"sample_packing": True, "rl": "dpo"}, "sample_packing and rl are both given"),
        ({"save_steps": 5, "save_strategy": "epoch"}, "save_steps with save_strategy = epoch"),
        ({"eval_steps": 5, "evaluation_strategy": "epoch"}, "eval_steps with eval_strategy = epoch"),
        ({"evals_per_epoch": 5, "eval_strategy": "epoch"}, "evals_per_epoch with eval_strategy = epoch"),
        ({"eval_steps": 5, "val_set_size": 0}, "val_set_size = 0 with eval_steps or eval_strategy"),
        ({"sample_packing": True, "eval_table_size": 5}, "sample_packing with eval_table_size"),
        ({"micro_batch_size": None, "batch_size": 8}, "batch_size: needs micro_batch_size"),
        ({"rl": "dpo", "dpo_loss_weights": [1.0]}, "dpo_loss_weights: needs dpo_loss_type"),
        ({"rl": "dpo", "dpo_loss_type": ["hinge"], "dpo_loss_weights": [1, 2]}, "dpo_loss_type and dpo_loss_weights"),
        ({"rl": "orpo", "dpo_loss_type": ["hinge"]}, "dpo_loss_type, dpo_loss_weights: for rl: dpo alone"),
        ({"rl": "simpo", "warmup_ratio": 0.1}, "warmup_ratio with rl: simpo"),
        ({"activation_offloading": True}, "activation_offloading: needs"),
        ({"tensor_parallel_size": 2, "optimizer": "adamw_bnb_8bit"}, "tensor_parallel_size with optimizer"),
        ({"warmup_steps": 10, "warmup_ratio": 0, "saves_per_epoch": 1, "evals_per_epoch": 1, "val_set_size": 0}, None),
        ({"save_steps": 5, "save_strategy": "steps", "eval_steps": 5, "eval_strategy": "steps"}, None),
    ],
)
def test_what_the_tool_stops_at(keys: dict[str, Any], line: str | None, tmp_path: Path) -> None:
    _, report = imported(tmp_path, "x.yaml", SMALL | keys, devices=2)
    stops = [one for one in report["defects"] if one.endswith(": the tool stops")]
    assert [one.startswith(line or "none") for one in stops] == [True] * bool(line)


def test_of_two_keys_that_exclude_each_other_one_counts(tmp_path: Path) -> None:
    keys = {"save_steps": 100, "saves_per_epoch": 1, "warmup_steps": 10, "warmup_ratio": 0.1}
    _, report = imported(tmp_path, "x.yaml", SMALL | keys, devices=1)
    assert report["config"]["checkpoint"]["every_steps"] == 100 and report["config"]["schedule"]["warmup_steps"] == 10
    own = verdicts(report)
    assert (own["save_steps"], own["saves_per_epoch"], own["warmup_ratio"]) == ("kept", "ignored", "ignored")
    assert "needs the number of steps" not in str(report)


def test_fsdp_turns_on_what_the_file_turns_off(tmp_path: Path) -> None:
    keys = {"gradient_checkpointing": False, "fsdp_config": {"fsdp_activation_checkpointing": True}}
    _, report = imported(tmp_path, "x.yaml", SMALL | keys, devices=1)
    own = verdicts(report)
    assert own["gradient_checkpointing"] == "ignored" and own["fsdp_config.fsdp_activation_checkpointing"] == "kept"


@pytest.mark.parametrize(
    ("data", "note"), [({"chat_template": "chatml"}, "every data set of type chat_template names its own"), ({}, None)]
)
def test_chat_template_that_no_data_set_uses(data: dict[str, str], note: str | None, tmp_path: Path) -> None:
    recipe = SMALL | {"chat_template": "chatml", "datasets": [{"path": "a/b", "type": "chat_template", **data}]}
    _, report = imported(tmp_path, "x.yaml", recipe, devices=1)
    row = next(row for row in report["keys"] if row["key"] == "chat_template")
    assert (row["verdict"] == "not needed") == bool(note) and (note or "") in row["note"]


def test_the_file_says_its_devices_by_the_sizes_of_its_mesh(tmp_path: Path) -> None:
    keys = {"dp_shard_size": 4, "dp_replicate_size": 2, "tensor_parallel_size": 2}
    _, report = imported(tmp_path, "x.yaml", SMALL | keys)
    assert report["config"]["batch"]["examples"] == 3 * 8 and not any("devices" in one for one in report["by_hand"])
    for part in ({"dp_shard_size": 4}, {"dp_shard_size": 4, "dp_replicate_size": 1}, {"dp_replicate_size": 2}):
        _, report = imported(tmp_path, "x.yaml", SMALL | part)  # the tool gives the other size what devices remain
        assert any(one.startswith("devices: ") for one in report["by_hand"])
        _, report = imported(tmp_path, "x.yaml", SMALL | part, devices=8)
        assert report["config"]["batch"]["examples"] == 3 * 8


@pytest.mark.parametrize(
    ("data", "verdict", "template", "defect"),
    [
        ({"type": "completion", "field": "text"}, "not supported", "plain", ""),
        ({"type": "input_output"}, "not supported", "plain", ""),
        ({"type": "sharegpt"}, "approximated", "chatml", "has no such type and stops"),
        ({"type": "sharegpt", "conversation": "mistral"}, "approximated", None, "has no such type and stops"),
        ({"type": "alpaca"}, "approximated", "plain", ""),
    ],
)
def test_types_of_data(data: dict[str, str], verdict: str, template: str | None, defect: str, tmp_path: Path) -> None:
    recipe = SMALL | {"datasets": [{"path": "a/b", **data}], "chat_template": "chatml"}
    _, report = imported(tmp_path, "x.yaml", recipe, devices=1)
    own = verdicts(report)
    assert own["datasets[0].type"] == verdict and own.get("datasets[0].field") in (None, "not supported")
    assert (f"--template {template}" if template else "--out data/x") in report["commands"][-1]
    assert any(defect in one for one in report["defects"]) == bool(defect)
    assert "unknown" not in own.values()


@pytest.mark.parametrize(
    ("key", "value", "verdict", "note"),
    [
        ("roles_to_train", ["assistant"], "not needed", "is the default"),
        ("roles_to_train", ["gpt"], "kept", "another name of assistant, the default"),
        ("roles_to_train", ["user"], "not supported", "other tokens count in the loss"),
        ("roles_to_train", [], "not supported", "other tokens count in the loss"),
        ("train_on_eos", "turn", "not needed", "is the default"),
        ("train_on_eos", "last", "kept", "a record is one exchange here, so that the last turn is the only one"),
        ("train_on_eos", "none", "not supported", "other tokens count in the loss"),
        ("shards", 0, "not needed", "is off"),
    ],
)
def test_defaults_of_a_data_set(key: str, value: Any, verdict: str, note: str, tmp_path: Path) -> None:
    data = [{"path": "a/b", "type": "chat_template", key: value}]
    _, report = imported(tmp_path, "x.yaml", SMALL | {"datasets": data, "chat_template": "chatml"}, devices=1)
    row = next(row for row in report["keys"] if row["key"] == f"datasets[0].{key}")
    assert (row["verdict"], row["note"]) == (verdict, note)


def test_each_data_set_without_bos_is_named(tmp_path: Path) -> None:
    data = [{"path": one, "type": "chat_template"} for one in ("a/b", "c/d")]
    _, report = imported(tmp_path, "x.yaml", SMALL | {"datasets": data, "chat_template": "chatml"}, devices=1)
    lines = [one for one in report["by_hand"] if one.startswith("BOS of ")]
    assert [one.split(":")[0] for one in lines] == ["BOS of datasets[0]", "BOS of datasets[1]"]
    assert all("every data set of the run" in one for one in lines)


def test_compat_switches_are_set_on_request(tmp_path: Path) -> None:
    _, report = imported(tmp_path, "x.yaml", SMALL | {"rl": "dpo", "rl_beta": 0.1, "bf16": True}, devices=1, equal=True)
    assert report["config"]["compat"] == {"token_boundary": "joint", "bfloat16_weights": True}
    assert "--boundary joint" in report["commands"][-1]
    eight = SMALL | {"optimizer": "adamw_bnb_8bit", "bf16": False}
    _, report = imported(tmp_path, "x.yaml", eight, devices=1, equal=True)
    compat = {"adamw_8bit": 256, "embedding_moments": "float32"}
    assert report["config"]["compat"] == compat | {"token_mean": "per_microbatch"}
    assert verdicts(report)["optimizer"] == "kept"

    recipe, report = imported(tmp_path, "orpo.yml", PUBLISHED["orpo.yml"], devices=4, equal=True)
    assert report["config"]["compat"]["bos"] is False and "--no-bos" in report["commands"][-1]
    assert report["config"]["compat"]["orpo_padding"] == "axolotl" and "token_mean" not in report["config"]["compat"]
    assert verdicts(report)["pad_to_sequence_len"] == "kept"
    load_config(written(tmp_path, recipe))
    assert report["config"]["compat"]["adamw_8bit"] == 256 and "compat.adamw_8bit=2048" in str(report["keys"])

    _, report = imported(tmp_path, "x.yaml", SMALL | {"bf16": True}, devices=1, equal=True)
    assert report["config"]["compat"] == {"token_mean": "per_microbatch", "bfloat16_weights": True}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"rl": "grpo"}, "rl = grpo: not here"),
        ({"micro_batch_size": "two"}, "micro_batch_size = two: allowed: a number of at least 1"),
        ({"weight_decay": True}, "weight_decay = true: allowed: a number"),
        ({"learning_rate": None}, "learning_rate"),
        ({"rl": "dpo", "reward_model": True}, "rl and reward_model"),
        ({"batch_size": 8, "gradient_accumulation_steps": 2}, "batch_size and gradient_accumulation_steps"),
        ({"tensor_parallel_size": 3}, "allowed: a multiple of 3"),
        ({"rl": ["dpo"]}, "not here"),
        ({"excess_length_strategy": ["drop"], "rl": "dpo", "dpo_loss_weights": "x"}, "excess_length_strategy"),
        (
            {"lr_scheduler": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": "x"}},
            "lr_scheduler_kwargs = .*: allowed: num",
        ),
    ],
)
def test_values_that_the_tool_refuses_too(keys: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        imported(tmp_path, "x.yaml", SMALL | keys, devices=2)


def test_several_data_sets_and_held_out_data(tmp_path: Path) -> None:
    files = {"path": "json", "data_files": "c.jsonl", "type": "chatml"}
    more = {"datasets": [{"path": "a/b", "type": "alpaca"}, files], "val_set_size": 0.05}
    _, report = imported(tmp_path, "x.yaml", SMALL | more, devices=1)
    assert report["config"]["data"]["mixture"] == [{"dir": "data/x_1"}, {"dir": "data/x_2"}]
    commands = [one for one in report["commands"] if "data build" in one]
    assert "--source a/b" in commands[0] and "--template plain" in commands[0]
    assert "--source c.jsonl" in commands[1] and "--template chatml --validation-fraction 0.05" in commands[1]


@pytest.mark.parametrize(
    ("field", "column", "value", "verdict"),
    [
        ("field_output", "output", "reply", "approximated"),
        ("field_output", "output", "reference_answer", "kept"),
        ("field_output", "output", "answer", "kept"),
        ("field_instruction", "prompt", "question", "kept"),
    ],
)
def test_columns_that_a_build_does_not_know_are_to_be_renamed(
    field: str, column: str, value: str, verdict: str, tmp_path: Path
) -> None:
    content = sft("a/b", 1)
    content["datasets"][0]["type"][field] = value
    _, report = imported(tmp_path, "x.yaml", content, devices=1)
    assert verdicts(report)[f"datasets[0].type.{field}"] == verdict
    assert (f"data: rename column {value} to {column}" in report["by_hand"]) == (verdict == "approximated")
    row = next(row for row in report["keys"] if row["key"].endswith(field))
    assert bool("if the records have no column" in row["note"]) == (value in ("answer", "question"))


@pytest.mark.parametrize(
    ("splits", "ours", "line"),
    [
        (["train[:5%]"], None, "data: datasets[0].split = train[:5%]: builds read whole files: write its records"),
        (
            ["train", "test"],
            "train",
            "data.split: the data sets have the splits train, test; a run reads the same split of every data set",
        ),
    ],
)
def test_splits_are_those_of_builds(splits: list[str], ours: str | None, line: str, tmp_path: Path) -> None:
    data = [{"path": "a/b", "type": "chatml.intel", "split": one} for one in splits]
    _, report = imported(tmp_path, "x.yaml", SMALL | {"datasets": data}, devices=1)
    assert report["config"]["data"].get("split") == ours and any(one.startswith(line) for one in report["by_hand"])
    verdict = verdicts(report)[f"datasets[{len(splits) - 1}].split"]
    assert verdict == ("approximated" if len(splits) > 1 else "not supported")


def test_names_of_columns_are_those_of_builds() -> None:
    assert schema.ALIASES == COLUMNS and schema.OTHER_NAMES == OTHER_COLUMNS


def test_prompts_are_those_of_our_templates() -> None:
    for name, template in TEMPLATES.items():
        texts = (template.prompt_text("{system}", "{instruction}"), template.prompt_text("", "{instruction}"))
        assert PROMPTS[name] == texts
    assert PROMPTS.keys() == TEMPLATES.keys()
