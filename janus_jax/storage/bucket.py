"""Objects below a gs:// URL: listed, read and written whole, checksums compared, never asked for without an end.

google.cloud.storage is imported when a bucket is first needed.
"""

import base64
import contextlib
import copy
import dataclasses
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, TypeVar

from janus_jax.errors import ConfigError, StorageError, first_line

RETRY_S = 60.0
"""For how long a request that fails is tried again, with growing pauses. Each chunk of a file is a request."""

CHUNK_BYTES = 16 << 20
_CONNECT_S, _READ_S = 10, 60
_FILES_AT_ONCE = 8
WORTH_A_WORD = 256 << 20
"""Bytes whose way is worth a line to the user."""

_T = TypeVar("_T")


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether this is a URL, of whatever kind, and no path of this machine."""
    return "://" in os.fspath(path)


@dataclasses.dataclass(frozen=True)
class Object:
    """What a listing says of one object."""

    name: str  # below the URL that was listed
    size: int
    crc32c: str  # big-endian, base64: as the service writes it
    generation: int  # another one after every write

    def same_content(self, other: "Object") -> bool:
        """Equal sizes and checksums."""
        return (self.size, self.crc32c) == (other.size, other.crc32c)


class Prefix:
    """All objects whose names begin with a gs:// URL and a slash, under what follows.

    Every method raises StorageError, which names URL and operation, where the service refuses, is not to be reached for
    `RETRY_S`, or gives something else than it announced.
    """

    def __init__(self, url: str | os.PathLike[str]):
        self.url = os.fspath(url).rstrip("/")
        found = re.fullmatch(r"gs://([a-z0-9][a-z0-9._-]+)((?:/[^/]+)*)", self.url)
        if not found or {".", ".."} & set(found[2].split("/")):
            raise ConfigError(f"{os.fspath(url)}: allowed: a local path, or gs://BUCKET/PATH")
        self.path = found[2][1:]
        """Within the bucket; empty for all of it."""
        with self._asking(self.url, "opened"):
            from google.cloud import storage
            from google.cloud.storage.retry import DEFAULT_RETRY

            with _quiet("google.auth"):  # it warns of each attempt to reach a metadata server
                client = storage.Client(project=None)  # type: ignore[reportArgumentType]  (None: of no project)
        self._bucket = client.bucket(found[1])
        self._options: dict[str, Any] = {
            "retry": DEFAULT_RETRY.with_timeout(RETRY_S).with_delay(initial=1.0, maximum=8.0, multiplier=2.0),
            "timeout": (_CONNECT_S, _READ_S),
        }

    def url_of(self, name: str) -> str:
        """The URL of an object below this one; of the empty name this one itself."""
        return f"{self.url}/{name}" if name else self.url

    def below(self, folder: str) -> "Prefix":
        """What lies in a folder of this prefix."""
        other = copy.copy(self)
        other.url, other.path = self.url_of(folder), self._full(folder)
        return other

    def list(self) -> list[Object]:
        """Everything below, by name; placeholders of folders left out."""
        with self._asking(self.url, "listed"):
            blobs = list(self._bucket.list_blobs(prefix=f"{self.path}/" if self.path else None, **self._options))
        found = (self._described(blob) for blob in blobs if not blob.name.endswith("/"))
        return sorted(found, key=lambda one: one.name)

    def find(self, name: str) -> Object | None:
        """One object, or None. The empty name is the URL itself, read as an object."""
        with self._asking(self.url_of(name), "read"):
            blob = self._bucket.get_blob(self._full(name), **self._options)
            if blob is None:
                self._require_bucket()
        return None if blob is None else self._described(blob)

    def read(self, found: Object) -> bytes:
        """The content of a small object, in the generation that was found."""
        with self._asking(self.url_of(found.name), "read"):
            blob = self._bucket.blob(self._full(found.name))
            content = blob.download_as_bytes(if_generation_match=found.generation, **self._options)
        self._require_same(found, described(found.name, content), "read")
        return content

    def download(self, objects: Iterable[Object], directory: Path) -> None:
        """Writes objects as files below `directory`, several at once. Says so where that will take a while."""
        objects = list(objects)
        if (size := sum(found.size for found in objects)) >= WORTH_A_WORD:
            print(f"{self.url}: fetching {len(objects)} files, {size / 1e9:.1f} GB", file=sys.stderr, flush=True)
        _several(lambda found: self._download(found, directory / _safe(found.name, self.url)), objects)
        for found in objects:
            if not (directory / found.name).is_file():  # by who takes it for a leftover, where locks end at the host
                raise StorageError(directory / found.name, "was removed while it was copied; start again")

    def write(self, name: str, content: bytes, generation: int = 0) -> int:
        """Writes an object in the place of that of a generation (0: none may be there). Returns the new generation."""
        return self._written(
            described(name, content),
            lambda blob, **options: blob.upload_from_string(content, **options),
            generation,
        ).generation

    def upload(self, directory: Path, names: Iterable[str], done: Callable[[int], None] = lambda count: None) -> None:
        """Writes files below `directory` as objects that are not there yet, several at once; counts them to `done`."""
        _several(lambda name: self._upload(directory / name, name), names, done)

    def delete(self, objects: Iterable[Object]) -> None:
        """Removes objects; those that are gone, or were written anew since they were listed, are let be."""
        _several(self._delete, objects)

    def _download(self, found: Object, path: Path) -> None:
        with _local_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        if found.size:  # an empty object has no range of bytes that could be asked for
            with self._asking(self.url_of(found.name), "read", path):
                blob = self._bucket.blob(self._full(found.name), chunk_size=CHUNK_BYTES)
                blob.download_to_filename(str(path), if_generation_match=found.generation, **self._options)
        with _local_errors(path):
            there = _described_file(found.name, path)  # the client compares no checksums of chunks
        self._require_same(found, there, "read")

    def _upload(self, path: Path, name: str) -> None:
        with _local_errors(path):
            wanted = _described_file(name, path)
        self._written(wanted, lambda blob, **options: blob.upload_from_filename(str(path), **options), 0)

    def _written(self, wanted: Object, send: Callable[..., None], generation: int) -> Object:
        from google.api_core.exceptions import PreconditionFailed

        with self._asking(self.url_of(wanted.name), "written"):
            blob = self._bucket.blob(self._full(wanted.name), chunk_size=CHUNK_BYTES)
            try:
                send(blob, if_generation_match=generation, checksum="crc32c", **self._options)
                there = self._described(blob)
            except PreconditionFailed:  # also where a first attempt arrived and its answer was lost
                there = self.find(wanted.name)
                if there is None or not there.same_content(wanted):
                    raise
        self._require_same(wanted, there, "written")
        return there

    def _delete(self, found: Object) -> None:
        from google.api_core.exceptions import NotFound, PreconditionFailed

        with self._asking(self.url_of(found.name), "deleted"), contextlib.suppress(NotFound, PreconditionFailed):
            blob = self._bucket.blob(self._full(found.name))
            blob.delete(if_generation_match=found.generation, **self._options)

    def _full(self, name: str) -> str:
        return "/".join(part for part in (self.path, name) if part)

    def _described(self, blob: Any) -> Object:
        name = blob.name.removeprefix(self.path).removeprefix("/")
        if blob.content_encoding == "gzip":  # the service unpacks it: neither size nor checksum would be of what comes
            raise StorageError(self.url_of(name), "is stored with Content-Encoding gzip; upload it without")
        return Object(name, int(blob.size), blob.crc32c, int(blob.generation))

    def _require_same(self, wanted: Object, there: Object, operation: str) -> None:
        if not there.same_content(wanted):
            raise StorageError(
                self.url_of(wanted.name),
                f"was not {operation} whole: {there.size} bytes with crc32c {there.crc32c} "
                f"came out, not {wanted.size} with {wanted.crc32c}",
            )

    def _require_bucket(self) -> None:
        """Answers of objects do not tell a bucket that is not there from an object that is not there."""
        list(self._bucket.list_blobs(max_results=1, **self._options))

    @contextlib.contextmanager
    def _asking(self, url: str, operation: str, path: Path | None = None) -> Iterator[None]:
        """Turns whatever the client, the network or the service say into one StorageError."""
        import requests
        from google.api_core import exceptions as api
        from google.auth.exceptions import GoogleAuthError
        from google.cloud.storage import exceptions as storage

        remote = (api.GoogleAPIError, GoogleAuthError, requests.RequestException, ConnectionError)
        try:
            yield
        except (*remote, storage.InvalidResponse, storage.DataCorruption) as error:
            raise StorageError(url, f"cannot be {operation}: {self._reason(error)}") from error
        except OSError as error:  # of the file here that is read or written
            place = error.filename or path
            reason = f"{place}: {error.strerror}" if place else first_line(error)
            raise StorageError(url, f"cannot be {operation}: {reason}") from error

    def _reason(self, error: Exception) -> str:
        from google.api_core import exceptions as api
        from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError

        if isinstance(error, api.NotFound):
            try:
                self._require_bucket()
                return "no such object"
            except api.NotFound:
                return f"no such bucket: {self._bucket.name}"
            except Exception:  # what is asked beside the question must not hide the answer to it
                return "no such bucket or object"
        if isinstance(error, api.Forbidden):
            return f"permission denied: {_said(error)}"
        if isinstance(error, api.PreconditionFailed):
            return "somebody else writes it at the same time"
        if isinstance(error, api.GoogleAPICallError):
            return f"the service answers {error.code}: {_said(error)}"
        if isinstance(error, api.RetryError):
            cause = _said(error.cause) if error.cause is not None else first_line(error)
            return f"given up after attempts for up to {RETRY_S:g} s: {cause}"
        if isinstance(error, DefaultCredentialsError):
            return f"no credentials: {first_line(error)}"
        if isinstance(error, GoogleAuthError):
            return f"credentials are not accepted: {first_line(error)}"
        return _said(error).removesuffix(":")


class BucketPath:
    """A place on gs:// with as much of a path's interface as reading takes. What lies below it is listed once.

    Whatever asks raises StorageError as `Prefix` does.
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
        """One up, and asked anew where it was not listed; of a bucket itself."""
        above = self.url.rpartition("/")[0]
        known = self._known is not None and f"{above}/".startswith(f"{self._known.url}/")
        return self if above == "gs:/" else BucketPath(above, self._known if known else None)

    def exists(self) -> bool:
        """Whether an object is here, or something below."""
        if self._known is None and Prefix(self.url).path and Prefix(self.url).find("") is not None:
            return True
        return self.is_dir() or self.url in self._tree().files

    def is_dir(self) -> bool:
        """Whether something is below."""
        return self.url in self._tree().folders

    def iterdir(self) -> Iterator["BucketPath"]:
        """What is directly below."""
        return (self / name for name in sorted(self._tree().folders.get(self.url, ())))

    def read_text(self) -> str:
        """The content of a small object.

        Raises:
            FileNotFoundError: there is none.
            UnicodeDecodeError: it is no text.
        """
        prefix = Prefix(self.url)
        if (found := prefix.find("")) is None:
            raise FileNotFoundError(f"{self.url}: no such object")
        return prefix.read(found).decode()

    def _tree(self) -> "_Tree":
        if self._known is None:
            self._known = _Tree(self.url)
        return self._known


