"""What gcloud prints is told apart: recordings of the real one, and messages that users have reported."""

import json

import pytest

from launch.cloud.gcloud import kind_of, message_of
from launch.errors import Kind
from tests.support.repository import ROOT

RECORDED = json.loads((ROOT / "tests/launch/recordings/errors.json").read_text())


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_errors_are_told_apart(name):
    stderr = RECORDED[name]["stderr"]
    assert kind_of(stderr).name == RECORDED[name]["kind"]
    assert "access token" not in message_of(stderr) and "\n" not in message_of(stderr) and message_of(stderr)


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
    assert message_of(RECORDED["err_503_forever"]["stderr"]) == "injected"
    assert message_of(RECORDED["qr_create_lro_error"]["stderr"]) == "Quota limit exceeded"
    assert message_of(RECORDED["err_403_service_disabled"]["stderr"]).endswith("before or it is disabled.")
