"""A stored model as an engine that reads and writes text; what a command says of it, and holds alike on all hosts."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from janus_jax.checkpoint.same_weights import require_same_weights
from janus_jax.checkpoint.stored_model import StoredModel
from janus_jax.generation.engine import Engine
from janus_jax.generation.prompts import PromptFormat
from janus_jax.generation.sampling import SamplingOptions
from janus_jax.parallel.same_everywhere import require_same


def open_engine(
    model: StoredModel, written: PromptFormat, *, devices: Sequence[Any] | None = None, **options: Any
) -> Engine:
    """An engine of a stored model (`open_model`) that ends texts where `written` (`prompt_format`) does.

    Args:
        devices: None: all.
        options: those of `Engine`.

    Raises:
        ConfigError: it is a reward model.
        ConversionError: weights are damaged.
    """
    return Engine.stored(model, devices=devices, stop_ids=written.stop_ids, tokenizer=written.tokenizer, **options)


def ignored_settings(model: StoredModel, sampling: SamplingOptions) -> str:
    """Settings of the model's generation_config.json that options replace, such as "temperature=0.6, top_p=0.9"."""
    options = dataclasses.asdict(sampling)
    return ", ".join(f"{key}={value}" for key, value in model.facts.generation.items() if key in options)


def require_same_models(options: Mapping[str, Any], models: Mapping[str, tuple[StoredModel, PromptFormat]]) -> None:
    """Raises ConfigError on every process if one of them has other options or models. Their paths may differ.

    Args:
        options: name -> JSON value.
        models: by the argument or option that names them, with how they read conversations.
    """
    facts = dict(options)
    for name, (model, written) in models.items():
        own = {"step": model.step, "tokenizer": written.tokenizer.fingerprint[:16], "end tokens": written.stop_ids}
        own |= {f"model.{key}": str(value) for key, value in dataclasses.asdict(model.config).items()}
        facts |= {f"{name}: {key}": value for key, value in own.items()}
    require_same("options or models", facts)
    require_same_weights({name: model for name, (model, _) in models.items()})