class _Tree:
    """What lies below a URL, as URLs of objects, and of folders with the names directly in them."""

    def __init__(self, url: str):
        self.url = url
        self.files = {f"{url}/{found.name}" for found in Prefix(url).list()}
        self.folders: dict[str, set[str]] = {}
        for file in self.files:
            above, _, name = file.rpartition("/")
            while len(above) >= len(url) and name not in self.folders.setdefault(above, set()):
                self.folders[above].add(name)
                above, _, name = above.rpartition("/")


def _several(work: Callable[[_T], None], items: Iterable[_T], done: Callable[[int], None] = lambda count: None) -> None:
    """`work` on all items in a few threads; the first error ends it."""
    pool, finished = ThreadPoolExecutor(_FILES_AT_ONCE), False
    try:
        for count, future in enumerate(as_completed([pool.submit(work, item) for item in items]), 1):
            future.result()
            done(count)
        finished = True
    except Exception:
        finished = True
        raise
    finally:  # an interrupt (no Exception) does not wait for files that are under way
        pool.shutdown(wait=finished, cancel_futures=True)


def _safe(name: str, url: str) -> str:
    """An object's name that stays below a directory when it becomes a path."""
    if {"", ".", ".."} & set(name.split("/")) or "\0" in name:
        raise StorageError(f"{url}/{name}: cannot be a file: its name would lead elsewhere; rename the object")
    return name


def described(name: str, content: bytes) -> Object:
    """An object of this content, as a listing would say it; of no generation."""
    import google_crc32c

    return Object(name, len(content), _text(google_crc32c.Checksum(content)), 0)


def _described_file(name: str, path: Path) -> Object:
    import google_crc32c

    checksum = google_crc32c.Checksum()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            checksum.update(block)
        return Object(name, file.tell(), _text(checksum), 0)


def _text(checksum: Any) -> str:
    return base64.b64encode(checksum.digest()).decode()


def _said(error: Any) -> str:
    """The service's own sentence, where the answer has one."""
    try:
        return first_line(error.response.json()["error"]["message"])
    except (AttributeError, ValueError, KeyError, TypeError, RuntimeError):  # no answer, another form, read already
        if error.args and (reason := getattr(error.args[0], "reason", None)):  # of a connection; its wrapping is long
            return first_line(reason)
        return first_line(re.sub(r"^(\d+ )?[A-Z]+ https?://\S+: ", "", str(error)))


@contextlib.contextmanager
def _local_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(path, f"cannot be read or written: {error.strerror or error}") from error


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
