"""Objects of Cloud Storage over HTTPS: who asks, what is asked again, and what a refusal says."""

import json
import threading

import pytest

from janus_jax.errors import ConfigError
from launch.cloud import objects
from launch.cloud.gcloud import Gcloud, Result, end_those_of_threads
from launch.cloud.objects import Answer, Objects
from launch.errors import CloudError, Kind
from launch.records import seconds_of
from tests.support.buckets import Proxy
from tests.support.google_servers import running, server
from tests.support.storage_api import LOGIN, StorageApi

TOKEN = "secret-token"


class Login:
    """`gcloud config config-helper`: `tokens` one after the other, and these properties."""

    def __init__(self, *tokens, expiry=None, **properties):
        self.tokens, self.expiry, self.properties = list(tokens or (TOKEN,)), expiry, properties
        self.calls = []

    def __call__(self, words, stdin, timeout_s):
        self.calls.append(words)
        credential = {"access_token": self.tokens.pop(0), "token_expiry": self.expiry}
        return Result(
            0, json.dumps({**LOGIN, "credential": credential, "configuration": {"properties": self.properties}}), ""
        )


def service(transport=None, login=None):
    return Objects(Gcloud("p", "z", print, runner=login or Login()), transport)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(objects, "_sleep", lambda seconds: None)
    monkeypatch.setattr(objects, "ENDPOINT", "https://storage.googleapis.com")
    for name in ("STORAGE_EMULATOR_HOST", "CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE"):
        monkeypatch.delenv(name, raising=False)


def test_one_login_for_all_requests_and_no_token_in_what_is_said(store):
    login = Login()
    asked = service(api := StorageApi(store, {TOKEN}), login)
    asked.put("bkt", "a/b c", b"1")
    assert asked.content("bkt", "a/b c") == b"1" and asked.facts("bkt", "a/b c")["size"] == "1"
    assert len(login.calls) == 1 and TOKEN not in str([login.calls, api.requests])
    with pytest.raises(CloudError) as refused:
        asked.facts("bkt", "other")
    assert refused.value.kind is Kind.NOT_FOUND and TOKEN not in str(refused.value)
    assert "GET gs://bkt/other" in str(refused.value)


def test_a_token_that_is_out_of_date_is_asked_for_once_more(store):
    login = Login("old", "new")
    asked = service(StorageApi(store, {"new"}), login)
    asked.put("bkt", "a", b"1")
    assert "--force-auth-refresh" in login.calls[1]
    login = Login("old", "older")
    with pytest.raises(CloudError) as refused:
        service(StorageApi(store, {"new"}), login).facts("bkt", "a")
    assert refused.value.kind is Kind.CREDENTIALS and len(login.calls) == 2


def test_a_token_is_renewed_before_it_ends(store, monkeypatch):
    login = Login("1", "2", expiry="2026-01-01T00:00:00Z")
    now = [seconds_of("2025-12-31T23:00:00Z")]
    monkeypatch.setattr(objects.time, "time", lambda: now[0])
    asked = service(StorageApi(store), login)
    for _ in range(3):
        asked.put("bkt", "a", b"1")
    assert len(login.calls) == 1
    now[0] += 3590
    for _ in range(3):  # the clock is wrong, or gcloud has the same token: not at every request
        asked.put("bkt", "a", b"1")
    assert len(login.calls) == 2


