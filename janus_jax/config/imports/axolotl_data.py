"""The data sets of an axolotl recipe: the `janus data build` commands that make them, and prompts that cannot be."""

import re
import string
from typing import Any

from janus_jax.config.imports import axolotl_keys as keys
from janus_jax.config.imports import training_keys
from janus_jax.config.imports.ledger import KINDS, Build, Ledger, shown

_FORMATS = {
    "system_format": {"system"},
    "format": {"instruction", "input"},
    "no_input_format": {"instruction"},
    "prompt_format": {"system", "prompt"},
    "chosen_format": {"chosen"},
    "rejected_format": {"rejected"},
}
"""Format -> the names that axolotl fills in."""

_FIELDS = {
    "field_prompt": "prompt", "field_instruction": "prompt", "field_human": "prompt", "field_system": "system",
    "field_output": "output", "field_model": "output", "field_chosen": "chosen", "field_rejected": "rejected",
    "field_messages": "messages",
}  # fmt: skip
"""Key -> the column of ours that it names."""

_WITHOUT_BOS = {("sft", "chat_template"), ("orpo", "orpo.chat_template")}
"""Objective and `type` of data whose prompts get no special tokens but those that the chat template writes."""

_LOADERS = ("json", "jsonl", "parquet", "arrow")


def datasets(ledger: Ledger, objective: str, name: str) -> None:
    """Writes `data`, and the commands that build it."""
    prefixes = sorted({match[0] for key in ledger.values if (match := re.match(r"datasets\[\d+\]", key))}, key=_number)
    if not prefixes:
        ledger.by_hand.append("data.dir: the file names no data sets")
        if not ledger.under("pretraining_dataset"):
            ledger.defects.append("datasets: the file names no data sets")
        if not ledger.on("datasets"):
            ledger.judge("datasets", "ignored", note="names no data sets")
    more = _held_out(ledger)
    training_keys.write_splits(ledger, [f"{prefix}.split" for prefix in prefixes])
    folders = []
    for number, prefix in enumerate(prefixes):
        folder = f"data/{name}" if len(prefixes) == 1 else f"data/{name}_{number + 1}"
        _one(ledger, prefix, objective, folder, more)
        folders.append(folder)
    if len(folders) > 1:
        ledger.write("data.mixture", [{"dir": folder} for folder in folders])
    else:
        ledger.write("data.dir", folders[0] if folders else f"data/{name}")
    _tests(ledger, objective, name)
    for key in ledger.under("datasets"):
        ledger.judge(key, "not supported", note="data sets are a list of mappings with path and type")


def _number(prefix: str) -> int:
    return int(re.sub(r"\D", "", prefix))


def _held_out(ledger: Ledger) -> str:
    """Options of `janus data build` that keep examples back or drop them."""
    more = []
    size = ledger.number("val_set_size", 0.0)
    if 0 < size < 1:
        ledger.judge(
            "val_set_size", "approximated", f"--validation-fraction {size:g}", "drawn by prompt, not by record"
        )
        more.append(f"--validation-fraction {size:g}")
    elif size >= 1:
        ledger.judge("val_set_size", "approximated", note="a number of records; --validation-fraction takes a share")
        ledger.by_hand.append(f"held-out data: {size:g} records; give janus data build --validation-fraction")
    ledger.judge("val_set_size", "not needed", note="is off")
    if ledger.on("dataset_exact_deduplication"):
        ledger.judge("dataset_exact_deduplication", "kept", "--dedupe")
        more.append("--dedupe")
    ledger.judge("dataset_exact_deduplication", "not needed", note="is off")
    return " ".join(more)


