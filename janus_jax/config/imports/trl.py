"""TRL 1.16: what `trl sft`, `dpo`, `reward` and the ORPO script take, as YAML, JSON or a command line."""

from typing import Any

from janus_jax.config.imports import schedules, training_keys
from janus_jax.config.imports import trl_keys as keys
from janus_jax.config.imports.axolotl import dpo_loss
from janus_jax.config.imports.ledger import Build, Ledger, shown
from janus_jax.config.imports.source import accelerate_devices
from janus_jax.config.imports.training_keys import Batch
from janus_jax.errors import ConfigError

TOOL = "TRL 1.16"

_NUMBERS: dict[str, tuple[str, float | int]] = {
    "adam_beta1": ("optimizer.b1", 0.9),
    "adam_beta2": ("optimizer.b2", 0.999),
    "adam_epsilon": ("optimizer.eps", 1e-8),
    "weight_decay": ("optimizer.weight_decay", 0.0),
    "seed": ("run.seed", 42),
}
_RATES = {"sft": 2e-5, "dpo": 1e-6, "orpo": 1e-6, "rm": 1e-4}
_OVERLONG = {"sft": "truncate", "dpo": "truncate", "orpo": "truncate", "rm": "drop"}


def convert(ledger: Ledger, devices: int | None, name: str, trainer: str) -> str:
    """As `axolotl.convert`. `trainer`: sft, dpo, orpo or rm, or nothing if the file does not say it."""
    devices = _launched(ledger, devices)
    objective = trainer or _guessed(ledger)
    if objective not in _RATES:
        raise ConfigError(f"{ledger.file}: objective {objective}: not here; allowed: {', '.join(_RATES)}")
    ledger.write("objective.name", objective)
    training_keys.directory(ledger, "output_dir", name)
    training_keys.start(ledger, "model_name_or_path")
    _size(ledger, devices, objective)
    _loss(ledger, objective)
    _rates(ledger, objective)
    training_keys.optimizer(ledger, "optim", "adamw_torch_fused")
    training_keys.plain_numbers(ledger, _NUMBERS)
    training_keys.clipping(ledger, "max_grad_norm")
    _precision(ledger)
    _intervals(ledger)
    _data(ledger, objective, name)
    on = ledger.on("use_peft")
    for key in [one for first in keys.LORA_DETAILS.split() for one in ledger.under(first)]:
        ledger.judge(key, "not supported" if on else "ignored", note=training_keys.LORA if on else "use_peft is off")
    for key in (one for first in keys.OF_OBJECTIVES.split() for one in ledger.under(first)):
        ledger.judge(key, "ignored", note="of another trainer")
    if ledger.get("eos_token") == "</s>":
        ledger.judge("eos_token", "kept", note="as in the tokenizer")
    ledger.unsupported(keys.UNSUPPORTED, keys.NEUTRAL)
    ledger.not_needed(keys.NOT_NEEDED)
    ledger.rest(keys.known(), "stops")
    return objective


def _launched(ledger: Ledger, devices: int | None) -> int | None:
    """The devices: those given, or those of options that `trl` gives to accelerate; None: there are none."""
    key = "num_processes" if ledger.given("num_processes") else "accelerate_config"
    number = ledger.whole("num_processes", low=1)
    number = number or accelerate_devices(ledger.file, ledger.get("accelerate_config"), of_trl=True)
    if number is not None:
        ledger.name_devices([key], number, devices)
    return devices or number


def _guessed(ledger: Ledger) -> str:
    """The objective, from keys that only one trainer has."""
    given = {key.partition(".")[0].partition("[")[0] for key in ledger.values}
    fitting = [name for name, marks in keys.MARKS.items() if given & marks]
    if len(fitting) != 1:
        reason = "does not say its trainer" if not fitting else f"has keys of {' and '.join(fitting)}"
        raise ConfigError(f"{ledger.file}: {reason}; give --objective {', '.join(_RATES)}")
    return fitting[0]


def _size(ledger: Ledger, devices: int | None, objective: str) -> None:
    pairs, split = objective != "sft", 1
    for key in ("parallelism_config.tp_size", "parallelism_config.cp_size", "parallelism_config.sp_size"):
        split *= ledger.whole(key, 1, low=1)
        ledger.judge(
            key, "kept", note="divides the devices that read different rows; mesh.tensor and mesh.context do so"
        )
    micro = ledger.whole("per_device_train_batch_size", 8, low=1)
    accumulation = ledger.whole("gradient_accumulation_steps", 1, low=1)
    batch = Batch(micro, accumulation, training_keys.replicas(ledger, devices, None, split))
    length_key = "max_seq_length" if ledger.given("max_seq_length") else "max_length"
    if length_key == "max_seq_length":
        ledger.defects.append("max_seq_length: TRL 1.16 has no such key and stops; max_length is today's name")
    length = ledger.whole(length_key, 1024, low=1)
    if "max_length" in ledger.values and not ledger.given(length_key):
        ledger.by_hand.append(f"batch.max_sequence_length: the file sets no limit; {length} is written")
    packing = not pairs and ledger.on("packing")
    names = ("per_device_train_batch_size", "gradient_accumulation_steps")
    training_keys.write_batch(ledger, batch, names, in_rows=packing, length=length, pairs=pairs)
    ledger.carry(length_key, "batch.max_sequence_length", length)
    ledger.judge("max_length", "ignored", note="max_seq_length is given too")
    ledger.write("batch.overlong", _OVERLONG[objective])
    if ledger.get("truncation_mode", "keep_start") != "keep_start":
        ledger.judge("truncation_mode", "not supported", note="responses are cut at their end")
    ledger.judge("truncation_mode", "kept", "batch.overlong = truncate", "here the response alone is cut")
    if packing and ledger.get("packing_strategy", "bfd") != "bfd":
        ledger.judge("packing_strategy", "not supported", note="examples are not split over rows here")
    ledger.judge("packing_strategy", "kept")
    ledger.judge("packing", "kept", f"batch.{'rows' if packing else 'examples'}", "rows are always packed here")