@pytest.mark.parametrize(
    ("answer", "kind", "times"),
    [
        (Answer(503, b"backend"), Kind.UNAVAILABLE, 7),
        (Answer(429, b'{"error": {"message": "The object exceeded the rate limit"}}'), Kind.UNAVAILABLE, 7),
        (Answer(0, b"[Errno -2] Name or service not known"), Kind.UNAVAILABLE, 7),
        (Answer(403, b'{"error": {"message": "ada does not have storage.objects.get access"}}'), Kind.PERMISSION, 1),
        (
            Answer(403, b'{"error": {"message": "slow", "errors": [{"reason": "userRateLimitExceeded"}]}}'),
            Kind.UNAVAILABLE,
            7,
        ),
        (
            Answer(403, b'{"error": {"message": "Cloud Storage API has not been used in project 1"}}'),
            Kind.SERVICE_DISABLED,
            1,
        ),
        (Answer(412, b""), Kind.CHANGED, 1),
        (Answer(404, b'{"error": {"message": "The specified bucket does not exist."}}'), Kind.NOT_FOUND, 1),
        (Answer(0, b"[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"), Kind.INVALID, 1),
    ],
)
def test_what_may_pass_is_asked_again_and_all_else_said_at_once(answer, kind, times):
    asked = []
    with pytest.raises(CloudError) as refused:
        service(lambda request, seconds: asked.append(request) or answer).facts("bkt", "a")
    assert (refused.value.kind, len(asked)) == (kind, times)
    assert str(refused.value).startswith(f"{kind.value}: ") and "\n" not in str(refused.value)


def test_a_fault_that_passes_is_not_seen(store):
    api, faults = StorageApi(store), [Answer(503, b""), Answer(0, b"reset")]
    service(lambda request, seconds: faults.pop() if faults else api(request, seconds)).put("bkt", "a", b"1")
    assert store.objects["gs://bkt/a"][0] == b"1"


def test_a_signal_ends_the_pauses_of_threads(monkeypatch):
    monkeypatch.setattr(objects, "_PAUSES_S", (60.0,))
    asked, outcome = threading.Event(), []

    def look():
        with pytest.raises(CloudError, match="503"):
            service(lambda request, seconds: asked.set() or Answer(503, b"")).facts("bkt", "a")
        outcome.append("ended")

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    assert asked.wait(10)
    end_those_of_threads()
    thread.join(10)
    assert outcome == ["ended"]


def test_lists_have_pages_and_folders(store):
    for name in ("a/1", "a/2", "a/3", "a/b/4", "a/b/5"):
        store.put(f"gs://bkt/{name}", b"")
    api = StorageApi(store, page=2)
    listed = [*service(api).list("bkt", "a/", delimiter="/")]
    assert [item.get("name") or item["prefix"] for item in listed] == ["a/1", "a/2", "a/b/", "a/3"]
    assert len(api.requests) == 2


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://127.0.0.1:9/storage/v1/", "http://127.0.0.1:9"),
        ("https://storage-mine.p.googleapis.com/", "https://storage-mine.p.googleapis.com"),
        (None, "https://storage.googleapis.com"),
    ],
)
def test_gclouds_endpoint_is_asked(url, base):
    sent = []
    login = Login(api_endpoint_overrides={"storage": url} if url else {})
    service(lambda request, seconds: sent.append(request.full_url) or Answer(200, b"{}"), login).facts("bkt", "a/b")
    assert sent == [f"{base}/storage/v1/b/bkt/o/a%2Fb?fields={objects._FACTS.replace(',', '%2C')}"]


def test_a_token_goes_over_https_or_nowhere():
    login = Login(api_endpoint_overrides={"storage": "http://storage.example.com/storage/v1/"})
    with pytest.raises(ConfigError, match="allowed: https"):
        service(lambda request, seconds: Answer(200, b"{}"), login).facts("bkt", "a")


def test_who_pays_is_said_as_gcloud_says_it(store):
    heard, api = [], StorageApi(store)
    login = Login(billing={"quota_project": "payer"})
    service(lambda request, s: heard.append(request) or api(request, s), login).put("bkt", "a", b"1")
    assert heard[0].unredirected_hdrs["X-goog-user-project"] == "payer"


def test_a_network_that_wants_a_login_first_is_told_apart():
    with pytest.raises(CloudError, match="not an answer of Cloud Storage: <html> Welcome") as refused:
        service(lambda request, seconds: Answer(200, b"<html>\nWelcome</html>")).facts("bkt", "a")
    assert refused.value.kind is Kind.UNAVAILABLE


def test_an_emulator_gets_no_token_and_gcloud_is_not_asked(monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "127.0.0.1:9")
    sent, login = [], Login()
    service(lambda request, seconds: sent.append(request) or Answer(200, b"{}"), login).facts("bkt", "a")
    assert sent[0].full_url.startswith("http://127.0.0.1:9/storage/v1/b/bkt/o/a?") and not sent[0].unredirected_hdrs
    assert login.calls == []


