"""Records, logs and files of a launch in its bucket, through `gcloud storage`: the workstation has no other client."""

import base64
import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from launch.cloud.gcloud import Gcloud
from launch.errors import CloudError, Kind
from launch.records import seconds_of

T = TypeVar("T")
_TRIES = 4


class Changed(Exception):
    """Somebody else has written the object since it was read."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """An object: its JSON, its generation, and when the store says that it was written (seconds since 1970)."""

    value: Any
    generation: int
    updated_s: float


@dataclasses.dataclass(frozen=True)
class Entry:
    """An object in a list: its name below the folder, and what the store says of it."""

    name: str
    size: int
    generation: int
    updated_s: float
    crc32c: str | None
    md5: str | None
    """Both base64, as the store gives them; objects that were composed have no md5."""


class Bucket:
    """A folder of a bucket, `gs://BUCKET/FOLDER`."""

    def __init__(self, url: str, gcloud: Gcloud):
        self.url, self._gcloud = url.rstrip("/"), gcloud

    def at(self, *names: str) -> "Bucket":
        """A folder below this one."""
        return Bucket("/".join([self.url, *names]), self._gcloud)

    def read(self, name: str) -> Stored | None:
        """A JSON object with its generation; None if it is not there.

        Raises:
            CloudError: the bucket refused.
        """
        url = f"{self.url}/{name}"

        def look() -> Stored | None:
            try:
                facts = self._gcloud.read(self._words("objects", "describe", url))
            except CloudError as error:
                if error.kind is Kind.NOT_FOUND:
                    return None
                raise
            text = self._gcloud.text(self._words("cat", f"{url}#{facts['generation']}"))
            return Stored(json.loads(text), int(facts["generation"]), seconds_of(facts["update_time"]))

        return _settled(look)

    def write(self, name: str, value: Any, *, generation: int | None = None) -> None:
        """Writes a JSON object.

        Args:
            generation: write only if the object still has it; 0: only if it is not there.
        Raises:
            Changed: it has another one.
            CloudError: the bucket refused.
        """
        condition = [] if generation is None else [f"--if-generation-match={generation}"]
        try:
            with tempfile.NamedTemporaryFile("w", suffix=".json") as file:  # from stdin it would be a resumable upload
                file.write(_dumps(value))
                file.flush()
                words = self._words("cp", file.name, f"{self.url}/{name}", "--content-type=application/json")
                self._gcloud.change([*words, *condition], timeout_s=120)
        except CloudError as error:
            if error.kind is Kind.CHANGED:
                raise Changed(f"{self.url}/{name}") from error
            raise

    def written(self, name: str, value: Any) -> Entry | None:
        """What the store says of the object `write` has just made; None if it holds something else by now."""
        entry = self._entry(self._gcloud.read(self._words("objects", "describe", f"{self.url}/{name}")))
        md5 = base64.b64encode(hashlib.md5(_dumps(value).encode(), usedforsecurity=False).digest()).decode()
        return entry if entry.md5 == md5 else None

    def names(self, pattern: str = "**") -> list[str]:
        """Names of objects below this folder that match a gcloud wildcard, sorted; [] if there are none."""
        return [entry.name for entry in self.entries(pattern)]

    def entries(self, *patterns: str) -> list[Entry]:
        """Objects below this folder that match any of the gcloud wildcards, by name, in one call; [] without any.

        Raises:
            CloudError: the bucket refused.
        """
        try:
            items = self._gcloud.read(
                self._words("objects", "list", *(f"{self.url}/{pattern}" for pattern in patterns))
            )
        except CloudError as error:
            if error.kind is Kind.NOT_FOUND:
                return []
            raise
        return sorted((self._entry(item) for item in items or ()), key=lambda entry: entry.name)

    def fetch(self, names: Iterable[str], directory: str | os.PathLike[str]) -> None:
        """Copies objects into a local directory under the last part of their names, in one call.

        Raises:
            CloudError: one is missing, or the bucket refused; others may have come.
        """
        urls = [f"{self.url}/{name}" for name in names]
        if urls:
            words = self._words("cp", "--read-paths-from-stdin", os.fspath(directory))
            _settled(lambda: self._gcloud.text(words, stdin="\n".join(urls) + "\n", timeout_s=600))

    def text(self, names: Iterable[str]) -> str:
        """The contents of several objects, one after the other. Missing ones are an error."""
        urls = [f"{self.url}/{name}" for name in names]
        if not urls:
            return ""
        tries = _TRIES if len(urls) > 1 else 1  # a single one is asked for to see whether it is there
        return _settled(lambda: self._gcloud.text(self._words("cat", *urls)), tries)

    def upload(self, source: str | os.PathLike[str], name: str, *, once: bool = False) -> None:
        """Uploads a file, or what is in a directory (as `rsync` does).

        Args:
            once: leave an object of this name as it is.
        """
        source = os.fspath(source)
        url = f"{self.url}/{name}"
        if os.path.isdir(source):
            self._gcloud.change(self._words("rsync", "--recursive", source, url), timeout_s=None)
        else:
            self._gcloud.change(self._words("cp", source, url, *["--no-clobber"] * once), timeout_s=None)

    def download(self, name: str, target: str | os.PathLike[str]) -> None:
        """Brings an object, or a folder (NAME/), to a local file or directory."""
        target = os.fspath(target)
        url = f"{self.url}/{name}"
        if name.endswith("/") or not name:
            os.makedirs(target, exist_ok=True)
            self._gcloud.change(self._words("rsync", "--recursive", url.rstrip("/"), target), timeout_s=None)
        else:
            self._gcloud.change(self._words("cp", url, target), timeout_s=None)

    def remove(self, name: str) -> None:
        """Deletes an object.

        Raises:
            CloudError: it is not there, or the bucket refused.
        """
        self._gcloud.change(self._words("rm", f"{self.url}/{name}"), timeout_s=120)

    def clock(self) -> float:
        """The store's own time, seconds since 1970: ages of objects are judged by it, never by a host's clock."""
        self.write("clock.json", {})
        facts = self._gcloud.read(self._words("objects", "describe", f"{self.url}/clock.json"))
        return seconds_of(facts["update_time"])

    def _words(self, *words: str) -> list[str]:
        return ["gcloud", "storage", *words, f"--project={self._gcloud.project}"]

    def _entry(self, item: dict[str, Any]) -> Entry:
        return Entry(
            name=item["storage_url"].rpartition("#")[0].removeprefix(self.url + "/"),
            size=int(item.get("size") or 0),
            generation=int(item["generation"]),
            updated_s=seconds_of(item["update_time"]),
            crc32c=item.get("crc32c_hash"),
            md5=item.get("md5_hash"),
        )


def _settled(look: Callable[[], T], tries: int = _TRIES) -> T:
    """What `look` returns, tried again while a generation that it has seen is gone: somebody may replace the object."""
    for _ in range(tries - 1):
        try:
            return look()
        except CloudError as error:
            if error.kind is not Kind.NOT_FOUND:
                raise
    return look()


def _dumps(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"
