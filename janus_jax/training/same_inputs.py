"""What all processes of a run must have alike, whose copies lie on hosts of their own: configuration, data, weights."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

from janus_jax.checkpoint.same_weights import require_same_weights
from janus_jax.checkpoint.stored_model import StoredModel
from janus_jax.config.run import RunConfig
from janus_jax.parallel import processes
from janus_jax.parallel.same_everywhere import require_same, several
from janus_jax.training.resume import examples_read
from janus_jax.training.setup import Setup

_COPIES = re.compile(r"data\.(mixture\.\d+\.)?(eval_)?dir|(init|reference)\.from|samples\.prompts")
"""Keys whose places may be other ones on each host: their contents are compared."""


def require_same_config_everywhere(config: RunConfig) -> None:
    """Raises ConfigError on every process if one of them has another configuration; names the keys."""
    if several():
        require_same("configurations", config_facts(config))


def config_facts(config: RunConfig) -> dict[str, Any]:
    """Dotted key -> value, without places of copies."""
    facts = dict(_flat("", config.model_dump(mode="json", by_alias=True)))
    return {key: value for key, value in facts.items() if not _COPIES.fullmatch(key)}


def require_same_inputs(setup: Setup) -> None:
    """Raises ConfigError on every process if one of them has other data, another model or other weights.

    Copies of weights are read once more for this, unless all hosts see the very same files.
    """
    if not several():
        return
    with processes.agreement("inputs"):
        facts = input_facts(setup)
    require_same("data or models", facts)
    require_same_weights(_models_to_read(setup))


def input_facts(setup: Setup) -> dict[str, Any]:
    """What a run reads, by contents; no weights are read."""
    facts: dict[str, Any] = {}
    for key, loader in (("data.dir", setup.loader), ("data.eval_dir", setup.eval_loader)):
        if loader is not None:
            parts, read = loader.dataset.parts, examples_read(loader)
            for number, part in enumerate(parts):
                place = key if len(parts) == 1 else f"data.mixture.{number}.dir"
                facts[f"{place}: fingerprint"] = part.fingerprint[:16]
                facts[f"{place}: tokenizer"] = part.tokenizer_fingerprint[:16]
            facts[f"{key}: examples that are read"] = f"{read['examples']} ({read['fingerprint'][:16]})"
    facts |= {f"model.{key}": str(value) for key, value in dataclasses.asdict(setup.model).items()}
    if setup.samples is not None:
        facts["samples.prompts: fingerprint"] = setup.samples.fingerprint
    for key, model in (("init.from", setup.source), ("reference.from", setup.reference)):
        if model is not None:
            facts |= {f"{key}: stored dtype": model.stored_dtype.name, f"{key}: step": model.step}
    return facts


def _models_to_read(setup: Setup) -> dict[str, StoredModel]:
    """Key of the configuration -> the model whose weights this start reads."""
    config, begins = setup.config, setup.past is None
    refers = setup.objective.needs_reference and (begins or config.reference.mode == "online")
    models = {}
    if setup.source is not None and (begins or (refers and setup.reference is None)):
        models["init.from"] = setup.source
    if setup.reference is not None and refers:
        models["reference.from"] = setup.reference
    return models


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if parts is None:
        yield name, value
    else:
        for key, part in parts:
            yield from _flat(f"{name}.{key}" if name else str(key), part)
