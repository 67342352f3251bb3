"""Objects of a bucket against a real server: what comes back, and what is said when it does not."""

import os
import resource
import subprocess
import sys
import time

import pytest

from janus_jax.errors import ConfigError, StorageError
from janus_jax.storage import bucket as buckets
from janus_jax.storage.bucket import Object, Prefix, briefly
from janus_jax.storage.local import as_path, place
from tests.support.faulty_bucket import refusing
from tests.support.repository import ROOT

CHUNK = 256 << 10  # the smallest that the service takes


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(buckets, "RETRY_S", 2.0)


def test_what_is_tried_again_later_waits_for_a_bucket_that_refuses_only_briefly(bucket, proxy):
    prefix, began = Prefix(f"{bucket}/run"), time.monotonic()
    proxy.refusal = refusing(503, writes=False)
    with briefly(0.3):
        for call in (prefix.list, lambda: prefix.find("x"), lambda: prefix.write("x", b"1")):
            with pytest.raises(StorageError, match=r"given up after attempts for up to 0\.3 s"):
                call()
    assert time.monotonic() - began < buckets.RETRY_S / 2
    proxy.refusal = refusing(503, writes=False, times=1)
    assert prefix.list() == []  # is patient again


def names(prefix):
    return [one.name for one in prefix.list()]


def client_bucket(url):
    from google.cloud import storage

    return storage.Client().bucket(url.removeprefix("gs://"))


def tree(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def files(tmp_path):
    root = tmp_path / "files"
    (root / "sub").mkdir(parents=True)
    (root / "large").write_bytes(os.urandom(5 * CHUNK + 17))
    (root / "sub" / "ümlaut #1?.txt").write_text("text")
    (root / "empty").touch()
    return root


@pytest.mark.parametrize("multipart", [True, False])
def test_files_come_back_as_they_were_in_one_request_or_in_chunks(bucket, files, tmp_path, monkeypatch, multipart):
    monkeypatch.setattr(buckets, "CHUNK_BYTES", CHUNK)
    if not multipart:
        monkeypatch.setattr("google.cloud.storage.blob._MAX_MULTIPART_SIZE", CHUNK)
    counts = []
    prefix = Prefix(f"{bucket}/a/b/")
    prefix.upload(files, tree(files), counts.append)
    assert counts == [1, 2, 3]
    Prefix(f"{bucket}/a/b2").write("sibling", b"1")
    client_bucket(bucket).blob("a/b/folder/").upload_from_string(b"")  # as consoles make folders
    assert names(prefix) == ["empty", "large", "sub/ümlaut #1?.txt"]
    assert names(prefix.below("sub")) == ["ümlaut #1?.txt"] and prefix.url == f"{bucket}/a/b"
    assert len(names(Prefix(bucket))) == 4
    prefix.download(prefix.list(), tmp_path / "back")
    assert tree(tmp_path / "back") == tree(files)
    prefix.delete(prefix.list())
    assert names(prefix) == [] and names(Prefix(bucket)) == ["a/b2/sibling"]


def test_large_files_are_read_in_several_requests(bucket, proxy, files, tmp_path, monkeypatch):
    monkeypatch.setattr(buckets, "CHUNK_BYTES", CHUNK)
    prefix = Prefix(f"{bucket}/a")
    prefix.upload(files, ["large"])
    proxy.requests.clear()
    prefix.download(prefix.list(), tmp_path / "back")
    assert len([path for method, path in proxy.requests if "alt=media" in path]) == 6


def test_what_is_there_is_not_replaced(bucket, files):
    prefix = Prefix(f"{bucket}/a")
    generation = prefix.write("empty", b"theirs")
    with pytest.raises(StorageError, match=f"^{bucket}/a/empty: cannot be written: somebody else writes it"):
        prefix.upload(files, ["empty"])
    with pytest.raises(StorageError, match="somebody else"):
        prefix.write("empty", b"ours", generation + 1)
    assert prefix.read(prefix.list()[0]) == b"theirs"
    assert prefix.write("empty", b"ours", generation) != generation
    assert prefix.read(prefix.list()[0]) == b"ours"


def test_a_write_whose_answer_was_lost_is_no_failure(bucket, proxy, files):
    lost = []

    def lose_the_first(method, path, answer):
        if method == "POST" and not lost:
            lost.append(path)
            return None
        return answer

    proxy.rule = lose_the_first
    prefix = Prefix(f"{bucket}/a")
    prefix.upload(files, ["large"])
    assert lost and prefix.list()[0].size == (files / "large").stat().st_size


def test_a_dropped_connection_is_taken_up_again(bucket, proxy, files, tmp_path, monkeypatch):
    monkeypatch.setattr(buckets, "CHUNK_BYTES", CHUNK)
    prefix = Prefix(f"{bucket}/a")
    prefix.upload(files, ["large"])
    dropped = []

    def drop_every_chunk_once(method, path, answer):
        if "alt=media" in path and len(dropped) % 2 == 0:
            dropped.append(path)
            return None
        dropped.append(path)
        return answer

    proxy.rule = drop_every_chunk_once
    prefix.download(prefix.list(), tmp_path / "back")
    assert tree(tmp_path / "back")["large"] == (files / "large").read_bytes() and len(dropped) > 10


def test_one_that_drops_every_time_is_given_up(bucket, proxy, files, tmp_path, impatient):
    prefix = Prefix(f"{bucket}/a")
    prefix.upload(files, ["large"])
    proxy.rule = lambda method, path, answer: None if "alt=media" in path else answer
    with pytest.raises(
        StorageError, match=f"^{bucket}/a/large: cannot be read: given up after attempts for up to 2 s: .+"
    ):
        prefix.download(prefix.list(), tmp_path / "back")


def test_a_full_disk_is_said_with_its_place(bucket, files, tmp_path):
    prefix = Prefix(f"{bucket}/a")
    prefix.upload(files, ["large"])
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (CHUNK, allowed[1]))
    try:
        with pytest.raises(
            StorageError, match=rf"^{bucket}/a/large: cannot be read: {tmp_path}/back/large: File too l"
        ):
            prefix.download(prefix.list(), tmp_path / "back")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)


