"""`ssh`: a shell on a host, a command on hosts, or a port of a host on this workstation."""

import argparse
import os
import re
import shlex
import subprocess
import sys

from janus_jax.errors import ConfigError
from launch.context import Context
from launch.errors import HostError
from launch.records import printable
from launch.remote import hosts
from launch.remote.hosts import LOST, Host, Hosts

_LOST = "cannot be reached (ssh ended with 255); `python -m launch up` says whether the machines are ready"

EXAMPLES = """Examples:
  python -m launch ssh                                 a shell on worker 0
  python -m launch ssh --worker 3 -- nproc             a command on worker 3
  python -m launch ssh --worker all -- 'df -h / | tail -1'   a shell line on all hosts
  python -m launch ssh -L 6006:localhost:6006          port 6006 of worker 0, here; until Ctrl-C
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the command's own arguments."""
    parser.epilog = EXAMPLES
    parser.add_argument("--worker", default="0", metavar="N|all", help="which host; worker numbers go on over slices")
    parser.add_argument(
        "-L",
        dest="forward",
        action="append",
        default=[],
        metavar="PORT:HOST:PORT",
        help="make a port of the host reachable on this workstation, at 127.0.0.1 alone",
    )
    parser.add_argument("words", nargs="*", metavar="COMMAND", help="after --; a single word is a line for the shell")


def run(context: Context, arguments: argparse.Namespace) -> int | None:
    """Opens the shell, runs the command or forwards the ports; returns the command's exit code."""
    forwards = [_forward(text) for text in arguments.forward]
    words = arguments.words
    command = None if not words else words[0] if len(words) == 1 else shlex.join(words)
    with hosts.reach(context) as reached:
        chosen = _chosen(reached, arguments.worker)
        if len(chosen) == 1 and (arguments.worker != "all" or command is None):
            return _exec(context, chosen[0], command, forwards)
        if command is None or forwards:
            raise ConfigError("--worker all", "needs a command after --, and forwards no port; allowed: --worker N")
        return _on_all(reached, command)


def _chosen(reached: Hosts, worker: str) -> list[Host]:
    if worker == "all":
        return reached.hosts
    chosen = [host for host in reached.hosts if str(host.number) == worker]
    if not chosen:
        raise ConfigError(f"--worker {worker}", f"allowed: 0 to {len(reached.hosts) - 1}, or all")
    return chosen


def _forward(text: str) -> str:
    """The argument of ssh's -L, bound to this workstation's loopback address alone."""
    match = re.fullmatch(r"(?:(?:localhost|127\.0\.0\.1):)?(\d+)(?::([A-Za-z0-9._-]+):(\d+))?", text)
    if not match or not all(0 < int(port) < 65536 for port in match.group(1, 3) if port):
        raise ConfigError(
            f"-L {text}", "allowed: PORT or PORT:HOST:PORT, like 6006:localhost:6006; it listens here only"
        )
    port, host, remote = match.groups()
    return f"127.0.0.1:{port}:{host or 'localhost'}:{remote or port}"


def _exec(context: Context, host: Host, command: str | None, forwards: list[str]) -> int | None:
    """Becomes ssh, or waits for it: its terminal, input and exit code are the user's.

    Raises:
        HostError: the host cannot be reached.
    """
    options = ["-o", "ControlMaster=no"]
    if forwards:  # they belong to this process, not to a shared connection that outlives it
        options += ["-o", "ControlPath=none", "-o", "ExitOnForwardFailure=yes"]
        options += [word for forward in forwards for word in ("-L", forward)]
        if command is None:
            options.append("-N")
            context.warn("forwarding " + ", ".join(forwards) + " until Ctrl-C")
    elif command is None:
        options.append("-t")
        context.warn(f"{host.name}: a shell; exit ends it")
    if not host.iap and "-t" in options:
        host = Host(**{**vars(host), "words": [word for word in host.words if word != "-T"]})
    words = host.line(command, options=options)
    if context.dry_run:
        context.say(shlex.join(words))
        return 0
    sys.stdout.flush()
    if command is None or forwards:
        return os.execvp(words[0], words)
    code = subprocess.call(words)
    if code == LOST:
        raise HostError(host.name, _LOST)
    return code if code >= 0 else 128 - code


def _on_all(reached: Hosts, command: str) -> int:
    answers = reached.each(command, timeout_s=None)
    width = len(str(len(reached.hosts) - 1))
    for answer in answers:
        for stream, text in ((sys.stdout, answer.out), (sys.stderr, answer.err)):
            for line in text.splitlines():
                print(f"[{answer.host.number:>{width}}] {printable(line, 10_000)}", file=stream)
        if answer.code:
            text = _LOST if answer.code == LOST else f"exit code {answer.code}"
            print(f"[{answer.host.number:>{width}}] {text}", file=sys.stderr)
    code = next((answer.code for answer in answers if answer.code), 0)
    return HostError.exit_code if code == LOST else code
