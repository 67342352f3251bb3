"""OpenRLHF's command lines: train_sft, train_rm, train_dpo, of the versions 0.2 to 0.11."""

from typing import Any

from janus_jax.config.imports import schedules, training_keys
from janus_jax.config.imports.ledger import Build, Ledger, shown
from janus_jax.config.imports.training_keys import ATTENTION, HUB, LOGGING, LORA, MESH, QUANTIZED, SPEED, Batch
from janus_jax.errors import ConfigError

TOOL = "OpenRLHF"

OBJECTIVES = {"train_sft": "sft", "train_rm": "rm", "train_dpo": "dpo"}

_RENAMED = (
    "save_path=ckpt.output_dir save_steps=ckpt.save_steps save_hf_ckpt=ckpt.save_hf "
    "disable_ds_ckpt=ckpt.disable_ds ckpt_path=ckpt.path max_ckpt_num=ckpt.max_num max_ckpt_mem=ckpt.max_mem "
    "load_checkpoint=ckpt.load_enable logging_steps=logger.logging_steps use_wandb=logger.wandb.key "
    "wandb_org=logger.wandb.org wandb_group=logger.wandb.group wandb_project=logger.wandb.project "
    "wandb_run_name=logger.wandb.run_name use_tensorboard=logger.tensorboard_dir eval_steps=eval.steps "
    "eval_dataset=eval.dataset eval_split=eval.split micro_train_batch_size=train.micro_batch_size "
    "train_batch_size=train.batch_size seed=train.seed max_epochs=train.max_epochs "
    "full_determinism=train.full_determinism_enable zero_stage=ds.zero_stage param_dtype=ds.param_dtype "
    "zpg=ds.zpg adam_offload=ds.adam_offload overlap_comm=ds.overlap_comm "
    "attn_implementation=ds.attn_implementation use_liger_kernel=ds.use_liger_kernel deepcompile=ds.deepcompile "
    "grad_accum_dtype=ds.grad_accum_dtype ds_tensor_parallel_size=ds.tensor_parallel_size "
    "use_ds_universal_ckpt=ds.use_universal_ckpt value_head_prefix=ds.value_head_prefix "
    "ring_attn_size=ds.ring_attn_size ring_head_stride=ds.ring_attn_head_stride "
    "packing_samples=ds.packing_samples load_in_4bit=ds.load_in_4bit lora_rank=ds.lora.rank "
    "lora_alpha=ds.lora.alpha lora_dropout=ds.lora.dropout target_modules=ds.lora.target_modules "
    "gradient_checkpointing=model.gradient_checkpointing_enable "
    "gradient_checkpointing_use_reentrant=model.gradient_checkpointing_reentrant "
    "aux_loss_coef=model.aux_loss_coef pretrain=model.model_name_or_path pretrain_mode=model.pretrain_mode_enable "
    "beta=model.beta ipo=model.ipo_enable label_smoothing=model.label_smoothing nll_loss_coef=model.nll_loss_coef "
    "loss=model.loss_type margin_loss=model.margin_loss_enable compute_fp32_loss=model.compute_fp32_loss_enable "
    "ref_pretrain=ref.model_name_or_path ref_offload=ref.offload learning_rate=adam.lr adam_betas=adam.betas "
    "adam_eps=adam.eps l2=adam.weight_decay dataset=data.dataset dataset_probs=data.dataset_probs "
    "dataset_split=data.dataset_split max_samples=data.max_samples multiturn=data.multiturn "
    "input_key=data.input_key output_key=data.output_key prompt_key=data.prompt_key chosen_key=data.chosen_key "
    "rejected_key=data.rejected_key input_template=data.input_template "
    "apply_chat_template=data.apply_chat_template tokenizer_chat_template=data.tokenizer_chat_template "
    "max_len=data.max_len disable_fast_tokenizer=data.disable_fast_tokenizer "
    "dataloader_num_workers=data.dataloader_num_workers"
)
DOTTED: dict[str, str] = {pair.partition("=")[0]: pair.partition("=")[2] for pair in _RENAMED.split()}
"""Name of an option until 0.10.1 -> its name since."""