def test_content_that_was_damaged_on_its_way_is_refused(bucket, proxy, files, tmp_path):
    prefix = Prefix(f"{bucket}/a")
    prefix.upload(files, ["large", "sub/ümlaut #1?.txt"])

    def damage(method, path, answer):
        return (answer[0], b"x" + answer[1][1:]) if "alt=media" in path else answer

    proxy.rule = damage
    with pytest.raises(StorageError, match=r"/a/sub/ümlaut #1\?.txt: was not read whole: 4 bytes with crc32c \S+ came"):
        prefix.download(prefix.list()[1:], tmp_path / "back")
    with pytest.raises(StorageError, match=r"/a/large: cannot be read: Checksum mismatch"):
        prefix.read(prefix.list()[0])


def test_what_a_service_refuses_is_said_in_its_words(bucket, proxy, files):
    body = b'{"error": {"code": 403, "message": "me@here does not have storage.objects.list access.\\nMore."}}'
    proxy.rule = lambda method, path, answer: (403, body)
    prefix, text = Prefix(f"{bucket}/a"), "permission denied: me@here does not have storage.objects.list access."
    for operation, act in {
        "listed": prefix.list,
        "read": lambda: prefix.find("x"),
        "written": lambda: prefix.write("x", b""),
        "deleted": lambda: prefix.delete([Object("x", 1, "", 1)]),
    }.items():
        with pytest.raises(StorageError) as refused:
            act()
        url = f"{bucket}/a" if operation == "listed" else f"{bucket}/a/x"
        assert str(refused.value) == f"{url}: cannot be {operation}: {text}"
        assert refused.value.exit_code == 14
    with pytest.raises(StorageError, match=f"^{bucket}/a/large: cannot be written: {text}$"):
        prefix.upload(files, ["large"])