def _loss(ledger: Ledger, objective: str) -> None:
    if objective in ("dpo", "orpo"):
        beta = float(ledger.number("beta", 0.1))
        ledger.carry("beta", "objective.beta", beta)
        if not ledger.given("beta"):
            ledger.defects.append(f"objective.beta: the file sets no beta; the default of TRL counts: {beta}")
    if objective == "dpo":
        dpo_loss(ledger, "loss_type", "loss_weights", "label_smoothing")
        if ledger.equal:
            ledger.write("compat.token_boundary", "joint")
    if objective == "orpo":
        ledger.carry("(loss)", "objective.nll", "prompt_and_response", note="as TRL averages it")
    if objective == "rm":
        weight = float(ledger.number("center_rewards_coefficient", 0.0))
        ledger.carry("center_rewards_coefficient", "objective.center_weight", weight)
    if objective == "sft":
        if ledger.get("loss_type", "nll") not in ("nll", "chunked_nll"):
            ledger.judge("loss_type", "not supported", note="losses here: nll")
        ledger.judge("loss_type", "kept", "objective.name = sft")
        if ledger.get("completion_only_loss") is False:
            ledger.judge("completion_only_loss", "not supported", note="only responses count in the loss here")
        ledger.judge("completion_only_loss", "kept", note="only responses count in the loss")
        ledger.judge("assistant_only_loss", "kept", note="only responses count in the loss")
        if not ledger.on("assistant_only_loss") and not ledger.on("completion_only_loss"):
            ledger.by_hand.append(
                "loss: for data with messages or text, TRL counts every token, here only those of responses count (no "
                "difference for prompt and completion)"
            )
    ledger.judge("max_completion_length", "approximated", "batch.overlong", "one limit for prompt and response here")


def _rates(ledger: Ledger, objective: str) -> None:
    rate = schedules.learning(ledger, "learning_rate", _RATES[objective])
    name = schedules.schedule(ledger, "lr_scheduler_type", "linear", rate, kwargs_key="lr_scheduler_kwargs")
    steps, ratio = ledger.number("warmup_steps"), ledger.number("warmup_ratio", high=1)
    if steps is not None and 0 < steps < 1:  # transformers 5
        ledger.write("schedule.warmup_steps", None)
        ledger.carry("warmup_steps", "schedule.warmup_ratio", float(steps), note="a share, being below 1")
        ledger.judge("warmup_ratio", "ignored", note="warmup_steps comes before it")
    else:
        whole = None if steps is None else int(steps)
        use = None if whole else ratio
        schedules.warmup(ledger, name, "warmup_steps", "warmup_ratio", steps=whole if use is None else None, ratio=use)
    schedules.length_of_run(ledger, "num_train_epochs", 3.0, "max_steps")


def _precision(ledger: Ledger) -> None:
    half = ledger.on("fp16")
    compute = "bfloat16" if ledger.get("bf16", not half) not in (False, "false", "False") else "float32"
    ledger.carry("bf16", "precision.compute", compute)
    key = "torch_dtype" if ledger.given("torch_dtype") else "dtype"
    dtype = str(ledger.get(key, "float32"))
    if dtype == "float16":
        ledger.judge(key, "not supported", note="half precision of 5 exponent bits is not here")
    elif dtype == "float32":
        ledger.judge(key, "kept", "float32 weights")
    else:
        training_keys.weights_dtype(ledger, (key,), compute, rounded=True)
    recompute = ledger.get("gradient_checkpointing", True) not in (False, "false", "False")
    ledger.carry("gradient_checkpointing", "remat", "full" if recompute else "none")
    if not ledger.get("average_tokens_across_devices", True):
        ledger.judge("average_tokens_across_devices", "approximated", "", "one mean over the batch here")
    ledger.judge("average_tokens_across_devices", "kept", "compat.token_mean = global")


