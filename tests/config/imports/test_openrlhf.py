"""What OpenRLHF's options become."""

from pathlib import Path

import pytest

from janus_jax.config.run import load_config
from janus_jax.errors import ConfigError
from tests.support.recipes import RM, RM_HELPFUL, imported, verdicts

CONFIGS = Path(__file__).parents[3] / "configs"
DPO = "deepspeed --num_gpus 8 --module openrlhf.cli.train_dpo --pretrain a/b --dataset c/d --packing_samples "


@pytest.mark.parametrize(("name", "script"), [("rm", RM), ("rm_helpful", RM_HELPFUL)])
def test_published_script_becomes_our_run(name: str, script: str, tmp_path: Path) -> None:
    recipe, report = imported(tmp_path, f"{name}.sh", script)
    (tmp_path / "ours.yaml").write_text(recipe.text)
    new, ours = load_config(tmp_path / "ours.yaml"), load_config(CONFIGS / f"{name}.yaml")
    assert new.batch == ours.batch
    for section in ("objective", "optimizer", "precision", "remat"):
        assert getattr(new, section) == getattr(ours, section), section
    schedule = new.schedule.model_copy(update={"warmup_ratio": None, "warmup_steps": new.schedule.warmup(505)})
    assert schedule == ours.schedule
    assert [part.weight for part in new.data.mixture or ()] == [part.weight for part in ours.data.mixture or ()]
    assert new.data.examples == ours.data.examples
    verdict = verdicts(report)
    assert verdict["NCCL_DEBUG"] == "not needed" and verdict["deepspeed --master_port"] == "not needed"
    assert "YOUR_KEY" not in str(report) and not report["refused"]


def test_numbers_of_a_new_command(tmp_path: Path) -> None:
    options = "--train_batch_size 256 --micro_train_batch_size 2 --learning_rate 5e-7 --beta 0.2 --label_smoothing 0.1"
    _, report = imported(tmp_path, "x.sh", DPO + options)
    config = report["config"]
    assert config["batch"]["examples"] == 256 and config["batch"]["microbatches"] == 16
    objective = {"name": "dpo", "beta": 0.2, "loss": "sigmoid", "label_smoothing": 0.1, "sft_weight": 0.0}
    assert config["objective"] == objective
    assert config["schedule"]["min_rate_ratio"] == pytest.approx(0.1)
    assert (config["optimizer"]["b2"], config["schedule"]["warmup_ratio"]) == (0.95, 0.03)


def test_names_with_dots(tmp_path: Path) -> None:
    command = "python -m openrlhf.cli.train_sft --model.model_name_or_path a/b --adam.lr 1e-5 --data.max_len 4096 "
    _, report = imported(tmp_path, "x.txt", command + "--data.dataset c/d --ds.zero_stage 3", devices=2)
    assert report["config"]["schedule"]["learning_rate"] == 1e-5
    batch = report["config"]["batch"]
    assert (batch["examples"], batch["row_length"], batch["overlong"]) == (128, 4096, "truncate")
    assert verdicts(report)["ds.zero_stage"] == "not needed"


@pytest.mark.parametrize(
    ("options", "key", "verdict"),
    [
        ("--lora_rank 16 --lora_alpha 32", "lora_alpha", "not supported"),
        ("--lora_alpha 32", "lora_alpha", "ignored"),
        ("--ipo", "ipo", "not supported"),
        ("--param_dtype fp16", "param_dtype", "not supported"),
        ("--no_such_option 1", "no_such_option", "unknown"),
        ("--zero_stage 3 stray", "word stray", "ignored"),
    ],
)
def test_one_verdict_for_an_option(options: str, key: str, verdict: str, tmp_path: Path) -> None:
    _, report = imported(tmp_path, "x.sh", f"{DPO}{options}")
    assert verdicts(report)[key] == verdict
    assert (key in report["refused"]) == (verdict in ("not supported", "unknown"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("", "sets no beta; the default counts: 0.1"),
        ("--lr_scheduler cosine", "TypeError"),
        ("--train_batch_size 100 --micro_train_batch_size 8", "is no multiple of"),
        (r"--prompt_key p --input_template 'User: {}\nAssistant: '", "a backslash and an n"),
        ("--input_template 'User: {} '", "only with --prompt_key"),
        ("--save_path $OUT", "$OUT is set nowhere"),
    ],
)
def test_defects(options: str, words: str, tmp_path: Path) -> None:
    _, report = imported(tmp_path, "x.sh", DPO + options)
    assert words in "\n".join(report["defects"])


