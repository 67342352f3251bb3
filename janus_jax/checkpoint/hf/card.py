"""README.md of an exported model: what it is, how to prompt it, and how it was trained."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import yaml

from janus_jax import __version__
from janus_jax.checkpoint.hf.facts import ModelFacts
from janus_jax.checkpoint.hf.keys import VALUE_HEADS, Layout, key_table
from janus_jax.config.objectives import OBJECTIVES
from janus_jax.errors import counted
from janus_jax.model.config import ModelConfig
from janus_jax.text.chat_format import ChatFormat

_CONVERTED = "<!-- janus_jax: conversion -->"
_NOTE = re.compile(rf"{_CONVERTED}\n\nThe weights were written in .*\n")
"""The note of an earlier conversion. Everything around it belongs to the users."""

_CONTROL_TEXT = """\
Training read the name of a control token inside a user's text, such as `</s>`, as plain text. A server parses it as the
token. Remove such names from texts that you do not trust.
"""


def model_card(
    config: ModelConfig,
    dtype: Any,
    *,
    facts: ModelFacts,
    meta: Mapping[str, Any],
    step: int | None,
    layout: Layout = "transformers",
    chat: ChatFormat | None = None,
) -> str:
    """The card in Markdown, with the front matter that the hub reads.

    A model that was only converted keeps its own card, which may hold its licence, and gets a note.

    Args:
        dtype: of the stored tensors.
        meta: the `meta` item of the run's step; empty without a run.
        step: of the run.
        chat: how training wrote conversations; None without a run.
    """
    run = meta.get("config")
    note = f"{_CONVERTED}\n\nThe weights were written in {np.dtype(dtype).name} by janus_jax {__version__}"
    note += " in OpenRLHF's layout.\n" if config.head == "value" and layout == "openrlhf" else ".\n"
    if run is None and facts.card is not None:
        return f"{_NOTE.sub('', facts.card).rstrip()}\n\n{note}"
    value = config.head == "value"
    kind = "reward model" if value else "language model"
    objective = ((run or {}).get("objective") or {}).get("name")
    tags = ["janus_jax", "mistral", *([objective] if objective else []), *(["reward-model"] if value else [])]
    front = {
        **({"base_model": facts.base_model} if facts.base_model else {}),
        "library_name": "transformers",
        "pipeline_tag": "text-classification" if value else "text-generation",
        "tags": tags,
    }
    title = OBJECTIVES[objective].title if objective in OBJECTIVES else objective
    trained = f", trained by {title}" if title else ""
    parts = [
        f"---\n{_yaml(front)}---\n",
        f"# A Mistral-shaped {kind}{trained}\n",
        _table(_shape(config, dtype)),
        _use(config, chat, facts, layout),
    ]
    if run:
        parts += ["## Training\n", _table(_recipe(meta, run, step)), _data(meta)]
        parts += [f"The complete configuration:\n\n```yaml\n{_yaml(run)}```\n"]
    return "\n".join(part for part in [*parts, note] if part)


def _shape(config: ModelConfig, dtype: Any) -> list[tuple[str, Any]]:
    count = sum(int(np.prod(entry.shape, dtype=np.int64)) for entry in key_table(config))
    window = "none" if config.sliding_window is None else config.sliding_window
    body = f"{config.num_layers} layers, hidden size {config.hidden_size}, {config.num_heads} heads"
    return [
        ("parameters", f"{count:,}, stored in {np.dtype(dtype).name}"),
        ("shape", f"{body}, {config.num_kv_heads} key/value heads, vocabulary {config.vocab_size}"),
        ("positions", f"{config.max_position_embeddings}, RoPE base {config.rope_theta:g}, sliding window {window}"),
    ]


def _use(config: ModelConfig, chat: ChatFormat | None, facts: ModelFacts, layout: Layout) -> str:
    parts = [] if chat is None else [_prompt_format(chat, facts.replaced_template(chat))]
    if config.head == "value":
        head = VALUE_HEADS[layout]
        parts.append("## Reward\n")
        parts.append(
            f"The linear head `{head}` computes the reward from the last hidden state at the last token, which must be "
            "the EOS after the response. Append EOS yourself: a tokenizer does not add it to plain text.\n"
        )
        if layout == "openrlhf":
            parts.append("Load the model with OpenRLHF's `get_llm_for_sequence_regression(..., 'reward')`.\n")
        else:
            parts.append("Load the model with `AutoModelForSequenceClassification`: the reward is its only logit.\n")
        if "mean" in facts.reward:
            parts.append(
                f"Over both responses of held-out pairs the rewards have mean {facts.reward['mean']:.6g} and standard "
                f"deviation {facts.reward['std']:.6g}. The weights give rewards as trained; for normalised rewards "
                "compute r' = (r - mean) / std.\n"
            )
    return "\n".join(parts)


def _prompt_format(chat: ChatFormat, replaced: str) -> str:
    name, bos = chat.template.name, "" if chat.bos_id is None else "BOS precedes the prompt. "
    replaced = f"{replaced[0].upper()}{replaced[1:]}.\n\n" if replaced else ""
    marks = f"The marks {' and '.join(chat.marks)} are control tokens of the tokenizer. " if chat.marks else ""
    return f"""## Prompt format

