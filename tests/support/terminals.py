"""A terminal for tests: a program behind a pseudo-terminal, and what a person sees of it."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_CODES = re.compile(r"\x1b\[[0-9;?]*([A-Za-z])|\x1b[=>]|\x07")
_AS_ITS_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp(sys.argv[1], sys.argv[1:])"
)
"""So that Ctrl-C is a signal."""
_PATIENCE_S = 100


_WIDTHS = ("COLUMNS", "LINES")
"""They would count in place of the width of the terminal."""


class Terminal:
    """A program that believes to be in a terminal.

    Args:
        width: in columns.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], width: int):
        self._fd, inner = pty.openpty()
        self.resize(width)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _AS_ITS_TERMINAL, *command],
            stdin=inner,
            stdout=inner,
            stderr=inner,
            env={name: value for name, value in environment.items() if name not in _WIDTHS}
            | {"TERM": "xterm-256color"},
            start_new_session=True,
        )
        os.close(inner)
        self.raw = b""
        """All that came."""

    @property
    def text(self) -> str:
        return self.raw.decode("utf-8", "replace")

    def resize(self, width: int) -> None:
        """Gives the terminal another width, of which the program gets a signal."""
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))

    def type(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def interrupt(self) -> None:
        """Types Ctrl-C once the program waits for a key.

        Python's readline loses a signal that comes between its look at pending signals and its `select`: it is heard at
        the next key.
        """
        deadline, rests = time.monotonic() + _PATIENCE_S, 0
        while rests < 5:
            if time.monotonic() > deadline:
                raise AssertionError("the program does not come to rest")
            time.sleep(0.02)
            state = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()[0]
            rests = rests + 1 if state == "S" else 0
        self.type("\x03")

    def until(self, pattern: str, since: int = 0) -> int:
        """Reads until a regular expression matches what came after place `since`; returns the place behind it."""
        deadline = time.monotonic() + _PATIENCE_S
        while not (match := re.compile(pattern).search(self.text, since)):
            if time.monotonic() > deadline or not self._read():
                raise AssertionError(f"{pattern!r} did not come after: {self.text[since:]!r}")
        return match.end()

    def end(self) -> int:
        """Reads to the end of the program; returns its exit code."""
        while self._read():
            pass
        return self._process.wait(_PATIENCE_S)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._fd)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._fd], [], [], 1.0)
        if not ready:
            return True
        try:
            piece = os.read(self._fd, 65536)
        except OSError:  # the program has ended
            return False
        self.raw += piece
        return bool(piece)


def seen(text: str) -> list[str]:
    """The lines that a person sees of what was written: moves to the begin of a line and erasures are carried out."""
    lines, at, place = [""], 0, 0
    while place < len(text):
        if code := _CODES.match(text, place):
            if code[1] == "K":
                lines[-1] = lines[-1][:at]
            place = code.end()
            continue
        character, place = text[place], place + 1
        if character == "\r":
            at = 0
        elif character == "\n":
            lines.append("")
            at = 0
        elif character == "\b":
            at = max(0, at - 1)
        else:
            lines[-1] = lines[-1][:at] + character + lines[-1][at + 1 :]
            at += 1
    return [line.rstrip() for line in lines]
