"""Records short runs of TRL's trainers on a tiny random Mistral: the goldens that test_replay.py replays.

Needs an environment of its own; torch goes in first, pinned, because a free choice brings CUDA builds:

    python3.11 -m venv trl
    trl/bin/pip install torch==2.13.0
    trl/bin/pip install torch==2.13.0 trl==1.16.0 transformers==5.23.0 accelerate==1.15.0 datasets==5.2.0 numpy
    OMP_NUM_THREADS=1 trl/bin/python tests/oracles/record_trl.py --out tests/oracles/goldens

`--case NAME` (repeatable), `--seed` and `--steps` record other runs than those kept here; write them elsewhere. Each
case becomes a directory:

    config.json            transformers' model config
    init.safetensors       weights before the first step
    batches.safetensors    step{K:03d}.{micro}.{field}: every microbatch as the loss received it (int16, masks uint8)
    grads.safetensors      gradients of the first optimizer step, before clipping; where the case asks for them
    final.safetensors      weights after the last step
    log.json               what the trainer logged, step by step

Words are random and no example comes twice, so there is nothing to learn by heart: gradients stay large to the end.
"""

import argparse
import collections
import copy
import dataclasses
import importlib
import json
import os
import random
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

LEARNING_RATE, WARMUP_STEPS, WEIGHT_DECAY = 3e-3, 3, 0.1
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
VOCAB = 96


@dataclasses.dataclass(frozen=True)
class Kind:
    """One of TRL's trainers; `name` is what NAMETrainer and NAMEConfig of `module` have in front."""

    module: str
    name: str
    longest: Mapping[str, int]  # words of each response, by the column that it stands in
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of the config, in every case
    model: str = "MistralForCausalLM"
    labels: Mapping[str, int] = dataclasses.field(default_factory=dict)  # of the model's config
    reference: bool = False  # takes a copy of the initial weights


_PAIR = {"chosen": 10, "rejected": 10}
KINDS = {
    "sft": Kind("trl", "SFT", {"completion": 14}, {"completion_only_loss": True}),
    "dpo": Kind("trl", "DPO", _PAIR, reference=True),
    "simpo": Kind("trl.experimental.cpo", "CPO", _PAIR, {"loss_type": "simpo"}),
    "orpo": Kind("trl.experimental.orpo", "ORPO", _PAIR),
    "rm": Kind("trl", "Reward", _PAIR, model="MistralForSequenceClassification", labels={"num_labels": 1}),
}
FIELDS = ("input_ids", "attention_mask", "labels", "completion_mask", "margin")  # also with chosen_ or rejected_


@dataclasses.dataclass(frozen=True)
class Case:
    """One recorded run; `schedule` is named as in `janus_jax.training.optimizer.Schedule`.

    `settings` are of the objective that replays it, `arguments` of TRL's config: the same said twice, because names and
    meanings differ and a table between them could be wrong on both sides at once.
    """

    kind: str
    seed: int
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    accumulation: int = 1  # microbatches per optimizer step
    examples: int = 4  # per microbatch
    window: int | None = None  # sliding window of the attention, in tokens
    tied: bool = False  # the head is the embedding
    pad_is_eos: bool = False  # padding can be told from the end of a response by the attention mask alone
    margin: bool = False  # pairs come with a margin, some of it negative
    gradients: bool = False  # the first step's are kept
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    clip_norm: float = 1.0
    weight_decay: float = WEIGHT_DECAY
    steps: int = 20


