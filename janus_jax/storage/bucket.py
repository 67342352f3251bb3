"""Lists, reads and writes whole objects below a gs:// URL. Checksums are compared, and every request ends.

google.cloud.storage is imported when a bucket is first used.
"""

import contextlib
import contextvars
import copy
import dataclasses
import functools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from janus_jax.errors import ConfigError, StorageError, first_line
from janus_jax.storage.objects import Object, object_of, object_of_file
from janus_jax.storage.threads import in_threads

RETRY_S = 60.0
"""How long a failing request is retried, with growing pauses. Each chunk of a file is a request."""

CHUNK_BYTES = 16 << 20
_CLIENT_VARIABLES = ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS", "CLOUDSDK_CONFIG", "HOME")
_CONNECT_S, _READ_S = 10, 60
_brief_s: contextvars.ContextVar[float | None] = contextvars.ContextVar("brief_s", default=None)
LARGE_BYTES = 256 << 20  # a transfer of at least this size is announced to the user


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether this is a URL of any kind, not a local path."""
    return "://" in os.fspath(path)


@contextlib.contextmanager
def os_errors(path: str | os.PathLike[str], failure: str = "cannot be written") -> Iterator[None]:
    """Turns an OSError inside into a StorageError: PATH, the failure, and the operating system's message."""
    try:
        yield
    except OSError as error:
        raise StorageError(path, f"{failure}: {error.strerror or error}") from error


@contextlib.contextmanager
def briefly(seconds: float) -> Iterator[None]:
    """Inside, this thread repeats a request for so long, not for `RETRY_S`: for what is tried again later anyway."""
    before = _brief_s.set(seconds)
    try:
        yield
    finally:
        _brief_s.reset(before)


def _limit_s() -> float:
    return min(RETRY_S, _brief_s.get() or RETRY_S)


