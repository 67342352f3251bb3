"""Show what the hosts print.

Lines come from the bucket, some seconds late, with the number of their worker: `[worker 03] train 12/75  loss 10.1`.
They stay there when the machines are gone. Without a bucket the hosts are asked.
"""

import argparse
import time
from collections.abc import Callable

from janus_jax.errors import ConfigError
from launch.context import Context
from launch.errors import CloudError
from launch.records import STALE_S, number
from launch.runs.looks import Looks
from launch.runs.merged import Merged, outcome, plain
from launch.runs.snapshot import Reader, Snapshot, settled

POLL_S = 5.0
_QUIET_S = 90.0


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the command's own arguments."""
    parser.description = __doc__
    parser.add_argument(
        "-f", "--follow", action="store_true", help="go on until the run ends, also over new machines; then its code"
    )
    parser.add_argument("--worker", type=int, metavar="N", help="only this host, counted from 0 over all slices")
    parser.add_argument("--lines", type=_lines, default=20, metavar="N|all", help="of each host, at first (default 20)")
    parser.add_argument("--every-start", action="store_true", help="all that the run printed, from its first start on")
    parser.add_argument("--run", metavar="RUN_ID", help="an earlier run of this launch, as its messages named it")


def run(
    context: Context,
    arguments: argparse.Namespace,
    *,
    looks: Looks | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Prints logs. With -f, the exit code is the run's."""
    try:
        if context.settings.bucket is None:
            return _from_hosts(context, arguments, looks or Looks(context), sleep)
        return _from_bucket(context, arguments, looks, sleep)
    except KeyboardInterrupt as error:  # the usual way to end -f; the run goes on
        return 128 + (error.args[0] if error.args else 2)


def _from_bucket(
    context: Context, arguments: argparse.Namespace, looks: Looks | None, sleep: Callable[[float], None]
) -> int:
    reader = Reader(context.records)
    snapshot = reader.read()
    run_id = arguments.run or (snapshot.run.run_id if snapshot.run else None)
    if run_id is None:
        raise ConfigError(context.records.url, "no run was started here; start one: python -m launch run CONFIG")
    merged = Merged(context.records.at(run_id, "logs"), worker=arguments.worker)
    parts = merged.parts(every_start=arguments.every_start)
    if not parts:
        _require_known(context, arguments, snapshot)
    _show(context, merged.last(parts, arguments.lines) if arguments.lines is not None else merged.new(parts))
    if not arguments.follow:
        _show(context, merged.rest())
        if not parts:
            context.warn(f"{context.records.url}/{run_id}: no logs yet")
        return 0
    workers = (looks or Looks(settled(context, snapshot.run))).type().workers
    quiet_s, has_hinted = 0.0, False
    while True:
        try:
            snapshot = reader.read()  # before the parts: the last lines come before the word that the run has ended
            over = outcome(snapshot, workers, run_id, watched=_is_watched(context, snapshot))
            lines = merged.new(merged.parts(every_start=True))
        except CloudError as error:
            if not error.kind.passes:
                raise
            lines, over = [], None
        _show(context, lines)
        if over is not None:
            _show(context, merged.rest())
            context.warn(over[1])
            return over[0]
        quiet_s = 0.0 if lines else quiet_s + POLL_S
        if quiet_s > _QUIET_S:
            if snapshot.stopped:
                context.warn(f"{snapshot.stopped} has stopped the run")
                return 0
            if not has_hinted:
                has_hinted = True
                context.warn("no host has printed anything for a while; to see more: python -m launch status")
        sleep(POLL_S)


def _require_known(context: Context, arguments: argparse.Namespace, snapshot: Snapshot) -> None:
    """Refuses a run or a worker of which no logs can come."""
    if snapshot.run is None or arguments.run not in (None, snapshot.run.run_id):
        names = {entry.name.partition("/")[0] for entry in context.records.entries("*/logs/**")}
        if arguments.run not in names:
            known = sorted(names | ({snapshot.run.run_id} if snapshot.run else set()))
            raise ConfigError(f"--run {arguments.run}", f"has no logs; allowed: {', '.join(known) or 'none yet'}")
    if arguments.worker is not None:
        workers = Looks(settled(context, snapshot.run)).type().workers
        if not 0 <= arguments.worker < workers:
            raise ConfigError(f"--worker {arguments.worker}", f"allowed: 0 to {workers - 1}")


def _is_watched(context: Context, snapshot: Snapshot) -> bool:
    """Whether a watcher lives. The store's clock is asked only if there is one and the run needs it."""
    if snapshot.watcher is None or not snapshot.watcher.token:
        return False
    hosts = snapshot.hosts(0.0)
    if not hosts or any(host.state != "ended" for host in hosts):
        return True
    return context.records.clock() - snapshot.watched_s <= STALE_S


def _from_hosts(context: Context, arguments: argparse.Namespace, looks: Looks, sleep: Callable[[float], None]) -> int:
    machines = looks.find()
    if machines is None:
        raise ConfigError(context.settings.name, "no machines of this name, and the settings name no bucket")
    lines = 1_000_000 if arguments.lines is None else arguments.lines
    positions: dict[int, int] = {}
    while True:
        answers = looks.tails(machines, positions, lines)
        if arguments.worker is not None and arguments.worker not in answers:
            raise ConfigError(f"--worker {arguments.worker}", f"allowed: 0 to {len(answers) - 1}")
        for worker, answer in sorted(answers.items()):
            positions[worker] = int(answer["position"])
            if arguments.worker in (None, worker):
                prefix = f"[worker {number(worker, len(answers))}] "
                _show(context, [prefix + line for line in plain(str(answer["text"]))])
        if not arguments.follow or all(
            answer.get("state") not in ("starting", "running") for answer in answers.values()
        ):
            return 0
        sleep(POLL_S)


def _show(context: Context, lines: list[str]) -> None:
    if lines:
        context.say("\n".join(lines))


def _lines(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text}: allowed: a whole number, or all")
    return int(text)
