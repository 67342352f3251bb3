"""axolotl's YAML: SFT, DPO, IPO, ORPO, SimPO and reward models."""

import re
from typing import Any

from janus_jax.config.imports import axolotl_keys as keys
from janus_jax.config.imports import schedules, training_keys
from janus_jax.config.imports.axolotl_data import datasets
from janus_jax.config.imports.ledger import Ledger, shown
from janus_jax.config.imports.training_keys import Batch
from janus_jax.errors import ConfigError

OBJECTIVES = {None: "sft", "dpo": "dpo", "ipo": "dpo", "orpo": "orpo", "simpo": "simpo"}
"""Value of `rl` -> our objective."""

_NUMBERS: dict[str, tuple[str, float | int]] = {
    "adam_beta1": ("optimizer.b1", 0.9),
    "adam_beta2": ("optimizer.b2", 0.999),
    "adam_epsilon": ("optimizer.eps", 1e-8),
    "weight_decay": ("optimizer.weight_decay", 0.0),
    "seed": ("run.seed", 42),
}
_OVERLONG = {"drop": "drop", "truncate": "truncate", "raise": "error"}


def convert(ledger: Ledger, devices: int | None, name: str) -> str:
    """Fills the ledger; returns the objective.

    Args:
        name: for directories that the file does not name.

    Raises:
        ConfigError: an objective that is not here, or a value that the tool does not take either.
    """
    objective = _objective(ledger)
    pairs = objective != "sft"
    training_keys.directory(ledger, "output_dir", name)
    training_keys.start(ledger, "base_model")
    _names(ledger)
    length = ledger.whole("sequence_len", 512, low=1)
    _batch(ledger, devices, length, pairs)
    ledger.carry("sequence_len", "batch.max_sequence_length", length)
    overlong = str(ledger.get("excess_length_strategy", "drop"))
    if overlong not in _OVERLONG:
        raise ConfigError(f"{ledger.file}: excess_length_strategy = {shown(overlong)}: allowed: {', '.join(_OVERLONG)}")
    ledger.carry("excess_length_strategy", "batch.overlong", _OVERLONG[overlong])
    _loss(ledger, objective)
    _rates(ledger)
    training_keys.optimizer(ledger, "optimizer", "adamw_torch_fused")
    training_keys.plain_numbers(ledger, _NUMBERS)
    training_keys.clipping(ledger, "max_grad_norm")
    _precision(ledger)
    padded = objective == "orpo" and _padding_counts(ledger)
    if ledger.equal and objective in ("sft", "orpo") and not padded:  # their parts hold unequal numbers of tokens
        ledger.write("compat.token_mean", "per_microbatch")
    _intervals(ledger)
    ledger.defects += [f"{one}: the tool stops" for one in _stops(ledger)]
    datasets(ledger, objective, name)
    detail = "not supported" if ledger.on("adapter") else "ignored"
    for key in [one for first in keys.LORA_DETAILS.split() for one in ledger.under(first)]:
        ledger.judge(key, detail, note=training_keys.LORA if ledger.on("adapter") else "no adapter is set")
    own = any(ledger.given(key) for key in ledger.under("datasets") if ".chat_template" in key)
    unused = "every data set of type chat_template names its own" if own else "no data set is of type chat_template"
    for key in ("chat_template", "chat_template_jinja"):
        ledger.judge(key, "not needed", note=f"{unused}; the exported tokenizer gets it")
    others = [one for one in _listed(ledger.get("plugins")) if not keys.HARMLESS.search(one)]
    for key in ledger.under("plugins"):
        note = ", ".join(others) or "speed, memory, logs and measurements of the tool"
        ledger.judge(key, "not supported" if others else "not needed", note=note)
    ledger.unsupported(keys.UNSUPPORTED, keys.NEUTRAL)
    ledger.not_needed(keys.NOT_NEEDED | {"of another objective, optimizer or mode": keys.OF_OTHERS})
    ledger.rest(_known(), "ignores it")
    return objective


def _listed(value: Any) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else [] if value is None else [str(value)]


def _known() -> list[str]:
    tables = [*keys.NOT_NEEDED.values(), *keys.UNSUPPORTED.values(), keys.LORA_DETAILS, keys.OF_OTHERS]
    read = "base_model model_type tokenizer_type sequence_len micro_batch_size gradient_accumulation_steps batch_size "
    read += "num_epochs max_steps learning_rate lr_scheduler warmup_steps warmup_ratio optimizer max_grad_norm bf16 rl "
    read += "datasets test_datasets val_set_size rl_beta dpo_beta orpo_alpha sample_packing chat_template output_dir "
    read += (
        "plugins reward_model train_on_inputs gradient_checkpointing save_steps eval_steps logging_steps special_tokens"
    )
    return [*" ".join(tables).split(), *read.split(), *_NUMBERS]


