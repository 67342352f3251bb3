"""Folders of a bucket over the service's own answers: wildcards, objects that others replace, dry runs, large files."""

import json

import pytest

from launch.cloud import bucket as module
from launch.cloud.bucket import Bucket, Changed
from launch.cloud.gcloud import Gcloud, Result
from launch.cloud.objects import Answer, Objects
from launch.errors import CloudError
from tests.support.launches import FakeBucket
from tests.support.storage_api import LOGIN, StorageApi


class Made:
    """A bucket over `api`; `ran` has what gcloud ran, `printed` what a dry run showed."""

    def __init__(self, api, *, dry_run=False):
        self.ran, self.printed = [], []
        gcloud = Gcloud("p", "z", self.printed.append, dry_run=dry_run, runner=self.run)
        self.bucket = Bucket("gs://bkt/x", Objects(gcloud, api))

    def run(self, words, stdin, timeout_s):
        if "config-helper" not in words:
            self.ran.append(words)
        return Result(0, json.dumps(LOGIN), "")


@pytest.fixture
def api(store):
    return StorageApi(store)


@pytest.fixture
def folder(api):
    return Made(api).bucket


NAMES = (
    "run.json",
    "stop.json",
    "watch.log",
    "1/logs/1-1/00",
    "1/logs/1-2/00",
    "1/beats/1/00",
    "1/beats/1/01",
    "2/beats/1/00",
)


@pytest.mark.parametrize(
    "pattern",
    ["**", "*", "*.json", "run.json", "none.json", "1/**", "*/logs/**", "*/beats/*/*", "1/beats/1/*", "1/*/*-2/00"],
)
def test_wildcards(store, folder, pattern):
    for name in (*NAMES, "../x-other/run.json", "../other"):
        store.put(f"gs://bkt/x/{name}".replace("x/../", ""), b"1")
    assert folder.names(pattern) == FakeBucket("gs://bkt/x", store).names(pattern)
    assert len(folder.names("**")) == len(NAMES)


def test_only_what_a_pattern_needs_is_listed(store, api, folder):
    for name in NAMES:
        store.put(f"gs://bkt/x/{name}", b"1")
    folder.entries("*.json", "1/beats/1/*")
    assert len(api.requests) == 2 and all("delimiter=/" in request for request in api.requests)
    assert folder.entries() == [] and len(api.requests) == 2


def test_conditions(store, folder):
    first = folder.write("a", {"a": 1}, generation=0)
    for generation in (0, 77):
        with pytest.raises(Changed):
            folder.write("a", {"a": 2}, generation=generation)
    stored = folder.read("a")
    assert (stored.value, stored.generation, stored.updated_s) == ({"a": 1}, first.generation, store.now)
    folder.write("a", {"a": 2}, generation=stored.generation)
    assert folder.read("a").value == {"a": 2} and folder.read("b") is None
    assert folder.clock() == store.now


def test_an_object_that_is_replaced_while_it_is_read_is_there(store, api):
    times = [3]

    def replaced(request, seconds):
        answer = api(request, seconds)
        if "alt=media" not in request.full_url and times[0]:
            times[0] -= 1
            store.put("gs://bkt/x/stop.json", b'{"run_id": "r"}')
        return answer

    store.put("gs://bkt/x/stop.json", b"{}")
    assert Made(replaced).bucket.read("stop.json").value == {"run_id": "r"}
    times[0] = 99
    with pytest.raises(CloudError, match="not found"):
        Made(replaced).bucket.read("stop.json")


def test_what_is_there_comes_although_something_is_missing(store, folder, tmp_path):
    names = [f"parts/{number:02d}" for number in range(40)]
    for name in names[1:]:
        store.put(f"gs://bkt/x/{name}", name.encode())
    with pytest.raises(CloudError, match="parts/00"):
        folder.fetch(names, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [name[-2:] for name in names[1:]]
    assert folder.text(names[1:]) == "".join(names[1:])
    with pytest.raises(CloudError, match="parts/00"):
        folder.text(names)


def test_a_service_that_is_not_reached_is_not_asked_for_every_object(monkeypatch, tmp_path):
    monkeypatch.setattr("launch.cloud.objects._PAUSES_S", ())
    asked = []
    with pytest.raises(CloudError, match="unavailable"):
        Made(lambda request, seconds: asked.append(request) or Answer(503, b"")).bucket.fetch(
            map(str, range(200)), tmp_path
        )
    assert len(asked) <= 2 * module._AT_ONCE


def test_files_go_up_in_one_request_large_ones_by_gcloud(store, api, tmp_path, monkeypatch):
    made = Made(api)
    (tmp_path / "file").write_bytes(b"\0\r\n--x")
    for _ in range(2):
        made.bucket.upload(tmp_path / "file", "a", once=True)
    assert store.objects["gs://bkt/x/a"][:2] == (b"\0\r\n--x", 1) and made.ran == []
    made.bucket.upload(tmp_path / "file", "a")
    assert store.objects["gs://bkt/x/a"][1] == 2
    monkeypatch.setattr(module, "_LARGE_BYTES", 3)
    made.bucket.upload(tmp_path / "file", "b", once=True)
    made.bucket.upload(tmp_path, "c")
    assert [words[2:4] for words in made.ran] == [["cp", str(tmp_path / "file")], ["rsync", "--recursive"]]
    assert "--no-clobber" in made.ran[0]


def test_a_dry_run_shows_lines_that_do_the_same(store, api, tmp_path):
    made = Made(api, dry_run=True)
    (tmp_path / "file").write_text("1")
    made.bucket.write("a b.json", {"by": "it's me"}, generation=0)
    made.bucket.upload(tmp_path / "file", "c", once=True)
    made.bucket.remove("c")
    assert made.printed == [
        """printf %s '{"by": "it'"'"'s me"}' | gcloud storage cp - 'gs://bkt/x/a b.json' """
        "--content-type=application/json --if-generation-match=0 --project=p",
        f"gcloud storage cp {tmp_path}/file gs://bkt/x/c --no-clobber --project=p",
        "gcloud storage rm gs://bkt/x/c --project=p",
    ]
    assert not store.objects and api.requests == []
