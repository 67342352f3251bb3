"""Files that grow, in a bucket: in parts that no other start touches, with seconds lost at most, whatever refuses."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from janus_jax.errors import StorageError
from janus_jax.storage import bucket as bucket_module
from janus_jax.storage import parts
from janus_jax.storage.bucket import BucketPath, Prefix
from janus_jax.storage.parts import Uploads, ends_of_lines, new_start
from tests.support import processes

LINES = [f"line {number}\n".encode() for number in range(60)]


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """Uploads as often as a test can wait for, in small parts, from a temporary directory of its own."""
    monkeypatch.setattr(parts, "EVERY_S", 0.05)
    monkeypatch.setattr(parts, "EXIT_S", 20.0)
    monkeypatch.setattr(parts, "PART_BYTES", 100)
    monkeypatch.setattr(bucket_module, "RETRY_S", 0.2)
    monkeypatch.setattr(parts.tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def said():
    return []


def begin(run, said, after=0):
    """An upload of a file `lines`; the start, and the open file."""
    uploads = Uploads(run, said.append, after)
    file = (uploads.directory / "lines").open("wb", buffering=0)
    folder = BucketPath(f"{run}/lines")
    uploads.grows(uploads.directory / "lines", lambda number: folder / f"{uploads.start}-{number:03d}", ends_of_lines)
    return uploads, file


def until(condition, limit_s=20.0):
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def uploaded(run):
    return b"".join(parts.contents(BucketPath(f"{run}/lines")).values())


def test_parts_hold_whole_lines_and_few_of_them_hold_all(bucket, quick, said):
    run = f"{bucket}/run"
    uploads, file = begin(run, said)
    file.write(b"".join(LINES[:3]) + b"half a ")
    until(lambda: uploaded(run))
    assert uploaded(run) == b"".join(LINES[:3])
    file.write(b"line\n")
    for line in LINES[3:]:
        file.write(line)
        time.sleep(0.01)
    file.write(b"cut")
    uploads.close()
    assert uploaded(run) == b"".join([*LINES[:3], b"half a line\n", *LINES[3:]])
    names = [item.name for item in Prefix(run).list()]
    assert names == [f"lines/{uploads.start}-{number:03d}" for number in range(1, len(names) + 1)]
    sizes = [len(content) for content in parts.contents(BucketPath(f"{run}/lines")).values()]
    assert 1 < len(sizes) < 10 and min(sizes[:-1]) >= 100  # the newest one grew until it had 100 bytes
    assert said == [] and not uploads.directory.exists()


def test_a_headed_file_has_its_first_entry_in_every_part(bucket, quick, said):
    run = f"{bucket}/run"
    uploads = Uploads(run, said.append)
    path, folder = uploads.directory / "file", BucketPath(f"{run}/parts")
    path.write_bytes(b"head\n")
    uploads.grows(path, lambda number: folder / str(number), ends_of_lines, headed=True)
    with path.open("ab", buffering=0) as file:
        for number in range(3):
            file.write(b"x" * 100 + b"\n")
            until(lambda: len(parts.names(folder)) > number)  # noqa: B023
            time.sleep(0.1)
    uploads.close()
    long = b"x" * 100 + b"\n"
    assert list(parts.contents(folder).values()) == [b"head\n" + long] * 3


def test_a_later_start_writes_nothing_of_an_earlier_one_whatever_its_clock_says(bucket, quick, said, monkeypatch):
    run = f"{bucket}/run"
    for number in range(3):
        earlier = Prefix(run).list()
        newest = int(earlier[-1].name.removeprefix("lines/").partition(".")[0]) if earlier else 0
        uploads, file = begin(run, said, after=newest)
        file.write(LINES[number])
        uploads.close()
        now = Prefix(run).list()
        assert now[: len(earlier)] == earlier and len(now) == len(earlier) + 1  # generations too
        monkeypatch.setattr(parts.time, "time", lambda: 1e9)
    assert uploaded(run) == b"".join(LINES[:3])
    assert len({new_start() for _ in range(8)}) > 1  # two starts that know nothing of one another


def test_a_killed_process_loses_seconds_and_the_next_start_clears_its_directory(bucket, quick, said, tmp_path):
    run = f"{bucket}/run"
    script = f"""
import time
from janus_jax.storage import parts
from janus_jax.storage.bucket import BucketPath
parts.EVERY_S = 0.5
uploads, folder = parts.Uploads({run!r}, print), BucketPath({run!r} + "/lines")
path = uploads.directory / "lines"
file = path.open("wb", buffering=0)
uploads.grows(path, lambda number: folder / (uploads.start + f"-{{number:03d}}"), parts.ends_of_lines)
for number in range(10_000):
    file.write(f"{{number}} {{time.time()}}\\n".encode())
    time.sleep(0.02)
