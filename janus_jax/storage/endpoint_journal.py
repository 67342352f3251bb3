"""Replies of an endpoint that were paid for, on disk before anybody sees them."""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from janus_jax.errors import ConfigError
from janus_jax.storage.bucket import is_url, os_errors

_FIRST = {"journal": "replies", "version": 1}


@dataclasses.dataclass
class Spent:
    """Tokens of everything that was paid for, failures too."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0
    """Records of requests that no reply counts."""


class ReplyJournal:
    """A JSONL file of replies by key. One process writes it at a time; its threads may write together.

    Memory holds where each reply stands, about 200 bytes, and not its text. A last line that a killed process left half
    written is cut off.

    Raises:
        ConfigError: the file is no such journal, is damaged, or another process writes it.
        StorageError: it cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]):
        if is_url(path):
            raise ConfigError(os.fspath(path), "is a URL; allowed: a local file, which can be written line by line")
        self.path = Path(path)
        self.spent = Spent()
        self.failures: Counter[str] = Counter()
        """Key -> records without an answer."""
        self._places: dict[bytes, tuple[int, int]] = {}
        self._refusals: dict[bytes, tuple[int, int]] = {}
        self._lock = threading.Lock()
        with os_errors(self.path):
            self._file = self.path.open("a+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
        except BaseException as error:
            self._file.close()
            if isinstance(error, BlockingIOError):
                raise ConfigError(f"{self.path}: another process writes it") from error
            raise

    def __len__(self) -> int:
        """Number of answers."""
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        """Whether there is an answer."""
        return _short(key) in self._places

    def get(self, key: str, *, refusal: bool = False) -> dict[str, Any] | None:
        """The record of an answer; None without one.

        Args:
            refusal: a whole reply without a text will do too.
        """
        place = self._places.get(_short(key))
        if place is None and refusal:
            place = self._refusals.get(_short(key))
        if place is None:
            return None
        with os_errors(self.path):
            record = json.loads(os.pread(self._file.fileno(), place[1], place[0]))
        del record["key"]
        return record

    def add(self, key: str, record: Mapping[str, Any]) -> None:
        """Writes what was paid for; it is on disk when this returns.

        Args:
            record: `prompt_tokens` and `completion_tokens`; of an answer also `text`, which a failure lacks.
        """
        with self._lock:
            place = self._write({"key": key, **record})
            self._take(key, record, place)

    def close(self) -> None:
        self._file.close()

    def _take(self, key: str, record: Mapping[str, Any], place: tuple[int, int]) -> None:
        self.spent.prompt_tokens += record["prompt_tokens"]
        self.spent.completion_tokens += record["completion_tokens"]
        self.spent.uncounted += not record.get("counted", True)
        if record.get("text") is not None:
            self._places[_short(key)] = place
        else:
            self.failures[key] += 1
            if "finish_reason" in record:
                self._refusals[_short(key)] = place

    def _read(self) -> None:
        end, cut, number = 0, b"", 0
        with os_errors(self.path), self.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):
                    number, cut = number - 1, line
                    break
                try:
                    record = json.loads(line)
                    if number == 1:
                        if record != _FIRST:
                            raise ValueError("is no journal of replies")
                    else:
                        if not record["prompt_tokens"] + record["completion_tokens"] >= 0:
                            raise ValueError("fewer than no tokens")
                        self._take(record["key"], record, (end, len(line)))
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    what = "is no journal of replies" if number == 1 else f"is damaged ({type(error).__name__})"
                    advice = "choose another file, or move it away"
                    raise ConfigError(f"{self.path}:{number}", f"{what}; {advice}") from error
                end += len(line)
        if not number and cut and not json.dumps(_FIRST).encode().startswith(cut):
            raise ConfigError(f"{self.path}:1", "is no journal of replies; choose another file, or move it away")
        self._file.truncate(end)
        if not number:
            self._write(_FIRST)

    def _write(self, value: Any) -> tuple[int, int]:
        """Where the line begins, and its length."""
        line = json.dumps(value).encode() + b"\n"
        end = self._file.seek(0, os.SEEK_END)
        try:
            with os_errors(self.path):
                if self._file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(self._file.fileno())
        except BaseException:
            with contextlib.suppress(OSError):
                self._file.truncate(end)  # so that a later line does not follow half of this one
            raise
        return end, len(line)


def _short(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=16).digest()
