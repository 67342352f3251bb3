"""A stored model as an engine that reads and writes text."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from janus_jax.checkpoint.stored_model import StoredModel
from janus_jax.generation.engine import Engine, require_language_model
from janus_jax.generation.prompts import PromptFormat, prompt_format


def open_engine(
    model: StoredModel, *, template: str | None = None, devices: Sequence[Any] | None = None, **options: Any
) -> tuple[Engine, PromptFormat]:
    """An engine of a stored model (`open_model`), and how it reads conversations.

    Everything but the weights is checked before a device is used.

    Args:
        template: a name of `TEMPLATES`, for a model whose files name none.
        devices: None: all.
        options: those of `Engine.stored`.

    Raises:
        ConfigError: it is a reward model.
        ConversionError: it has no tokenizer or template, or cannot be read.
    """
    require_language_model(model.config, model.path)
    written = prompt_format(model, template)
    options = {"stop_ids": written.stop_ids, "tokenizer": written.tokenizer, **options}
    return Engine.stored(model, devices=devices, **options), written


def facts(model: StoredModel, written: PromptFormat) -> dict[str, Any]:
    """What processes that generate or score together must agree on. Copies of a model may have other paths."""
    known = {"step": model.step, "tokenizer": written.tokenizer.fingerprint[:16], "end tokens": written.stop_ids}
    return known | {f"model.{key}": str(value) for key, value in dataclasses.asdict(model.config).items()}
