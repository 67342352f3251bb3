"""`export`: writes a GKE JobSet, a SkyPilot task or a Dockerfile from the settings."""

import argparse
import os
from typing import Any

from janus_jax.errors import ConfigError
from launch.cloud import capacity
from launch.platforms import docker, jobset, skypilot
from launch.platforms.training_file import in_checkout

EPILOG = """Examples:
  python -m launch export dockerfile --out Dockerfile
  python -m launch export jobset configs/sft_65k.yaml schedule.epochs=1 --out jobset.yaml
"""


def add(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("platform", choices=["jobset", "skypilot", "dockerfile"])
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="configuration in the checkout; not for dockerfile")
    parser.add_argument(
        "overrides", metavar="KEY=VALUE", nargs="*", help="changes to single keys, as `janus train` has"
    )
    parser.add_argument("--out", metavar="FILE", help="file to write; an existing one is replaced. Default: stdout")
    parser.add_argument("--image", help="of the JobSet. Default: REGION-docker.pkg.dev/PROJECT/janus/janus:latest")


def run(context: Any, arguments: argparse.Namespace) -> None:
    platform, config, settings = arguments.platform, arguments.config, context.settings
    if platform == "dockerfile":
        if config or arguments.image:
            raise ConfigError(f"dockerfile: takes no {'CONFIG' if config else '--image'}")
        text = docker.text()
    elif config is None:
        raise ConfigError(f"{platform}: needs CONFIG, a configuration in the checkout")
    else:
        config = in_checkout(context.root, config)
        if platform == "jobset":
            place = f"{capacity.region(settings.zone)}-docker.pkg.dev/{settings.project}"
            text = jobset.text(settings, config, arguments.overrides, arguments.image or f"{place}/janus/janus:latest")
        elif arguments.image:
            raise ConfigError("skypilot: takes no --image")
        else:
            text = skypilot.text(settings, config, arguments.overrides)
    if arguments.out is None or context.dry_run:
        print(text, end="")
        return
    try:
        with open(arguments.out, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"--out {arguments.out}: {error.strerror}; allowed: a file that can be written") from None
    context.say(f"wrote {os.path.abspath(arguments.out)}")
