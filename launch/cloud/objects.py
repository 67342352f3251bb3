"""Objects of Cloud Storage over HTTPS, by its JSON API: gcloud takes a second of a processor for each of them.

gcloud says once who the user is, and its own settings: endpoint, proxy, certificates. The token stays in the memory of
this process.
"""

import base64
import contextlib
import dataclasses
import hashlib
import http.client
import importlib
import json
import math
import os
import secrets
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from janus_jax.errors import ConfigError
from launch.cloud.gcloud import Gcloud, interrupted, kind_of
from launch.errors import CloudError, Kind
from launch.records import seconds_of

ENDPOINT = "https://storage.googleapis.com"
_VARIABLE = "CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE"
_PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
"""Before a request is repeated that was not answered, or that may succeed later."""
_ANSWER_S = 20.0
_SHORTEST_S = 300.0
"""Between two logins, unless the service refuses the token: this workstation's clock may be wrong."""
_FACTS = "name,size,generation,updated,crc32c,md5Hash"
_MAY_PASS = (0, 408, 429)
_sleep = time.sleep


@dataclasses.dataclass(frozen=True)
class Answer:
    """Of the service. Status 0: there was none, and the body says why."""

    status: int
    body: bytes


Transport = Callable[[urllib.request.Request, float], Answer]
"""Sends a request: seconds allowed without a sign of life."""


@dataclasses.dataclass(frozen=True)
class _Login:
    """How requests are sent."""

    base: str
    headers: dict[str, str]
    """That show who the user is."""
    send: Transport
    until_s: float = math.inf


class Objects:
    """The service, as gcloud's user sees it.

    Args:
        transport: sends the requests. None: over the network, as gcloud's settings and the environment say.
    """

    def __init__(self, gcloud: Gcloud, transport: Transport | None = None):
        self.gcloud, self._transport = gcloud, transport
        self._login: _Login | None = None
        self._mutex = threading.Lock()

    def facts(self, bucket: str, name: str) -> dict[str, Any]:
        """What the service says of an object: `name`, `size`, `generation`, `updated`, `crc32c`, `md5Hash`.

        Raises:
            CloudError: it is not there, or the service refused. So do the other methods.
        """
        return _parsed(self._ask("GET", bucket, name, {"fields": _FACTS}))

    def content(self, bucket: str, name: str, generation: str | None = None) -> bytes:
        """An object's content, of a generation or the newest."""
        return self._ask("GET", bucket, name, {"alt": "media", "generation": generation})

    def list(self, bucket: str, prefix: str, *, delimiter: str | None = None) -> Iterator[dict[str, Any]]:
        """Facts of objects whose names begin with a prefix. With a delimiter, {"prefix": NAME/} stands for those in
        whose names it follows."""
        query = {"prefix": prefix, "delimiter": delimiter, "fields": f"items({_FACTS}),prefixes,nextPageToken"}
        token = None
        while token != "":
            page = _parsed(self._ask("GET", bucket, None, {**query, "pageToken": token}, shown=prefix))
            yield from page.get("items") or ()
            yield from ({"prefix": folder} for folder in page.get("prefixes") or ())
            token = page.get("nextPageToken") or ""

    def put(
        self,
        bucket: str,
        name: str,
        content: bytes,
        kind: str = "application/octet-stream",
        generation: int | None = None,
    ) -> dict[str, Any]:
        """Writes an object in one request; returns its facts.

        Args:
            kind: media type.
            generation: as of `Bucket.write`. A repeated request whose first answer was lost may be refused (412).
        """
        query = {"uploadType": "multipart", "ifGenerationMatch": generation, "fields": _FACTS}
        md5 = base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()  # which it compares
        about = json.dumps({"name": name, "contentType": kind, "md5Hash": md5})
        edge = secrets.token_hex(16)
        head = f"--{edge}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{about}\r\n"
        body = f"{head}--{edge}\r\nContent-Type: {kind}\r\n\r\n".encode() + content + f"\r\n--{edge}--".encode()
        parts = (f"multipart/related; boundary={edge}", body)
        return _parsed(self._ask("POST", bucket, None, query, content=parts, shown=name))

    def delete(self, bucket: str, name: str) -> None:
        """Deletes an object."""
        self._ask("DELETE", bucket, name, {})

    def _ask(
        self,
        method: str,
        bucket: str,
        name: str | None,
        query: dict[str, Any],
        *,
        content: tuple[str, bytes] | None = None,
        shown: str = "",
    ) -> bytes:
        """The body of the answer. Repeats what may pass, and logs in once more if the token is out of date."""
        path = f"{'/upload' if content else ''}/storage/v1/b/{bucket}/o" + (f"/{quote(name, safe='')}" if name else "")
        given = urlencode({key: value for key, value in query.items() if value is not None})
        pauses, anew = iter(_PAUSES_S), False
        while True:
            login = self._logged_in()
            request = urllib.request.Request(f"{login.base}{path}?{given}", method=method)
            if content:
                request.data = content[1]
                request.add_unredirected_header("Content-Type", content[0])
            for header, value in login.headers.items():  # not to where an answer may send the request on
                request.add_unredirected_header(header, value)
            answer = login.send(request, _ANSWER_S)
            if 200 <= answer.status < 300:
                return answer.body
            if answer.status == 401 and not anew:
                anew = True
                self._log_in(instead=login)
                continue
            error = _error(answer, f"{method} gs://{bucket}/{name or shown}")
            pause = next(pauses, None)
            if error.kind is not Kind.UNAVAILABLE or pause is None or _is_interrupted(pause):
                raise error

    def _logged_in(self) -> _Login:
        login = self._login
        if login is None or login.until_s < time.time():
            self._log_in(instead=login)
        assert self._login is not None
        return self._login

    def _log_in(self, instead: _Login | None) -> None:
        """Asks gcloud for token and settings, unless another thread has done it."""
        with self._mutex:
            if self._login is not instead:
                return
            emulator = os.environ.get("STORAGE_EMULATOR_HOST")
            if emulator and not os.environ.get(_VARIABLE):
                self._login = _Login(_base(emulator), {}, self._transport or _over_network({}))
                return
            words = ["gcloud", "config", "config-helper", "--min-expiry=10m"]
            shown = self.gcloud.read([*words[:3], "--force-auth-refresh"] if instead else words, timeout_s=120) or {}
            properties = shown.get("configuration", {}).get("properties", {})
            credential, headers = shown.get("credential") or {}, {}
            if token := credential.get("access_token"):
                headers["Authorization"] = f"Bearer {token}"
            if payer := properties.get("billing", {}).get("quota_project"):  # as gcloud itself does
                headers["X-Goog-User-Project"] = payer
            base = _base(properties.get("api_endpoint_overrides", {}).get("storage") or ENDPOINT)
            place = urlsplit(base)
            if place.scheme != "https" and place.hostname not in ("localhost", "127.0.0.1", "::1"):
                raise ConfigError("api_endpoint_overrides/storage", f"{base}: allowed: https, which hides the token")
            self._login = _Login(
                base,
                headers,
                self._transport or _over_network(properties),
                max(seconds_of(credential.get("token_expiry") or "", math.inf) - 60, time.time() + _SHORTEST_S),
            )