def test_absent_buckets_and_absent_objects_are_told_apart(bucket, tmp_path):
    nowhere = Prefix("gs://no-such-bucket/a")
    gone = Object("x", 1, "", 1)
    for act in (nowhere.list, lambda: nowhere.find("x"), lambda: nowhere.write("x", b""), lambda: nowhere.read(gone)):
        with pytest.raises(StorageError, match=r"^gs://no-such-bucket/a\S*: cannot be .*: no such bucket: no-such-bu"):
            act()
    here = Prefix(f"{bucket}/a")
    assert here.list() == [] and here.find("x") is None
    with pytest.raises(StorageError, match=f"^{bucket}/a/x: cannot be read: no such object$"):
        here.download([gone], tmp_path)
    here.delete([gone])


def test_a_server_that_is_not_there_is_given_up(bucket, monkeypatch, impatient):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    with pytest.raises(
        StorageError, match=f"^{bucket}/a: cannot be listed: given up after .*: Failed to.*refused$"
    ) as refused:
        Prefix(f"{bucket}/a").list()
    assert "\n" not in str(refused.value)


def test_missing_credentials_are_said(tmp_path, monkeypatch, capfd):
    for name in ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    with pytest.raises(StorageError, match=r"^gs://some-bucket/a: cannot be opened: no credentials: Your default cred"):
        Prefix("gs://some-bucket/a")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["../x", "a/../../x", "a//x", "/x"])
def test_names_that_would_lead_out_of_the_directory_are_refused(bucket, tmp_path, name):
    one = Object(name, 1, "", 1)
    with pytest.raises(StorageError, match="its name would lead elsewhere"):
        Prefix(f"{bucket}/a").download([one], tmp_path / "in")
    assert list(tmp_path.rglob("x")) == []


def test_objects_that_the_service_would_unpack_are_refused(bucket):
    blob = client_bucket(bucket).blob("a/x.jsonl")
    blob.content_encoding = "gzip"
    blob.upload_from_string(b"\x1f\x8b")
    with pytest.raises(StorageError, match=rf"^{bucket}/a/x\.jsonl: is stored with Content-Encoding gzip"):
        Prefix(f"{bucket}/a").list()


def test_the_client_is_imported_for_buckets_alone():
    code = (
        "import sys, janus_jax.data.fetch, janus_jax.training.run\n"
        "assert 'google.cloud.storage' not in sys.modules and 'janus_jax.storage.bucket' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=300)


@pytest.mark.parametrize("url", ["s3://bucket/a", "gs://", "gs:///a", "gs://b-1/a//b", "gs://b-1/../a"])
def test_what_is_no_place_in_a_bucket_is_refused(url):
    with pytest.raises(ConfigError, match=f"^{url}: allowed: a local path, or gs://BUCKET/PATH$"):
        Prefix(url)


@pytest.mark.parametrize("name", ["Bucket", "b", "bu", "bucket-", "a" * 64, f"a.{'b' * 64}"])
def test_what_cannot_be_a_buckets_name_is_refused(name):
    with pytest.raises(ConfigError, match=f"^gs://{name}/run: '{name}' is no bucket's name; allowed: 3 to 63 of "):
        Prefix(f"gs://{name}/run")


def test_what_an_error_cuts_off_becomes_no_object(bucket):
    path = as_path(f"{bucket}/a.json")
    for mode, half in (("w", "{"), ("wb", b"{")):
        with pytest.raises(KeyboardInterrupt), path.open(mode) as file:
            file.write(half)
            raise KeyboardInterrupt
        path.open(mode).write(half)  # nobody closes it
        assert Prefix(bucket).list() == []
    path.write_text("{}")
    assert (place(path).read_text(), path.open().read()) == ("{}", "{}")
