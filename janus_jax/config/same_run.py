"""Whether a configuration is that of the run that a checkpoint is of, which goes on only with the same one.

`launch` asks before a run starts, so this needs no JAX.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from janus_jax.config.run import RunConfig
from janus_jax.errors import ConfigError

MAY_CHANGE = ("mesh", "sharding", "remat", "eval", "samples", "checkpoint", "export", "logging", "profile", "timeouts")
"""Sections that may change when a run is resumed: they do not decide what is computed."""


def require_same_config(config: RunConfig, meta: Mapping[str, Any]) -> None:
    """Refuses to go on from a checkpoint of another configuration. Directories may have moved, and `course_of` decides
    about another length.

    Raises:
        ConfigError: names each key that differs, with both values.
    """
    saved, now = (_comparable(values) for values in (with_defaults(meta["config"]), stored_config(config)))
    changed = [
        f"{key} = {shown(before)}, not {shown(after)}"
        for section in now
        if section not in MAY_CHANGE
        for key, before, after in differences(section, saved.get(section), now[section])
    ]
    if changed:
        advice = "to train its weights on with other settings, choose another run.dir and set model=null "
        advice += f"init.from={config.run.dir}"
        if saved["model"] and now["model"] and saved["model"] != now["model"]:  # init.from would bring the old model
            advice = "its weights are of that model; put model back as it was, or choose another run.dir to begin anew"
        raise ConfigError(
            f"run.dir={config.run.dir}: holds a run with {'; '.join(changed)} as this config says; {advice}"
        )


def shown(value: Any) -> str:
    """A value as a configuration file writes it; a section without its unset keys."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {shown(part)}" for key, part in value.items() if part is not None) + "}"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def stored_config(config: RunConfig) -> dict[str, Any]:
    """A configuration as a checkpoint keeps it."""
    return config.model_dump(mode="json", by_alias=True)


def with_defaults(stored: dict[str, Any]) -> dict[str, Any]:
    """A stored configuration with the keys that an older version did not have yet, which did what the defaults do."""
    try:
        return stored_config(RunConfig.model_validate(stored))
    except ValidationError:  # it has keys that are no more: they will differ
        return stored


def _comparable(config: dict[str, Any]) -> dict[str, Any]:
    """A stored configuration without its directories, held-out data and length; of a mixture the weights stay."""
    length = ("steps", "epochs", "extend")
    config = config | {"schedule": {k: v for k, v in config["schedule"].items() if k not in length}}
    faults = ("on_nonfinite", "max_skipped")  # a run that ended at such a step may go on without it
    config = config | {"optimizer": {k: v for k, v in config["optimizer"].items() if k not in faults}}
    config = config | {name: {k: v for k, v in config[name].items() if k != "dir"} for name in ("run", "reference")}
    mixture = config["data"].get("mixture")
    weights = None if mixture is None else [part["weight"] for part in mixture]
    data = {k: v for k, v in config["data"].items() if k not in ("dir", "eval_dir", "eval_split")}
    return config | {"data": data | {"mixture": weights}}


def differences(name: str, before: Any, after: Any) -> Iterator[tuple[str, Any, Any]]:
    """Dotted keys whose values differ, with both values."""
    if isinstance(before, dict) and isinstance(after, dict):
        if before.get("name") != after.get("name"):  # another kind of thing: its other keys are others too
            yield f"{name}.name", before.get("name"), after.get("name")
            return
        for key in {**before, **after}:
            yield from differences(f"{name}.{key}", before.get(key), after.get(key))
    elif before != after:
        yield name, before, after