_OLD = frozenset(
    "bf16 flash_attn disable_trace_cache bos_token eos_token pad_token unk_token head_prefix load_model".split()
)
_NEW = frozenset(
    "adam_betas packing_samples lr_warmup_ratio value_head_prefix eval_dataset attn_implementation param_dtype "
    "min_lr_ratio nll_loss_coef use_liger_kernel apply_chat_template ref_pretrain dataset_split overlap_comm".split()
)

DEFAULTS: dict[str, dict[str, Any]] = {
    "0.2": {
        "lr_scheduler": "cosine", "beta": 0.01, "input_template": "Human:\n{}\nAssistant:\n",
        "sft": (2e-6, 512, 8, 2), "rm": (1e-5, 512, 8, 1), "dpo": (1e-5, 512, 8, 1),
    },
    "0.9": {
        "lr_scheduler": "cosine_with_min_lr", "beta": 0.1, "input_template": None,
        "sft": (5e-6, 2048, 8, 2), "rm": (9e-6, 512, 1, 1), "dpo": (1e-5, 512, 8, 1),
    },
}  # fmt: skip
"""Version -> its defaults; by objective: learning rate, length, micro batch, epochs."""

_NOT_NEEDED = {
    ATTENTION: "flash_attn attn_implementation",
    MESH: "zero_stage zpg adam_offload local_rank ring_head_stride overlap_comm ref_offload grad_accum_dtype",
    LOGGING: "wandb_org wandb_group wandb_project wandb_run_name use_tensorboard",
    HUB: "use_ms",
    SPEED: "gradient_checkpointing_use_reentrant disable_fast_tokenizer disable_trace_cache deepcompile "
    "dataloader_num_workers use_liger_kernel torch_compile full_determinism ds.experts_implementation",
    "which files the tool reads and writes": "ckpt_path max_ckpt_mem load_checkpoint save_hf_ckpt disable_ds_ckpt "
    "use_ds_universal_ckpt universal_ckpt save_hf_model load_model",
    "rows are always packed here, and segments see only themselves": "packing_samples",
    "the loss is always float32 here": "compute_fp32_loss",
    "margins in the data are always used here; without a column `margin` they are 0": "margin_loss",
    "export.layout = openrlhf writes the name value_head": "value_head_prefix head_prefix",
}
_UNSUPPORTED = {
    LORA: "lora_rank",
    QUANTIZED: "load_in_4bit",
    "models with experts are not here": "aux_loss_coef balancing_loss_coef",
    "every token counts in the loss there, responses alone here": "pretrain_mode",
    "a record is one exchange here": "multiturn",
    "the tokenizer is used as it is": "bos_token eos_token pad_token unk_token",
}
_LOADERS = ("json", "parquet", "arrow")
_OTHER_LOADERS = ("csv", "text", "xml", "pandas", "webdataset")
"""Before an @ in a data set's name: how the files behind it are read, here too, or by datasets alone."""
_LORA_DETAILS = ("lora_alpha", "lora_dropout", "target_modules")
_MUON = "muon.lr muon.momentum muon.ns_steps muon.nesterov muon.no_nesterov"


