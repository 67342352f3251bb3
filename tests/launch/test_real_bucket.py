"""The real gcloud and a bucket server on this machine: lease, records and logs, as `watch` and `logs` use them."""

import json
import shutil
import urllib.request

import pytest

from janus_jax.errors import HeldError
from launch.cloud.bucket import Bucket, Changed
from launch.cloud.gcloud import Gcloud
from launch.cloud.objects import Objects
from launch.records import Heartbeat
from launch.runs.merged import Merged
from launch.runs.snapshot import Reader
from launch.watching.lease import Lease, LostLease
from tests.support.buckets import server
from tests.support.launches import run_record

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not installed")]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    (tmp_path / "token").write_text("token")
    with server(tmp_path / "store") as url:
        settings = {
            "HOME": str(tmp_path / "home"),
            "CLOUDSDK_CONFIG": str(tmp_path / "home"),
            "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE": str(tmp_path / "token"),
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE": f"{url}/storage/v1/",
            "CLOUDSDK_CORE_PROJECT": "p",
            "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
            "CLOUDSDK_CORE_CHECK_GCE_METADATA": "False",
        }
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        body, headers = json.dumps({"name": "bkt"}).encode(), {"Content-Type": "application/json"}
        urllib.request.urlopen(urllib.request.Request(f"{url}/storage/v1/b?project=p", body, headers))
        yield Bucket("gs://bkt/launch/demo", Objects(Gcloud("p", "us-central2-b", print)))


def test_conditions_and_objects_that_stay(folder, tmp_path):
    folder.write("a.json", {"a": 1}, generation=0)
    for generation in (0, 77):
        with pytest.raises(Changed):
            folder.write("a.json", {"a": 2}, generation=generation)
    (tmp_path / "file").write_text('{"a": 3}')
    folder.upload(tmp_path / "file", "a.json", once=True)
    folder.upload(tmp_path / "file", "b.json", once=True)
    assert folder.read("a.json").value == {"a": 1} and folder.read("b.json").value == {"a": 3}
    assert folder.read("c.json") is None
    folder.remove("b.json")
    assert folder.read("b.json") is None


def test_lease_records_and_logs(folder, tmp_path):
    first = Lease(folder, "ann@here")
    first.take()
    with pytest.raises(HeldError, match="ann@here"):
        Lease(folder, "bob@there").take()

    run = run_record()
    source = tmp_path / "source"
    files = {"run.json": run.dumps(), "stop.json": "{}", "demo-1/logs/1-1/01-000001.log": "b\n"}
    for worker in range(2):
        beat = Heartbeat("demo-1", 1, 1, worker, "h", "running", 0.0, step=worker)
        files[f"demo-1/heartbeats/1/{worker:02d}"] = beat.dumps()
    for name, text in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
    folder.upload(source, "")
    reader = Reader(folder)
    snapshot = reader.read()
    assert snapshot.run == run and snapshot.stopped is None
    assert snapshot.watcher is not None and snapshot.watcher.by == "ann@here"
    assert [host.step for host in snapshot.hosts(folder.clock())] == [0, 1]
    assert all(host.beats for host in snapshot.hosts(folder.clock()))

    merged = Merged(folder.at("demo-1", "logs"))
    assert merged.new(merged.parts()) == ["[worker 01] b"]

    first.keep({"tries": 1})
    first.renew()
    folder.write("watch.json", {"by": "bob@there", "token": "other"})
    with pytest.raises(LostLease, match="bob@there"):
        first.check("stop.json")
