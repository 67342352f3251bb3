"""Stages of whole training steps in torch: TRL's trainers on transformers' Mistral, on the same examples."""

import itertools
import tempfile
import time
import warnings
from typing import Any

import torch
import transformers

from janus_jax.data.example import Example
from tests.benchmarks.gpu import torch_kernels
from tests.benchmarks.gpu.child import NotHere, first_line, free, measured
from tests.benchmarks.gpu.rows import examples_of, packed_epochs
from tests.benchmarks.gpu.sizes import Sizes, StepCase

_BATCHES, _WARM_UP = 4, 2
_PAIRS_AT_ONCE = 4


def step(name: str, sizes: Sizes, attention: str, *, compiled: bool = False) -> None:
    """The stage of one case, float32 weights and bfloat16 activations. Measures `torch step`.

    Args:
        attention: `varlen`, torch's own FlashAttention where transformers would call the package flash-attn, or a name
            that transformers knows, such as `sdpa`.
    """
    case = sizes.cases[name]
    how = _register_varlen() if attention == "varlen" else attention
    epochs = packed_epochs(
        branches=case.branches,
        rows=_rows(case, sizes),
        row_length=case.row_length,
        longest=case.longest,
        vocab_size=_shape(case)["vocab_size"],
        shrink=sizes.shrink,
    )
    data = examples_of(epochs, _BATCHES)
    for checkpointing in (False, True):
        try:
            _time(name, case, sizes, data, attention, how, checkpointing, compiled)
            return
        except torch.cuda.OutOfMemoryError as error:
            measured("does not fit", case=f"torch {name}", reason=first_line(error), checkpointing=checkpointing)
        free()
        torch.cuda.empty_cache()
    raise NotHere("does not fit into the card's memory, with gradient checkpointing neither")


def _rows(case: StepCase, sizes: Sizes) -> int:
    return sizes.torch_rows * (1 if case.branches == 1 else 2)


def _shape(case: StepCase) -> dict[str, Any]:
    from janus_jax.config.sections import ModelSection

    model = ModelSection.model_validate(dict(case.model)).build()
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "sliding_window": None,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
    }


def _register_varlen() -> str:
    """Makes torch's FlashAttention an attention of transformers; says which function of torch it is."""
    way, attend = torch_kernels.choose_way("cuda" if torch.cuda.is_available() else "cpu")

    def forward(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> Any:
        if attention_mask is not None:
            raise RuntimeError("a mask was made, which this attention does not read")
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [1, heads, T, H] -> [T, heads, H]
        out = attend(q, k, v, options["cu_seq_lens_q"].to(q.device), int(options["max_length_q"]))
        return out[None], None

    transformers.AttentionInterface.register("varlen", forward)
    transformers.AttentionMaskInterface.register("varlen", lambda *_, **__: None)
    return f"varlen: torch's {way}"


def _time(
    name: str,
    case: StepCase,
    sizes: Sizes,
    data: list[list[list[Example]]],
    attention: str,
    how: str,
    checkpointing: bool,
    compiled: bool,
) -> None:
    warnings.filterwarnings("ignore")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = transformers.MistralConfig(**_shape(case), **ids, attn_implementation=attention)
    with torch.device(device):
        model = transformers.MistralForCausalLM(config)
    clock = _Clock()
    with tempfile.TemporaryDirectory() as scratch:
        common = {
            "output_dir": scratch,
            "max_steps": _WARM_UP + sizes.steps,
            "bf16": True,
            "use_cpu": device == "cpu",
            "gradient_checkpointing": checkpointing,
            "learning_rate": 1e-6,
            "report_to": "none",
            "save_strategy": "no",
            "logging_strategy": "steps",
            "logging_steps": 1,
            "disable_tqdm": True,
            "torch_compile": compiled,
        }
        make = _sft if case.branches == 1 else _dpo
        trainer, per_step = make(model, case, data, common, clock)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        trainer.train()
    seconds = clock.seconds[_WARM_UP:]
    tokens, examples = per_step
    history = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    measured(
        "torch step",
        case=name,
        tokens_per_s=tokens * len(seconds) / sum(seconds),
        examples_per_s=examples * len(seconds) / sum(seconds),
        peak_gib=torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None,
        attention=how,
        gradient_checkpointing=checkpointing,
        compiled=compiled,
        optimizer=str(trainer.args.optim),
        loss=history[0] if history else None,
        tokens_per_step=tokens,
        seconds=seconds,
        examples_at_once=trainer.args.per_device_train_batch_size,
        accumulation=trainer.args.gradient_accumulation_steps,
        versions={"torch": torch.__version__, "transformers": transformers.__version__},
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


class _Clock(transformers.TrainerCallback):
    """Seconds of every optimizer step, without what prepares its batch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._begun = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        torch_kernels.wait()
        self._begun = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        torch_kernels.wait()
        self.seconds.append(time.perf_counter() - self._begun)


def _sft(model: Any, case: StepCase, data: Any, common: dict[str, Any], clock: _Clock) -> tuple[Any, Any]:
    """TRL's trainer on the same packed rows, flattened into one sequence as it does with `packing`."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = [row for batch in data for row in batch]
    columns: dict[str, list[Any]] = {"input_ids": [], "labels": [], "seq_lengths": []}
    for row in rows:
        ids = [[*example.prompt.tolist(), *example.chosen.tolist()] for example in row]
        labels = [[-100] * len(example.prompt) + example.chosen.tolist() for example in row]
        columns["input_ids"].append([*itertools.chain(*ids)])
        columns["labels"].append([*itertools.chain(*labels)])
        columns["seq_lengths"].append([len(one) for one in ids])
    arguments = SFTConfig(
        per_device_train_batch_size=len(data[0]),
        packing=True,
        max_length=case.row_length + 1000,  # rows hold last tokens too, which ours leave out; nothing is cut
        dataset_kwargs={"skip_prepare_dataset": True},
        **common,
    )
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict(columns),
        processing_class=_tokenizer(),
        callbacks=[clock],
    )
    tokens = sum(len(example.prompt) + len(example.chosen) - 1 for row in rows for example in row)
    return trainer, (tokens / len(data), sum(map(len, rows)) / len(data))


def _dpo(model: Any, case: StepCase, data: Any, common: dict[str, Any], clock: _Clock) -> tuple[Any, Any]:
    """TRL's trainer on the same pairs, padded to the longest, with log-probs of the reference computed before."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    class Tokenized(DPOTrainer):
        """Takes ids, where TRL would tokenize texts."""

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    pairs = [example for batch in data for row in batch for example in row]
    at_once = min(_PAIRS_AT_ONCE, max(1, len(pairs) // len(data)))
    accumulation = max(1, len(pairs) // len(data) // at_once)
    pairs = pairs[: len(pairs) - len(pairs) % (at_once * accumulation)]  # or an epoch would end in a short step
    columns = {
        name: [getattr(example, field).tolist() for example in pairs]
        for name, field in (("prompt_ids", "prompt"), ("chosen_ids", "chosen"), ("rejected_ids", "rejected"))
    }
    arguments = DPOConfig(
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=accumulation,
        precompute_ref_log_probs=True,
        max_length=None,
        dataloader_drop_last=True,
        **common,
    )
    trainer = Tokenized(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict(columns | {"prompt": [""] * len(pairs)}),
        processing_class=_tokenizer(),
        callbacks=[clock],
    )
    slots = [len(pair.prompt) - 1 + len(pair.chosen) + len(pair.rejected) for pair in pairs]
    share = at_once * accumulation / len(pairs)
    return trainer, (share * sum(slots), at_once * accumulation)


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
