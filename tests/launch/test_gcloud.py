"""What gcloud prints is told apart: recordings of the real one, and messages that users have reported."""

import json
import re

import pytest

from launch.cloud.bucket import Bucket
from launch.cloud.gcloud import Gcloud, Result, kind_of, said
from launch.errors import CloudError, Kind
from tests.support.repository import ROOT

RECORDED = json.loads((ROOT / "tests/launch/recordings/errors.json").read_text())


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_errors_are_told_apart(name):
    stderr = RECORDED[name]["stderr"]
    assert kind_of(stderr).name == RECORDED[name]["kind"]
    assert "access token" not in said(stderr) and "\n" not in said(stderr) and said(stderr)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Kind.QUOTA, "Quota 'TPUV2sPreemptiblePodPerProjectPerRegionForTPUAPI' exhausted. Limit 32 in region x"),
        (Kind.QUOTA, 'ERROR: (gcloud.x.create) {\n  "code": 8,\n  "message": "Quota limit exceeded"\n}'),
        (Kind.UNAVAILABLE, "ERROR: (gcloud.x) RESOURCE_EXHAUSTED: Maximum number of CreateNode requests per minute"),
        (Kind.STOCK_OUT, "RESOURCE_EXHAUSTED: There is no more capacity in the zone"),
        (Kind.STOCK_OUT, "FAILED_PRECONDITION: Insufficient reserved capacity. Contact customer support"),
        (Kind.INVALID, "ERROR: (gcloud.x) NOT_FOUND: Location us-mars1-a is not found or access is unauthorized."),
        (Kind.INVALID, "ERROR: (gcloud.x) INVALID_ARGUMENT: Cloud TPU received a bad request. the accelerator v9-8"),
        (
            Kind.PERMISSION,
            "ERROR: User [a@b.c] does not have permission to access b instance [x] (or it may not exist)",
        ),
        (Kind.NOT_FOUND, "ERROR: (gcloud.storage.objects.describe) gs://bucket/quota/credentials not found: 404."),
        (Kind.NOT_FOUND, "ERROR: (gcloud.x) NOT_FOUND: Resource 'projects/p/locations/z/nodes/stockout' was not found"),
        (Kind.CREDENTIALS, "ERROR: (gcloud.x) There was a problem refreshing your current auth tokens: invalid_grant"),
        (  # of the real one without network, once its token is out of date
            Kind.UNAVAILABLE,
            "ERROR: (gcloud.x) There was a problem refreshing your current auth tokens: HTTPSConnectionPool("
            "host='oauth2.googleapis.com', port=443): Max retries exceeded with url: /token (Caused by "
            "NameResolutionError(\"<urllib3>: Failed to resolve 'oauth2.googleapis.com' ([Errno -2] Name or service "
            'not known)"))\nPlease run:\n\n  $ gcloud auth login\n\nto obtain new credentials.',
        ),
        (Kind.UNAVAILABLE, '{"code": 13, "message": "an internal error has occurred"}'),
        (Kind.UNAVAILABLE, "no answer within 300 s"),
        (Kind.CHANGED, "ERROR: (gcloud.storage.cp) HTTPError 412: At least one of the pre-conditions did not hold."),
        (Kind.NOT_FOUND, "ERROR: (gcloud.storage.cp) HTTPError 404: gs://b/runs/412/recondition.json not found"),
    ],
)
def test_reported_errors_are_told_apart(kind, text):
    assert kind_of(text) is kind


def test_a_message_is_the_services_own():
    assert said(RECORDED["err_503_forever"]["stderr"]) == "injected"
    assert said(RECORDED["qr_create_lro_error"]["stderr"]) == "Quota limit exceeded"
    assert said(RECORDED["err_403_service_disabled"]["stderr"]).endswith("before or it is disabled.")


class Replaced:
    """gcloud with an object that others replace `times` times after it was described or listed."""

    def __init__(self, times):
        self.times, self.generation, self.calls = times, 1, []

    def __call__(self, words, stdin, timeout_s):
        self.calls.append(words[2])
        if "describe" in words:
            seen, self.generation = self.generation, self.generation + (self.times > 0)
            self.times -= 1
            return Result(0, json.dumps({"generation": seen, "update_time": "2026-01-01T00:00:00Z"}), "")
        asked = re.search(r"#(\d+)$", words[3])
        self.times -= 1
        gone = int(asked[1]) != self.generation if asked else self.times >= 0
        return Result(1, "", "ERROR: HTTPError 404: not found") if gone else Result(0, '{"run_id": "r"}', "")


def test_an_object_that_is_replaced_while_it_is_read_is_there(tmp_path):
    for times, look in (
        (1, lambda bucket: bucket.read("stop.json").value["run_id"]),
        (1, lambda bucket: bucket.text(["a", "b"])),
        (2, lambda bucket: bucket.fetch(["a"], tmp_path) or "fetched"),
    ):
        assert look(Bucket("gs://b/x", Gcloud("p", "z", print, runner=Replaced(times))))
    always = Replaced(99)
    with pytest.raises(CloudError, match="not found"):
        Bucket("gs://b/x", Gcloud("p", "z", print, runner=always)).read("stop.json")
    assert len(always.calls) == 8