def convert(ledger: Ledger, devices: int | None, name: str, trainer: str) -> str:
    """As `axolotl.convert`. `trainer`: train_sft, train_rm or train_dpo."""
    if trainer not in OBJECTIVES:
        raise ConfigError(f"{ledger.file}: no command of train_sft, train_rm or train_dpo")
    objective = OBJECTIVES[trainer]
    dotted = any(key in ledger.values for key in DOTTED.values())
    old = not dotted and bool(_OLD & ledger.values.keys()) and not _NEW & ledger.values.keys()
    version = "0.2" if old else "0.9"
    ledger.tool = f"{TOOL} {'0.11' if dotted else version}"
    if old:
        ledger.defects.append(
            "the options are those of OpenRLHF 0.2 to 0.3.4: its defaults count (the rate falls to 0, for DPO beta is "
            "0.01); later versions, and scripts that were changed, have others"
        )
    rate, length, micro, epochs = DEFAULTS[version][objective]
    _start(ledger, objective, name)
    length = ledger.whole(_at(ledger, "max_len"), length, low=1)
    _batch(ledger, devices, micro, length, objective)
    ledger.carry(_at(ledger, "max_len"), "batch.max_sequence_length", length)
    ledger.write("batch.overlong", "truncate")
    _loss(ledger, objective, version)
    _rates(ledger, rate, version, objective)
    schedules.length_of_run(ledger, _at(ledger, "max_epochs"), epochs)
    _optimizer(ledger)
    wide = ledger.given("bf16") or not old
    dtype = ledger.word(_at(ledger, "param_dtype"), "bf16", ("bf16", "fp16"))
    if dtype == "fp16":
        ledger.judge(_at(ledger, "param_dtype"), "not supported", note="half precision of 5 exponent bits is not here")
    keys = (_at(ledger, "param_dtype"), "bf16")
    training_keys.weights_dtype(ledger, keys, "bfloat16" if wide else "float32", rounded=False)
    recompute = ledger.on(_at(ledger, "gradient_checkpointing"))
    ledger.carry(_at(ledger, "gradient_checkpointing"), "remat", "full" if recompute else "none")
    ledger.carry(
        _at(ledger, "seed"), "run.seed", ledger.whole(_at(ledger, "seed"), 42), note="the order of data differs"
    )
    if ledger.equal and objective == "sft":
        ledger.write("compat.token_mean", "per_microbatch")
    _data(ledger, objective, name, version)
    _intervals(ledger)
    for key in (_at(ledger, one) for one in _LORA_DETAILS):
        on = ledger.on(_at(ledger, "lora_rank"))
        ledger.judge(key, "not supported" if on else "ignored", note=LORA if on else "lora_rank is 0")
    for table in (_UNSUPPORTED, _NOT_NEEDED):
        full = {reason: " ".join(_at(ledger, one) for one in names.split()) for reason, names in table.items()}
        ledger.unsupported(full, {}) if table is _UNSUPPORTED else ledger.not_needed(full)
    ledger.rest([*DOTTED, *DOTTED.values(), *" ".join(_NOT_NEEDED.values()).split()], "stops")
    return objective


def _at(ledger: Ledger, name: str) -> str:
    """The option as this command writes it."""
    dotted = DOTTED.get(name, name)
    return dotted if dotted in ledger.values else name


def _start(ledger: Ledger, objective: str, name: str) -> None:
    ledger.write("objective.name", objective)
    training_keys.directory(ledger, _at(ledger, "save_path"), name)
    training_keys.start(ledger, _at(ledger, "pretrain"))
    reference = _at(ledger, "ref_pretrain")
    if objective == "dpo" and ledger.given(reference) and ledger.get(reference) != ledger.get(_at(ledger, "pretrain")):
        weights = training_keys.known(ledger, reference, "reference.from", str(ledger.get(reference)))
        ledger.carry(reference, "reference.from", weights)
    ledger.judge(reference, "kept" if objective == "dpo" else "ignored", "", "the initial weights, as here")


