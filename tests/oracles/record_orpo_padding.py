"""Records short runs of ORPO as two trainers of spring 2024 had it, with padding in the mean of the NLL.

- `orpo_padding_trl`: TRL 0.8.6's `ORPOTrainer` on transformers 4.40 (attention of torch, no FlashAttention).
- `orpo_padding_axolotl`: axolotl of 12 April 2024 (132eb740). Its loss and its collator are taken from its source,
  which is read at run time; `transformers.Trainer` calls them. Attention is `MistralFlashAttention2` of transformers
  4.40; in place of the kernels of flash-attn, which need a GPU, the recorder computes attention over the sequences that
  it gets. The trainer rounds its loss to bfloat16; here it stays float32.

The environment, and axolotl's source as a clone:

    python3.11 -m venv old
    old/bin/pip install torch==2.13.0
    old/bin/pip install torch==2.13.0 trl==0.8.6 transformers==4.40.2 accelerate==0.30.1 datasets==2.19.2 rich
    git clone https://github.com/axolotl-ai-cloud/axolotl && git -C axolotl checkout 132eb740
    OMP_NUM_THREADS=1 old/bin/python -m tests.oracles.record_orpo_padding --axolotl axolotl --out tests/oracles/goldens

Files as in `record_trl.py`. Padding is EOS, and the embedding has no `padding_idx`, as in Mistral-7B. Weights do not
decay: transformers 4.40 also decays Mistral's norms.
"""

import argparse
import ast
import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.oracles import record_trl
from tests.oracles.record_trl import LEARNING_RATE, WARMUP_STEPS, Case

PADDED_LENGTH = 64
"""Tokens of axolotl's rows (`sequence_len` with `pad_to_sequence_len`)."""

CASES = {
    "orpo_padding_trl": Case(
        "orpo", seed=31, settings={"beta": 0.5, "padding": "trl"}, arguments={"beta": 0.5}, accumulation=2, examples=3,
        pad_is_eos=True, clip_norm=4.0, weight_decay=0.0, gradients=True,
    ),
    "orpo_padding_axolotl": Case(
        "orpo", seed=32, settings={"beta": 0.5, "padding": "axolotl"}, arguments={"orpo_alpha": 0.5}, accumulation=4,
        examples=1, pad_is_eos=True, clip_norm=4.0, weight_decay=0.0, gradients=True,
    ),
}  # fmt: skip
LONGEST = {"orpo_padding_trl": (10, 10), "orpo_padding_axolotl": (40, 20)}
"""Words of a prompt and of a response. Some prompts of axolotl's rows are longer than the padding before them."""

METHODS = ("orpo_concatenate_inputs", "orpo_compute_custom_loss", "orpo_compute_logps", "orpo_compute_loss")


def make_rows(case: Case, prompt: int, response: int) -> list[dict[str, str]]:
    """Pairs of random words, as many as the run consumes."""
    import random

    rng = random.Random(case.seed)

    number = record_trl.VOCAB - len(record_trl.SPECIAL)

    def words(most: int) -> str:
        return " ".join(f"w{rng.randrange(number)}" for _ in range(rng.randint(1, most)))

    def row() -> dict[str, str]:
        return {"prompt": words(prompt), "chosen": " " + words(response), "rejected": " " + words(response)}

    return [row() for _ in range(case.steps * case.accumulation * case.examples)]


def common_arguments(case: Case, scratch: str) -> dict[str, Any]:
    """Arguments of transformers 4.40."""
    return {
        "output_dir": scratch,
        "max_steps": case.steps,
        "per_device_train_batch_size": case.examples,
        "gradient_accumulation_steps": case.accumulation,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": case.schedule,
        "warmup_steps": WARMUP_STEPS,
        "weight_decay": case.weight_decay,
        "max_grad_norm": case.clip_norm,
        "optim": "adamw_torch",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "seed": case.seed,
        "disable_tqdm": True,
        "remove_unused_columns": False,
    }


