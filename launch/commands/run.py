"""`run`: starts a command on all hosts, and returns."""

import argparse
import contextlib
import signal
import time
from typing import TYPE_CHECKING

from janus_jax.errors import ConfigError, HeldError, JanusError
from launch.context import Context
from launch.errors import CloudError, HostError, Kind, cause
from launch.records import Run, Stop, printable
from launch.runs import command as commands
from launch.runs import resume, start

if TYPE_CHECKING:
    from launch.remote.hosts import Hosts

_LOOK_S = 5.0
_UNREACHABLE_S = 600.0
"""How long `--wait` goes on without an answer from the hosts."""
_DEAD = 17


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the command's own arguments."""
    parser.epilog = (
        "Examples:\n"
        "  python -m launch run configs/sft_65k.yaml batch.rows=16\n"
        "  python -m launch run -- janus time-step configs/sft_65k.yaml\n"
    )
    parser.add_argument(
        "words",
        nargs="+",
        metavar="CONFIG [KEY=VALUE ...]",
        help="a configuration and changes to single keys, for `janus train`; or, after --, any janus command",
    )
    parser.add_argument("--run-dir", metavar="DIR", help="gs:// URL of the run directory; wins over run.dir")
    parser.add_argument("--shared-mount", metavar="DIR", help="directory that is the same one on all hosts")
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="environment variable; no secrets"
    )
    parser.add_argument("--revision", metavar="REVISION", help="a git revision instead of the checkout as it is")
    parser.add_argument("--wait", action="store_true", help="follow the run to its end, and exit with its code")


def run(context: Context, arguments: argparse.Namespace) -> int | None:
    """Starts the run; with `--wait`, its exit code."""
    command, env = commands.read(arguments.words), commands.environment(arguments.env)
    for flag, value in (("--run-dir", arguments.run_dir), ("--shared-mount", arguments.shared_mount)):
        if value is not None and not command.trains:
            raise ConfigError(f"{flag} {value}: `janus {command.words[0]}` has no run directory; leave it out")
    from launch.cloud import machines as cloud
    from launch.remote.environment import bring
    from launch.remote.hosts import connect

    start.require_bucket(context)
    machines = cloud.find(context)
    name = context.settings.name
    if machines is None:
        raise CloudError(Kind.NOT_FOUND, f"{name}: no such machines; `python -m launch up` makes them")
    if not machines.ours:
        raise ConfigError(f"{name}: the machines of this name are not of this launch; `up` says how to adopt them")
    if not machines.ready:
        raise HostError(f"{name}: the machines are {machines.state}, not ready; `python -m launch up` waits for them")
    workers = start.require_all(context, len(machines.workers))
    if command.trains:
        given, mount = arguments.run_dir, arguments.shared_mount
        directory, _ = commands.run_dir(context, command, workers=workers, given=given, shared_mount=mount)
        if command.config is not None and arguments.revision is None:  # a revision may have another rule
            try:
                resume.require_same_config(context, command.config, directory)
            except ConfigError:
                start.require_quiet(context)  # another run would be refused whatever its configuration
                raise
    address = min(machines.workers, key=lambda worker: worker.number).internal
    with connect(context, machines) as hosts:
        revision = arguments.revision
        ready = bring(context, hosts, revision=revision, notify=context.say)
        context.say(f"code:    {ready.code}, {f'revision {revision}' if revision else 'this checkout as it is'}")
        if not context.dry_run:
            start.require_free(hosts)
        before = None if context.dry_run else start.previous(context)
        new = start.prepare(
            context,
            arguments.words,
            workers=workers,
            ready=ready,
            run_dir=arguments.run_dir,
            shared_mount=arguments.shared_mount,
            env=env,
            before=before,
        )
        try:
            start.start(context, hosts, ready, new, address=address, before=before)
        except BaseException as error:
            if not isinstance(error, HeldError):
                _give_up(context, new)
            raise
        _announce(context, new, command, workers, address)
        return _follow(context, hosts, new) if arguments.wait and not context.dry_run else None


def _announce(context: Context, run: Run, command: commands.Command, workers: int, address: str) -> None:
    if context.dry_run:
        return
    where = f"worker 0 of {workers}" if workers > 1 and not command.together else f"all hosts ({workers})"
    context.say(f"run:     {run.run_id}, `janus {run.command[0]}` on {where}")
    context.say("next:    python -m launch logs -f   what the hosts print")
    context.say("         python -m launch status    step, loss, last checkpoint")
    if command.trains:
        context.say("         python -m launch watch     brings it back after preemptions")


def _give_up(context: Context, run: Run) -> None:
    """Nobody starts a run that its user has seen fail to start."""
    if context.dry_run:
        return
    with contextlib.suppress(JanusError):
        now = start.previous(context)
        if now is not None and now.value.get("run_id") == run.run_id:
            stop = Stop(run.run_id, context.me, time.time(), "it did not start on all hosts")
            context.records.write("stop.json", stop.to_json())


def _follow(context: Context, hosts: "Hosts", run: Run) -> int:
    """Shows what worker 0 prints until the run has ended on all hosts; its exit code."""
    position, heard = 0, time.monotonic()
    first = [hosts.hosts[0]]
    try:
        while True:
            try:
                states = hosts.agent("state")
                for _ in range(64):
                    tail = hosts.agent("tail", {"position": position}, only=first)[0]
                    for line in tail["text"].splitlines() if tail["run_id"] == run.run_id else ():
                        context.say(printable(line, 10_000))
                    if tail["position"] == position:
                        break
                    position = tail["position"]
                heard = time.monotonic()
            except HostError as error:
                if time.monotonic() - heard > _UNREACHABLE_S:
                    raise HostError(f"the hosts do not answer; the run may go on: {error}") from error
                time.sleep(_LOOK_S)
                continue
            if other := next((s["run_id"] for s in states if s["run_id"] != run.run_id), None):
                raise HostError(f"the hosts have another run now: {other}")
            if not any(state["state"] in start.ALIVE for state in states):
                return _ended(context, hosts, states)
            time.sleep(_LOOK_S)
    except KeyboardInterrupt as error:
        context.warn("the run goes on; `python -m launch logs -f` follows it, `python -m launch stop` ends it")
        return 128 + (error.args[0] if error.args else signal.SIGINT)


def _ended(context: Context, hosts: "Hosts", states: list[dict]) -> int:
    codes = []
    for host, state in zip(hosts.hosts, states, strict=True):
        ended = state["state"] == "ended"
        codes.append((1 if state["code"] is None else state["code"]) if ended else _DEAD)
        if codes[-1]:
            text = state["message"] if ended else "its supervisor was killed"
            context.say(f"{host.name}: exit code {codes[-1]}: {printable(text or '')}")
    code = min(codes, key=cause)
    context.say(f"the run has ended with exit code {code}")
    return code
