"""Answers to a file of prompts, as a file in the same order; a command that was stopped goes on where it was."""

import dataclasses
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from janus_jax.errors import ConfigError
from janus_jax.generation.engine import Engine
from janus_jax.generation.prompt_file import PromptRow
from janus_jax.generation.requests import Event, Request
from janus_jax.parallel import processes
from janus_jax.storage.bucket import os_errors

WRITTEN = ("messages", "prompt_tokens", "answers")
"""Columns of the output, beside those of the row."""

_EVERY_S = 10.0
"""Between two lines of progress."""


@dataclasses.dataclass
class _Answer:
    text: str = ""
    ids: list[int] = dataclasses.field(default_factory=list)
    logps: list[float] = dataclasses.field(default_factory=list)
    reason: str | None = None

    def add(self, event: Event) -> None:
        self.text += event.text
        self.ids += event.ids
        self.logps += event.logps
        self.reason = event.reason

    def record(self, log_probs: bool) -> dict[str, Any]:
        scores = {"log_prob": sum(self.logps), "token_ids": self.ids, "token_log_probs": self.logps}
        return {"text": self.text, "finish_reason": self.reason, "tokens": len(self.ids)} | (
            scores if log_probs else {}
        )


class Journal:
    """Finished answers beside the output, one line each in the order in which they came.

    Its first line says what was asked, so it is never taken for that of another command.

    Args:
        asked: everything that decides the answers.
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
        whole, cut = (lines := self.path.read_bytes().split(b"\n"))[:-1], lines[-1]
        try:
            asked, *done = map(json.loads, whole or [b"null"])
            self.done = dict(done)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"--out {self.out}: {self.path} is damaged ({error}); remove it") from error
        if whole and asked != self._asked:
            raise ConfigError(f"--out {self.out}: {self.path} holds {self._holds}; remove it, or choose another name")
        self._size = self.path.stat().st_size - len(cut)  # a process was killed while it wrote the last line

    def open(self) -> None:
        """Begins to write.

        Raises:
            ConfigError: another command writes it.
        """
        with os_errors(self.path):
            self._file = self.path.open("ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"--out {self.out}: another command writes {self.path}") from error
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
        """Makes the output of the journal, in the order of the rows, and removes the journal."""
        self._file.close()
        beside = self.out.with_name(f".{self.out.name}.incomplete")
        with os_errors(beside), beside.open("w", encoding="utf-8", errors="surrogatepass") as file:
            for number in sorted(self.done):
                file.write(json.dumps(self.done[number], ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.out)
        self.path.unlink()

    def discard(self) -> None:
        """Removes the journal, whose contents are used."""
        self._file.close()
        self.path.unlink()


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


def answer(
    engine: Engine,
    rows: Sequence[PromptRow],
    requests: Sequence[Request],
    left: Sequence[int],
    journal: Journal | None,
    *,
    log_probs: bool,
    tell: Callable[[str], None],
) -> None:
    """Answers some prompts. Several processes call it alike, and process 0 keeps the journal.

    Args:
        rows: None of them in other processes than 0.
        requests: one for each row, named by its number.
        left: numbers of the rows to answer (`begin`).
        journal: None in other processes than 0.
        log_probs: also write ids and log-probs of tokens.
        tell: gets a line of progress now and then.
    """
    for number, answers in _finished(engine, requests, left, tell):
        if journal is None:
            continue
        row, request = rows[number], requests[number]
        journal.add(
            number,
            {
                **row.rest,
                "messages": list(row.messages),
                "prompt_tokens": len(request.ids),
                "answers": [one.record(log_probs) for one in answers],
            },
        )


def finish(journal: Journal | None) -> None:
    """`Journal.finish` in process 0; each process fails if it does."""
    with processes.agreement("output"):
        if journal is not None:
            journal.finish()


def _finished(
    engine: Engine, requests: Sequence[Request], left: Sequence[int], tell: Callable[[str], None]
) -> Iterator[tuple[int, list[_Answer]]]:
    """(number, answers) of requests whose samples all ended."""
    growing: dict[int, list[_Answer]] = {}
    began = told = time.monotonic()
    tokens = finished = 0
    for event in engine.generate(requests[number] for number in left):
        number = left[event.request]
        answers = growing.setdefault(number, [_Answer() for _ in range(requests[number].samples)])
        answers[event.sample].add(event)
        tokens += len(event.ids)
        if all(one.reason for one in answers):
            finished += 1
            yield number, growing.pop(number)
        now = time.monotonic()
        if now - told > _EVERY_S or finished == len(left):
            told, spent, open_ = now, now - began, len(left) - finished
            rest = f", {minutes(spent / finished * open_)} left" if finished and open_ else ""
            tell(f"{finished:,} of {len(left):,} prompts, {tokens / spent:,.0f} tokens/s{rest}")


def minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