def recorder(trainer: type) -> Any:
    """The trainer, with `batches` (all microbatches) and `gradients` (of the first step) kept on the side."""

    class Recorder(trainer):
        def training_step(self, model: Any, inputs: dict[str, Any]) -> Any:
            step = self.state.global_step
            at = f"step{step:03d}.{self.micros.get(step, 0)}"
            for name, value in inputs.items():
                field = name if name.startswith(("chosen_", "rejected_", "prompt_")) else f"chosen_{name}"
                if field.removeprefix("chosen_").removeprefix("rejected_") in record_trl.FIELDS:
                    self.batches[f"{at}.{field}"] = record_trl.compact(field, value)
            self.micros[step] = self.micros.get(step, 0) + 1
            loss = super().training_step(model, inputs)
            if step == 0:
                self.gradients = {name: p.grad.detach().clone() for name, p in model.named_parameters()}
            return loss

    Recorder.batches, Recorder.micros = {}, {}
    return Recorder


def trl_trainer(case: Case, scratch: str) -> Any:
    from datasets import Dataset
    from trl import ORPOConfig, ORPOTrainer

    settings = ORPOConfig(**common_arguments(case, scratch), max_length=64, max_prompt_length=32, **case.arguments)
    data = Dataset.from_list(make_rows(case, *LONGEST["orpo_padding_trl"]))
    tokenizer = record_trl.make_tokenizer(pad_is_eos=True)
    model = record_trl.make_model(case, None)
    return recorder(ORPOTrainer)(model=model, args=settings, train_dataset=data, tokenizer=tokenizer)


def axolotl_methods(source: Path) -> dict[str, Any]:
    """The functions of ORPO of axolotl's trainer, with float32 in place of bfloat16."""
    import torch
    from trl.trainer.utils import pad_to_length

    tree = ast.parse((source / "src/axolotl/core/trainer_builder.py").read_text())
    (trainer,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "AxolotlTrainer"]
    trainer.bases, trainer.keywords, trainer.decorator_list = [], [], []
    trainer.body = [node for node in trainer.body if getattr(node, "name", None) in METHODS]
    for node in ast.walk(trainer):
        if isinstance(node, ast.Attribute) and node.attr == "bfloat16":
            node.attr = "float32"
    names: dict[str, Any] = {"torch": torch, "pad_to_length": pad_to_length}
    exec(compile(ast.Module([trainer], []), "axolotl", "exec"), names)
    return {name: names["AxolotlTrainer"].__dict__[name] for name in METHODS} | {"holder": names}