The model was trained with the template `{name}`. With a system message:

{_fenced(chat.text("{system}", "{instruction}"))}

Without one:

{_fenced(chat.text("", "{instruction}"))}

{bos}{marks}The response follows it and ends with EOS. `apply_chat_template` writes this format:

```python
ids = tokenizer.apply_chat_template(
    [{{"role": "system", "content": system}}, {{"role": "user", "content": instruction}}], add_generation_prompt=True
)
```

{replaced}{_CONTROL_TEXT}"""


def _recipe(meta: Mapping[str, Any], run: Mapping[str, Any], step: int | None) -> list[tuple[str, Any]]:
    """Table rows of everything that determined the weights. Skips sections that an older run does not have."""
    rows: list[tuple[str, Any]] = []
    if objective := run.get("objective"):
        rows.append(("objective", _settings(objective)))
    rows.append(("initial weights", (run.get("init") or {}).get("from") or "random"))
    if meta.get("reference_weights"):
        rows.append(("reference model", (run.get("reference") or {}).get("from") or "the initial weights"))
    if batch := run.get("batch"):
        unit = (
            counted(batch["examples"], "example")
            if batch.get("examples")
            else counted(batch.get("rows") or 0, "packed row")
        )
        lengths = f"rows of {batch.get('row_length')} tokens, sequences up to {batch.get('max_sequence_length')} tokens"
        rows.append(("batch", f"{unit} per step, {lengths}"))
    for name in ("schedule", "optimizer"):
        if section := run.get(name):
            rows.append((name, _settings(section)))
    for part in (meta.get("course") or {}).get("extensions", ()):
        rows.append(("extended", f"{part['rule']} from step {part['start']}, to {part['total_steps']} steps"))
    if precision := run.get("precision"):
        rows.append(("precision", f"computed in {precision.get('compute')}"))
    if compat := run.get("compat"):
        rows.append(("compatibility", _settings(compat, named=False)))
    rows += [("step", step), ("seed", (run.get("run") or {}).get("seed"))]
    rows.append(("code", f"janus_jax {meta.get('janus_jax')}, jax {meta.get('jax')}"))
    return [row for row in rows if row[1] is not None]


def _data(meta: Mapping[str, Any]) -> str:
    parts = meta.get("data") or []
    rows = [
        (
            part["source"],
            part["kind"],
            part["examples"],
            part["template"],
            part["boundary"],
            "no" if part["derived"] is None else _settings(part["derived"], named=False),
            f"`{part['fingerprint']}`",
        )
        for part in parts
    ]
    table = _table(rows, ("data", "kind", "examples", "template", "token boundary", "derived", "fingerprint"))
    spelled = "".join(
        f"{_cell(part['source'])}: {part['control_text']:,} of {counted(part['records'], 'record')} "
        f"{'spells' if part['control_text'] == 1 else 'spell'} a control token in a text; a server parses it.\n\n"
        for part in parts
        if part.get("control_text")
    )
    tokenizer = (meta.get("tokenizer") or {}).get("fingerprint")
    fingerprints = f"Fingerprint of all training data: `{meta.get('data_fingerprint')}`."
    fingerprints += f" Tokenizer: `{tokenizer}`.\n" if tokenizer else "\n"
    return f"{table if rows else ''}\n{spelled}{fingerprints}"


def _settings(values: Mapping[str, Any], *, named: bool = True) -> str:
    """`name (key value, ...)` without the keys whose value is None."""
    rest = ", ".join(f"{key} {value}" for key, value in values.items() if key != "name" and value is not None)
    return f"{values['name']} ({rest})" if named and rest else values["name"] if named else rest


def _table(rows: Sequence[Sequence[Any]], head: Sequence[str] = ("", "")) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines) + "\n"


def _cell(value: Any) -> str:
    """A value on one line. Escapes |, which in a path or name would end the cell."""
    return re.sub(r"\s+", " ", str(value)).replace("|", "\\|")


def _fenced(text: str) -> str:
    return f"```text\n{text}\n```"


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)
