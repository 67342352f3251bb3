"""Errors that a user can act on. Each carries the exit code of the `janus` command.

0 done · 1 internal error · 2 bad input · 3 does not fit · 10 preempted, saved · 11 out of memory ·
12 non-finite · 13 lost peer · 14 storage · 130 interrupted · 143 terminated.
"""


class JanusError(Exception):
    """Base of all errors with a message meant for the user, shown without a traceback."""

    exit_code = 1


class ConfigError(JanusError):
    """A configuration, flag or mesh that cannot be run: names the key, the value and what is allowed."""

    exit_code = 2


class DataError(JanusError):
    """Input rows or data sets that cannot be used: names the file and the 1-based row."""

    exit_code = 2


class ConversionError(JanusError):
    """A model directory that cannot be read or written as asked: names the file and the tensor or key."""

    exit_code = 2


class StorageError(JanusError):
    """A file system or bucket that refused: names the path and the operation."""

    exit_code = 14


class OutOfMemoryError(JanusError):
    """Devices, or this machine, have too little memory for what was asked: says how much was wanted, and by what."""

    exit_code = 11


class NonFiniteError(JanusError):
    """Loss or gradient became NaN or infinite: names the step and the value."""

    exit_code = 12


class LostPeerError(JanusError):
    """Another process did not reach a barrier in time: names the barrier and the time-out."""

    exit_code = 13


def first_line(error: object) -> str:
    """The first line of what an error says, or its name if it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
