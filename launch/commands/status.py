"""Show machines, run, progress and cost.

Everything comes from Google Cloud and the bucket; hosts are asked only if a heartbeat is old or missing, or there is no
bucket. Costs are list prices times the hours since the machines were created, with earlier machines that `watch` knows.
"""

import argparse
import dataclasses
import json

from launch.context import Context
from launch.errors import CloudError
from launch.runs.overview import gather, render


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the command's own arguments."""
    parser.description = __doc__
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")


def run(context: Context, arguments: argparse.Namespace) -> int:
    """Prints the status. 16 if something could not be looked at."""
    view = gather(context)
    if arguments.json:
        context.say(json.dumps(dataclasses.asdict(view), indent=1))
    else:
        for line in render(view):
            context.say(line)
    return CloudError.exit_code if view.errors else 0