def _is_interrupted(seconds: float) -> bool:
    """Waits; whether a signal has come to the main thread meanwhile, which waits for this one."""
    if threading.current_thread() is not threading.main_thread():
        return interrupted.wait(seconds)
    _sleep(seconds)
    return False


def _base(url: str) -> str:
    """An endpoint without the path of the API: gcloud's setting has it, STORAGE_EMULATOR_HOST has not."""
    place = urlsplit(url if "://" in url else f"http://{url}")
    return f"{place.scheme}://{place.netloc}{place.path.rstrip('/').removesuffix('/storage/v1')}"


def _over_network(properties: dict[str, dict[str, str]]) -> Transport:
    """Sends requests with gcloud's proxy and certificates, or else those of the environment.

    Raises:
        ConfigError: a proxy that this Python cannot use, or certificates that it cannot read.
    """
    proxy = properties.get("proxy", {})
    given = None
    if address := proxy.get("address"):
        if proxy.get("type", "http") not in ("http", "http_no_tunnel"):
            raise ConfigError("proxy/type", f"{proxy['type']}: allowed: http (gcloud config set proxy/type http)")
        user, password = (quote(proxy.get(key, ""), safe="") for key in ("username", "password"))
        url = f"http://{f'{user}:{password}@' if user else ''}{address}:{proxy.get('port', '80')}"
        given = {"http": url, "https": url}
    authorities = properties.get("core", {}).get("custom_ca_certs_file")
    try:
        tls = ssl.create_default_context(cafile=authorities)
    except OSError as error:
        raise ConfigError("core/custom_ca_certs_file", f"{authorities}: cannot be read: {error}") from None
    if properties.get("auth", {}).get("disable_ssl_validation", "").lower() == "true":
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    for module in ("certifi", "pip._vendor.certifi") if not tls.get_ca_certs() else ():  # Python of python.org on a Mac
        with contextlib.suppress(ImportError, OSError):
            tls.load_verify_locations(importlib.import_module(module).where())
            break
    opener = urllib.request.build_opener(urllib.request.ProxyHandler(given), urllib.request.HTTPSHandler(context=tls))

    def send(request: urllib.request.Request, seconds: float) -> Answer:
        try:
            with opener.open(request, timeout=seconds) as answer:
                return Answer(answer.status, answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.read())
        except (OSError, http.client.HTTPException) as error:
            return Answer(0, str(getattr(error, "reason", error) or type(error).__name__).encode())

    return send


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        return json.loads(body)
    except ValueError:  # as a network gives to those who have not logged in to it
        text = " ".join(body[:200].decode(errors="replace").split())
        raise CloudError(Kind.UNAVAILABLE, f"unavailable: not an answer of Cloud Storage: {text}") from None


def _error(answer: Answer, request: str) -> CloudError:
    text = answer.body.decode(errors="replace")
    with contextlib.suppress(ValueError, LookupError, TypeError):
        text = json.loads(text)["error"]["message"]
    text = " ".join(text.split())[:600] or f"HTTP {answer.status}"
    kind = kind_of(f"ERROR: HTTPError {answer.status}: {text}")
    if answer.status in _MAY_PASS or b"ateLimitExceeded" in answer.body:  # no quota that a person could raise
        kind = Kind.UNAVAILABLE
    if "CERTIFICATE_VERIFY_FAILED" in text:
        kind, text = Kind.INVALID, f"{text}; set SSL_CERT_FILE, or gcloud's core/custom_ca_certs_file"
    return CloudError(kind, f"{kind.value}: {text} (request: {request})")
