"""Replies of an endpoint that were paid for, on disk before anybody sees them."""

import contextlib
import errno
import fcntl
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from janus_jax.errors import ConfigError
from janus_jax.storage.bucket import is_url, os_errors

_FIRST = {"journal": "replies", "version": 1}


class ReplyJournal:
    """A JSONL file of replies by key. One process writes it at a time; its threads may write together.

    A last line that a killed process left half written is cut off.

    Raises:
        ConfigError: the file is no such journal, is damaged, or another process writes it.
        StorageError: it cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]):
        if is_url(path):
            raise ConfigError(os.fspath(path), "is a URL; allowed: a local file, which can be written line by line")
        self.path = Path(path)
        self.replies: dict[str, dict[str, Any]] = {}
        """Key -> reply, without those that failed."""
        self.spent: list[Mapping[str, Any]] = []
        """Whatever was paid for, failures too: `prompt_tokens`, `completion_tokens`."""
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

    def add(self, key: str, record: Mapping[str, Any]) -> None:
        """Writes what was paid for; it is on disk when this returns.

        Args:
            record: `prompt_tokens` and `completion_tokens`; of an answer also `text`, which a failure lacks.
        """
        with self._lock:
            self._write({"key": key, **record})
            self._take(key, dict(record))

    def close(self) -> None:
        self._file.close()

    def _take(self, key: str, record: dict[str, Any]) -> None:
        self.spent.append(record)
        if record.get("text") is not None:
            self.replies[key] = record

    def _read(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        *lines, cut = content.split(b"\n")
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                if number == 1:
                    if record != _FIRST:
                        raise ValueError("is no journal of replies")
                else:
                    if not record["prompt_tokens"] + record["completion_tokens"] >= 0:
                        raise ValueError("fewer than no tokens")
                    self._take(record.pop("key"), record)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                what = "is no journal of replies" if number == 1 else f"is damaged ({type(error).__name__})"
                raise ConfigError(f"{self.path}:{number}", f"{what}; choose another file, or move it away") from error
        if not lines and cut and not json.dumps(_FIRST).encode().startswith(cut):
            raise ConfigError(f"{self.path}:1", "is no journal of replies; choose another file, or move it away")
        self._file.truncate(len(content) - len(cut))
        if not lines:
            self._write(_FIRST)

    def _write(self, value: Any) -> None:
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
