"""One watcher a launch: watch.json names it, is renewed at every look, and is written only on the condition that nobody
else has written it since."""

import contextlib
import dataclasses
import secrets
import threading
from collections.abc import Iterator

from janus_jax.errors import HeldError
from launch.cloud.bucket import Bucket, Changed, Stored
from launch.errors import CloudError
from launch.records import STALE_S, Watcher

FILE = "watch.json"
RENEW_S = 30.0


class LostLease(HeldError):
    """Another watcher has taken over: this one does nothing more."""


class Lease:
    """The right to act for a launch.

    Args:
        records: the folder of the launch in the bucket.
        by: USER@WORKSTATION, for others to read.
    """

    def __init__(self, records: Bucket, by: str):
        self._records, self._mutex = records, threading.Lock()
        self._watcher = Watcher(by, secrets.token_hex(8))
        self._generation, self._lost = 0, False
        self._has_asked = False
        """Whether the record may be this watcher's: a signal may cut off a write that lands all the same."""
        self.renewed_s = 0.0
        """When the lease was renewed last, by the store's clock."""

    def take(self, known: Stored | None = None) -> dict[str, object]:
        """Takes the lease; returns the memory that the last watcher left.

        Args:
            known: the record, if it was read a moment ago.
        Raises:
            HeldError: another one watches: it has renewed its lease in the last `STALE_S` seconds of the store's clock.
            CloudError: the bucket refused.
        """
        stored = known or self._records.read(FILE)
        memory: dict[str, object] = {}
        if stored is not None:
            last = Watcher.from_json(stored.value)
            memory = last.memory
            if last.token:
                age_s = self._records.clock() - stored.updated_s
                if age_s <= STALE_S:
                    raise HeldError(
                        self._held(last, f"renewed {max(age_s, 0):.0f} s ago; if it is gone, wait a moment")
                    )
        self._watcher = dataclasses.replace(self._watcher, memory=memory)
        try:
            self._write(0 if stored is None else stored.generation)
        except LostLease as error:
            raise HeldError(*error.args) from None
        return memory

    def renew(self) -> float:
        """Says that this watcher lives, and what it knows; returns the store's time, seconds since 1970.

        Raises:
            LostLease: another one has taken over.
            CloudError: the bucket refused: nobody knows whether the lease holds.
        """
        with self._mutex:
            if self._lost:
                raise LostLease(self._held(_watcher(self._records.read(FILE)), "it has taken over"))
            return self._write(self._generation)

    def keep(self, memory: dict[str, object]) -> None:
        """What the next watcher must know, from the next renewal or the release on."""
        with self._mutex:
            self._watcher = dataclasses.replace(self._watcher, memory=memory)

    def check(self, name: str) -> int:
        """Looks whether the lease still holds, in one call; returns the generation of another record, 0 without it.

        Raises:
            LostLease: another one has taken over.
            CloudError: the bucket refused.
        """
        with self._mutex:
            generations = {entry.name: entry.generation for entry in self._records.entries(FILE, name)}
            if self._lost or generations.get(FILE) != self._generation:
                self._lost = True
                raise LostLease(self._held(_watcher(self._records.read(FILE)), "it has taken over"))
            return generations.get(name, 0)

    def release(self) -> None:
        """Lets the next watcher begin at once. Failures do not matter: the lease grows old by itself."""
        with self._mutex, contextlib.suppress(CloudError, Changed):
            if self._lost or not self._has_asked:
                return
            value = dataclasses.replace(self._watcher, token="").to_json()
            try:
                if not self._generation:
                    raise Changed(FILE)
                self._records.write(FILE, value, generation=self._generation)
            except Changed:
                stored = self._records.read(FILE)
                if stored is not None and Watcher.from_json(stored.value).token == self._watcher.token:
                    self._records.write(FILE, value, generation=stored.generation)
            self._lost = True

    @contextlib.contextmanager
    def kept(self, every_s: float = RENEW_S) -> Iterator[None]:
        """Renews the lease from a thread, so that long steps do not lose it."""
        ended = threading.Event()

        def keep() -> None:
            while not ended.wait(every_s):
                try:
                    self.renew()
                except LostLease:
                    return  # the next step of the watcher says so
                except Exception:
                    continue  # tried again; if it goes on, the lease grows old, and `renew` before a step fails

        thread = threading.Thread(target=keep, name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()

    def _write(self, generation: int) -> float:
        """Writes the record; returns the store's time."""
        stored, self._has_asked = None, True
        try:
            stored = self._records.write(FILE, self._watcher.to_json(), generation=generation)
        except Changed:
            pass  # by another watcher, or by this one, if a write was repeated whose answer was lost
        if stored is None:
            stored = self._records.read(FILE)
            if stored is None or Watcher.from_json(stored.value).token != self._watcher.token:
                self._lost = True
                raise LostLease(self._held(_watcher(stored), "it has taken over"))
        self._generation, self.renewed_s = stored.generation, stored.updated_s
        return stored.updated_s

    def _held(self, other: Watcher | None, what: str) -> str:
        who = "nobody" if other is None else other.by
        return f"{self._records.url}/{FILE}: {who} watches this launch ({what})"


def _watcher(stored: Stored | None) -> Watcher | None:
    return None if stored is None else Watcher.from_json(stored.value)
