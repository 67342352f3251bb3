"""What the recipes of all tools have: batches, optimizers, objectives, and the data to build."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from janus_jax.config.imports.ledger import Ledger, shown
from janus_jax.config.split_names import SPLITS, splits_in
from janus_jax.errors import ConfigError

BY_HAND = "SET-BY-HAND"
"""Stands for what a file does not say and a run cannot do without."""

PROMPTS = {
    "mistral-inst": ("[INST] {system}\n{instruction} [/INST]", "[INST] {instruction} [/INST]"),
    "chatml": (
        "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{instruction}<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\n{instruction}<|im_end|>\n<|im_start|>assistant\n",
    ),
    "plain": ("{system}\n{instruction}", "{instruction}"),
}
"""The prompts of our templates, with and without a system message."""

COLUMNS = {
    "prompt": ("prompt", "instruction", "user_prompt"), "system": ("system", "system_prompt"), "input": ("input",),
    "output": ("output", "reference_answer"), "chosen": ("chosen", "chosen_response"),
    "rejected": ("rejected", "rejected_response"), "messages": ("messages", "conversations", "conversation"),
}  # fmt: skip
"""Column -> the names that `janus data build` takes for it."""
OTHER_COLUMNS = {
    "system": ("system_message",),
    "prompt": ("question", "query"),
    "output": ("response", "answer", "completion"),
}
"""Column -> names that it takes where a record has none of `COLUMNS`."""

MESH = "devices are shared out by `mesh` here"
ATTENTION = "precision.attention picks the kernel"
LOGGING = "where metrics go: docs/training.md"
HUB = "nothing is uploaded; a run exports to its directory"
SPEED = "speed and memory of PyTorch"
LORA = "only full fine-tuning is here; LoRA trains other weights"
QUANTIZED = "weights are not quantized in training here"

_COMPUTED = re.compile(r"\$[({\w]|`")
"""In a value: what only a shell can put in."""

_ADAMW = frozenset(
    "adam adamw adamw_torch adamw_torch_fused adamw_hf adamw_apex_fused adamw_torch_xla adamw_torch_npu_fused "
    "optimi_adamw paged_adamw paged_adamw_32bit".split()
)
_BITSANDBYTES = frozenset("adamw_8bit adamw_bnb_8bit paged_adamw_8bit".split())
_ROUNDED = frozenset(
    "adamw_torch_8bit adamw_torch_4bit ao_adamw_8bit ao_adamw_4bit ao_adamw_fp8 adamw_anyprecision flash_adamw".split()
)
_OLDER = "runs from before September 2024: compat.adamw_8bit=2048 compat.embedding_moments=8bit"


@dataclasses.dataclass(frozen=True)
class Batch:
    """A global batch: `micro` on each of `replicas` devices, `accumulation` times."""

    micro: int
    accumulation: int
    replicas: int

    @property
    def total(self) -> int:
        return self.micro * self.accumulation * self.replicas

    @property
    def product(self) -> str:
        return f"{self.micro} x {self.accumulation} x {self.replicas} (micro batch x accumulation x devices)"


def replicas(ledger: Ledger, devices: int | None, of_file: int | None, split: int, *, needed: bool = True) -> int:
    """Devices that read different rows.

    Args:
        devices: from the command line; None: not given.
        of_file: from the file; None: it does not say.
        split: devices that share one row (tensor and context parallelism).
        needed: whether the batch depends on it.
    """
    number = devices or of_file
    if number is None:
        number = split
        if needed:
            ledger.by_hand.append(
                f"devices: the file does not say how many it was run on; the batch is that of {split}. Give --devices"
            )
    if number % split:
        raise ConfigError(f"{ledger.file}: {number} devices: allowed: a multiple of {split}, which share a row")
    return number // split


def write_batch(ledger: Ledger, batch: Batch, keys: Sequence[str], *, in_rows: bool, length: int, pairs: bool) -> None:
    """The keys of `batch` that say how many and how long, from the keys of the file that give the numbers."""
    unit = "rows" if in_rows else "examples"
    ledger.carry(keys, f"batch.{unit}", batch.total, note=batch.product)
    parts = batch.accumulation
    if not in_rows:  # several examples share a row, so that fewer parts fill the devices
        fitting = [one for one in range(1, parts + 1) if not parts % one and one * 2 * batch.replicas <= batch.total]
        parts = max(fitting, default=1)
    if parts > 1:
        ledger.write("batch.microbatches", parts)
    ledger.write("batch.row_length", 2 * length if pairs else length)


def optimizer(ledger: Ledger, key: str, default: str) -> None:
    """AdamW, or what comes nearest."""
    name = str(ledger.get(key, default))
    if name in _ADAMW:
        ledger.carry(key, "optimizer.name", "adamw")
    elif name in _BITSANDBYTES and ledger.equal:
        ledger.write("compat.embedding_moments", "float32")
        ledger.write("optimizer.name", "adamw")
        ledger.carry(key, "compat.adamw_8bit", 256, note=f"as bitsandbytes 0.44 and transformers 5; {_OLDER}")
    elif name in _BITSANDBYTES:
        note = "moments are float32 here, 8 bits in blocks of 256 there: compat.adamw_8bit = 256"
        ledger.carry(key, "optimizer.name", "adamw", verdict="approximated", note=note)
    elif name in _ROUNDED:
        note = "moments are float32 here; there they are rounded in a way that is not here"
        ledger.carry(key, "optimizer.name", "adamw", verdict="approximated", note=note)
    else:
        ledger.write("optimizer.name", "adamw")
        ledger.judge(key, "not supported", "optimizer.name = adamw", "AdamW is the only optimizer here")


def clipping(ledger: Ledger, key: str, default: float = 1.0) -> None:
    """The norm to which gradients are clipped; 0 is none."""
    ledger.carry(key, "optimizer.clip_norm", float(ledger.number(key, default)) or None)


def plain_numbers(ledger: Ledger, table: Mapping[str, tuple[str, float | int]]) -> None:
    """Keys whose number is ours: key -> (our key, the tool's default). A whole default asks for a whole number."""
    for key, (ours, default) in table.items():
        value = ledger.whole(key, default) if isinstance(default, int) else float(ledger.number(key, default))
        ledger.carry(key, ours, value)


def weights_dtype(ledger: Ledger, keys: Sequence[str], compute: str, *, rounded: bool) -> None:
    """Type of the activations, and of the weights if the tool trains them in bfloat16 without a copy (`rounded`)."""
    note = ""
    if rounded and ledger.equal:
        ledger.write("compat.bfloat16_weights", True)
    elif rounded:
        note = "weights are float32 here, bfloat16 without a float32 copy there: compat.bfloat16_weights = true"
    verdict = "approximated" if note else "kept"
    ledger.carry(keys, "precision.compute", compute, note=note, verdict=verdict)


def start(ledger: Ledger, key: str) -> None:
    """The weights that training starts from."""
    model = ledger.get(key)
    if not isinstance(model, str) or not model.strip():
        ledger.write("init.from", BY_HAND)
        ledger.by_hand.append(f"init.from: {key} is empty; give the weights to start from, as init.from=MODEL")
        ledger.defects.append(f"{key} is empty: the tool cannot start")
        ledger.judge(key, "ignored", note="names no model")
        return
    ledger.carry(key, "init.from", known(ledger, key, "init.from", model))


def known(ledger: Ledger, key: str, ours: str, value: str, instead: str = BY_HAND) -> str:
    """The value, or what stands instead of one that only a shell can compute, which is then listed by hand.

    Args:
        ours: our key, or what else the user has to give.
    """
    if not is_computed(value):
        return value
    ledger.by_hand.append(f"{ours}: {key} = {shown(value)}: only the script's shell knows it; give the value itself")
    return instead


def split_of(ledger: Ledger, key: str, value: str, default: str, *, taken: str = "", option: str = "--source") -> str:
    """The split that a build makes of the files of another tool's split. Another name than `value` is listed by hand.

    Args:
        default: of a name that says none.
        taken: the split that is made of other files.
        option: of `janus data build`, which gives the files.
    """
    ours = named_split(value, default, taken)
    if ours != value:
        _give_files(ledger, key, value, ours, option)
    return ours


def named_split(value: str, default: str, taken: str = "") -> str:
    """The split of ours that a name says, or else the default; `taken` is none that it may be."""
    if is_computed(value) or (value in SPLITS and value != taken):
        return value
    names = splits_in(value) or {default}
    return next((one for one in SPLITS if one in names - {taken}), default if default != taken else "validation")


def _give_files(ledger: Ledger, key: str, value: str, ours: str, option: str = "--source") -> None:
    if re.fullmatch(r"[\w.-]+", value):
        files = f"give {option} the files of that split alone, as {ours}=PATH"
    else:
        files = f"builds read whole files: write its records to a file and give that, as {option} {ours}=FILE"
    ledger.by_hand.append(f"data: {key} = {value}: {files}")


def write_splits(ledger: Ledger, keys: Sequence[str]) -> None:
    """The split that a run reads, and the verdicts on the keys that give those of its data sets."""
    values = [str(ledger.get(key, "train")) for key in keys]
    splits = [named_split(value, "train") for value in values]
    if splits and set(splits) != {"train"}:
        ledger.write("data.split", splits[0])
    if len(set(splits)) > 1:
        ledger.by_hand.append(
            f"data.split: the data sets have the splits {', '.join(splits)}; a run reads the same split of every data "
            "set"
        )
    for key, value, split in zip(keys, values, splits, strict=True):
        if value != splits[0] and not is_computed(value):
            _give_files(ledger, key, value, splits[0])
        if not (re.fullmatch(r"[\w.-]+", value) or is_computed(value)):
            ledger.judge(key, "not supported", "data.split", "a part of it")
        elif split != splits[0]:
            ledger.judge(key, "approximated", f"data.split = {splits[0]}", "one split for all data sets")
        ledger.judge(key, "kept", "data.split")


def column(ledger: Ledger, key: str, name: str) -> None:
    """The verdict on a key that gives the name of one of our columns."""
    value, names = ledger.get(key), COLUMNS[name]
    if name == "input":  # of a reward model: the prompt serves as well
        names = (*names, *COLUMNS["prompt"])
    if value in OTHER_COLUMNS.get(name, ()) or (name, value) == ("prompt", "input"):
        ledger.judge(key, "kept", f"column {name}", f"if the records have no column {' or '.join(names)}")
    elif value is not None and value not in names:
        ledger.by_hand.append(f"data: rename column {value} to {name}")
        ledger.judge(key, "approximated", f"column {name}", "rename it")
    ledger.judge(key, "kept", f"column {name}")


def is_computed(value: Any) -> bool:
    """Whether a value holds `$(...)`, backticks or a variable that nothing sets."""
    return isinstance(value, str) and bool(_COMPUTED.search(value))


def directory(ledger: Ledger, key: str, name: str) -> None:
    """The directory of the run; `name`: of one that the file does not name."""
    folder = ledger.get(key)
    instead = f"runs/{name}"
    ledger.carry(key, "run.dir", known(ledger, key, "run.dir", folder, instead) if isinstance(folder, str) else instead)


def template_of(prompt: str) -> str | None:
    """Our template for a prompt written with `{system}` and `{instruction}`; None if it is none of ours."""
    texts = {text: name for name, both in PROMPTS.items() for text in both}
    return texts.get(prompt.strip(" "))


def own_template(ledger: Ledger, what: str) -> str:
    """The template for prompts that none of ours writes: the user writes them, and `plain` adds nothing."""
    ledger.by_hand.append(f"prompts: {what} is none of our templates; write them so and build with --template plain")
    return "plain"