def _objective(ledger: Ledger) -> str:
    rl = ledger.get("rl")
    rl = rl if rl is None or isinstance(rl, str) else shown(rl)
    if ledger.on("reward_model"):
        if rl:
            raise ConfigError(f"{ledger.file}: rl and reward_model are both given; allowed: one of them")
        ledger.carry("reward_model", "objective.name", "rm")
        return "rm"
    if rl not in OBJECTIVES:
        names = ", ".join(str(one) for one in OBJECTIVES if one)
        raise ConfigError(f"{ledger.file}: rl = {shown(rl)}: not here; allowed: {names}, or none for SFT")
    ledger.carry("rl", "objective.name", OBJECTIVES[rl])
    ledger.judge("reward_model", "not needed", note="is off")
    return OBJECTIVES[rl]


def _stops(ledger: Ledger) -> list[str]:
    """What `utils/schemas/validation.py` of axolotl refuses of keys that have a meaning here."""

    def on(key: str) -> bool:
        return any(ledger.get(one) for one in ledger.under(key))

    rl, size, types = (ledger.get(key) for key in ("rl", "val_set_size", "dpo_loss_type"))
    saves, evaluates = ledger.get("save_strategy"), ledger.get("eval_strategy", ledger.get("evaluation_strategy"))
    weights, counts = ledger.get("dpo_loss_weights"), on("eval_steps") or on("eval_strategy")
    pairs = [*keys.EXCLUSIVE, *([("sample_packing", "rl")] if rl else ())]
    parts = ("micro_batch_size", "gradient_accumulation_steps")
    held_out = size == 0 and counts and not on("test_datasets") and evaluates != "no"
    differ = isinstance(types, list) and isinstance(weights, list) and len(types) != len(weights)
    stops = {
        f"save_steps with save_strategy = {saves}": on("save_steps") and saves not in (None, False, "", "steps"),
        f"eval_steps with eval_strategy = {evaluates}": on("eval_steps")
        and evaluates not in (None, False, "", "steps"),
        f"evals_per_epoch with eval_strategy = {evaluates}": on("evals_per_epoch")
        and evaluates not in (None, False, "", "steps"),
        "val_set_size = 0 with eval_steps or eval_strategy, and no test_datasets": held_out,
        "sample_packing with eval_table_size: needs eval_sample_packing: false": on("sample_packing")
        and on("eval_table_size")
        and ledger.get("eval_sample_packing") is not False,
        "batch_size: needs micro_batch_size or gradient_accumulation_steps": on("batch_size")
        and not any(map(on, parts)),
        "dpo_loss_weights: needs dpo_loss_type": rl == "dpo" and weights is not None and types is None,
        "dpo_loss_type and dpo_loss_weights: not as many weights as losses": rl == "dpo" and differ,
        "dpo_loss_type, dpo_loss_weights: for rl: dpo alone": rl != "dpo"
        and (types is not None or weights is not None),
        "warmup_ratio with rl: simpo: needs warmup_steps": rl == "simpo" and on("warmup_ratio"),
        "activation_offloading: needs gradient_checkpointing": on("activation_offloading")
        and not on("gradient_checkpointing"),
        f"tensor_parallel_size with optimizer = {ledger.get('optimizer')}": ledger.get("optimizer") in keys.EIGHT_BITS
        and ledger.whole("tensor_parallel_size", 1) > 1,
    }
    both = [f"{one} and {other} are both given" for one, other in pairs if on(one) and on(other)]
    return both + [text for text, is_so in stops.items() if is_so]


def _names(ledger: Ledger) -> None:
    for key, allowed in (("model_type", keys.MODELS), ("tokenizer_type", keys.TOKENIZERS)):
        if ledger.get(key) in allowed:
            ledger.judge(key, "kept", note="read from the model's directory")
        ledger.judge(key, "not supported", note="models of Mistral and Llama shape are here")
    for key in ledger.under("special_tokens"):
        below = key.partition(".")[2]
        if not ledger.given(key) or ledger.values[key] in ({}, []):
            ledger.judge(key, "not needed", note="is empty")
        elif below == "pad_token":
            ledger.judge(key, "not needed", note="masks come from lengths, never from the padding's id")
        elif (below, ledger.values[key]) in (("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")):
            ledger.judge(key, "kept", note="as in the tokenizer")
        ledger.judge(key, "not supported", note="the tokenizer is used as it is")
    for key in ("default_system_message", "eot_tokens"):
        ledger.judge(key, "not supported", note="changes prompts or where responses end")


