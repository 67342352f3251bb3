"""Cloud Storage's JSON API over a `Store`, in this process: a `transport` of `launch.cloud.objects`."""

import datetime
import json
import urllib.request
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from launch.cloud.objects import Answer
from tests.support.launches import Store, _md5


class StorageApi:
    """Answers requests. `requests` has method and path with query of each; `tokens` those that it takes, if not all."""

    def __init__(self, store: Store, tokens: set[str] | None = None, page: int = 1000):
        self.store, self.tokens, self.page = store, tokens, page
        self.requests: list[str] = []

    def __call__(self, request: urllib.request.Request, seconds: float) -> Answer:
        url = urlsplit(request.full_url)
        self.requests.append(f"{request.get_method()} {unquote(url.path)}?{unquote(url.query)}")
        token = dict(request.unredirected_hdrs).get("Authorization", "").removeprefix("Bearer ")
        if self.tokens is not None and token not in self.tokens:
            return _refused(401, "Invalid Credentials")
        query = dict(parse_qsl(url.query))
        bucket, _, path = url.path.removeprefix("/upload").removeprefix("/storage/v1/b/").partition("/")
        name, content = unquote(path.removeprefix("o").removeprefix("/")), request.data
        if request.get_method() == "POST":
            edge = b"\r\n--" + dict(request.unredirected_hdrs)["Content-type"].rpartition("=")[2].encode()
            about, content = (part.partition(b"\r\n\r\n")[2] for part in (b"\r\n" + content).split(edge)[1:3])
            name, md5 = json.loads(about)["name"], json.loads(about)["md5Hash"]
            assert md5 == _md5(content) and query["uploadType"] == "multipart"
        return getattr(self, f"_{request.get_method().lower()}")(f"gs://{bucket}/", name, query, content)

    def _post(self, bucket: str, name: str, query: dict[str, str], content: bytes) -> Answer:
        now = self.store.objects.get(bucket + name, (b"", 0, 0.0))[1]
        if int(query.get("ifGenerationMatch", now)) != now:
            return _refused(412, "At least one of the pre-conditions you specified did not hold.")
        self.store.put(bucket + name, content)
        return Answer(200, json.dumps(self._facts(bucket, name)).encode())

    def _get(self, bucket: str, name: str, query: dict[str, str], _: Any) -> Answer:
        if not name:
            return self._listed(bucket, query)
        content, generation, _ = self.store.objects.get(bucket + name, (b"", 0, 0.0))
        if not generation or int(query.get("generation", generation)) != generation:
            return _refused(404, f"No such object: {bucket[5:]}{name}")
        return Answer(200, content if "alt" in query else json.dumps(self._facts(bucket, name)).encode())

    def _delete(self, bucket: str, name: str, *_: Any) -> Answer:
        gone = self.store.objects.pop(bucket + name, None) is None
        return _refused(404, f"No such object: {bucket[5:]}{name}") if gone else Answer(204, b"")

    def _listed(self, bucket: str, query: dict[str, str]) -> Answer:
        prefix, delimiter, items, folders = query.get("prefix", ""), query.get("delimiter"), [], set()
        for url in sorted(self.store.objects):
            name = url.removeprefix(bucket)
            if url.startswith(bucket + prefix):
                rest, slash, _ = name.removeprefix(prefix).partition(delimiter or "\n")
                if slash:
                    folders.add(prefix + rest + slash)
                else:
                    items.append(self._facts(bucket, name))
        first = int(query.get("pageToken", 0))
        page: dict[str, Any] = {
            "items": items[first : first + self.page],
            "prefixes": sorted(folders) if not first else [],
        }
        if first + self.page < len(items):
            page["nextPageToken"] = str(first + self.page)
        return Answer(200, json.dumps(page).encode())

    def _facts(self, bucket: str, name: str) -> dict[str, object]:
        content, generation, at_s = self.store.objects[bucket + name]
        at = datetime.datetime.fromtimestamp(at_s, datetime.UTC).isoformat().replace("+00:00", "Z")
        facts = {"name": name, "size": str(len(content)), "generation": str(generation), "updated": at}
        return {**facts, "md5Hash": _md5(content)}


def _refused(status: int, message: str) -> Answer:
    return Answer(status, json.dumps({"error": {"code": status, "message": message}}).encode())


LOGIN = {"credential": {"access_token": "a-token", "token_expiry": None}, "configuration": {"properties": {}}}
"""What `gcloud config config-helper` prints."""
