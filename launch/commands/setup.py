"""`setup`: brings every host to the same state. Where nothing is missing it takes seconds."""

import argparse
import time

from janus_jax.errors import counted
from launch.context import Context
from launch.remote import environment, hosts


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the command's own arguments."""
    parser.add_argument("--revision", metavar="REVISION", help="a git revision instead of the checkout as it is")


def run(context: Context, arguments: argparse.Namespace) -> None:
    """Sets all hosts up and compares them."""
    start = time.monotonic()
    with hosts.reach(context) as reached:
        ready = environment.bring(context, reached, revision=arguments.revision, notify=context.say)
        if not context.dry_run:
            context.say(
                f"{counted(len(reached.hosts), 'host')} ready in {time.monotonic() - start:.0f} s: code {ready.code}, "
                f"environment {ready.environment}"
            )
