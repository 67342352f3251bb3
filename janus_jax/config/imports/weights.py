"""The weights that an imported recipe starts from: whether they can be read, and which tokenizer their data needs."""

import dataclasses
import os
import re
import shlex
from collections.abc import Callable

from janus_jax.config.imports.ledger import Ledger
from janus_jax.config.imports.training_keys import BY_HAND

_OUR_MODELS = re.compile(r"mistral|llama(?!-?(?:3\.[1-3]|4\b))", re.IGNORECASE)
_SCALED_MODELS = re.compile(r"llama-?3\.[1-3]", re.IGNORECASE)
_OTHER_MODELS = re.compile(
    r"llama-?4\b|(?<![a-z])(?:qwen|gemma|phi-?[1-4]|mixtral|falcon(?!-?3)|gpt-?(?:2|j|neo|oss)|pythia|opt-\d|bloom|"
    r"mpt-\d|olmo|starcoder|stablelm|deepseek-(?:v[2-9]|moe)|smollm3|c4ai|dbrx|jamba|mamba|rwkv|granite-[34]|glm|"
    r"chatglm|exaone|internlm|baichuan|minicpm|flan|t5|bert)",
    re.IGNORECASE,
)
"""In names of models: those that we may be able to read, and those that we cannot. A name with both is not refused."""
_READABLE = re.compile(
    r"(?:mistralai|mistral-community)/Mistral-7B-(?:Instruct-)?v0\.[1-3]|kaist-ai/janus-(?:(?:dpo|orpo|rm)-)?7b|"
    r"meta-llama/Llama-2-(?:7|13|70)b(?:-chat)?-hf",
    re.IGNORECASE,
)
"""Hub ids that are known to be readable."""
_EMBEDDED = re.compile(r"(?:mistralai|mistral-community)/Mistral-7B-(?:Instruct-)?v0\.[12]", re.IGNORECASE)
"""Hub ids of models that have the embedded tokenizer."""


def judge(ledger: Ledger, model: str | None, run_dir: str, unreadable: Callable[[str], str]) -> str | None:
    """Whether the weights that a run really starts from can be read, and the command that fetches them.

    Returns the `--tokenizer` that data for them needs, as a shell reads it; None: the embedded one is theirs.

    Args:
        model: `init.from`, overrides included.
        run_dir: `run.dir`. A name below the same folder is a run, not a hub id.
        unreadable: why a directory cannot be read; empty: it can, or there is no such directory.
    """
    row = next((one for one in ledger.rows.values() if one.ours.startswith("init.from = ")), None)
    if row is not None and model != ledger.config["init"]["from"]:
        note = "init.from of the command line replaces it"
        ledger.rows[row.key] = dataclasses.replace(row, verdict="not needed", ours="", note=note)
        row = None
    if model is None or model == BY_HAND:
        return model
    path, name = os.path.expanduser(model), os.path.basename(model.rstrip("/"))
    reason, may_be_ours = unreadable(model), os.path.isdir(path) or bool(_OUR_MODELS.search(name))
    if not reason and not may_be_ours and _SCALED_MODELS.search(name):
        reason = "Llama 3.1 to 3.3 scale rotary embeddings (rope_scaling), which is not here"
    elif not reason and not may_be_ours and (other := _OTHER_MODELS.search(name)):
        reason = f"{other[0]} is another architecture than Mistral and Llama, which are here"
    where = "docs/conversion.md lists what can be read"
    if reason:
        ledger.by_hand.append(f"init.from = {model}: give other weights; {reason}")
        if row is not None:
            ledger.rows[row.key] = dataclasses.replace(row, verdict="not supported", note=f"{reason}; {where}")
        return BY_HAND
    folder = os.path.dirname(path)
    is_run = folder == run_dir.split("/")[0] or any(os.path.isdir(f"{path}/{one}") for one in ("checkpoints", "params"))
    is_path = os.path.exists(path) or os.path.isdir(folder) or is_run
    if not (is_run or os.path.isfile(f"{path}/config.json") or _READABLE.fullmatch(model)):
        note = "if `architectures` in its config.json is of Mistral or Llama shape, without `rope_scaling`"
        note = f"{'the directory has no config.json' if os.path.isdir(path) else note}; {where}"
        if row is not None:
            ledger.rows[row.key] = dataclasses.replace(row, note=note)
        elif "://" not in model:  # a bucket, which may hold a run
            ledger.by_hand.append(f"init.from = {model}: check whether it can be read: {note}")
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model) and not is_path:
        ledger.commands.append(f"hf download {model}")
        return None if _EMBEDDED.fullmatch(model) else f'"$(hf download -q {model})"'
    if step := re.fullmatch(r"(.+)/checkpoints/\d+/?", model):
        return shlex.quote(f"{step[1]}/tokenizer")
    return shlex.quote(f"{model.rstrip('/')}/tokenizer" if is_run else model)
