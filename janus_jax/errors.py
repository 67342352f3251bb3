"""Errors that a user can act on, and the exit codes of the `janus` command."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Protocol

AGAIN, TWICE, GIVE_UP = "start again", "start again once", "give up"

EXIT_CODES = {
    0: ("done", "done"),
    1: ("internal error, with a traceback", TWICE),
    2: ("bad input: configuration, records, model directory, mesh, command line", GIVE_UP),
    3: ("does not fit (`janus plan`)", GIVE_UP),
    10: ("preempted: the newest step is saved", AGAIN),
    11: ("out of memory", GIVE_UP),
    12: ("loss or gradient not finite", GIVE_UP),
    13: ("lost process, or one that has the coordinator's port", AGAIN),
    14: ("storage refused", AGAIN),
    15: ("another start holds the run directory", AGAIN),
    16: ("Google Cloud refused: quota, capacity, permission (`launch`)", GIVE_UP),
    17: ("a host failed or cannot be reached (`launch`)", AGAIN),
    129: ("SIGHUP, a lost terminal: as 143", AGAIN),
    130: ("Ctrl-C: a run has saved its newest step; at once after a second one", AGAIN),
    134: ("aborted by a library", AGAIN),
    137: ("killed (SIGKILL), by hand or by the machine's memory limit", AGAIN),
    139: ("crashed (segmentation fault)", AGAIN),
    141: ("output closed early, as by `head`", GIVE_UP),
    143: ("SIGTERM: a command ended at once, a run only before it has begun or at a second SIGTERM", AGAIN),
}
"""Exit code -> what it means, and what whoever supervises the command should do. Starting again has a bound."""


class JanusError(Exception):
    """Base of all errors with a message meant for the user, shown without a traceback.

    Args:
        parts: the places where something is wrong, if any (a path, a URL, FILE:ROW), then what is wrong. They are
            joined when they are shown, so a place can be renamed until then.
    """

    exit_code = 1

    def __init__(self, *parts: str | os.PathLike[str]):
        super().__init__(*parts)

    def __str__(self) -> str:
        return ": ".join(map(str, self.args))

    @property
    def places(self) -> tuple[str, ...]:
        """All parts but the last."""
        return tuple(map(str, self.args[:-1]))

    def rename(self, directory: str | os.PathLike[str], name: str | os.PathLike[str]) -> None:
        """Calls `directory`, and every place below it, by another name."""
        old, new = os.fspath(directory), os.fspath(name)
        places = (new + place[len(old) :] if f"{place}/".startswith(f"{old}/") else place for place in self.places)
        self.args = (*places, *self.args[-1:])


@contextlib.contextmanager
def named(key: str) -> Iterator[None]:
    """Inside, errors begin with the key of the configuration that named the place."""
    try:
        yield
    except JanusError as error:
        error.args = (key, *error.args)
        raise


class _Closable(Protocol):
    def close(self) -> None: ...


@contextlib.contextmanager
def closing(resource: _Closable, say: Callable[[str], None]) -> Iterator[None]:
    """Closes the resource at the end. If an error ends what is inside, one of `close` is only said: the first says why
    the command ends, with its exit code."""
    try:
        yield
    except BaseException as first:
        try:
            resource.close()
        except Exception as error:
            text = str(error) if isinstance(error, JanusError) else f"{type(error).__name__}: {first_line(error)}"
            if text != str(first):
                say(text)
        raise
    resource.close()


class ConfigError(JanusError):
    """A configuration, flag or mesh that cannot run: names the key, the value and what is allowed."""

    exit_code = 2


class DataError(JanusError):
    """Records or data sets that cannot be used: names the file and the record, counted from 1."""

    exit_code = 2


class ConversionError(JanusError):
    """A model directory that cannot be read or written as asked: names the file and the tensor or key."""

    exit_code = 2


class DamagedError(ConversionError):
    """Stored arrays or values that are not what was written. A run sets such a step aside and takes an older one."""


class StorageError(JanusError):
    """A file system or bucket that refused: names the path and the operation."""

    exit_code = 14


class OutOfMemoryError(JanusError):
    """Devices, or this machine, have too little memory: says how much was needed, and for what."""

    exit_code = 11


class NonFiniteError(JanusError):
    """Loss or gradient became NaN or infinite: names the step and the value."""

    exit_code = 12


class LostPeerError(JanusError):
    """Another process is lost, did not come in time, or has the coordinator's port: names it, the barrier and the
    time-out, or the port."""

    exit_code = 13


class Preempted(JanusError):
    """A notice ended a run, which can go on: SIGTERM, Ctrl-C (130) or the machine's own. Says which step is saved."""

    exit_code = 10

    def __init__(self, *parts: str | os.PathLike[str], exit_code: int = 10):
        super().__init__(*parts)
        self.exit_code = exit_code


class HeldError(JanusError):
    """Another start of the run goes on in the same run directory: names its host and process, and since when."""

    exit_code = 15


class LostLockError(HeldError):
    """Another start took the run directory over while this one stood still."""


class Interrupted(BaseException):
    """Ends a command that received a signal, and cleans up. Typer would answer KeyboardInterrupt with exit code 1."""

    def __init__(self, number: int):
        super().__init__(number)
        self.signal = number


def counted(number: int, noun: str) -> str:
    """A number with its noun, in the plural unless the number is 1."""
    return f"{number:,} {noun if number == 1 else noun + 's'}"


def first_line(error: object) -> str:
    """The first line of an error's message, or the error's type if the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