class TestNetwork:
    """The part that the others replace: urllib."""

    def test_the_answers_of_a_server(self, bucket, bucket_server, monkeypatch):
        monkeypatch.delenv("STORAGE_EMULATOR_HOST")
        asked, name = service(login=Login(api_endpoint_overrides={"storage": bucket_server})), bucket[5:]
        first = asked.put(name, "a/b c", b"1", "application/json", generation=0)
        with pytest.raises(CloudError) as refused:
            asked.put(name, "a/b c", b"2", generation=0)
        assert refused.value.kind is Kind.CHANGED
        facts = asked.facts(name, "a/b c")
        assert facts["generation"] == first["generation"] and asked.content(name, "a/b c", facts["generation"]) == b"1"
        assert [item["name"] for item in asked.list(name, "a/")] == ["a/b c"]
        assert [item["prefix"] for item in asked.list(name, "", delimiter="/")] == ["a/"]
        asked.delete(name, "a/b c")
        with pytest.raises(CloudError) as refused:
            asked.facts(name, "a/b c")
        assert refused.value.kind is Kind.NOT_FOUND

    def test_gclouds_proxy_is_used(self, bucket_server, monkeypatch):
        monkeypatch.setenv("no_proxy", "")
        through = Proxy(bucket_server)
        _, _, port = through.url.rpartition(":")
        login = Login(
            api_endpoint_overrides={"storage": "http://localhost:1/storage/v1/"},
            proxy={"type": "http", "address": "127.0.0.1", "port": port},
        )
        through.rule = lambda method, path, answer: (200, b'{"size": "7"}')
        try:  # nothing listens at the endpoint
            assert service(login=login).facts("bkt", "a") == {"size": "7"}
        finally:
            through.close()

    def test_a_proxy_that_python_cannot_use_is_named(self):
        with pytest.raises(ConfigError, match="proxy/type: socks5: allowed: http"):
            service(login=Login(proxy={"type": "socks5", "address": "h"})).facts("bkt", "a")

    def test_certificates_that_are_not_there_are_named(self, tmp_path):
        login = Login(core={"custom_ca_certs_file": str(tmp_path / "none.pem")})
        with pytest.raises(ConfigError, match=r"core/custom_ca_certs_file: .*none\.pem: cannot be read"):
            service(login=login).facts("bkt", "a")

    def test_half_an_answer_is_none(self, proxy, bucket):
        half = iter([True])
        proxy.rule = lambda method, path, answer: None if "alt=media" in path and next(half, False) else answer
        asked, name = service(), bucket[5:]
        asked.put(name, "a", b"0123456789")
        assert asked.content(name, "a") == b"0123456789"
        assert sum("alt=media" in path for _, path in proxy.requests) == 2

    def test_a_server_that_is_not_there_is_unavailable(self, monkeypatch):
        login = Login(api_endpoint_overrides={"storage": "http://127.0.0.1:1"})
        with pytest.raises(CloudError, match="Connection refused") as refused:
            service(login=login).facts("bkt", "a")
        assert refused.value.kind is Kind.UNAVAILABLE

    def test_the_token_is_not_sent_on_to_another_host(self, bucket_server):
        heard = []

        def respond(request, raw):
            heard.append(request.headers.get("Authorization"))
            return (
                (302, {"Location": f"http://localhost:{port}/elsewhere"}, b"") if len(heard) == 1 else (200, {}, b"{}")
            )

        with running(server(("127.0.0.1", 0), respond)) as port:
            service(login=Login(api_endpoint_overrides={"storage": f"http://127.0.0.1:{port}"})).facts("bkt", "a")
        assert heard == [f"Bearer {TOKEN}", None]


def test_threads_share_a_login(store):
    login, store.objects["gs://bkt/a"] = Login(), (b"1", 1, 0.0)
    asked = service(StorageApi(store, {TOKEN}), login)
    threads = [threading.Thread(target=asked.facts, args=("bkt", "a")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(login.calls) == 1