def _one(ledger: Ledger, prefix: str, objective: str, folder: str, more: str) -> None:
    path, kind = ledger.get(f"{prefix}.path"), KINDS.get(objective, objective)
    files = ledger.get(f"{prefix}.data_files")
    if path in _LOADERS and files:
        ledger.judge(f"{prefix}.path", "not needed", note="the form of the files")
        path = files if isinstance(files, str) else files[0]
        several = isinstance(files, list) and len(files) > 1
        note = "several files: give janus data build a directory of them" if several else "the source"
        ledger.judge(f"{prefix}.data_files", "approximated" if several else "kept", "--source", note)
    elif path is None:
        ledger.defects.append(f"{prefix}.path is empty")
        path = training_keys.BY_HAND
    ledger.judge(f"{prefix}.path", "approximated", folder, "built once, before training")
    ledger.judge(f"{prefix}.data_files", "approximated", "--source", "name the files in --source")
    template = _template(ledger, prefix, objective)
    if objective == "dpo" and ledger.equal:
        ledger.write("compat.token_boundary", "joint")
    bos = not (template == "chatml" and (objective, str(ledger.get(f"{prefix}.type"))) in _WITHOUT_BOS)
    if not bos and not ledger.equal:
        ledger.by_hand.append(
            f"BOS of {prefix}: the tool's chatml writes none, here prompts begin with it; to leave it out, set "
            "compat.bos=false and build with --no-bos, which then every data set of the run needs"
        )
    elif not bos:
        ledger.write("compat.bos", False)
    source = training_keys.known(ledger, f"{prefix}.path", f"--source of {folder}", str(path))
    ledger.builds.append(Build(kind, source, folder, template, more))
    _columns(ledger, prefix)
    for key, value, note in keys.DATASET_SAME:
        if ledger.get(f"{prefix}.{key}") == value:
            ledger.judge(f"{prefix}.{key}", "kept", note=note)
    below = {f"{prefix}.{key}": rule for key, rule in keys.DATASET_NEUTRAL.items()}
    for table, act in ((keys.DATASET_UNSUPPORTED, "unsupported"), (keys.DATASET_NOT_NEEDED, "not_needed")):
        full = {reason: " ".join(f"{prefix}.{one}" for one in names.split()) for reason, names in table.items()}
        ledger.unsupported(full, below) if act == "unsupported" else ledger.not_needed(full)
    for key in ledger.under(prefix):
        if key not in ledger.rows and ledger.given(key):
            ledger.defects.append(f"{key}: {ledger.tool} has no such key and ignores it")
        ledger.judge(key, "unknown", note=f"{ledger.tool} has no such key")


def _template(ledger: Ledger, prefix: str, objective: str) -> str | None:
    """Our template for the prompts of a data set; None: the default."""
    type_key = f"{prefix}.type"
    if ledger.under(type_key) != [type_key] and ledger.under(type_key):
        return _of_formats(ledger, type_key)
    kind = ledger.get(type_key)
    if kind is None:
        ledger.judge(type_key, "not set")
        return "plain" if objective in ("dpo", "orpo", "simpo") else None
    parts = str(kind).split(".")
    if objective == "orpo" and kind == "orpo.chat_template":
        ledger.defects.append(
            f"{type_key} = orpo.chat_template: {ledger.tool} finds nothing of this name and stops; versions before "
            "19 April 2024 had it, with a loss of their own. chat_template.argilla is today's name"
        )
    if "chat_template" in parts:
        template = _chat_template(ledger, prefix)
        if kind == "orpo.chat_template":
            ledger.judge(
                type_key, "approximated", f"--template {template or 'mistral-inst'}", "as older versions used it"
            )
        ledger.judge(type_key, "kept", f"--template {template or 'mistral-inst'}")
        return template
    if why := keys.WHOLE_TEXTS.get(parts[0]):
        ledger.judge(type_key, "not supported", "--template plain", why)
        ledger.judge(f"{prefix}.field", "not supported", note="the column of the texts")
        return "plain"
    template = keys.TYPES.get(parts[0])
    if parts[0] == "sharegpt":
        ledger.defects.append(
            f"{type_key} = {kind}: {ledger.tool} has no such type and stops; chat_template is today's"
        )
        template = keys.CHAT_TEMPLATES.get(str(ledger.get("chat_template")))
        ledger.judge("chat_template", "approximated", f"--template {template or 'plain'}", "as older versions used it")
    conversation = ledger.get(f"{prefix}.conversation")
    if conversation in ("chatml", "mistral"):
        template = {"chatml": "chatml", "mistral": "mistral-inst"}[conversation]
    ledger.judge(f"{prefix}.conversation", "approximated", "--template", "the template of the conversation")
    if parts[0] == "sharegpt":
        ledger.judge(type_key, "approximated", f"--template {template or 'plain'}", "as older versions used it")
    known = parts[0] in keys.TYPES
    if template is None:
        template = training_keys.own_template(ledger, f"{type_key} = {kind}")
    ledger.judge(type_key, "kept" if known and template != "plain" else "approximated", f"--template {template}")
    return template


def _chat_template(ledger: Ledger, prefix: str) -> str | None:
    """Our template for a chat template that is named by the data set, or by the file for all."""
    own, of_all = f"{prefix}.chat_template", "chat_template"
    key = own if ledger.given(own) else of_all
    name = ledger.get(key, "tokenizer_default")
    for jinja in (f"{prefix}.chat_template_jinja", "chat_template_jinja"):
        ledger.judge(jinja, "approximated", "--template plain", "templates of your own are not here")
    template = keys.CHAT_TEMPLATES.get(str(name))
    if template is not None:
        ledger.judge(key, "kept", f"--template {template}")
    elif name == "tokenizer_default":
        ledger.judge(key, "approximated", "--template mistral-inst", "that of the tokenizer; compare it with ours")
        ledger.by_hand.append(
            "prompts: the tokenizer's own chat template; check that --template mistral-inst writes it"
        )
        return None
    else:
        template = training_keys.own_template(ledger, f"{key} = {name}")
        ledger.judge(key, "approximated", "--template plain", "none of our templates")
    return template


