"""`down`: deletes the machines."""

import argparse
import dataclasses

from launch.cloud import machines
from launch.context import Context


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--adopt", action="store_true", help="delete machines of this name that others made, adopted ones included"
    )


def run(context: Context, arguments: argparse.Namespace) -> int | None:
    there_is = machines.look(context, context.say)
    if there_is is None:
        context.say(f"{context.settings.name}: nothing to delete")
        return None
    if not arguments.adopt and (there_is.adopted or not there_is.ours):
        raise machines.not_ours(there_is)
    machines.delete(context, dataclasses.replace(there_is, ours=True), notify=context.say)
    if not context.dry_run:
        context.say(f"{there_is.name}: deleted")
    return None
