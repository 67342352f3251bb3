"""Keep the run going: after preemptions, faults and maintenance.

Looks at the machines, at the hosts' heartbeats in the bucket and at exit codes, and starts the run again, on new
machines where the old ones are gone. The table of what follows from what is in launch/README.md. Ends when the run is
done (0), stopped (0), or cannot go on (the run's exit code, or 16, 17). `stop` on any workstation ends it. Ctrl-C
leaves run and machines alone; start `watch` again anywhere to go on.
"""

import argparse
import time

from launch.context import Context
from launch.runs.snapshot import Reader, settled
from launch.watching.decide import decide
from launch.watching.watch import POLL_S, Watch


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the command's own arguments."""
    parser.description = __doc__
    parser.add_argument(
        "--once",
        action="store_true",
        help="look once, do what that calls for, and end: for cron; does not wait for machines",
    )
    parser.add_argument("--poll", type=_seconds, default=POLL_S, metavar="SECONDS", help="between looks (default 20)")
    parser.add_argument("--down-at-end", action="store_true", help="delete the machines when the run is done")
    parser.add_argument("--down-at-give-up", action="store_true", help="delete them too when the run cannot go on")


def run(context: Context, arguments: argparse.Namespace) -> int:
    """Watches; see `launch.watching.watch.Watch.run`."""
    reader = Reader(context.records)
    context = settled(context, reader.read().run)
    watch = Watch(
        context,
        reader=reader,
        poll_s=arguments.poll,
        down_at_end=arguments.down_at_end,
        down_at_give_up=arguments.down_at_give_up,
    )
    if context.dry_run:
        action = decide(watch.look(time.time())[0])
        context.say(f"{action.row}: {action.reason}; next: {action.do.name.lower().replace('_', ' ')}")
        return 0
    return watch.run(once=arguments.once)


def _seconds(text: str) -> float:
    value = float(text)
    if not 1 <= value <= 600:
        raise argparse.ArgumentTypeError(f"{text}: allowed: 1 to 600 seconds")
    return value
