"""The recipes that were published with Janus, by their keys and values, as other trainers read them."""

from pathlib import Path
from typing import Any

import yaml

from janus_jax.config.imports.recipe import Recipe, as_json, import_recipe

_EMPTY = (
    "dataset_prepared_path hub_model_id output_dir wandb_project wandb_entity wandb_watch wandb_name wandb_log_model "
    "fp16 early_stopping_patience resume_from_checkpoint local_rank xformers_attention eval_table_size debug deepspeed "
    "fsdp fsdp_config special_tokens"
).split()
_SHARED: dict[str, Any] = {
    "model_type": "MistralForCausalLM", "tokenizer_type": "LlamaTokenizer", "load_in_8bit": False, "strict": False,
    "load_in_4bit": False, "eval_sample_packing": False, "pad_to_sequence_len": True, "gradient_accumulation_steps": 4,
    "optimizer": "adamw_bnb_8bit", "lr_scheduler": "cosine", "train_on_inputs": False, "group_by_length": False,
    "bf16": "auto", "tf32": False, "gradient_checkpointing": True, "logging_steps": 1, "flash_attention": True,
    "warmup_steps": 10, "saves_per_epoch": 1, "weight_decay": 0.0, "hub_strategy": "checkpoint",
    **dict.fromkeys(_EMPTY),
}  # fmt: skip
BASE = "mistral-community/Mistral-7B-v0.2"


def sft(data: str, epochs: int) -> dict[str, Any]:
    """The SFT recipe."""
    formats = {
        "system_prompt": "", "system_format": "[INST] {system}\n", "field_system": "system",
        "field_instruction": "instruction", "field_output": "output", "format": "{instruction} [/INST]",
        "no_input_format": "{instruction} [/INST]",
    }  # fmt: skip
    return _SHARED | {
        "base_model": BASE, "datasets": [{"path": data, "type": formats}], "sequence_len": 8192, "sample_packing": True,
        "micro_batch_size": 2, "num_epochs": epochs, "learning_rate": 0.000005,
    }  # fmt: skip


def dpo() -> dict[str, Any]:
    """The DPO recipe, with its two formats that are no text and its placeholder that is none."""
    formats = {
        "field_prompt": "instruction", "field_system": "system", "field_chosen": "chosen_response",
        "field_rejected": "rejected_response", "prompt_format": "[INST] {system}\n{instruction} [/INST]",
        "chosen_format": {"chosen_response": None}, "rejected_format": {"rejected_response": None},
    }  # fmt: skip
    data = [{"path": "kaist-ai/Multifaceted-Collection-DPO", "type": formats}]
    return _SHARED | {
        "base_model": None, "rl": "dpo", "datasets": data, "sequence_len": 2048, "sample_packing": False,
        "micro_batch_size": 1, "num_epochs": 2, "learning_rate": 0.0000005,
    }  # fmt: skip


def orpo() -> dict[str, Any]:
    """The ORPO recipe."""
    return _SHARED | {
        "base_model": BASE, "rl": "orpo", "orpo_alpha": 0.1, "remove_unused_columns": False, "chat_template": "chatml",
        "datasets": [{"path": "kaist-ai/Multifaceted-Collection-ORPO", "type": "orpo.chat_template"}],
        "sequence_len": 4096, "sample_packing": False, "micro_batch_size": 1, "num_epochs": 2,
        "learning_rate": 0.000005,
    }  # fmt: skip


def reward(save_steps: int, data: str) -> str:
    """A script of the reward model: the options in a here-document, the command after a condition."""
    return rf"""
set -x
export CUDA_VISIBLE_DEVICES="0,1,2,3"
export NCCL_DEBUG=WARN
WANDB_API_KEY=<YOUR_KEY>
START=<SFT_AFTER_ONE_EPOCH>
OUT=./ckpt/rm

read -r -d '' options <<EOF
../../train_rm.py \
     --save_path $OUT \
     --save_steps {save_steps} \
     --logging_steps 1 \
     --eval_steps 50 \
     --max_ckpt_num 2 \
     --train_batch_size 128 \
     --micro_train_batch_size 8 \
     --pretrain $START \
     --bf16 \
     --max_epochs 1 \
     --max_len 2048 \
     --zero_stage 3 \
     --learning_rate 9e-6 \
     {data} \
     --flash_attn \
     --gradient_checkpointing \
     --use_wandb $WANDB_API_KEY
EOF
     # a comment of its own ends no command

if [[ ${{1}} != "slurm" ]]; then
    deepspeed --master_port 29501 $options
fi
"""


RM = reward(
    100, "--dataset data/rm.jsonl --dataset_probs 1.0 --prompt_key input --chosen_key chosen --rejected_key rejected"
)
RM_HELPFUL = reward(
    500,
    "--max_samples 66000 --dataset Anthropic/hh-rlhf,tasksource/oasst1_pairwise_rlhf_reward,openai/webgpt_comparisons "
    "--dataset_probs 0.72,0.14,0.14",
)

PUBLISHED: dict[str, dict[str, Any]] = {
    "sft_196k.yaml": sft("kaist-ai/Multifaceted-Collection-SFT", 4),
    "sft_196k_epoch1.yaml": sft("kaist-ai/Multifaceted-Collection-SFT", 1),
    "sft_65k.yaml": sft("kaist-ai/Multifaceted-Collection-SFT-65k", 4),
    "dpo.yml": dpo(),
    "orpo.yml": orpo(),
}
"""File name -> what it says."""


def imported(folder: Path, name: str, content: dict[str, Any] | str, **options: Any) -> tuple[Recipe, dict[str, Any]]:
    """The recipe that a file with this content becomes, and its report."""
    file = folder / name
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    recipe = import_recipe(str(file), **options)
    return recipe, as_json(recipe)


def verdicts(report: dict[str, Any]) -> dict[str, str]:
    """Key -> verdict; a key with two rows is an error of the report."""
    keys = [row["key"] for row in report["keys"]]
    assert len(set(keys)) == len(keys)
    return {row["key"]: row["verdict"] for row in report["keys"]}