def _of_formats(ledger: Ledger, type_key: str) -> str:
    """Our template for the formats of a data set, with the defects of those that cannot be filled in."""
    texts = {}
    for name, fields in _FORMATS.items():
        key = f"{type_key}.{name}"
        text = ledger.get(key)
        if isinstance(text, dict):
            ledger.defects.append(
                f"{key}: YAML reads {_braces(text)} as a mapping, not as text: the tool stops. Meant is the response"
            )
            ledger.judge(key, "ignored", note="no text; the response is used as it is")
            continue
        if text is None:
            continue
        text = str(text)
        wrong = _names(text) - fields
        if wrong:
            names = ", ".join(f"{{{one}}}" for one in sorted(wrong))
            allowed = ", ".join(f"{{{one}}}" for one in sorted(fields))
            ledger.defects.append(
                f"{key} = {shown(text)}: the tool has no {names} ({allowed}) and stops with a KeyError"
            )
        texts[name] = text
    system = texts.get("system_format", "{system}")
    prompt = texts.get("prompt_format", "").replace("{prompt}", "{instruction}")
    if not prompt:
        turn = texts.get("no_input_format", texts.get("format", "{instruction} "))
        prompt = (system if ledger.under(f"{type_key}.system_format") else "") + turn
    template = training_keys.template_of(prompt) or training_keys.own_template(ledger, shown(prompt))
    ours = "kept" if template != "plain" or prompt in training_keys.PROMPTS["plain"] else "approximated"
    for name in ("system_format", "format", "no_input_format", "prompt_format"):
        ledger.judge(f"{type_key}.{name}", ours, f"--template {template}")
    end = "<|im_end|>" if template == "chatml" else ""
    for name, word in (("chosen_format", "chosen"), ("rejected_format", "rejected")):
        fits = texts.get(name) in (f"{{{word}}}{end}", f"{{{word}}}")
        verdict, note = ("kept", "the response as it is") if fits else ("not supported", "adds text to the response")
        ledger.judge(f"{type_key}.{name}", verdict, "", note)
    if ledger.on(f"{type_key}.system_prompt"):
        ledger.judge(f"{type_key}.system_prompt", "not supported", note="a system message for records without one")
    ledger.judge(f"{type_key}.system_prompt", "not needed", note="is empty")
    return template


def _names(text: str) -> set[str]:
    try:
        return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
    except ValueError:
        return {"{"}


def _braces(mapping: dict[Any, Any]) -> str:
    return "{" + ", ".join(map(str, mapping)) + "}"


def _columns(ledger: Ledger, prefix: str) -> None:
    """Columns that `janus data build` does not know by their name are to be renamed."""
    for name, column in _FIELDS.items():
        for key in (f"{prefix}.{name}", f"{prefix}.type.{name}"):
            training_keys.column(ledger, key, column)
    for key in (f"{prefix}.type.field_input", f"{prefix}.field_input"):
        ledger.judge(key, "kept" if ledger.get(key) == "input" else "approximated", "column input")
    for name in ("field", "message_field_role", "message_field_content", "message_property_mappings", "roles"):
        for key in ledger.under(f"{prefix}.{name}"):
            ledger.judge(key, "approximated", "", "messages have role and content here, or from and value")


def _tests(ledger: Ledger, objective: str, name: str) -> None:
    under = ledger.under("test_datasets")
    path = ledger.get("test_datasets[0].path")
    if path:
        folder = f"data/{name}_test"
        key = "test_datasets[0].split"
        split = training_keys.split_of(ledger, key, str(ledger.get(key, "train")), "test")
        ledger.write("data.eval_dir", folder)
        ledger.write("data.eval_split", split)
        template = _template(ledger, "test_datasets[0]", objective)
        kind = KINDS.get(objective, objective)
        source = training_keys.known(ledger, "test_datasets[0].path", f"--source of {folder}", str(path))
        ledger.builds.append(Build(kind, source, folder, template))
    for key in under:
        first = key.startswith("test_datasets[0]") and path
        ledger.judge(key, "approximated" if first else "not supported", "data.eval_dir", "" if first else "one is here")
