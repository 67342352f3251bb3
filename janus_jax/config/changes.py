"""Changes to a configuration that is loaded already, by dotted keys."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from janus_jax.config.rules import conflicts
from janus_jax.config.run import RunConfig
from janus_jax.errors import ConfigError


def changed(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """The configuration with other values at some dotted keys.

    Raises:
        ConfigError: keys contradict each other, or a key does not allow its value.
    """
    values = config.model_dump(mode="json", by_alias=True)
    for key, value in changes.items():
        *parents, name = key.split(".")
        section = values
        for parent in parents:
            section = section[parent]
        section[name] = value
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        texts = [text for _, text in conflicts(values)] or [detail["msg"] for detail in error.errors()]
        raise ConfigError(f"{', '.join(overrides(changes))}: {'; '.join(texts)}") from error


def overrides(changes: Mapping[str, Any]) -> list[str]:
    """The changes as arguments of a command line."""
    return [f"{key}={_written(value)}" for key, value in changes.items()]


def _written(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_written, value))}]"
    return "null" if value is None else str(value)