class Prefix:
    """All objects below a gs:// URL, named by what follows the URL and a slash.

    Every method raises StorageError, which names URL and operation, if the service refuses, cannot be reached for
    `RETRY_S`, or sends other content than it announced.
    """

    def __init__(self, url: str | os.PathLike[str]):
        self.url = os.fspath(url).rstrip("/")
        match = re.fullmatch(r"gs://([^/]+)((?:/[^/]+)*)", self.url)
        if not match or {".", ".."} & set(match[2].split("/")):
            raise ConfigError(os.fspath(url), "allowed: a local path, or gs://BUCKET/PATH")
        name, url = match[1], os.fspath(url)
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]", name) or max(map(len, name.split("."))) > 63:
            raise ConfigError(url, f"{name!r} is no bucket's name; allowed: 3 to 63 of a-z, 0-9, -, _ and .")
        self.path = match[2][1:]  # within the bucket; empty for the whole bucket
        with self._service_errors(self.url, "opened"):
            client = _client(*(os.environ.get(name) for name in _CLIENT_VARIABLES))
        self._bucket = client.bucket(match[1])

    @property
    def _options(self) -> dict[str, Any]:
        """Of every request."""
        from google.cloud.storage.retry import DEFAULT_RETRY

        limit = _limit_s()
        retry = DEFAULT_RETRY.with_timeout(limit).with_delay(initial=1.0, maximum=8.0, multiplier=2.0)
        return {"retry": retry, "timeout": (_CONNECT_S, _READ_S) if limit == RETRY_S else (limit, limit)}

    def url_of(self, name: str) -> str:
        """The URL of an object below this one; for the empty name, this URL itself."""
        return f"{self.url}/{name}" if name else self.url

    def below(self, folder: str) -> "Prefix":
        """A folder of this prefix."""
        other = copy.copy(self)
        other.url, other.path = self.url_of(folder), self._object_name(folder)
        return other

    def list(self) -> list[Object]:
        """All objects below, sorted by name, without placeholders of folders."""
        with self._service_errors(self.url, "listed"):
            blobs = list(self._bucket.list_blobs(prefix=f"{self.path}/" if self.path else None, **self._options))
        items = (self._object_of_blob(blob) for blob in blobs if not blob.name.endswith("/"))
        return sorted(items, key=lambda item: item.name)

    def holds_any(self) -> bool:
        """Whether anything is below, with one small request."""
        with self._service_errors(self.url, "listed"):
            prefix = f"{self.path}/" if self.path else None
            return any(True for _ in self._bucket.list_blobs(prefix=prefix, max_results=1, **self._options))

    def children(self) -> "list[str]":
        """The names directly below, of objects and folders."""
        with self._service_errors(self.url, "listed"):
            start = f"{self.path}/" if self.path else ""
            pages = self._bucket.list_blobs(prefix=start, delimiter="/", **self._options)
            names = {blob.name for blob in pages} | set(pages.prefixes)
        return sorted({name.removeprefix(start).rstrip("/") for name in names} - {""})

    def find(self, name: str) -> Object | None:
        """One object, or None. The empty name stands for the URL itself, read as an object."""
        with self._service_errors(self.url_of(name), "read"):
            blob = self._bucket.get_blob(self._object_name(name), **self._options)
            if blob is None:
                self._require_bucket()
        return None if blob is None else self._object_of_blob(blob)

    def read(self, item: Object) -> bytes:
        """The content of a small object, in the given generation."""
        with self._service_errors(self.url_of(item.name), "read"):
            blob = self._bucket.blob(self._object_name(item.name))
            content = blob.download_as_bytes(if_generation_match=item.generation, **self._options)
        self._require_same(item, object_of(item.name, content), "read")
        return content

    def download(self, objects: Iterable[Object], directory: Path) -> None:
        """Writes objects as files below `directory`, several at once. Announces large transfers."""
        objects = list(objects)
        if (size := sum(item.size for item in objects)) >= LARGE_BYTES:
            print(f"{self.url}: fetching {len(objects)} files, {size / 1e9:.1f} GB", file=sys.stderr, flush=True)
        in_threads(lambda item: self._download(item, directory / _safe(item.name, self.url)), objects)
        for item in objects:
            if not (directory / item.name).is_file():  # another host took it for a leftover: its locks end there
                raise StorageError(directory / item.name, "was removed while it was copied; start again")

    def write(self, name: str, content: bytes, generation: int | None = 0) -> int:
        """Replaces the object of a generation (0: it must not exist; None: any). Returns the new generation."""
        return self._written(
            object_of(name, content), lambda blob, **options: blob.upload_from_string(content, **options), generation
        ).generation

    def upload(self, directory: Path, names: Iterable[str], done: Callable[[int], None] = lambda count: None) -> None:
        """Writes files below `directory` as new objects, several at once. Calls `done` with the number so far."""
        in_threads(lambda name: self._upload(directory / name, name), names, done)

    def copy(self, objects: Iterable[Object], target: "Prefix") -> None:
        """Copies objects to another prefix, several at once, in place of those of the same names. The service does it:
        no content comes here."""
        in_threads(lambda item: self._copy(item, target), objects)

    def delete(self, objects: Iterable[Object]) -> None:
        """Removes objects, except those that were removed or rewritten since they were listed."""
        in_threads(self._delete, objects)

    def _download(self, item: Object, path: Path) -> None:
        with os_errors(path, "cannot be read or written"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        if item.size:  # an empty object has no range of bytes to request
            with self._service_errors(self.url_of(item.name), "read", path):
                blob = self._bucket.blob(self._object_name(item.name), chunk_size=CHUNK_BYTES)
                blob.download_to_filename(str(path), if_generation_match=item.generation, **self._options)
        with os_errors(path, "cannot be read or written"):
            actual = object_of_file(item.name, path)  # the client does not compare checksums of chunks
        self._require_same(item, actual, "read")

    def _upload(self, path: Path, name: str) -> None:
        with os_errors(path, "cannot be read or written"):
            expected = object_of_file(name, path)
        self._written(expected, lambda blob, **options: blob.upload_from_filename(str(path), **options), 0)

    def _written(self, expected: Object, send: Callable[..., None], generation: int | None) -> Object:
        from google.api_core.exceptions import PreconditionFailed

        with self._service_errors(self.url_of(expected.name), "written"):
            blob = self._bucket.blob(self._object_name(expected.name), chunk_size=CHUNK_BYTES)
            try:
                send(blob, if_generation_match=generation, checksum="crc32c", **self._options)
                actual = self._object_of_blob(blob)
            except PreconditionFailed:  # also if a first attempt arrived and its answer was lost
                actual = self.find(expected.name)
                if actual is None or not actual.same_content(expected):
                    raise
        self._require_same(expected, actual, "written")
        return actual

    def _copy(self, item: Object, target: "Prefix") -> None:
        with self._service_errors(target.url_of(item.name), "written"):
            source = self._bucket.blob(self._object_name(item.name))
            copied, token = target._bucket.blob(target._object_name(item.name)), ""
            while token is not None:  # a large object may take several requests
                only_this = {"if_source_generation_match": item.generation}
                token = copied.rewrite(source, token=token or None, **only_this, **self._options)[0]
        self._require_same(item, dataclasses.replace(self._object_of_blob(copied), name=item.name), "written")

    def _delete(self, item: Object) -> None:
        from google.api_core.exceptions import NotFound, PreconditionFailed

        with self._service_errors(self.url_of(item.name), "deleted"), contextlib.suppress(NotFound, PreconditionFailed):
            blob = self._bucket.blob(self._object_name(item.name))
            blob.delete(if_generation_match=item.generation, **self._options)

    def _object_name(self, name: str) -> str:
        return "/".join(part for part in (self.path, name) if part)

    def _object_of_blob(self, blob: Any) -> Object:
        name = blob.name.removeprefix(self.path).removeprefix("/")
        if blob.content_encoding == "gzip":  # the service unpacks it: size and checksum would not match
            raise StorageError(self.url_of(name), "is stored with Content-Encoding gzip; upload it without")
        return Object(name, int(blob.size), blob.crc32c, int(blob.generation), blob.updated.timestamp())

    def _require_same(self, expected: Object, actual: Object, operation: str) -> None:
        if not actual.same_content(expected):
            raise StorageError(
                self.url_of(expected.name),
                f"was not {operation} whole: {actual.size} bytes with crc32c {actual.crc32c} "
                f"came out, not {expected.size} with {expected.crc32c}",
            )

    def _require_bucket(self) -> None:
        """Raises NotFound if the bucket does not exist; answers about objects do not tell which is missing."""
        list(self._bucket.list_blobs(max_results=1, **self._options))

    @contextlib.contextmanager
    def _service_errors(self, url: str, operation: str, path: Path | None = None) -> Iterator[None]:
        """Turns every error of the client, the network or the service into one StorageError."""
        import requests
        from google.api_core import exceptions as api
        from google.auth.exceptions import GoogleAuthError
        from google.cloud.storage import exceptions as storage

        remote = (api.GoogleAPIError, GoogleAuthError, requests.RequestException, ConnectionError)
        try:
            yield
        except (*remote, storage.InvalidResponse, storage.DataCorruption) as error:
            raise StorageError(url, f"cannot be {operation}: {self._reason(error)}") from error
        except OSError as error:  # of the local file
            place = error.filename or path
            reason = (place, error.strerror or first_line(error)) if place else (first_line(error),)
            raise StorageError(url, f"cannot be {operation}", *reason) from error

    def _reason(self, error: Exception) -> str:
        from google.api_core import exceptions as api
        from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError

        if isinstance(error, api.NotFound):
            try:
                self._require_bucket()
                return "no such object"
            except api.NotFound:
                return f"no such bucket: {self._bucket.name}"
            except Exception:  # this extra request must not hide the first error
                return "no such bucket or object"
        if isinstance(error, api.Forbidden):
            return f"permission denied: {_service_message(error)}"
        if isinstance(error, api.PreconditionFailed):
            return "somebody else writes it at the same time"
        if isinstance(error, api.GoogleAPICallError):
            return f"the service answers {error.code}: {_service_message(error)}"
        if isinstance(error, api.RetryError):
            cause = _service_message(error.cause) if error.cause is not None else first_line(error)
            return f"given up after attempts for up to {_limit_s():g} s: {cause}"
        if isinstance(error, DefaultCredentialsError):
            return f"no credentials: {first_line(error)}"
        if isinstance(error, GoogleAuthError):
            return f"credentials are not accepted: {first_line(error)}"
        return _service_message(error).removesuffix(":")


class BucketPath:
    """A place on gs:// with the part of a path's interface that reading needs. It is listed once.

    Methods that ask the service raise StorageError, as those of `Prefix` do.
    """

    def __init__(self, url: str | os.PathLike[str], tree: "_Tree | None" = None):
        self.url = os.fspath(url).rstrip("/")
        self._known = tree

    def __fspath__(self) -> str:
        return self.url

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> "BucketPath":
        return BucketPath(f"{self.url}/{name}", self._known)

    @property
    def name(self) -> str:
        """The last part."""
        return self.url.rpartition("/")[2]

    @property
    def parent(self) -> "BucketPath":
        """One level up, listed anew if it was not listed yet; for a bucket, the bucket itself."""
        above = self.url.rpartition("/")[0]
        known = self._known is not None and f"{above}/".startswith(f"{self._known.url}/")
        return self if above == "gs:/" else BucketPath(above, self._known if known else None)

    def exists(self) -> bool:
        """Whether this is an object, or has objects below it."""
        if self._known is None and Prefix(self.url).path and Prefix(self.url).find("") is not None:
            return True
        return self.is_dir() or self.url in self._tree().files

    def is_dir(self) -> bool:
        """Whether this has objects below it."""
        return self.url in self._tree().folders

    def iterdir(self) -> Iterator["BucketPath"]:
        """What is directly below."""
        return (self / name for name in sorted(self._tree().folders.get(self.url, ())))

    def read_text(self) -> str:
        """The content of a small object.

        Raises:
            FileNotFoundError: the object does not exist.
            UnicodeDecodeError: it is not UTF-8.
        """
        return self.read_bytes().decode()

    def read_bytes(self) -> bytes:
        """The content of a small object.

        Raises:
            FileNotFoundError: the object does not exist.
        """
        prefix = Prefix(self.url)
        if (item := prefix.find("")) is None:
            raise FileNotFoundError(f"{self.url}: no such object")
        return prefix.read(item)

    def _tree(self) -> "_Tree":
        if self._known is None:
            self._known = _Tree(self.url)
        return self._known


class _Tree:
    """The objects below a URL: their URLs, and for each folder's URL the names directly in it."""

    def __init__(self, url: str):
        self.url = url
        self.files = {f"{url}/{item.name}" for item in Prefix(url).list()}
        self.folders: dict[str, set[str]] = {}
        for file in self.files:
            above, _, name = file.rpartition("/")
            while len(above) >= len(url) and name not in self.folders.setdefault(above, set()):
                self.folders[above].add(name)
                above, _, name = above.rpartition("/")


def _safe(name: str, url: str) -> str:
    """Refuses an object's name that would lead out of the directory if it became a path."""
    if {"", ".", ".."} & set(name.split("/")) or "\0" in name:
        raise StorageError(f"{url}/{name}: cannot be a file: its name would lead elsewhere; rename the object")
    return name


def _service_message(error: Any) -> str:
    """The service's own message, if its answer has one."""
    try:
        return first_line(error.response.json()["error"]["message"])
    except (AttributeError, ValueError, KeyError, TypeError, RuntimeError):  # no answer, another form, or already read
        if error.args and (reason := getattr(error.args[0], "reason", None)):  # connection errors wrap their reason
            return first_line(reason)
        return first_line(re.sub(r"^(\d+ )?[A-Z]+ https?://\S+: ", "", str(error)))


@functools.lru_cache(maxsize=4)
def _client(*variables: str | None) -> Any:
    """The client for these values of `_CLIENT_VARIABLES`: to make one asks the machine for credentials."""
    from google.cloud import storage

    with _quiet("google.auth"):  # it warns at each attempt to reach a metadata server
        return storage.Client(project=None)  # type: ignore[reportArgumentType]  (None: no project)


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