@pytest.mark.parametrize(
    ("data", "source", "by_hand"),
    [
        ("json@/data/pairs", "/data/pairs", ""),
        ("csv@/data/pairs", "/data/pairs", "data: builds read no csv; write the records of /data/pairs as JSONL"),
        ("a/b@part", "a/b", "data: of a/b the tool reads the folder part alone; build from that"),
        ("a/b,c.jsonl --dataset_probs 0.5,0.5", "a/b", "data.examples: an epoch of the tool ends at max_samples"),
        ("rows.jsonl --input_key question", "rows.jsonl", "system messages: the tool reads question alone; janus data"),
        ("rows.jsonl --input_key conversations --apply_chat_template", "rows.jsonl", ""),
        ("rows.jsonl --input_key talks --apply_chat_template", "rows.jsonl", "data: rename column talks to messages"),
        ('rows.jsonl --eval_dataset ""', "rows.jsonl", ""),
    ],
)
def test_data(data: str, source: str, by_hand: str, tmp_path: Path) -> None:
    command = "export PATH=$HOME/bin:$PATH\nlogin $TOKEN $(cat key)\ndeepspeed --module openrlhf.cli.train_sft --bf16 "
    _, report = imported(tmp_path, "x.sh", f"{command}--pretrain mistralai/Mistral-7B-v0.1 --dataset {data}", devices=1)
    assert any(f" --source {source} " in one for one in report["commands"])
    lines = [
        one for one in report["by_hand"] if not one.startswith(("prompts: ", "system messages: the tool reads input "))
    ]
    assert [one.startswith(by_hand) for one in lines] == [True] * bool(by_hand)
    verdict = verdicts(report)
    assert verdict.get("input_key") in (None, "approximated" if "talks" in data else "kept")
    assert verdict.get("eval_dataset") in (None, "not needed")
    assert not any("$" in one for one in report["defects"])  # what another command uses is no defect of this one


@pytest.mark.parametrize(
    ("options", "column"),
    [
        ("", "input"),
        ("--input_key text", "text"),
        ("--apply_chat_template", ""),
        ("--flash_attn", ""),  # the oldest versions have no default
    ],
)
def test_column_that_the_tool_reads_alone(options: str, column: str, tmp_path: Path) -> None:
    command = f"python -m openrlhf.cli.train_sft --pretrain a/b --dataset c/d {options}"
    _, report = imported(tmp_path, "x.sh", command, devices=1)
    lines = [one for one in report["by_hand"] if one.startswith("system messages: ")]
    assert lines == [
        f"system messages: the tool reads {column} alone; janus data build reads system, system_prompt, system_message "
        "too: leave these columns out"
    ] * bool(column)


def test_loader_that_datasets_does_not_have(tmp_path: Path) -> None:
    _, report = imported(tmp_path, "x.sh", f"{DPO} --dataset jsonl@/data/pairs")
    assert any(one.startswith("dataset = jsonl@/data/pairs: datasets has no loader jsonl") for one in report["defects"])


def test_number_that_no_one_knows(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"learning_rate = \$RATE: allowed: a number"):
        imported(tmp_path, "x.sh", DPO + "--learning_rate $RATE")


def test_options_after_a_comment_are_lost(tmp_path: Path) -> None:
    script = DPO + " \\\n  --seed 3 \\\n  # --l2 0.1 \\\n  --max_epochs 7\n"
    _, report = imported(tmp_path, "x.sh", script)
    verdict = verdicts(report)
    assert verdict["seed"] == "kept" and verdict["max_epochs"] == "ignored" and "l2" not in verdict
    assert report["config"]["schedule"]["epochs"] == 1
    assert any("--max_epochs: not part of the command" in one and "line 3" in one for one in report["defects"])
