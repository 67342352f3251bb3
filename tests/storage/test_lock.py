"""One process at a time holds a run directory: who is refused, who waits, who takes over, and who notices the loss."""

import dataclasses
import json
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from janus_jax.errors import ConfigError, HeldError, LostLockError
from janus_jax.storage import lock as locks
from janus_jax.storage.bucket import RETRY_S, Prefix
from janus_jax.storage.lock import held
from janus_jax.storage.lock_stores import Holder, _process_start
from tests.support.faulty_bucket import refusing


@pytest.fixture(autouse=True)
def no_launch(monkeypatch):
    for name in ("JANUS_RUN_OWNER", "JANUS_RUN_ATTEMPT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=["file", "object"])
def path(request, tmp_path):
    """Of a lock on each kind of store, which nobody holds."""
    if request.param == "file":
        return str(tmp_path / "new" / "run" / "lock.json")
    return f"{request.getfixturevalue('bucket')}/run/lock.json"


def content(path):
    """What is at the path, or None."""
    if "://" not in path:
        return Path(path).read_text() if Path(path).exists() else None
    prefix = Prefix(path)
    return None if (item := prefix.find("")) is None else prefix.read(item).decode()


def leave(path, **changes):
    """Writes the lock of another process, which no longer renews it."""
    other = Holder.me(7)
    other = dataclasses.replace(other, **{"host": "far", "pid": 4711, "machine": "far away", "id": "other", **changes})
    if "://" in path:
        prefix = Prefix(path.rpartition("/")[0])
        now = prefix.find("lock.json")
        prefix.write("lock.json", other.content(), 0 if now is None else now.generation)
    else:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        beside = Path(f"{path}.new")
        beside.write_bytes(other.content())
        beside.replace(path)


def test_a_second_start_is_refused_by_name_until_the_first_has_ended(path):
    with held(path, "the run") as lock:
        mine = json.loads(content(path))
        assert mine["pid"] == os.getpid() and mine["generation"] == 1
        with pytest.raises(HeldError, match=rf"the run: is held by process {os.getpid()} on host \S+ \(since .* UTC\)"):
            with held(path, "the run"):
                pass
        lock.require()
    assert content(path) is None
    with held(path, "the run"):
        assert content(path)


def test_a_lock_that_stays_fresh_is_refused_whatever_the_clocks_of_hosts_say(path, monkeypatch):
    leave(path, since="1999-01-01 00:00:00 UTC")
    with monkeypatch.context() as skewed:
        now = time.time
        skewed.setattr("time.time", lambda: now() + 86_400)
        with pytest.raises(HeldError, match="process 4711 on host far"), held(path, "the run"):
            pass
    monkeypatch.setattr(locks, "STALE_S", 0.2)
    time.sleep(0.3)
    lines = []
    with held(path, "the run", lines.append):
        assert json.loads(content(path))["generation"] == 8
    assert len(lines) == 1 and "no sign of life" in lines[0]


def test_a_holder_that_was_killed_on_this_machine_is_replaced_at_once(path):
    with subprocess.Popen(["sleep", "60"]) as process:
        here = {"pid": process.pid, "machine": Holder.me(1).machine, "process_start": _process_start(process.pid)}
        leave(path, **here)
        with pytest.raises(HeldError), held(path, "the run"):
            pass
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, but nobody has asked for its exit code
        with held(path, "the run"):
            pass
    leave(path, **here | {"pid": os.getpid()})  # the number was given to another process
    with held(path, "the run"):
        pass


def test_a_start_of_the_same_launch_waits_for_the_earlier_one(path, monkeypatch):
    monkeypatch.setenv("JANUS_RUN_OWNER", "launch")
    monkeypatch.setattr(locks, "_POLL_S", 0.05)
    lines, release = [], threading.Event()

    def first():
        with held(path, "the run"):
            ready.set()
            release.wait(10)

    ready, thread = threading.Event(), threading.Thread(target=first)
    thread.start()
    ready.wait(10)
    threading.Timer(0.5, release.set).start()
    with held(path, "the run", lines.append):
        assert release.is_set()
    thread.join()
    assert len(lines) == 1 and "waits for process" in lines[0]

    leave(path, owner="launch")
    monkeypatch.setattr(locks, "WAIT_S", 0.2)
    with pytest.raises(HeldError, match="this start waited"), held(path, "the run"):
        pass
    leave(path, owner="another launch")
    with pytest.raises(HeldError) as refused, held(path, "the run"):
        pass
    assert "this start waited" not in str(refused.value)


def test_a_later_attempt_of_a_launch_takes_over_at_once_and_an_earlier_one_is_refused(path, monkeypatch):
    monkeypatch.setenv("JANUS_RUN_OWNER", "launch")
    monkeypatch.setenv("JANUS_RUN_ATTEMPT", "2")
    leave(path, owner="launch", attempt=1)
    with held(path, "the run"):
        pass
    leave(path, owner="launch", attempt=3)
    with pytest.raises(HeldError, match="a later start of this launch"), held(path, "the run"):
        pass
    leave(path, owner="other", attempt=1)
    with pytest.raises(HeldError), held(path, "the run"):
        pass


def test_the_old_holder_notices_and_leaves_the_new_lock_alone(path, monkeypatch):
    with held(path, "the run") as lock:
        leave(path)
        monkeypatch.setattr(locks, "BEAT_S", -1)  # as if this process had stood still
        with pytest.raises(LostLockError, match=r"the run: process 4711 on host far .* has taken it over"):
            lock.require()
    assert json.loads(content(path))["id"] == "other"


def test_the_holder_renews_its_lock(path, monkeypatch):
    monkeypatch.setattr(locks, "BEAT_S", 0.1)
    monkeypatch.setattr(locks, "STALE_S", 1.0)
    with held(path, "the run") as lock:
        time.sleep(1.5)
        with pytest.raises(HeldError), held(path, "the run"):
            pass
        lock.require()


def test_a_removed_lock_is_lost_too(path, monkeypatch):
    with held(path, "the run") as lock:
        if "://" in path:
            prefix = Prefix(path)
            prefix.delete([prefix.find("")])
            monkeypatch.setattr(locks, "BEAT_S", -1)
        else:
            Path(path).unlink()
        with pytest.raises(LostLockError, match="somebody has removed its lock"):
            lock.require()


def test_a_renewal_whose_answer_was_lost_is_no_loss(bucket, proxy, monkeypatch):
    monkeypatch.setattr(locks, "BEAT_S", -1)
    monkeypatch.setattr("janus_jax.storage.bucket.RETRY_S", 0.5)
    with held(f"{bucket}/run/lock.json", "the run") as lock:
        proxy.rule = lambda method, path, answer: answer if method == "GET" else (503, b"")
        lock.require()
        proxy.rule = lambda method, path, answer: (503, b"")
        lock.require()
        proxy.rule = lambda method, path, answer: answer
        lock.require()


def test_the_end_of_a_run_does_not_wait_long_for_a_bucket_that_refuses(bucket, proxy, monkeypatch):
    monkeypatch.setattr(locks, "_BRIEF_S", 0.3)
    with held(f"{bucket}/run/lock.json", "the run") as lock:
        proxy.refusal, began = refusing(503, writes=False), time.monotonic()
        lock._renew()
    assert time.monotonic() - began < RETRY_S / 2


def test_what_is_no_lock_counts_by_its_age(tmp_path):
    path = tmp_path / "lock.json"
    path.write_text("")
    with pytest.raises(HeldError, match="another process"), held(path, "the run"):
        pass
    os.utime(path, (0, 0))
    with held(path, "the run"):
        pass


def test_a_run_that_fails_leaves_no_new_directory(tmp_path):
    with pytest.raises(ValueError), held(tmp_path / "new" / "run" / "lock.json", "the run"):
        raise ValueError
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("owner", "attempt"), [("me", "next"), ("", "2"), ("me", "-1")])
def test_variables_that_say_nothing_are_refused(tmp_path, monkeypatch, owner, attempt):
    monkeypatch.setenv("JANUS_RUN_OWNER", owner)
    monkeypatch.setenv("JANUS_RUN_ATTEMPT", attempt)
    with pytest.raises(ConfigError, match=f"JANUS_RUN_ATTEMPT={attempt}"), held(tmp_path / "lock.json", "the run"):
        pass
