"""Heartbeats and logs from a host to the bucket, in a thread. A bucket that refuses never hurts the run."""

import threading
import time
from collections.abc import Callable
from typing import Any

_FIRST_S, _LATER_S = 10.0, 30.0
"""Between two parts of the log, in the first minutes and after a quarter of an hour."""
_PART_BYTES = 1 << 20
_WAITING_BYTES = 16 << 20
"""More than this is not kept for a bucket that refuses. The host's own log has it."""
_BETWEEN_S = 1.0
"""Between two writes of one object: the service allows no more."""
_PAUSE_S = 1.0
"""Before the first repetition of a write that was refused."""


class Uploads:
    """Writes the newest heartbeat, and the log in numbered parts. Without a bucket it does nothing.

    Args:
        bucket: gs:// URL of the folder; None: no bucket.
        heartbeat: name of the heartbeat's object.
        part: name of the log's part of a number.
        note: called with a line the first time that the bucket refuses.
    """

    def __init__(self, bucket: str | None, heartbeat: str, part: Callable[[int], str], note: Callable[[str], None]):
        self._url, self._heartbeat_name, self._part_name, self._note = bucket, heartbeat, part, note
        self._condition = threading.Condition()
        self._heartbeat: bytes | None = None
        self._waiting = bytearray()
        self._lost = 0
        self._number = 0
        self._longest_s = _LATER_S
        self._began = time.monotonic()
        self._last_part = self._last_heartbeat = -1e9
        self._closing_by: float | None = None
        self._noted = False
        self._prefix: Any = None
        self._thread = threading.Thread(target=self._work, name="uploads", daemon=True)
        if bucket is not None:
            self._thread.start()

    def beat(self, heartbeat: bytes) -> None:
        """Takes the place of a heartbeat that was not written yet."""
        with self._condition:
            self._heartbeat = heartbeat
            self._condition.notify()

    def log(self, data: bytes) -> None:
        """More of what the command printed."""
        if self._url is None:
            return
        with self._condition:
            self._waiting += data
            if (surplus := len(self._waiting) - _WAITING_BYTES) > 0:
                cut = self._waiting.find(b"\n", surplus) + 1 or surplus
                del self._waiting[:cut]
                self._lost += cut

    def hurry(self) -> None:
        """From now on the log is written as it comes: the machine may not be here for long."""
        self._longest_s = _BETWEEN_S

    def close(self, heartbeat: bytes, seconds: float) -> bool:
        """Writes the rest of the log, then the last heartbeat. Returns whether the bucket has it."""
        if self._url is None:
            return True
        with self._condition:
            self._heartbeat, self._closing_by = heartbeat, time.monotonic() + seconds
            self._condition.notify()
        self._thread.join(seconds + 5)
        return not self._thread.is_alive() and self._heartbeat is None

    def _work(self) -> None:
        pause = _PAUSE_S
        while True:
            with self._condition:
                while not self._due():
                    self._condition.wait(0.5)
                closing = self._closing_by is not None
            try:
                more = self._part() if closing or self._part_due() else False
                if self._heartbeat is not None and not (closing and more):
                    self._write_heartbeat()
                pause = _PAUSE_S
            except Exception as error:  # whatever the client raises, the run goes on
                if not self._noted:
                    self._noted = True
                    text = f"{type(error).__name__}: {error}"
                    self._note(f"the bucket refuses heartbeat or log; this host tries again: {text}")
                if closing and time.monotonic() + pause > (self._closing_by or 0):
                    return
                time.sleep(pause)
                pause = min(2 * pause, 30.0)
                if self._closing_by is not None:
                    pause = min(pause, 4.0)
                continue
            if closing and self._heartbeat is None and not self._waiting:
                return

    def _due(self) -> bool:
        ready = time.monotonic() - self._last_heartbeat >= _BETWEEN_S
        return self._closing_by is not None or (self._heartbeat is not None and ready) or self._part_due()

    def _part_due(self) -> bool:
        now = time.monotonic()
        interval = min(max((now - self._began) / 30, _FIRST_S), self._longest_s)
        return bool(self._waiting) and (now - self._last_part >= interval or len(self._waiting) >= _PART_BYTES)

    def _part(self) -> bool:
        """Writes one part; whether more waits."""
        with self._condition:
            data = bytes(self._waiting[:_PART_BYTES])
            if len(self._waiting) > _PART_BYTES:
                data = data[: data.rfind(b"\n") + 1 or _PART_BYTES]
            lost = self._lost
        if not data:
            return False
        hole = f"({lost:,} bytes of the log did not reach the bucket; they are on the host)\n".encode() if lost else b""
        name = self._part_name(self._number)
        self._write(name, hole + data)
        with self._condition:
            dropped = self._lost - lost  # by `log` meanwhile, from what this part has
            del self._waiting[: max(0, len(data) - dropped)]
            self._lost = max(0, dropped - len(data))
            self._number += 1
            self._last_part = time.monotonic()
            return bool(self._waiting)

    def _write_heartbeat(self) -> None:
        heartbeat = self._heartbeat
        if heartbeat is None:
            return
        time.sleep(max(0.0, _BETWEEN_S - (time.monotonic() - self._last_heartbeat)))
        self._write(self._heartbeat_name, heartbeat)
        with self._condition:
            self._last_heartbeat = time.monotonic()
            if self._heartbeat is heartbeat:
                self._heartbeat = None

    def _write(self, name: str, content: bytes) -> None:
        from janus_jax.storage.bucket import Prefix, briefly

        if self._prefix is None:
            self._prefix = Prefix(self._url or "")
        with briefly(15.0):
            self._prefix.write(name, content, None)
