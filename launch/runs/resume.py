"""Whether a training may go on in its run directory, by the rule of janus_jax, before a host is set up for it."""

import contextlib
import json
import re
from typing import TYPE_CHECKING

from launch.context import Context
from launch.errors import CloudError

if TYPE_CHECKING:
    from janus_jax.config.run import RunConfig

_FROM = ("init", "reference")
"""Sections whose key `from` names weights: those of this workstation are called otherwise in the bucket."""


def require_same_config(context: Context, config: "RunConfig", directory: str) -> None:
    """Refuses a configuration with which the hosts would not go on from the newest checkpoint in a bucket. What it says
    of data and weights, only the hosts can compare.

    Raises:
        ConfigError: names each key that differs, with both values.
    """
    if not directory.startswith("gs://"):
        return
    from janus_jax.config.same_run import require_same_config

    folder = context.folder(directory)
    try:
        marks = folder.names("checkpoints/*/commit_success.txt")
        steps = [int(match[1]) for name in marks if (match := re.fullmatch(r"checkpoints/(\d+)/.*", name))]
        if not steps:
            return
        stored = json.loads(folder.text([f"checkpoints/{max(steps)}/meta/metadata"]))["config"]
    except CloudError as error:
        context.warn(f"{directory}: not looked at; the hosts will: {error}")
        return
    except (ValueError, LookupError, TypeError):  # damaged: the hosts set it aside
        return
    with contextlib.suppress(LookupError, TypeError, AttributeError):  # of another version: the hosts say what differs
        changes = {"run": config.run.model_copy(update={"dir": directory})}
        for name in _FROM:
            section = getattr(config, name)
            if section.from_ and "://" not in section.from_:
                changes[name] = section.model_copy(update={"from_": stored[name]["from"]})
        require_same_config(config.model_copy(update=changes), {"config": stored})
