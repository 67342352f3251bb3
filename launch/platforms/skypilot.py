"""A task file for SkyPilot, whose managed jobs create the machines again after a preemption."""

import shlex
from collections.abc import Sequence
from typing import Any

import yaml

from janus_jax.errors import AGAIN, EXIT_CODES, ConfigError
from launch.cloud import capacity
from launch.platforms.training_file import header, train_words
from launch.settings import Settings

_USED = {"name", "zone", "type", "bucket", "runtime", "provisioning", "labels", "slices"}


def text(settings: Settings, config: str, overrides: Sequence[str]) -> str:
    """The task of a training run, with comments that say how to use it.

    Raises:
        ConfigError: several slices, which SkyPilot does not connect; reserved machines.
    """
    lines = [
        f"Start: sky jobs launch -n {settings.name} THIS_FILE     Look: sky jobs logs -n {settings.name}",
        "Run it from the checkout: `workdir` sends it to the machines.",
    ]
    return header("SkyPilot task", lines, settings, _USED) + yaml.safe_dump(
        task(settings, config, overrides), sort_keys=False
    )


def task(settings: Settings, config: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The task as an object."""
    kind = capacity.of(settings)
    if kind.slices > 1:
        raise ConfigError(f"slices {kind.slices}: allowed: 1, because SkyPilot does not connect slices; see `jobset`")
    if settings.provisioning == "reserved":
        raise ConfigError("provisioning 'reserved': allowed: on-demand, spot")
    resources: dict[str, Any] = {
        "infra": f"gcp/{capacity.region(settings.zone)}/{settings.zone}",
        "accelerators": f"tpu-{kind.name}",
        "accelerator_args": {"runtime_version": kind.runtime},
        "use_spot": settings.provisioning == "spot",
        "job_recovery": {
            # Exit codes that say "start again" count against no bound; others start again once.
            "max_restarts_on_errors": 1,
            "recover_on_exit_codes": sorted(
                code for code, (_, then) in EXIT_CODES.items() if then == AGAIN and code < 128
            ),
        },
    }
    if settings.labels:
        resources["labels"] = dict(settings.labels)
    words = shlex.join(train_words(settings, config, overrides))
    return {
        "name": settings.name,
        "workdir": ".",
        "resources": resources,
        # Hosts of a pod run both parts, each for itself; the images may have no Python 3.11.
        "setup": "command -v uv >/dev/null || python3 -m pip install --user --quiet uv\n"
        'export PATH="$HOME/.local/bin:$PATH"\n'
        "uv venv --quiet --clear --python 3.11 ~/janus-env\n"
        "uv pip install --quiet --python ~/janus-env/bin/python -c constraints-py311.txt -e '.[tpu]'\n",
        # Processes of one slice learn from the pod's metadata who they are.
        "run": 'export JANUS_RUN_OWNER="$SKYPILOT_TASK_ID"\n' + f"exec ~/janus-env/bin/{words}\n",
    }
