"""The lock of a run directory: a file or object that says which process writes there, and that it is alive.

The holder renews the lock every `BEAT_S` seconds. A lock that was not renewed for `STALE_S` counts as abandoned; the
clock of the file system or bucket decides, never that of a host. A holder that is dead on this very machine is known
at once.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator

from janus_jax.errors import HeldError, LostLockError, StorageError
from janus_jax.storage.bucket import briefly, is_url
from janus_jax.storage.local import no_empty_leftovers
from janus_jax.storage.lock_stores import ATTEMPT, File, Holder, Object, Seen, Store, Taken

BEAT_S, STALE_S = 10.0, 60.0
WAIT_S = 480.0
"""How long a start waits for the earlier one of its launch to end; less than processes wait for each other."""
_POLL_S = 1.0
_BRIEF_S = 5.0
"""How long a bucket that refuses a renewal is asked again; less than from one beat to the next."""


class Lock:
    """A lock that this process holds. Use it as a context manager; a thread renews it meanwhile."""

    def __init__(self, place: str | os.PathLike[str], store: Store):
        self._place, self._store = os.fspath(place), store
        self._lost, self._end, self._one = False, threading.Event(), threading.Lock()
        self._tried = _now()
        self._thread = threading.Thread(target=self._beat, name="lock", daemon=True)

    def __enter__(self) -> "Lock":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        with self._one, briefly(_BRIEF_S), contextlib.suppress(StorageError):  # it counts as abandoned soon
            self._store.release()

    def require(self) -> None:
        """Call this before anything is written: costs microseconds, and asks a bucket only after a standstill.

        Raises:
            LostLockError: another process has taken the lock over.
        """
        if self._store.cheap:
            with contextlib.suppress(StorageError):
                self._lost = self._lost or not self._store.held()
        elif _now() - self._tried > 2 * BEAT_S:  # the thread stood still too, so another process may have taken over
            self._renew()
        self._require_kept()

    def confirm(self) -> None:
        """`require` by the store's word of this moment: for what tells others that something is whole.

        Raises:
            LostLockError: another process has taken the lock over.
            StorageError: the store does not answer, so that nobody knows.
        """
        with self._one:
            self._lost = self._lost or self._end.is_set() or not self._store.held()
        self._require_kept()

    def _require_kept(self) -> None:
        if self._lost:
            raise LostLockError(self._place, _lost(self._store))

    def _beat(self) -> None:
        while not self._end.wait(BEAT_S) and not self._lost:
            self._renew()

    def _renew(self) -> None:
        with self._one:
            if not self._end.is_set():
                self._tried = _now()
                with briefly(_BRIEF_S), contextlib.suppress(StorageError):  # the next beat tries again
                    self._lost = self._lost or not self._store.renew()


@contextlib.contextmanager
def held(
    path: str | os.PathLike[str], run: str | os.PathLike[str], notify: Callable[[str], None] = lambda line: None
) -> Iterator[Lock]:
    """Holds the lock of a run directory. A new directory in which nothing was written is removed on failure.

    Args:
        path: of the lock, a file or a gs:// URL.
        run: the run directory, as the user calls it.
        notify: shows a line to the user, when this start has to wait or takes a lock over.
    Raises:
        HeldError: another process holds it. If that one has the same owner, only after `WAIT_S`.
        StorageError: the lock cannot be read or written.
        ConfigError: a variable of the environment that cannot be used.
    """
    place = os.fspath(path)
    with contextlib.ExitStack() as stack:
        if is_url(place):
            store: Store = Object(place)
        else:
            stack.enter_context(no_empty_leftovers(os.path.dirname(place)))
            store = File(place)
        _acquire(store, os.fspath(run), notify)
        yield stack.enter_context(Lock(run, store))


def _acquire(store: Store, run: str, notify: Callable[[str], None]) -> None:
    began, waited_for, unchanged = time.monotonic(), None, (0.0, 0.0)
    while True:
        seen = store.look()
        me = Holder.me(1 if seen is None or seen.holder is None else seen.holder.generation + 1)
        now = time.monotonic()
        if seen is not None and seen.renewed_s != unchanged[0]:
            unchanged = seen.renewed_s, now
        reason = None if seen is None else _abandoned(seen, me, now - unchanged[1])
        if seen is None or reason is not None:
            with contextlib.suppress(Taken):
                store.take(me, seen)
                if reason is not None:
                    notify(f"{run}: taken over from {_named(seen)}: {reason}")
                return
            continue
        later = seen.holder is not None and seen.holder.attempt > me.attempt
        mine = seen.holder is not None and me.owner is not None and me.owner == seen.holder.owner
        if not mine or later or now - began > WAIT_S:
            raise HeldError(run, _refusal(seen, later=mine and later, waited_s=now - began if mine else 0))
        if waited_for != seen.holder:
            notify(f"{run}: waits for {_named(seen)}, an earlier start of this launch, to end")
            waited_for = seen.holder
        time.sleep(_POLL_S)


def _abandoned(seen: Seen, me: Holder, unchanged_s: float) -> str | None:
    """Why the lock may be taken over, or None."""
    other = seen.holder
    if other is not None and other.is_dead_here():
        return "that process has ended"
    if other is not None and me.owner is not None and me.owner == other.owner and me.attempt > other.attempt:
        return f"{ATTEMPT} is {me.attempt} now, not {other.attempt}: its machine is gone"
    if max(seen.age_s, unchanged_s) > STALE_S:
        return f"no sign of life for {max(seen.age_s, unchanged_s):.0f} s"
    return None


def _named(seen: Seen | None) -> str:
    if seen is None or seen.holder is None:
        return "another process"
    return f"process {seen.holder.pid} on host {seen.holder.host} (since {seen.holder.since})"


def _refusal(seen: Seen, *, later: bool, waited_s: float) -> str:
    if later:
        return f"is held by {_named(seen)}, a later start of this launch"
    waited = f", and this start waited {waited_s:.0f} s" if waited_s > _POLL_S else ""
    return (
        f"is held by {_named(seen)}, which gave a sign of life {max(seen.age_s, 0):.0f} s ago{waited}; let it end, or "
        f"choose another run.dir (if it was killed, this start takes over after {STALE_S:.0f} s without a sign of life)"
    )


def _lost(store: Store) -> str:
    by = "somebody has removed its lock"
    with contextlib.suppress(StorageError):
        if (seen := store.look()) is not None:
            by = f"{_named(seen)} has taken it over"
    return f"{by}, so this process stops and writes nothing more; the newest checkpoint stays"


def _now() -> float:
    """Seconds, those of a suspended machine included."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