def axolotl_trainer(case: Case, scratch: str, source: Path) -> Any:
    import torch
    import transformers
    from datasets import Dataset

    use_flash_attention_of_torch()
    methods = axolotl_methods(source)
    holder = methods.pop("holder")

    class AxolotlTrainer(transformers.Trainer):
        loss_fct = torch.nn.CrossEntropyLoss(reduction="none")

        def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False) -> Any:
            return self.orpo_compute_loss(model, inputs, return_outputs=return_outputs)

        def store_metrics(self, metrics: dict[str, float], train_eval: str = "train") -> None:
            self.stored.append(metrics)

        def log(self, logs: dict[str, float]) -> None:
            if "loss" in logs:
                logs |= {name: sum(one[name] for one in self.stored) / len(self.stored) for name in self.stored[0]}
                self.stored.clear()
            super().log(logs)

    for name, method in methods.items():
        setattr(AxolotlTrainer, name, method)
    holder["AxolotlTrainer"] = AxolotlTrainer
    spec = importlib.util.spec_from_file_location("axolotl_collators", source / "src/axolotl/utils/collators.py")
    collators = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = collators
    spec.loader.exec_module(collators)

    tokenizer = record_trl.make_tokenizer(pad_is_eos=True)
    tokenizer.padding_side = "left"  # axolotl's choice for Mistral with flash_attention and without sample_packing

    def encode(row: dict[str, str]) -> dict[str, list[int]]:
        """Fields as `ORPOTokenizingStrategy` makes them, but with BOS and EOS."""
        prompt = tokenizer(row["prompt"], add_special_tokens=True)["input_ids"]
        fields = {}
        for prefix, name in (("rejected_", "rejected"), ("", "chosen")):
            response = [*tokenizer(row[name], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            fields[f"{prefix}input_ids"] = prompt + response
            fields[f"{prefix}labels"] = [-100] * len(prompt) + response
            fields[f"{prefix}attention_mask"] = [1] * len(prompt + response)
        fields["prompt_attention_mask"] = [1] * len(prompt) + [0] * (len(fields["input_ids"]) - len(prompt))
        return fields

    settings = transformers.TrainingArguments(**common_arguments(case, scratch))
    settings.orpo_alpha = case.arguments["orpo_alpha"]
    collator = collators.DataCollatorForSeq2Seq(
        tokenizer, return_tensors="pt", padding=True, pad_to_multiple_of=PADDED_LENGTH
    )
    data = Dataset.from_list([encode(row) for row in make_rows(case, *LONGEST["orpo_padding_axolotl"])])
    model = record_trl.make_model(case, None)
    model.config.use_cache = False  # as with gradient_checkpointing; otherwise padding on the right is refused
    made = recorder(AxolotlTrainer)(
        model=model, args=settings, train_dataset=data, tokenizer=tokenizer,
        data_collator=collator,
    )  # fmt: skip
    made.stored = []
    return made


def use_flash_attention_of_torch() -> None:
    """transformers' Mistral with FlashAttention 2, on what `flash_attn` computes written in torch."""
    import torch
    import transformers
    from torch.nn import functional
    from transformers.models.mistral import modeling_mistral

    def unpad_input(hidden: Any, mask: Any) -> tuple[Any, Any, Any, int]:
        sizes = mask.sum(-1, dtype=torch.int32)
        indices = mask.flatten().nonzero().flatten()
        starts = functional.pad(torch.cumsum(sizes, 0, dtype=torch.int32), (1, 0))
        return hidden.flatten(0, 1)[indices], indices, starts, int(sizes.max())

    def pad_input(hidden: Any, indices: Any, batch: int, length: int) -> Any:
        out = torch.zeros(batch * length, *hidden.shape[1:], dtype=hidden.dtype)
        return out.index_put((indices,), hidden).view(batch, length, *hidden.shape[1:])

    def attend(q: Any, k: Any, v: Any, *, causal: bool, **unused: Any) -> Any:
        groups = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(groups, 1).transpose(0, 1) for x in (k, v))
        return functional.scaled_dot_product_attention(q.transpose(0, 1), k, v, is_causal=causal).transpose(0, 1)

    def varlen(q: Any, k: Any, v: Any, *, cu_seqlens_q: Any, causal: bool, **unused: Any) -> Any:
        spans = [slice(a, b) for a, b in zip(cu_seqlens_q[:-1].tolist(), cu_seqlens_q[1:].tolist(), strict=True)]
        return torch.cat([attend(q[span], k[span], v[span], causal=causal) for span in spans])

    def whole(q: Any, k: Any, v: Any, *unused: Any, causal: bool, **more: Any) -> Any:
        return torch.stack([attend(*one, causal=causal) for one in zip(q, k, v, strict=True)])

    modeling_mistral.unpad_input, modeling_mistral.pad_input = unpad_input, pad_input
    modeling_mistral.index_first_axis = lambda x, indices: x[indices]
    modeling_mistral.flash_attn_varlen_func, modeling_mistral.flash_attn_func = varlen, whole
    modeling_mistral._flash_supports_window_size = False
    modeling_mistral.is_flash_attn_greater_or_equal_2_10 = lambda: True
    modeling_mistral.MISTRAL_ATTENTION_CLASSES["sdpa"] = modeling_mistral.MistralFlashAttention2

    def flash(cls: type, config: Any, *args: Any, **kwargs: Any) -> Any:
        config._attn_implementation = "flash_attention_2"
        return config

    transformers.PreTrainedModel._autoset_attn_implementation = classmethod(flash)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axolotl", type=Path, required=True, help="a clone of axolotl at 132eb740")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    makers = {
        "orpo_padding_trl": trl_trainer,
        "orpo_padding_axolotl": lambda case, scratch: axolotl_trainer(case, scratch, args.axolotl),
    }
    for name, maker in makers.items():
        with tempfile.TemporaryDirectory() as scratch:
            record_trl.save(maker(CASES[name], scratch), CASES[name], args.out / name)


if __name__ == "__main__":
    main()
