"""`python -m launch COMMAND`: reads the command line, runs the command, and turns errors into exit codes."""

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, Protocol

COMMANDS = {
    "up": "create the machines",
    "setup": "bring every host to the same state",
    "run": "start a run on all hosts",
    "watch": "keep the run going: after preemptions, faults and maintenance",
    "status": "show machines, run, progress and cost",
    "logs": "show what the hosts print",
    "ssh": "open a shell on a host, run a command on hosts, or forward a port",
    "stop": "stop the run; the machines stay",
    "pull": "bring a run's export here",
    "down": "delete the machines",
    "doctor": "check this workstation and the settings",
    "export": "write files for GKE, SkyPilot or Docker",
}
"""Each is a module of this package with `add(parser)` and `run(context, arguments)`."""


class Parser(argparse.ArgumentParser):
    """Of a command: its flags may stand between CONFIG and KEY=VALUE. With `--`, everything after it is positional."""

    _inside = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._inside or {"--", "-h", "--help"} & set(args or ()):
            return super().parse_known_args(args, namespace)
        self._inside = True
        try:
            given, rest = self.parse_known_intermixed_args(args, namespace)
        finally:
            self._inside = False
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return given, []


class Command(Protocol):
    """What a module of a command has."""

    def add(self, parser: argparse.ArgumentParser) -> None:
        """Adds the command's own arguments."""
        ...

    def run(self, context: Any, arguments: argparse.Namespace) -> int | None:
        """Runs the command; returns its exit code, None for 0."""
        ...


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    words = list(sys.argv[1:] if words is None else words)
    try:
        import pydantic  # noqa: F401
        import yaml  # noqa: F401
    except ImportError as error:
        print(
            f"error: {error.name} is not installed here; python -m pip install PyYAML 'pydantic>=2.12'", file=sys.stderr
        )
        return 2
    from janus_jax.errors import JanusError
    from launch.context import Context
    from launch.settings import load

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as SIGHUP is under nohup: that stays so
            signal.signal(number, _interrupt)
    try:
        parser = _parser(words)
        arguments = parser.parse_args(words)
        if arguments.command is None:
            parser.print_help()
            return 0
        flags = {key: value for key in _keys() if (value := getattr(arguments, f"set_{key}")) is not None}
        context = Context(load(arguments.settings, flags), dry_run=arguments.dry_run)
        return _module(arguments.command).run(context, arguments) or 0
    except JanusError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as error:
        number = error.args[0] if error.args else signal.SIGINT
        print("stopped", file=sys.stderr)
        return 128 + number
    except BrokenPipeError:  # `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _interrupt(number: int, frame: object) -> None:
    from launch.cloud.gcloud import end_those_of_threads

    end_those_of_threads()
    raise KeyboardInterrupt(number)


def _keys() -> list[str]:
    from launch.settings import Settings

    return list(Settings.model_fields)


def _module(name: str) -> Command:
    return importlib.import_module(f"launch.commands.{name}")  # pyright: ignore[reportReturnType]


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser. Only the module of the command that was given is imported."""
    from launch.settings import DEFAULT_FILE, Settings

    parser = argparse.ArgumentParser(
        prog="python -m launch", description="Run janus on Cloud TPU VMs.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    chosen = next((word for word in words if not word.startswith("-")), None)
    for name, text in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name != chosen:
            continue
        _module(name).add(sub)
        group = sub.add_argument_group("settings", f"Each wins over its key in {DEFAULT_FILE}.")
        group.add_argument("--settings", metavar="FILE", help=f"another file than {DEFAULT_FILE}")
        group.add_argument("--dry-run", action="store_true", help="print the commands that would change something")
        for key, field in Settings.model_fields.items():
            flag = f"--{key.replace('_', '-')}"
            shape: dict[str, Any] = {"metavar": "VALUE"}
            if field.annotation is bool:
                shape = {"nargs": "?", "const": "true", "metavar": "true|false"}
            text = " ".join((field.description or "").split()).replace("%", "%%")
            group.add_argument(flag, dest=f"set_{key}", help=text, **shape)
    return parser


if __name__ == "__main__":
    sys.exit(main())