def _batch(ledger: Ledger, devices: int | None, micro: int, length: int, objective: str) -> None:
    ring, tensor = _at(ledger, "ring_attn_size"), _at(ledger, "ds_tensor_parallel_size")
    split = ledger.whole(ring, 1, low=1) * ledger.whole(tensor, 1, low=1)
    for key in (ring, tensor):
        ledger.judge(
            key, "kept", note="divides the devices that read different rows; mesh.context and mesh.tensor do so"
        )
    micro_key, total_key = _at(ledger, "micro_train_batch_size"), _at(ledger, "train_batch_size")
    micro, total = ledger.whole(micro_key, micro, low=1), ledger.whole(total_key, 128, low=1)
    readers = training_keys.replicas(ledger, devices, None, split, needed=False)
    accumulation = max(1, total // (micro * readers))
    if micro * readers * accumulation != total:
        ledger.defects.append(
            f"{total_key} = {total}: is no multiple of {micro_key} x devices = {micro} x {readers}; the tool computes "
            f"{micro * readers * accumulation} examples a step"
        )
    batch = Batch(micro, accumulation, readers)
    training_keys.write_batch(ledger, batch, (total_key,), in_rows=False, length=length, pairs=objective != "sft")
    ledger.judge(micro_key, "kept", "batch.microbatches", batch.product)


def _loss(ledger: Ledger, objective: str, version: str) -> None:
    keys = {name: _at(ledger, name) for name in ("beta", "ipo", "label_smoothing", "nll_loss_coef", "loss")}
    if objective == "dpo":
        if not ledger.given(keys["beta"]):
            value = DEFAULTS[version]["beta"]
            ledger.defects.append(f"objective.beta: the command sets no beta; the default counts: {value}")
        beta = float(ledger.number(keys["beta"], DEFAULTS[version]["beta"]))
        ledger.carry(keys["beta"], "objective.beta", beta)
        smoothing = float(ledger.number(keys["label_smoothing"], 0.0))
        ipo = ledger.on(keys["ipo"])
        if ipo:
            reason = "OpenRLHF compares sums of log-probs, ours compares them per token"
            ledger.write("objective.loss", "ipo")
            ledger.judge(keys["ipo"], "not supported", "objective.loss = ipo", reason)
        else:
            ledger.carry(keys["ipo"], "objective.loss", "sigmoid")
        if smoothing and ipo:
            ledger.defects.append(f"{keys['label_smoothing']}: --ipo ignores it")
            ledger.judge(keys["label_smoothing"], "ignored", note="--ipo has no label smoothing")
        else:
            ledger.carry(keys["label_smoothing"], "objective.label_smoothing", smoothing)
        ledger.carry(keys["nll_loss_coef"], "objective.sft_weight", float(ledger.number(keys["nll_loss_coef"], 0.0)))
    if objective == "rm":
        loss = ledger.get(keys["loss"], "sigmoid")
        if loss != "sigmoid":
            note = "log(1 + exp(rejected - chosen)), the same function" if loss == "logexp" else "taken as logexp there"
            ledger.judge(keys["loss"], "kept", "objective.name = rm", note)
        ledger.judge(keys["loss"], "kept", "objective.name = rm")


def _rates(ledger: Ledger, rate: float, version: str, objective: str) -> None:
    rate = schedules.learning(ledger, _at(ledger, "learning_rate"), rate)
    low_is_used = version == "0.9" and (objective == "dpo" or ledger.tool.endswith("0.11"))
    low = float(ledger.number("min_lr_ratio", 0.1)) if low_is_used else 0.1
    name = str(ledger.get("lr_scheduler", DEFAULTS[version]["lr_scheduler"]))
    more = {"min_lr": low * rate} if name == "cosine_with_min_lr" else {}
    schedules.schedule(ledger, "lr_scheduler", DEFAULTS[version]["lr_scheduler"], rate, more=more)
    if "0.9" in ledger.tool and name in ("cosine", "linear", "polynomial", "cosine_with_restarts", "inverse_sqrt"):
        ledger.defects.append(
            f"lr_scheduler = {name}: OpenRLHF 0.8.5 to 0.10 passes min_lr to every schedule; transformers has no "
            f"such argument for {name}: the tool stops with a TypeError"
        )
    if ledger.given("min_lr_ratio") and not low_is_used:
        ledger.defects.append("min_lr_ratio: this command of OpenRLHF 0.9 has no such option and stops")
        ledger.judge("min_lr_ratio", "ignored", note="no option of this command")
    if name == "cosine_with_min_lr":
        ledger.carry("min_lr_ratio", "schedule.min_rate_ratio", low)
    ledger.judge("min_lr_ratio", "ignored", note="of the schedule cosine_with_min_lr")
    ratio = float(ledger.number("lr_warmup_ratio", 0.03, high=1))
    schedules.warmup(ledger, name, "warmup", "lr_warmup_ratio", steps=None, ratio=ratio)


def _optimizer(ledger: Ledger) -> None:
    optimizer = ledger.get("optim", "adam")
    if optimizer != "adam":
        ledger.judge("optim", "not supported", "optimizer.name = adamw", "AdamW is the only optimizer here")
    ledger.carry("optim", "optimizer.name", "adamw")
    for key in _MUON.split():
        ledger.judge(key, "not supported" if optimizer != "adam" else "ignored", note="of the optimizer muon")
    key = _at(ledger, "adam_betas")
    betas = ledger.get(key, [0.9, 0.95])
    try:
        b1, b2 = (float(one) for one in betas)
    except (TypeError, ValueError):
        raise ConfigError(f"{ledger.file}: {key} = {shown(betas)}: allowed: two numbers") from None
    ledger.carry(key, "optimizer.b1", b1)
    ledger.carry(key, "optimizer.b2", b2)
    eps, decay = _at(ledger, "adam_eps"), _at(ledger, "l2")
    ledger.carry(eps, "optimizer.eps", float(ledger.number(eps, 1e-8)))
    ledger.carry(decay, "optimizer.weight_decay", float(ledger.number(decay, 0.0)))
    training_keys.clipping(ledger, "max_norm")


def _data(ledger: Ledger, objective: str, name: str, version: str) -> None:
    key, shares = _at(ledger, "dataset"), _at(ledger, "dataset_probs")
    text = str(ledger.get(key, training_keys.BY_HAND))
    sources = [text] if training_keys.is_computed(text) else [part.strip() for part in text.split(",")]
    weights = [part for part in str(ledger.get(shares, "")).split(",") if part]
    if not ledger.given(key):
        ledger.by_hand.append("data.dir: the command names no data set")
    if weights and len(weights) != len(sources):
        ledger.defects.append(f"{shares}: {len(weights)} shares for {len(sources)} data sets: the tool stops")
        ledger.judge(shares, "ignored", note="not one for each data set")
        weights = []
    template = _template(ledger, objective, version)
    folders = [f"data/{name}" if len(sources) == 1 else f"data/{name}_{one + 1}" for one in range(len(sources))]
    for source, folder in zip(sources, folders, strict=True):
        source = training_keys.known(ledger, key, f"--source of {folder}", source)
        ledger.builds.append(Build(objective, _source(ledger, key, source), folder, template))
    many = _at(ledger, "max_samples")
    if len(folders) > 1:
        parts = [
            {"dir": folder} | ({"weight": float(weights[at])} if weights else {}) for at, folder in enumerate(folders)
        ]
        ledger.write("data.mixture", parts)
        if weights:
            ledger.by_hand.append(
                "data.examples: an epoch of the tool ends at max_samples examples, or earlier when every data set has "
                "been read (in the oldest versions: the first); set data.examples to that number"
            )
        if weights and ledger.given(many):
            note = "the most examples of an epoch"
            ledger.carry(many, "data.examples", ledger.whole(many, low=1), verdict="approximated", note=note)
        ledger.judge(shares, "approximated", "data.mixture", "shares are exact here, drawn at random there")
    else:
        ledger.write("data.dir", folders[0])
        ledger.judge(shares, "not needed", note="one data set")
    if ledger.given(many) and many not in ledger.rows:
        ledger.by_hand.append(f"data: the tool reads the first {shown(ledger.get(many))} records; cut the source so")
    ledger.judge(many, "approximated", "", "cut the source")
    ledger.judge(key, "approximated", ", ".join(folders), "built once, before training")
    for one in ("dataset_split", "train_split"):
        at = _at(ledger, one)
        if ledger.get(at, "train") != "train":
            ledger.carry(at, "data.split", training_keys.split_of(ledger, at, str(ledger.get(at)), "train"))
        ledger.judge(at, "kept", "data.split")
    _columns(ledger, objective, version)


def _source(ledger: Ledger, key: str, text: str) -> str:
    """The `--source` for a data set, which may be LOADER@FOLDER or NAME@FOLDER."""
    loader, _, place = text.partition("@")
    if not place:
        return loader
    if loader == "jsonl":
        ledger.defects.append(
            f"{key} = {text}: datasets has no loader jsonl, and the tool stops; json reads .jsonl too"
        )
    elif loader in _OTHER_LOADERS:
        ledger.by_hand.append(
            f"data: builds read no {loader}; write the records of {place} as JSONL and build from that"
        )
    elif loader not in _LOADERS:
        ledger.by_hand.append(f"data: of {loader} the tool reads the folder {place} alone; build from that")
        return loader
    return place


def _columns(ledger: Ledger, objective: str, version: str) -> None:
    prompt = "input" if objective == "rm" else "prompt"
    wanted = {"prompt_key": prompt, "chosen_key": "chosen", "rejected_key": "rejected",
              "input_key": "prompt", "output_key": "output"}  # fmt: skip
    chat = ledger.on(_at(ledger, "apply_chat_template"))
    if chat and objective == "sft" and not ledger.given(_at(ledger, "output_key")):
        wanted["input_key"] = "messages"
    for name, column in wanted.items():
        key = _at(ledger, name)
        read = ledger.get(key, "input" if name == "input_key" and objective == "sft" and version != "0.2" else None)
        if column in ("prompt", "input") and read is not None and not chat:
            systems = ", ".join((*training_keys.COLUMNS["system"], *training_keys.OTHER_COLUMNS["system"]))
            ledger.by_hand.append(
                f"system messages: the tool reads {shown(read)} alone; janus data build reads {systems} too: leave "
                "these columns out"
            )
        training_keys.column(ledger, key, column)


def _template(ledger: Ledger, objective: str, version: str) -> str:
    key, chat = _at(ledger, "input_template"), _at(ledger, "apply_chat_template")
    own = _at(ledger, "tokenizer_chat_template")
    text = ledger.get(
        key, DEFAULTS[version]["input_template"] or ("User: {}\nAssistant: " if objective == "sft" else None)
    )
    if ledger.on(chat):
        ledger.by_hand.append(
            "prompts: the tokenizer's own chat template; check that --template mistral-inst writes it"
        )
        ledger.judge(chat, "approximated", "--template mistral-inst", "compare it with the tokenizer's")
        ledger.judge(own, "approximated", "", "chat templates of your own are not here")
        ledger.judge(key, "ignored", note="--apply_chat_template comes before it")
        return "mistral-inst"
    ledger.judge(own, "ignored", note="without --apply_chat_template")
    if isinstance(text, str) and "{}" not in text:
        ledger.defects.append(f"{key} = {shown(text)}: has no {{}}: the tool drops it")
        ledger.judge(key, "ignored", note="has no {}")
        text = None
    if isinstance(text, str) and "\\n" in text:
        ledger.defects.append(
            f"{key}: holds a backslash and an n where a line break is meant ($'...' makes one in bash)"
        )
        text = text.replace("\\n", "\n")
    if objective != "sft" and not ledger.given(_at(ledger, "prompt_key")):
        if ledger.given(key):
            ledger.defects.append(f"{key}: the tool uses it only with --prompt_key")
        ledger.judge(key, "ignored", note="without --prompt_key")
        return "plain"
    if text is None:
        return "plain"
    template = training_keys.template_of(text.replace("{}", "{instruction}"))
    if template is None:
        where = f"the default of {ledger.tool}, {shown(text)}," if not ledger.given(key) else f"{key} = {shown(text)}"
        template = training_keys.own_template(ledger, where)
    ledger.judge(key, "approximated" if template == "plain" else "kept", f"--template {template}")
    return template


def _intervals(ledger: Ledger) -> None:
    for name, ours in (("save_steps", "checkpoint.every_steps"), ("logging_steps", "logging.every_steps")):
        key = _at(ledger, name)
        if (number := ledger.number(key, low=-1)) and number > 0:
            ledger.carry(key, ours, int(number))
        ledger.judge(key, "not needed", note="is off")
    ledger.carry(_at(ledger, "max_ckpt_num"), "checkpoint.keep", ledger.whole(_at(ledger, "max_ckpt_num"), 3, low=1))
    every, source, split = (_at(ledger, one) for one in ("eval_steps", "eval_dataset", "eval_split"))
    held_out = ledger.on(source)
    if held_out:
        ledger.by_hand.append(f"held-out data: build {shown(ledger.get(source))} too, and set data.eval_dir")
    if (number := ledger.number(every, low=-1)) and number > 0:
        ledger.carry(every, "eval.every_steps", int(number))
        ledger.by_hand.append("held-out data: eval.every_steps needs a split; data.eval_split names it (validation)")
    ledger.judge(every, "not needed", note="is off")
    ledger.judge(source, *(("approximated", "data.eval_dir", "by hand") if held_out else ("not needed", "", "is off")))
    ledger.judge(split, "approximated", "data.eval_split", "by hand")
    if ledger.on(_at(ledger, "use_wandb")):
        ledger.carry(_at(ledger, "use_wandb"), "logging.wandb", True, note="the key comes from WANDB_API_KEY")
    ledger.judge(_at(ledger, "use_wandb"), "not needed", note="is off")
