"""Replies of an endpoint that were paid for, on disk before anybody sees them.

The file of replies is JSONL, which only grows. An index beside it (`FILE.index`, SQLite) says where each reply stands,
so that opening the file and looking up a reply do not read all of it. The index may be removed, and may be older than
the file: what it lacks is read from the file.
"""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from janus_jax.errors import ConfigError, StorageError
from janus_jax.storage.bucket import is_url, os_errors
from janus_jax.storage.endpoint_requests import Prices
from janus_jax.storage.local import sync

_FIRST = {"journal": "replies", "version": 1}
_ADVICE = "choose another file, or move it away"
_UNWRITTEN = 1000
"""Replies that the index may lack."""
_TABLES = (
    "CREATE TABLE IF NOT EXISTS places "
    "(key BLOB, refusal INTEGER, start INTEGER, size INTEGER, PRIMARY KEY (key, refusal)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS state (state TEXT)",
)


@dataclasses.dataclass
class Spent:
    """Tokens of everything that was paid for, failures too."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0
    """Records of requests that no reply counts."""
    money: float = 0.0
    """Of the records that say it, at the prices of their time."""
    priced_prompt_tokens: int = 0
    """Of those records."""
    priced_completion_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def money_at(self, prices: Prices | None) -> float | None:
        """Money, with the prices of now for records that say none; None: nothing has a price."""
        if prices is None:
            return self.money if self.priced_prompt_tokens + self.priced_completion_tokens else None
        prompt = self.prompt_tokens - self.priced_prompt_tokens
        return self.money + prices.cost(prompt, self.completion_tokens - self.priced_completion_tokens)


class ReplyJournal:
    """A JSONL file of replies by key. One process writes it at a time; its threads may write together.

    Memory does not grow with the file. A last line that a killed process left half written is cut off; one that lacks
    only its newline is whole.

    Raises:
        ConfigError: the file is no such journal, is damaged, or another process writes it.
        StorageError: it cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]):
        if is_url(path):
            raise ConfigError(os.fspath(path), "is a URL; allowed: a local file, which can be written line by line")
        self.path = Path(path)
        self.index_path = self.path.with_name(f"{self.path.name}.index")
        self.spent = Spent()
        self.end = 0
        """Bytes of the file. More: something was written down."""
        self._last = 0  # where the last line begins
        self._unwritten = 0
        self._synced = 0
        self._failed: StorageError | None = None  # of the index: it may lack what it took since its last state
        self._lock, self._sync_lock = threading.Lock(), threading.Lock()
        with os_errors(self.path):
            self._file = self.path.open("a+b", buffering=0)
        self._index: sqlite3.Connection | None = None
        try:
            with os_errors(self.path, "cannot be locked"):
                try:
                    fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise ConfigError(f"{self.path}: another process writes it") from error
            self._require_journal()
            self._open_index()
            self._read()
        except BaseException:
            self.close(written=False)
            raise

    def __len__(self) -> int:
        """Number of answers."""
        return self._one("SELECT count(*) FROM places WHERE NOT refusal")[0]

    def has(self, key: str, *, refusal: bool = False) -> bool:
        """Whether `get` gives a record."""
        return self._place(key, refusal=refusal) is not None

    def get(self, key: str, *, refusal: bool = False) -> dict[str, Any] | None:
        """The record of an answer; None without one.

        Args:
            refusal: a whole reply without a text will do too.
        """
        if (place := self._place(key, refusal=refusal)) is None:
            return None
        try:
            with os_errors(self.path):
                record = json.loads(os.pread(self._file.fileno(), place[1], place[0]))
            if record.pop("key") != key:
                raise ValueError("another key")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ConfigError(f"{self.path}: was edited; remove {self.index_path.name}, which is made again") from error
        return record

    def add(self, key: str, record: Mapping[str, Any]) -> None:
        """Writes what was paid for; it is on disk when this returns.

        Args:
            record: `prompt_tokens` and `completion_tokens`; of an answer also `text`, which a failure lacks. `money`
                where prices are known.
        """
        with self._lock:
            end = self._write({"key": key, **record})
            try:
                self._take(key, record)
                self._unwritten += 1
                if self._unwritten >= _UNWRITTEN:
                    self._commit()
            except StorageError:
                self._sync(end)  # the reply is kept, whatever is wrong with the index
                raise
        self._sync(end)

    def close(self, *, written: bool = True) -> None:
        """Lets another process use the file.

        Args:
            written: False: the index is left as it is on disk.
        """
        with self._lock:
            if self._index is not None:
                with contextlib.suppress(sqlite3.Error, StorageError):  # what it lacks is read from the file
                    if written:
                        self._commit()
                with contextlib.suppress(sqlite3.Error):
                    self._index.close()
                self._index = None
            self._file.close()

    # The index

    def _open_index(self) -> None:
        """Opens it, or a new one if it is not of this file as it is now."""
        for _ in range(2):
            try:
                self._index = sqlite3.connect(self.index_path, isolation_level=None, check_same_thread=False)
                self._index.execute("PRAGMA locking_mode=EXCLUSIVE")
                self._index.execute("PRAGMA journal_mode=WAL")  # whole after a kill
                self._index.execute("PRAGMA synchronous=NORMAL")
                for table in _TABLES:
                    self._index.execute(table)
                if self._knows(self._index.execute("SELECT state FROM state").fetchone()):
                    self._index.execute("BEGIN")
                    return
            except (sqlite3.DatabaseError, ValueError, KeyError, TypeError) as error:
                if isinstance(error, sqlite3.OperationalError):  # of the disk, not of what it holds
                    raise StorageError(self.index_path, f"cannot be written: {error}") from error
            if self._index is not None:
                self._index.close()
            for suffix in ("", "-wal", "-shm"):
                Path(f"{self.index_path}{suffix}").unlink(missing_ok=True)
        raise StorageError(self.index_path, "cannot be written")

    def _knows(self, row: tuple[str] | None) -> bool:
        """Takes over the state of the index, if its last line stands where it says."""
        if row is None:
            return True
        state = json.loads(row[0])
        size = state["end"] - state["last"]
        line = os.pread(self._file.fileno(), size, state["last"])
        if len(line) != size or _digest(line).hex() != state["digest"]:
            return False
        self.spent, self.end, self._last = Spent(**state["spent"]), state["end"], state["last"]
        return True

    def _commit(self) -> None:
        if self._index is None or not self.end:
            return
        line = os.pread(self._file.fileno(), self.end - self._last, self._last)
        state = {
            "end": self.end,
            "last": self._last,
            "digest": _digest(line).hex(),
            "spent": dataclasses.asdict(self.spent),
        }
        with self._index_errors():
            self._index.execute("DELETE FROM state")
            self._index.execute("INSERT INTO state VALUES (?)", (json.dumps(state),))
            self._index.execute("COMMIT")
            self._index.execute("BEGIN")
        self._unwritten = 0

    def _place(self, key: str, *, refusal: bool) -> tuple[int, int] | None:
        """Where its line begins, and its length."""
        query = "SELECT start, size FROM places WHERE key = ? AND refusal <= ? ORDER BY refusal LIMIT 1"
        return self._one(query, _digest(key.encode()), int(refusal))

    def _one(self, query: str, *values: Any) -> Any:
        with self._lock, self._index_errors():
            assert self._index is not None
            return self._index.execute(query, values).fetchone()

    @contextlib.contextmanager
    def _index_errors(self) -> Iterator[None]:
        if self._failed is not None:
            raise self._failed
        try:
            yield
        except sqlite3.Error as error:
            what = f"cannot be used: {error}; it may be removed, and is made again"
            self._failed = StorageError(self.index_path, what)
            raise self._failed from error

    # The file

    def _take(self, key: str, record: Mapping[str, Any]) -> None:
        """Counts the last line, and notes where it stands."""
        self.spent.prompt_tokens += record["prompt_tokens"]
        self.spent.completion_tokens += record["completion_tokens"]
        self.spent.uncounted += not record.get("counted", True)
        if (money := record.get("money")) is not None:
            self.spent.money += money
            self.spent.priced_prompt_tokens += record["prompt_tokens"]
            self.spent.priced_completion_tokens += record["completion_tokens"]
        refusal = record.get("text") is None
        if refusal and "finish_reason" not in record:
            return
        values = _digest(key.encode()), int(refusal), self._last, self.end - self._last
        with self._index_errors():
            assert self._index is not None
            self._index.execute("INSERT OR REPLACE INTO places VALUES (?, ?, ?, ?)", values)

    def _require_journal(self) -> None:
        """Refuses a file that begins with another line. Half of the right one is none."""
        first = json.dumps(_FIRST).encode() + b"\n"
        with os_errors(self.path):
            head = os.pread(self._file.fileno(), len(first), 0)
        if not first.startswith(head):
            raise ConfigError(f"{self.path}:1", f"is no journal of replies; {_ADVICE}")
        if head != first:
            self._file.truncate(0)
            self._write(_FIRST)
            with os_errors(self.path):
                sync(self.path.parent)  # so that the file is there after a loss of power
        self.end = len(first)

    def _read(self) -> None:
        """Takes the lines that the index does not know, and cuts off half a line."""
        known, number = self.end, 0
        with os_errors(self.path), self.path.open("rb") as lines:
            lines.seek(known)
            for number, line in enumerate(lines, 1):
                try:
                    record = _record(line)
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                    if not line.endswith(b"\n"):
                        break
                    lines.seek(0)
                    number += lines.read(known).count(b"\n")
                    raise ConfigError(
                        f"{self.path}:{number}", f"is damaged ({type(error).__name__}); {_ADVICE}"
                    ) from error
                self._last, self.end = self.end, self.end + len(line)
                self._take(record["key"], record)
        with os_errors(self.path):
            self._file.truncate(self.end)
            if os.pread(self._file.fileno(), 1, self.end - 1) != b"\n":  # the last record is whole but for it
                self.end += self._file.write(b"\n")
        if number > _UNWRITTEN:
            self._commit()

    def _write(self, value: Any) -> int:
        """The end of the file after the line."""
        line = json.dumps(value).encode() + b"\n"
        try:
            with os_errors(self.path):
                if self._file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except BaseException:
            with contextlib.suppress(OSError):
                self._file.truncate(self.end)  # so that a later line does not follow half of this one
            raise
        self._last, self.end = self.end, self.end + len(line)
        return self.end

    def _sync(self, end: int) -> None:
        """Waits until the file is on disk up to here. Threads that come together wait for one write."""
        with self._sync_lock:
            if self._synced < end:
                now = self.end
                with os_errors(self.path):
                    os.fsync(self._file.fileno())
                self._synced = now


def _record(line: bytes) -> dict[str, Any]:
    """Raises KeyError, TypeError, ValueError, ...: it is no whole record."""
    record = json.loads(line)
    is_one = record["prompt_tokens"] + record["completion_tokens"] >= 0 and isinstance(record["key"], str)
    if not (is_one and isinstance(record.get("money") or 0, int | float)):
        raise ValueError("no record")
    return record


def _digest(value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=16).digest()