def _batch(ledger: Ledger, devices: int | None, length: int, pairs: bool) -> None:
    split = 1
    for key in ("tensor_parallel_size", "context_parallel_size", "sequence_parallel_degree"):
        split *= ledger.whole(key, 1, low=1)
        ledger.judge(
            key, "kept", note="divides the devices that read different rows; mesh.tensor and mesh.context do so"
        )
    micro = ledger.whole("micro_batch_size", 1, low=1)
    accumulation = ledger.whole("gradient_accumulation_steps", 1, low=1)
    if ledger.given("batch_size"):
        if ledger.given("gradient_accumulation_steps"):
            text = "batch_size and gradient_accumulation_steps are both given; allowed: one of them"
            raise ConfigError(f"{ledger.file}: {text}, for the tool too")
        accumulation = max(1, ledger.whole("batch_size", low=1) // micro)
    shards, copies = (ledger.whole(key, 1, low=1) for key in ("dp_shard_size", "dp_replicate_size"))
    fixed = shards > 1 and copies > 1  # otherwise the other one takes all devices that remain
    of_file = shards * copies * split if fixed else None
    if of_file is not None:
        ledger.name_devices(("dp_shard_size", "dp_replicate_size"), of_file, devices)
    batch = Batch(micro, accumulation, training_keys.replicas(ledger, devices, of_file, split))
    in_rows = ledger.on("sample_packing") and not pairs
    names = ("micro_batch_size", "gradient_accumulation_steps", "batch_size")
    training_keys.write_batch(ledger, batch, names, in_rows=in_rows, length=length, pairs=pairs)
    if ledger.on("sample_packing") and pairs:
        ledger.judge("sample_packing", "ignored", note="the tool packs no pairs; here they are always packed")
    ledger.judge("sample_packing", "kept", f"batch.{'rows' if in_rows else 'examples'}", "rows are always packed here")
    if ledger.on("train_on_inputs") and not pairs:
        ledger.judge("train_on_inputs", "not supported", note="only responses count in the loss here")
    ledger.judge("train_on_inputs", "kept" if not pairs else "ignored", note="only responses count in the loss")


def _loss(ledger: Ledger, objective: str) -> None:
    beta_keys = ("trl.beta", "rl_beta", "dpo_beta", "orpo_alpha")
    used = next((key for key in beta_keys if ledger.given(key)), None)
    if objective in ("dpo", "orpo", "simpo"):
        value = float(ledger.number(used or "rl_beta", 0.1))
        ledger.carry(used or "rl_beta", "objective.beta", value)
        if used is None:
            ledger.defects.append(f"objective.beta: the file sets no beta; the default of TRL counts: {value}")
        if used == "orpo_alpha" and objective != "orpo":
            ledger.defects.append("orpo_alpha: sets the beta of this objective too")
    for key in beta_keys:
        if key != used or objective in ("sft", "rm"):
            reason = f"{used} comes before it" if used and objective not in ("sft", "rm") else "of another objective"
            if ledger.given(key) and objective not in ("sft", "rm"):
                ledger.defects.append(f"{key}: ignored, {reason}")
            ledger.judge(key, "ignored", note=reason)
    if objective == "dpo":
        dpo_loss(ledger, "dpo_loss_type", "dpo_loss_weights", "dpo_label_smoothing", ipo=ledger.get("rl") == "ipo")
    for key in ("dpo_loss_type", "dpo_loss_weights", "dpo_label_smoothing"):
        for one in ledger.under(key):
            ledger.judge(one, "ignored", note="of another objective")
    if objective == "orpo":
        ledger.carry("objective", "objective.nll", "prompt_and_response", note="as TRL averages it")
    if objective == "simpo":
        ledger.carry("simpo_gamma", "objective.gamma", float(ledger.number("simpo_gamma", 0.5)))
        ledger.carry("cpo_alpha", "objective.sft_weight", float(ledger.number("cpo_alpha", 1.0)))
    if objective == "rm":
        weight = float(ledger.number("center_rewards_coefficient", 0.0))
        ledger.carry("center_rewards_coefficient", "objective.center_weight", weight)
    for key in ("simpo_gamma", "cpo_alpha", "center_rewards_coefficient", *ledger.under("trl")):
        ledger.judge(key, "ignored", note="of another objective")


def dpo_loss(ledger: Ledger, type_key: str, weights_key: str, smoothing_key: str, *, ipo: bool = False) -> None:
    """The loss of a margin as TRL 1.16 names it: one of ours, alone or with `sft`, whose weight is ours too."""
    losses = ledger.get(type_key, "sigmoid")
    losses = re.split(r"[\s,]+", losses.strip("[]'\" ")) if isinstance(losses, str) else list(losses)
    losses = ["ipo"] if ipo else [str(one).strip("'\"") for one in losses]
    if ipo:
        ledger.judge(type_key, "ignored", note="rl: ipo comes before it")
    weights = ledger.get(weights_key) or [1.0] * len(losses)
    weights = weights if isinstance(weights, list) else re.split(r"[\s,]+", str(weights).strip("[] "))
    amounts = dict(zip(losses, [float(one) for one in weights], strict=False))
    sft = amounts.pop("sft", 0.0)
    loss = next(iter(amounts), "sigmoid")
    fits = loss in ("sigmoid", "ipo", "hinge", "robust") and list(amounts.values()) == [1.0]
    if not fits:
        ledger.write("objective.loss", "sigmoid")
        for key in (*ledger.under(type_key), *ledger.under(weights_key)):
            ledger.judge(
                key, "not supported", note="losses here: sigmoid, ipo, hinge or robust, with the weight 1, and sft"
            )
        loss = "sigmoid"
    if sft:
        ledger.judge(type_key, "kept", f"objective.loss = {loss}, objective.sft_weight = {sft:g}")
        ledger.carry((type_key, weights_key), "objective.sft_weight", sft)
    ledger.carry(type_key, "objective.loss", loss)
    for key in ledger.under(weights_key):
        ledger.judge(key, "kept", "objective.sft_weight" if sft else "objective.loss")
    smoothing = float(ledger.number(smoothing_key, 0.0))
    if loss == "robust":
        ledger.carry(smoothing_key, "objective.label_smoothing", smoothing)
    elif smoothing:
        before = f"; before, it used it: set objective.label_smoothing={smoothing:g} for that"
        text = f"{smoothing_key} = {smoothing:g}: the loss {loss} of TRL 1.16 ignores it"
        ledger.defects.append(text + (before if loss == "sigmoid" else ""))
        ledger.judge(smoothing_key, "ignored", note=f"the loss {loss} of TRL 1.16 has no label smoothing")
    ledger.judge(smoothing_key, "kept", "objective.label_smoothing")


def _padding_counts(ledger: Ledger) -> bool:
    """Whether padding counts in ORPO's NLL here too, as in the versions that have `orpo.chat_template`."""
    types = [ledger.values[key] for key in ledger.under("datasets") if key.endswith(".type")]
    if "orpo.chat_template" not in types:
        return False
    key, switch = "pad_to_sequence_len", "compat.orpo_padding = axolotl"
    same = ledger.on(key) and ledger.on("flash_attention") and ledger.whole("micro_batch_size", 1) == 1
    same = same and ledger.values.get("special_tokens.pad_token") in (None, "</s>")  # here padding is EOS
    if not same or ledger.config["batch"]["overlong"] == "truncate":
        ledger.by_hand.append(
            f"NLL: versions with orpo.chat_template count padding in its mean; {switch} does so, for files with "
            "flash_attention, pad_to_sequence_len, micro_batch_size 1, padding that is EOS, and without truncation"
        )
        return False
    if not ledger.equal:
        note = f"versions with orpo.chat_template count padding in the mean of the NLL; --compat sets {switch}"
        ledger.judge(key, "approximated", "", note)
        return False
    ledger.write("compat.orpo_padding", "axolotl")
    ledger.judge(key, "kept", switch, "padding counts in the mean of the NLL")
    return True


def _rates(ledger: Ledger) -> None:
    rate = schedules.learning(ledger, "learning_rate", 0.0)
    more = {}
    if ledger.given("cosine_min_lr_ratio") and ledger.get("lr_scheduler", "cosine") == "cosine":
        more["min_lr_ratio"] = ledger.number("cosine_min_lr_ratio")
    name = schedules.schedule(ledger, "lr_scheduler", "cosine", rate, kwargs_key="lr_scheduler_kwargs", more=more)
    if name != "cosine":
        ledger.judge("cosine_min_lr_ratio", "ignored", note="of the schedule cosine alone")
    ledger.judge("cosine_min_lr_ratio", "kept", "schedule.min_rate_ratio")
    steps, ratio = ledger.whole("warmup_steps"), ledger.number("warmup_ratio", high=1)
    note = "the tool rounds the steps down" if ratio is not None and not steps else ""
    if steps is None and ratio is None:
        ratio, note = 0.03, "the tool takes at most 100 steps and rounds down"
    elif steps == 1:
        steps, note = 2, "the tool takes 2 for 1"
    if steps and ratio:
        ledger.judge("warmup_ratio", "ignored", note="the tool takes one of the two; here warmup_steps counts")
    schedules.warmup(ledger, name, "warmup_steps", "warmup_ratio", steps=steps, ratio=ratio, note=note)
    schedules.length_of_run(ledger, "num_epochs", 1.0, "max_steps")


def _precision(ledger: Ledger) -> None:
    wide = ledger.on("bf16") or ledger.on("bfloat16")
    wide = wide or not any(ledger.given(key) for key in ("bf16", "bfloat16", "fp16", "float16", "float32"))
    names = ("bf16", "bfloat16", "float32")
    training_keys.weights_dtype(ledger, names, "bfloat16" if wide else "float32", rounded=wide)
    of_fsdp = [f"fsdp_config.{prefix}activation_checkpointing" for prefix in ("", "fsdp_")]
    own, by_fsdp = ledger.get("gradient_checkpointing"), any(ledger.on(key) for key in of_fsdp)
    offloads = own in ("offload", "offload_disk", "unsloth")
    kept = "offload" if offloads else "full" if own or by_fsdp else "none"
    if by_fsdp and own is False:
        ledger.judge("gradient_checkpointing", "ignored", note="fsdp_config turns it on")
    ledger.carry("gradient_checkpointing", "remat", kept)
    for key in of_fsdp:
        if ledger.on(key):
            ledger.judge(key, "kept", f"remat = {kept}")


def _intervals(ledger: Ledger) -> None:
    for key, per_epoch, ours in (
        ("save_steps", "saves_per_epoch", "checkpoint.every_steps"),
        ("eval_steps", "evals_per_epoch", "eval.every_steps"),
    ):
        number = ledger.number(key)
        if number and number >= 1:
            ledger.carry(key, ours, int(number))
            if ledger.on(per_epoch):
                ledger.judge(per_epoch, "ignored", note=f"the tool takes one of the two; here {key} counts")
        for other in (key, per_epoch):
            if ledger.on(other):
                ledger.judge(
                    other, "approximated", ours, f"needs the number of steps: set {ours} (`janus plan` counts them)"
                )
            ledger.judge(other, "not needed", note="is off")
    for key in ("save_strategy", "eval_strategy", "evaluation_strategy"):
        ledger.judge(key, "approximated", note="checkpoint.every_steps and eval.every_steps count steps")
    ledger.carry("save_total_limit", "checkpoint.keep", ledger.whole("save_total_limit", 4, low=1))
    if ledger.given("eval_on_start"):
        ledger.carry("eval_on_start", "eval.at_start", ledger.on("eval_on_start"))
    every = ledger.number("logging_steps")
    if every and every >= 1:
        ledger.carry("logging_steps", "logging.every_steps", int(every))
    ledger.judge("logging_steps", "approximated", note="a share of the steps; logging.every_steps counts them")
    wandb = ledger.on("use_wandb") or (ledger.on("wandb_project") and ledger.get("use_wandb") is None)
    if wandb:
        ledger.write("logging.wandb", True)
        ledger.by_hand.append("wandb: project and name come from WANDB_PROJECT and WANDB_NAME in the environment")
    ledger.judge("use_wandb", "kept", "logging.wandb")
    if ledger.given("use_tensorboard"):
        ledger.carry("use_tensorboard", "logging.tensorboard", ledger.on("use_tensorboard"))
    patience = ledger.number("early_stopping_patience")
    saves, evaluates = ledger.number("save_steps"), ledger.number("eval_steps")
    if patience and saves and evaluates and saves % evaluates:
        ledger.defects.append(
            f"early_stopping_patience: save_steps = {shown(saves)} is no multiple of eval_steps = {shown(evaluates)}: "
            "the tool stops"
        )
    if patience and not (ledger.on("save_steps") and ledger.on("eval_steps")):
        ledger.defects.append("early_stopping_patience: needs save_steps and eval_steps; without them the tool stops")
        ledger.judge("early_stopping_patience", "ignored", note="needs save_steps and eval_steps")
    elif patience and "every_steps" in ledger.config.get("eval", {}):
        ledger.carry("early_stopping_patience", "eval.stop_after", int(patience))
    elif patience:
        ledger.by_hand.append(f"eval.stop_after: {int(patience)} evaluations; set it with eval.every_steps")
        ledger.judge("early_stopping_patience", "approximated", "eval.stop_after", "by hand")
    ledger.judge("early_stopping_patience", "not needed", note="is off")