"""
    environment = {**processes.environment(), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment)
    until(lambda: uploaded(run).count(b"\n") > 50, 60)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed = time.time()
    (left,) = tmp_path.glob(".janus_run_*/lines")
    written = left.read_bytes()
    arrived = uploaded(run)
    assert written.startswith(arrived)
    assert killed - float(arrived.splitlines()[-1].split()[1]) < 5  # one pause, and this slow machine
    uploads, _ = begin(run, said)
    assert not left.exists()
    uploads.close()
    assert uploaded(run) == arrived


def refusing(status, method="POST"):
    """A rule: writes are refused."""
    body = b'{"error": {"message": "not today"}}'
    return lambda verb, path, answer: (status, body) if verb == method else answer


@pytest.mark.parametrize(("status", "reason"), [(403, "permission denied: not today"), (503, "not today")])
def test_a_bucket_that_refuses_for_a_while_is_said_once_and_loses_nothing(proxy, bucket, quick, said, status, reason):
    run = f"{bucket}/run"
    proxy.rule = refusing(status)
    uploads, file = begin(run, said)
    for line in LINES[:30]:
        file.write(line)
    until(lambda: uploads.failed >= 2)
    assert len(said) == 1 and reason in said[0] and said[0].startswith(f"note: {run}/lines/")
    assert said[0].endswith("; the run goes on and tries again")
    proxy.rule = lambda verb, path, answer: answer
    uploads.close()
    assert uploaded(run) == b"".join(LINES[:30])
    assert re.fullmatch(rf"note: {run}: \d uploads failed on the way; everything has arrived since", said[1])


def test_a_bucket_that_refuses_to_the_end_leaves_the_rest_here_and_says_where(bucket, quick, said, monkeypatch):
    run = f"{bucket}/run"
    uploads, file = begin(run, said)
    file.write(LINES[0])
    until(lambda: uploaded(run))

    def refuse(self, name, content, generation=0):
        raise StorageError(self.url_of(name), "cannot be written: permission denied: not today")

    with monkeypatch.context() as refusing:
        refusing.setattr(Prefix, "write", refuse)
        file.write(LINES[1])
        uploads.close()
    assert uploaded(run) == LINES[0] and len(said) == 2
    kept = re.fullmatch(rf"note: {run}: .* did not arrive \(\d uploads? failed\); they are in (.*)", said[1])
    assert kept and (Path(kept[1]) / "lines").read_bytes() == LINES[0] + LINES[1]
    other, _ = begin(run, said)
    assert (Path(kept[1]) / "lines").exists()  # no leftover
    other.close()


def test_the_end_waits_for_a_bucket_that_hangs_only_so_long_and_writing_never(proxy, bucket, quick, said, monkeypatch):
    run = f"{bucket}/run"
    monkeypatch.setattr(parts, "EXIT_S", 0.3)
    proxy.rule = lambda verb, path, answer: (time.sleep(3), answer)[1]
    began = time.monotonic()
    uploads, file = begin(run, said)
    for line in LINES:
        file.write(line)
    uploads.close()
    assert time.monotonic() - began < 2.9  # the bucket needs 3 s for an answer
    assert len(said) == 1 and "did not arrive (0 uploads failed)" in said[0]


def test_an_answer_that_is_lost_is_no_reason_to_write_twice_or_to_stop(proxy, bucket, quick, said):
    run = f"{bucket}/run"
    lost = []

    def rule(verb, path, answer):
        if verb == "POST" and len(lost) < 3:
            lost.append(path)
            return None
        return answer

    proxy.rule = rule
    uploads, file = begin(run, said)
    for line in LINES[:8]:
        file.write(line)
        time.sleep(0.1)
    uploads.close()
    assert uploaded(run) == b"".join(LINES[:8]) and len(lost) == 3


def test_what_must_not_wait_is_uploaded_at_once(bucket, quick, said, monkeypatch):
    run = f"{bucket}/run"
    monkeypatch.setattr(parts, "EVERY_S", 60)
    uploads, file = begin(run, said)
    for number in range(2):
        file.write(LINES[number])
        uploads.soon()
        until(lambda: uploaded(run) == b"".join(LINES[: number + 1]), 10)  # noqa: B023
    uploads.close()


def test_a_folder_is_copied_file_by_file_and_a_name_that_is_taken_stays(bucket, quick, said):
    run = f"{bucket}/run"
    for number in range(2):
        uploads = Uploads(run, said.append)
        uploads.folder(uploads.directory / "profile", BucketPath(f"{run}/profile"))
        until(lambda: uploads._thread.is_alive())  # noqa: B023 (before the directory exists)
        deep = uploads.directory / "profile" / "deep"
        deep.mkdir(parents=True)
        (deep / "trace.pb").write_bytes(b"trace %d" % number)
        (deep / "log").write_bytes(b"%d" % number)
        (deep / "link").symlink_to(deep / "log")
        until(lambda: len(Prefix(run).list()) == 2 * number + 2)  # noqa: B023
        (deep / "log").write_bytes(b"%d and more" % number)
        uploads.close()
    held = {item.name: Prefix(run).read(item) for item in Prefix(run).list()}
    assert held == {
        "profile/deep/log": b"0 and more",
        "profile/deep/trace.pb": b"trace 0",
        f"profile/deep/{uploads.start}.log": b"1 and more",
        f"profile/deep/{uploads.start}.trace.pb": b"trace 1",
    }
    assert said == []


def test_a_part_that_is_replaced_while_it_is_read_is_read_again(bucket, monkeypatch):
    prefix = Prefix(f"{bucket}/parts")
    for name in ("1", "2"):
        prefix.write(name, name.encode())
    real, calls = Prefix.download, []

    def download(self, objects, directory):
        calls.append(1)
        if len(calls) == 1:
            prefix.write("2", b"longer", self.find("2").generation)
        real(self, objects, directory)

    monkeypatch.setattr(Prefix, "download", download)
    folder = BucketPath(f"{bucket}/parts")
    assert parts.contents(folder) == {"1": b"1", "2": b"longer"} and len(calls) == 2
    monkeypatch.setattr(Prefix, "download", lambda *_: (_ for _ in ()).throw(StorageError("gs://a", "is down")))
    with pytest.raises(StorageError, match="is down"):
        parts.contents(folder)
