"""Records, logs and files of a launch in its bucket, over HTTPS. Large files go through `gcloud storage`, in parts."""

import dataclasses
import fnmatch
import json
import os
import re
import shlex
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from launch.cloud.objects import Objects
from launch.errors import CloudError, Kind
from launch.records import seconds_of

T = TypeVar("T")
S = TypeVar("S")
_TRIES = 4
_AT_ONCE = 16
_LARGE_BYTES = 32 << 20


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

    def __init__(self, url: str, objects: Objects):
        self.url, self._objects, self._gcloud = url.rstrip("/"), objects, objects.gcloud
        self._bucket, _, folder = self.url.removeprefix("gs://").partition("/")
        self._start = folder and f"{folder}/"

    def at(self, *names: str) -> "Bucket":
        """A folder below this one."""
        return Bucket("/".join([self.url, *names]), self._objects)

    def read(self, name: str) -> Stored | None:
        """A JSON object with its generation; None if it is not there.

        Raises:
            CloudError: the bucket refused.
        """
        for left in reversed(range(_TRIES)):
            if (entry := self._look(name)) is None:
                return None
            try:
                content = self._objects.content(self._bucket, self._start + name, str(entry.generation))
                return Stored(json.loads(content), entry.generation, entry.updated_s)
            except CloudError as error:  # somebody may replace it meanwhile
                if error.kind is not Kind.NOT_FOUND or not left:
                    raise
        raise AssertionError

    def write(self, name: str, value: Any, *, generation: int | None = None) -> Entry | None:
        """Writes a JSON object; returns what the store says of it, None in a dry run.

        Args:
            generation: write only if the object still has it; 0: only if it is not there.
        Raises:
            Changed: it has another one.
            CloudError: the bucket refused.
        """
        url, text = f"{self.url}/{name}", json.dumps(value, indent=1, sort_keys=True) + "\n"
        if self._gcloud.dry_run:
            condition = [] if generation is None else [f"--if-generation-match={generation}"]
            words = self._words("cp", "-", url, "--content-type=application/json", *condition)  # does the same
            self._gcloud.show(f"printf %s {shlex.quote(json.dumps(value))} | {shlex.join(words)}")
            return None
        try:
            facts = self._objects.put(
                self._bucket, self._start + name, text.encode(), "application/json", generation=generation
            )
        except CloudError as error:
            if error.kind is Kind.CHANGED:
                raise Changed(url) from error
            raise
        return self._entry(facts)

    def names(self, pattern: str = "**") -> list[str]:
        """Names of objects below this folder that match a wildcard, sorted; [] if there are none."""
        return [entry.name for entry in self.entries(pattern)]

    def entries(self, *patterns: str) -> list[Entry]:
        """Objects below this folder that match any of the wildcards, by name; [] without any. `*` stands for any text
        without a slash, `**` at the end for all that is below.

        Raises:
            CloudError: the bucket refused.
        """
        items = [item for some in _at_once(lambda pattern: [*self._matches("", pattern)], patterns) for item in some]
        return sorted({item.name: item for item in items}.values(), key=lambda entry: entry.name)

    def fetch(self, names: Iterable[str], directory: str | os.PathLike[str]) -> None:
        """Copies objects into a local directory under the last part of their names.

        Raises:
            CloudError: one is missing, or the bucket refused; others may have come.
        """

        def bring(name: str) -> None:
            content = self._objects.content(self._bucket, self._start + name)
            (Path(directory) / name.rpartition("/")[2]).write_bytes(content)

        _at_once(bring, names)

    def text(self, names: Iterable[str]) -> str:
        """The contents of several objects, one after the other. Missing ones are an error."""
        contents = _at_once(lambda name: self._objects.content(self._bucket, self._start + name), names)
        return b"".join(contents).decode(errors="replace")

    def upload(self, source: str | os.PathLike[str], name: str, *, once: bool = False) -> None:
        """Uploads a file, or what is in a directory (as `rsync` does).

        Args:
            once: leave an object of this name as it is.
        """
        source, url = os.fspath(source), f"{self.url}/{name}"
        if os.path.isdir(source):
            self._gcloud.change(self._words("rsync", "--recursive", source, url), timeout_s=None)
        elif self._gcloud.dry_run or os.path.getsize(source) > _LARGE_BYTES:
            self._gcloud.change(self._words("cp", source, url, *["--no-clobber"] * once), timeout_s=None)
        else:
            try:
                self._objects.put(
                    self._bucket, self._start + name, Path(source).read_bytes(), generation=0 if once else None
                )
            except CloudError as error:
                if not once or error.kind is not Kind.CHANGED:
                    raise

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
        if self._gcloud.dry_run:
            self._gcloud.change(self._words("rm", f"{self.url}/{name}"))
        else:
            self._objects.delete(self._bucket, self._start + name)

    def clock(self) -> float:
        """The store's own time, seconds since 1970: ages of objects are judged by it, never by a host's clock."""
        entry = self.write("clock.json", {}) or self._look("clock.json")
        return 0.0 if entry is None else entry.updated_s

    def _look(self, name: str) -> Entry | None:
        try:
            return self._entry(self._objects.facts(self._bucket, self._start + name))
        except CloudError as error:
            if error.kind is Kind.NOT_FOUND:
                return None
            raise

    def _matches(self, folder: str, pattern: str) -> Iterator[Entry]:
        """Objects of a folder below this one that match a pattern: a list for each level with a wildcard."""
        level, _, below = pattern.partition("/")
        while "*" not in level and below:
            folder, (level, _, below) = f"{folder}{level}/", below.partition("/")
        if "*" not in level:
            if (entry := self._look(folder + level)) is not None:
                yield entry
            return
        start = self._start + folder
        try:
            listed = [
                *self._objects.list(
                    self._bucket, start + level.partition("*")[0], delimiter=None if level == "**" else "/"
                )
            ]
        except CloudError as error:
            if error.kind is not Kind.NOT_FOUND:
                raise
            return
        matches = re.compile(fnmatch.translate(level)).match
        if not below:
            yield from (self._entry(item) for item in listed if "name" in item and matches(item["name"][len(start) :]))
            return
        folders = (item["prefix"][len(start) :] for item in listed if "prefix" in item)
        deeper = [f"{folder}{one}" for one in folders if matches(one[:-1])]
        for some in _at_once(lambda one: [*self._matches(one, below)], deeper):
            yield from some

    def _words(self, *words: str) -> list[str]:
        return ["gcloud", "storage", *words, f"--project={self._gcloud.project}"]

    def _entry(self, item: dict[str, Any]) -> Entry:
        return Entry(
            name=item["name"].removeprefix(self._start),
            size=int(item.get("size") or 0),
            generation=int(item["generation"]),
            updated_s=seconds_of(item["updated"]),
            crc32c=item.get("crc32c"),
            md5=item.get("md5Hash"),
        )


def _at_once(work: Callable[[S], T], items: Iterable[S]) -> list[T]:
    """Results of `work`, in order. Ends all that it can before it raises the first error; Ctrl-C does not wait."""
    items = list(items)
    if len(items) == 1:
        return [work(items[0])]
    results: dict[int, T] = {}
    errors: list[BaseException] = []
    todo = iter(enumerate(items))
    mutex = threading.Lock()

    def loop() -> None:
        while not any(not isinstance(error, CloudError) or error.kind is not Kind.NOT_FOUND for error in errors):
            with mutex:
                number, item = next(todo, (-1, None))
            if number < 0:
                return
            try:
                results[number] = work(item)  # pyright: ignore[reportArgumentType]
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=loop, daemon=True) for _ in range(min(_AT_ONCE, len(items)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [results[number] for number in range(len(items))]