def _intervals(ledger: Ledger) -> None:
    saves = ledger.get("save_strategy", "steps")
    every = ledger.number("save_steps", 500)
    if saves == "steps" and every >= 1:
        ledger.carry("save_steps", "checkpoint.every_steps", int(every))
    for key in ("save_strategy", "save_steps"):
        ledger.judge(key, "approximated" if saves != "steps" or every < 1 else "kept", "checkpoint.every_steps")
    if ledger.given("save_total_limit"):
        ledger.carry("save_total_limit", "checkpoint.keep", ledger.whole("save_total_limit", low=1))
    evaluates = ledger.get("eval_strategy", "no")
    if evaluates == "steps":
        source = "eval_steps" if ledger.given("eval_steps") else "logging_steps"
        number = ledger.number(source, 10)
        if number >= 1:
            ledger.carry(source, "eval.every_steps", int(number))
        key = "dataset_test_split"
        training, split = str(ledger.get("dataset_train_split", "train")), str(ledger.get(key, "test"))
        ours = training_keys.named_split(training, "train")
        if split != training:
            option = "--validation-source"
            ours = training_keys.split_of(ledger, key, split, "test", taken=ours, option=option)
        ledger.write("data.eval_split", ours)
    on = evaluates != "no"
    ledger.judge("eval_strategy", "kept" if evaluates in ("no", "steps") else "approximated", "eval.every_steps")
    ledger.judge(
        "eval_steps", "approximated" if on else "ignored", "eval.every_steps", "" if on else "eval_strategy is no"
    )
    ledger.judge("dataset_test_split", "kept" if on else "ignored", "data.eval_split")
    if ledger.given("eval_on_start"):
        ledger.carry("eval_on_start", "eval.at_start", ledger.on("eval_on_start"))
    every = ledger.number("logging_steps", 10)
    if every >= 1:
        ledger.carry("logging_steps", "logging.every_steps", int(every))
    ledger.judge("logging_steps", "approximated", note="a share of the steps; logging.every_steps counts them")
    targets = ledger.get("report_to", "none")
    targets = targets if isinstance(targets, list) else [targets]
    if {"wandb", "all"} & set(map(str, targets)):
        ledger.write("logging.wandb", True)
    ledger.judge("report_to", "kept", "logging.wandb, logging.tensorboard")
    if ledger.on("load_best_model_at_end"):
        note = "checkpoint.keep_best = 1 keeps the best; the export is of the last step"
        ledger.judge("load_best_model_at_end", "approximated", "checkpoint.keep_best", note)


def _data(ledger: Ledger, objective: str, name: str) -> None:
    template = None
    if ledger.given("chat_template_path"):
        template = training_keys.own_template(ledger, f"chat_template_path = {shown(ledger.get('chat_template_path'))}")
        ledger.judge(
            "chat_template_path", "approximated", "--template plain", "chat templates of your own are not here"
        )
    else:
        ledger.by_hand.append(
            "prompts: TRL writes conversations by the tokenizer's chat template and other prompts as they are: choose "
            "--template mistral-inst, chatml or plain"
        )
    parts: list[tuple[str, Any, str]] = []
    if ledger.given("dataset_name"):
        parts.append(("dataset_name", ledger.get("dataset_name"), "dataset_train_split"))
    number = 0
    while ledger.given(f"datasets[{number}].path"):
        at = f"datasets[{number}]"
        path = ledger.get(f"{at}.path")
        if path in ("json", "parquet", "csv", "arrow") and isinstance(ledger.get(f"{at}.data_files"), str):
            path = ledger.get(f"{at}.data_files")
        parts.append((f"{at}.path", path, f"{at}.split"))
        number += 1
    if not parts:
        ledger.by_hand.append("data.dir: the file names no data sets")
        if not ledger.on("datasets"):
            ledger.judge("datasets", "ignored", note="names no data sets")
        ledger.builds.append(Build(objective, training_keys.BY_HAND, f"data/{name}"))
    folders = []
    for key, path, _ in parts:
        folder = f"data/{name}" if len(parts) == 1 else f"data/{name}_{len(folders) + 1}"
        folders.append(folder)
        ledger.judge(key, "approximated", folder, "built once, before training")
        source = training_keys.known(ledger, key, f"--source of {folder}", str(path))
        ledger.builds.append(Build(objective, source, folder, template))
    training_keys.write_splits(ledger, [split_key for *_, split_key in parts])
    if len(folders) > 1:
        ledger.write("data.mixture", [{"dir": folder} for folder in folders])
    else:
        ledger.write("data.dir", folders[0] if folders else f"data/{name}")
    ledger.judge("dataset_train_split", "kept", "data.split")
    for key in ledger.under("datasets"):
        last = key.rpartition(".")[2]
        verdict = {"split": "kept", "data_files": "kept", "path": "approximated"}.get(last, "not supported")
        if last == "fraction" and ledger.get(key) == 1:
            verdict = "kept"
        ledger.judge(key, verdict, "data.split" if last == "split" else "", "" if verdict == "kept" else "a part")  # type: ignore[arg-type]
    if ledger.on("test_split_size"):
        ledger.judge("test_split_size", "approximated", "--validation-fraction", "give it to janus data build")
        ledger.by_hand.append("held-out data: give janus data build --validation-fraction")