CASES = {
    "sft": Case("sft", seed=1, gradients=True),
    "sft_accumulated_window": Case(
        "sft", seed=2, accumulation=3, examples=3, window=7, tied=True, clip_norm=2.7, gradients=True
    ),
    "dpo": Case("dpo", seed=3, gradients=True),
    "dpo_accumulated_window": Case(
        "dpo",
        seed=4,
        settings={"beta": 0.3},
        arguments={"beta": 0.3},
        accumulation=2,
        examples=3,
        window=7,
        schedule="constant",
        gradients=True,
    ),
    "dpo_pad_is_eos": Case("dpo", seed=5, pad_is_eos=True, schedule="linear", clip_norm=2.2, gradients=True),
    "dpo_ipo": Case(
        "dpo",
        seed=6,
        settings={"loss": "ipo", "beta": 0.4},
        arguments={"loss_type": "ipo", "beta": 0.4},
        tied=True,
        clip_norm=25.0,
    ),
    "dpo_hinge": Case(
        "dpo",
        seed=8,
        settings={"loss": "hinge", "beta": 0.5},
        arguments={"loss_type": "hinge", "beta": 0.5},
        clip_norm=22.0,
    ),
    "dpo_robust": Case(
        "dpo",
        seed=7,
        settings={"loss": "robust", "label_smoothing": 0.2},
        arguments={"loss_type": "robust", "label_smoothing": 0.2},
        tied=True,
        schedule="linear",
    ),
    "dpo_length_normalised": Case(
        "dpo",
        seed=23,
        settings={"length_normalised": True, "beta": 2.0},
        arguments={"loss_type": "sigmoid_norm", "beta": 2.0},
        schedule="constant",
    ),
    "dpo_sft_accumulated": Case(
        "dpo",
        seed=10,
        settings={"sft_weight": 0.4},
        arguments={"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.4]},
        accumulation=2,
        examples=3,
        tied=True,
    ),
    "simpo_sft_accumulated": Case(
        "simpo",
        seed=11,
        settings={"beta": 2.0, "gamma": 1.2, "sft_weight": 0.5},
        arguments={"beta": 2.0, "simpo_gamma": 1.2, "cpo_alpha": 0.5},
        accumulation=2,
        examples=3,
        clip_norm=9.5,
        gradients=True,
    ),
    "orpo": Case("orpo", seed=12, settings={"beta": 0.5}, arguments={"beta": 0.5}, tied=True),
    "orpo_accumulated_window": Case(
        "orpo", seed=13, accumulation=3, examples=2, window=7, pad_is_eos=True, clip_norm=3.0, gradients=True
    ),
    "rm": Case("rm", seed=22, clip_norm=8.0),
    "rm_accumulated_window": Case(
        "rm",
        seed=20,
        settings={"center_weight": 0.05},
        arguments={"center_rewards_coefficient": 0.05},
        accumulation=2,
        examples=3,
        window=7,
        schedule="linear",
        clip_norm=7.5,
        gradients=True,
    ),
    "rm_margin": Case("rm", seed=14, margin=True, schedule="constant", clip_norm=10.0),
}


def make_tokenizer(pad_is_eos: bool) -> Any:
    """One id per word, BOS in front; no chat template, so the trainer itself appends EOS to the responses."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = SPECIAL + [f"w{i}" for i in range(VOCAB - len(SPECIAL))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="</s>" if pad_is_eos else "<pad>"
    )


def make_model(case: Case, pad_token_id: int | None) -> Any:
    """A random Mistral of 17k parameters (14k tied or with a head of one reward)."""
    import transformers

    kind = KINDS[case.kind]
    transformers.set_seed(case.seed)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": pad_token_id}
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": case.window}
    # initializer_range: the usual 0.02 gives nearly uniform predictions, which hide errors
    rest = {"max_position_embeddings": 64, "tie_word_embeddings": case.tied, "initializer_range": 0.2}
    config = transformers.MistralConfig(**ids, **sizes, **heads, **rest, **kind.labels)
    return getattr(transformers, kind.model)(config).float()


def make_data(case: Case) -> Any:
    """Just as many examples as the run consumes, of unequal lengths; a pair's preference is a coin's toss."""
    from datasets import Dataset

    rng = random.Random(case.seed)

    def words(least: int, most: int) -> str:
        return " ".join(f"w{rng.randrange(VOCAB - len(SPECIAL))}" for _ in range(rng.randint(least, most)))

    def example() -> dict[str, Any]:
        texts = {"prompt": words(1, 10)} | {k: " " + words(1, n) for k, n in KINDS[case.kind].longest.items()}
        return texts | ({"margin": rng.uniform(-1.0, 2.0)} if case.margin else {})

    return Dataset.from_list([example() for _ in range(case.steps * case.accumulation * case.examples)])


def make_trainer(case: Case, scratch: str) -> Any:
    """TRL's trainer, with `batches` (all microbatches) and `gradients` (of the first step) kept on the side."""
    kind = KINDS[case.kind]
    module = importlib.import_module(kind.module)

    class Recorder(getattr(module, f"{kind.name}Trainer")):
        def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            step = self.state.global_step
            at = f"step{step:03d}.{self.micros[step]}"
            kept = [f for f in inputs if f.removeprefix("chosen_").removeprefix("rejected_") in FIELDS]
            self.batches |= {f"{at}.{field}": compact(field, inputs[field]) for field in kept}
            self.micros[step] += 1
            loss = super().training_step(model, inputs, *args, **kwargs)
            if step == 0:  # .grad accumulates over microbatches: what the last of them leaves is kept
                self.gradients = {name: p.grad.detach().clone() for name, p in model.named_parameters()}
            return loss

    settings = getattr(module, f"{kind.name}Config")(
        output_dir=scratch,
        max_steps=case.steps,
        per_device_train_batch_size=case.examples,
        gradient_accumulation_steps=case.accumulation,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant_with_warmup" if case.schedule == "constant" else case.schedule,
        warmup_steps=WARMUP_STEPS,
        weight_decay=case.weight_decay,
        max_grad_norm=case.clip_norm,
        optim="adamw_torch",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        bf16=False,
        use_cpu=True,
        seed=case.seed,
        disable_tqdm=True,
        **kind.arguments,
        **case.arguments,
    )
    tokenizer = make_tokenizer(case.pad_is_eos)
    model = make_model(case, tokenizer.pad_token_id)
    extra = {"ref_model": copy.deepcopy(model)} if kind.reference else {}
    trainer = Recorder(model=model, args=settings, train_dataset=make_data(case), processing_class=tokenizer, **extra)
    trainer.batches, trainer.gradients, trainer.micros = {}, {}, collections.Counter()
    return trainer


def compact(field: str, values: Any) -> Any:
    """Token ids fit int16 and masks uint8: a quarter and an eighth of the trainer's int64. Margins stay as they are."""
    import torch

    whole = torch.uint8 if field.endswith("_mask") else torch.int16
    return values.detach().to(values.dtype if values.is_floating_point() else whole).contiguous()


def record(case: Case, out: Path) -> None:
    """Trains and writes the directory `out`."""
    with tempfile.TemporaryDirectory() as scratch:
        save(make_trainer(case, scratch), case, out)


def save(trainer: Any, case: Case, out: Path) -> None:
    """Trains and writes the directory `out`."""
    from safetensors.torch import save_file

    names = [name for name, _ in trainer.model.named_parameters()]  # a tied head is the embedding: stored once

    def weights() -> dict[str, Any]:
        state = trainer.model.state_dict()
        return {name: state[name].detach().clone() for name in names}

    initial = weights()
    trainer.train()
    out.mkdir(parents=True, exist_ok=True)
    trainer.model.config.save_pretrained(out)
    grads = {"grads": trainer.gradients} if case.gradients else {}
    for name, tensors in {"init": initial, **grads, "final": weights()}.items():
        save_file(tensors, out / f"{name}.safetensors", metadata={"format": "pt"})
    save_file(trainer.batches, out / "batches.safetensors")
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    (out / "log.json").write_text(json.dumps(steps, indent=1) + "\n")
    for name in ("loss", "grad_norm"):
        print(f"{out.name}: {len(steps)} steps, {name} {[round(entry[name], 2) for entry in steps]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--case", choices=sorted(CASES), action="append")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--steps", type=int)
    args = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1"}
    changes = {name: value for name in ("seed", "steps") if (value := getattr(args, name)) is not None}
    for name in args.case or CASES:
        record(dataclasses.replace(CASES[name], **changes), args.out / name)


if __name__ == "__main__":
    main()
