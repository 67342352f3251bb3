"""What a command has written so far, as a file beside its output; a command that was stopped goes on where it was."""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from janus_jax.errors import ConfigError
from janus_jax.parallel import processes
from janus_jax.storage.bucket import os_errors


class Journal:
    """Finished lines beside the output, in the order in which they came.

    Its first line says what was asked, so it is never taken for that of another command.

    Args:
        asked: everything that decides the lines.
        holds: what a journal of another command holds, for its message.

    Raises:
        ConfigError: the output exists, or the journal is of another command.
    """

    def __init__(self, out: Path, asked: Any, *, holds: str = "answers to other prompts or of other options"):
        self.out, self.path, self._holds = out, out.with_name(f"{out.name}.part"), holds
        self._asked = {"asked": hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()}
        self.done: dict[int, Any] = {}
        """Number of a row -> its line of the output."""
        if out.exists():
            raise ConfigError(f"--out {out}: exists; remove it, or choose another name")
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        with os_errors(self.path):
            whole = self.path.read_bytes().split(b"\n")[:-1]
        try:
            asked, *done = map(json.loads, whole or [b"null"])
            self.done = dict(done)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"--out {self.out}: {self.path} is damaged ({error}); remove it") from error
        if whole and asked != self._asked:
            raise ConfigError(f"--out {self.out}: {self.path} holds {self._holds}; remove it, or choose another name")
        self._size = sum(len(line) + 1 for line in whole)  # a process may have been killed while it wrote the last line

    def open(self) -> None:
        """Begins to write.

        Raises:
            ConfigError: another command writes it, or has written the output since this journal was made.
        """
        with os_errors(self.path):
            self._file = self.path.open("ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"--out {self.out}: another command writes {self.path}") from error
        here = os.fstat(self._file.fileno())
        if self.out.exists() or not here.st_nlink:  # its writer has removed what is locked here
            if here.st_nlink and not here.st_size:
                self.path.unlink()
            raise ConfigError(f"--out {self.out}: another command wrote it meanwhile; choose another name")
        self._read()
        self._file.truncate(self._size)
        if not self._size:
            self._write(self._asked)

    def add(self, number: int, record: Any) -> None:
        self.done[number] = record
        self._write([number, record])

    def _write(self, value: Any) -> None:
        with os_errors(self.path):
            self._file.write(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
            self._file.flush()

    def finish(self) -> None:
        """Makes the output of the journal, in the order of the rows, and removes the journal.

        The journal stays locked meanwhile, so no other command begins to write either of them.
        """
        beside = self.out.with_name(f".{self.out.name}.incomplete")
        with os_errors(beside), beside.open("w", encoding="utf-8", errors="surrogatepass") as file:
            for number in sorted(self.done):
                file.write(json.dumps(self.done[number], ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        with os_errors(self.out):
            beside.replace(self.out)
            self.path.unlink()
        self._file.close()

    def close(self) -> None:
        """Lets another command go on."""
        self._file.close()

    def discard(self) -> None:
        """Removes the journal, whose contents are used."""
        self.path.unlink()
        self._file.close()


def begin(journal: Journal | None, rows: int, what: str, tell: Callable[[str], None]) -> list[int]:
    """Opens the journal in process 0, and says in all processes which rows it does not hold yet.

    Each of them fails if it cannot be opened.

    Args:
        journal: None in other processes than 0.
        what: the journal says of rows, such as `prompts are answered`.
    """
    with processes.agreement("journal"):
        if journal is not None:
            journal.open()
    done = set(processes.broadcast_large("journal", [] if journal is None else sorted(journal.done)))
    if done and journal is not None:
        tell(f"{len(done):,} of {rows:,} {what} in {journal.path}")
    return [number for number in range(rows) if number not in done]


def finish(journal: Journal | None) -> None:
    """`Journal.finish` in process 0; each process fails if it does."""
    with processes.agreement("output"):
        if journal is not None:
            journal.finish()
