import contextlib
import json
import time

import pytest

from launch.host import upload
from launch.host.upload import Uploads
from tests.support.launch_hosts import ScratchHost, a_run, until


class Bucket:
    """Takes what `Uploads` writes, unless it `refuses`."""

    def __init__(self, monkeypatch):
        self.objects, self.refuses, self.notes, self.times = dict[str, bytes](), False, list[str](), list[float]()
        monkeypatch.setattr(Uploads, "_write", lambda uploads, name, content: self.write(name, content))
        monkeypatch.setattr(upload, "_FIRST_S", 0.0)
        monkeypatch.setattr(upload, "_PAUSE_S", 0.1)

    def uploads(self) -> Uploads:
        return Uploads("gs://b/x", "beat", lambda part: f"part-{part}", self.notes.append)

    def write(self, name: str, content: bytes) -> None:
        if self.refuses:
            raise OSError("refused")
        self.objects[name] = content
        if name == "beat":
            self.times.append(time.monotonic())


@pytest.fixture
def store(monkeypatch):
    return Bucket(monkeypatch)


def test_log_parts_are_whole_and_the_last_heartbeat_comes_last(store, monkeypatch):
    monkeypatch.setattr(upload, "_PART_BYTES", 50)
    uploads, lines = store.uploads(), [b"line %d\n" % number for number in range(40)]
    for line in lines:
        uploads.log(line)
    uploads.beat(b"1")
    assert uploads.close(b"end", 10)
    parts = [store.objects[f"part-{number}"] for number in range(len(store.objects) - 1)]
    assert b"".join(parts) == b"".join(lines)
    assert all(part.endswith(b"\n") and len(part) <= 50 for part in parts)
    assert store.objects["beat"] == b"end" and list(store.objects)[-1] in ("beat", f"part-{len(parts) - 1}")


def test_heartbeats_come_at_most_once_a_second(store, monkeypatch):
    assert upload._BETWEEN_S == 1.0
    monkeypatch.setattr(upload, "_BETWEEN_S", 0.1)
    uploads = store.uploads()
    for number in range(40):
        uploads.beat(b"%d" % number)
        time.sleep(0.01)
    uploads.close(b"end", 10)
    assert len(store.times) > 1
    assert all(later - earlier > 0.095 for earlier, later in zip(store.times, store.times[1:], strict=False))


def test_a_bucket_that_refuses_is_named_once_and_gets_the_rest_later(store, monkeypatch):
    monkeypatch.setattr(upload, "_WAITING_BYTES", 30)
    store.refuses = True
    uploads = store.uploads()
    for number in range(10):
        uploads.log(b"line %d\n" % number)
        uploads.beat(b"x")
        time.sleep(0.02)
    until(lambda: store.notes)
    assert len(store.notes) == 1 and "refused" in store.notes[0]
    store.refuses = False
    assert uploads.close(b"end", 10)
    text = b"".join(content for name, content in store.objects.items() if name != "beat")
    assert (
        text
        == b"(42 bytes of the log did not reach the bucket; they are on the host)\nline 6\nline 7\nline 8\nline 9\n"
    )


def test_a_bucket_that_refuses_for_ever_does_not_hold_the_end(store):
    store.refuses = True
    uploads = store.uploads()
    uploads.log(b"x\n")
    began = time.monotonic()
    assert not uploads.close(b"end", 2)
    assert time.monotonic() - began < 8


def test_heartbeats_and_logs_of_a_host_reach_its_bucket(bucket, bucket_server, tmp_path):
    from janus_jax.errors import StorageError
    from janus_jax.storage.bucket import Prefix

    host = ScratchHost(tmp_path / "home", STORAGE_EMULATOR_HOST=bucket_server)
    try:
        host.agent("start", host.spec(a_run("fails", attempt=2, start=3), bucket=f"{bucket}/launch/demo"))
        host.wait("ended", seconds=60)
        folder = Prefix(f"{bucket}/launch/demo/demo-1")
        for _ in range(600):
            with contextlib.suppress(StorageError):  # the next heartbeat took its place before it was read
                beat = folder.find("heartbeats/2/00")
                if beat is not None and (ended := json.loads(folder.read(beat)))["state"] == "ended":
                    break
            time.sleep(0.1)
        assert (ended["code"], ended["message"]) == (12, "error: loss is not finite at step 7")
        part = folder.find("logs/2-3/00-000000.log")
        assert part is not None
        assert b"train  1,234/5,000" in folder.read(part)
    finally:
        host.close()
