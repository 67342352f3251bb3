"""gs:// for data: sources, tokenizers and built data sets copied here to be read, and new ones uploaded.

    CACHE/data/KEY/      a built data set, as far as it was read: manifest.json, tokenizer/, SPLIT/
    CACHE/sources/KEY/   files of a source, a tokenizer
    CACHE/*/KEY/.url     which URL it is a copy of

CACHE is $JANUS_CACHE, or ~/.cache/janus_jax. KEY is a hash of the URL and of what lies there: the manifest of a data
set, the listing of anything else. So a copy is never stale, and a second run asks for the manifest alone. All of it may
be removed while nothing runs.
"""

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from janus_jax import __version__, storage
from janus_jax.bucket import Object, Prefix, is_url
from janus_jax.data.dataset import Manifest
from janus_jax.errors import ConfigError, ConversionError, DataError, StorageError

MANIFEST = "manifest.json"
MARKER = ".janus-upload.json"
"""Written before all else, with the names of what will follow; deleted after the manifest, which is uploaded last."""

_COPY = " (read from the copy "

Progress = Callable[[str, str, int, int | None], None]
"""Called with "files", "upload", files done, files in all."""


def cache() -> Path:
    """Where copies lie."""
    return Path(os.path.abspath(os.path.expanduser(os.environ.get("JANUS_CACHE") or "~/.cache/janus_jax")))


def dataset(directory: str, split: str) -> Path:
    """A built data set with what reading one split takes: a path as it is, a gs:// URL as its copy here.

    Raises:
        StorageError: there is no manifest, or something that belongs to the split cannot be read.
    """
    if not is_url(directory):
        return Path(os.path.expanduser(directory))
    prefix = Prefix(directory)
    try:
        found, content = _manifest(prefix)
    except StorageError as error:
        copies = [
            place.parent for place in cache().glob("data/*/.url") if place.read_text(encoding="utf-8") == prefix.url
        ]
        hint = f"; read before, and still a copy of what was there then: {copies[0]}" if copies else ""
        raise StorageError(f"{error}{hint}") from error
    place = _place("data", prefix.url, content)

    def describe(new: Path) -> None:
        (new / MANIFEST).write_bytes(content)

    def fill(part: str, new: Path) -> None:
        objects = prefix.below(part).list()
        if not objects:
            raise StorageError(f"{prefix.url_of(part)}: cannot be read: no such object; upload the data set again")
        prefix.below(part).download(objects, new)
        if prefix.find(MANIFEST) != found:
            raise StorageError(f"{prefix.url}: was replaced while it was read; start again")

    _stage(place, prefix.url, describe)
    parts = ["tokenizer"]
    if split in Manifest.load(place).splits:  # otherwise the reader says what there is
        parts.append(split)
    for part in parts:
        _stage(place / part, None, functools.partial(fill, part))
    return place


def files(url: str, wanted: Callable[[str], bool]) -> Path:
    """A copy of one object, or of the wanted ones below a URL (by their names there).

    Raises:
        StorageError: there is nothing, or it cannot be read.
    """
    prefix = Prefix(url)
    single = prefix.find("") if prefix.path else None
    if single is not None:
        parent, _, name = prefix.url.rpartition("/")
        prefix, objects = Prefix(parent), [_renamed(single, name)]
    else:
        name, objects = "", prefix.list()
        if not objects:
            raise StorageError(f"{prefix.url}: cannot be read: no such object, and nothing below it")
        objects = [found for found in objects if wanted(found.name)]
    place = _place("sources", prefix.url, repr(objects).encode())
    _stage(place, prefix.url, lambda new: prefix.download(objects, new))
    return place / name


@contextlib.contextmanager
def naming_urls() -> Iterator[None]:
    """Inside, errors about data that name a copy name its URL instead, which is what the user knows."""
    try:
        yield
    except (ConfigError, ConversionError, DataError) as error:
        pattern = rf"{re.escape(str(cache()))}/(data|sources)/[0-9a-f]{{32}}"
        copies = {found[0]: found[1] for found in re.finditer(pattern, str(error))}
        if copies and _COPY not in str(error):  # not told by an inner one of these already
            told = re.sub(pattern, lambda found: _url_of(Path(found[0])), str(error))
            if isinstance(error, DataError) and (built := [copy for copy in copies if copies[copy] == "data"]):
                told += f"{_COPY}{built[0]}; if that was damaged here, remove it)"
            error.args = (told,)
        raise


def occupied(url: str) -> str | None:
    """Why an upload to a URL would be refused, or None."""
    return _survey(Prefix(url))[0]


@contextlib.contextmanager
def output(out: str | os.PathLike[str], progress: Progress | None = None) -> Iterator[Path]:
    """As `storage.atomic_directory`; what was made for a gs:// URL is uploaded at the end, its manifest last.

    Raises:
        StorageError: `out` holds something, or cannot be written.
    """
    if not is_url(out):
        with storage.atomic_directory(out) as directory:
            yield directory
        return
    upload = _Upload(Prefix(out))
    with tempfile.TemporaryDirectory(prefix="janus_build_") as scratch:
        try:
            with storage.atomic_directory(Path(scratch) / "data") as directory:
                yield directory
            upload.run(Path(scratch) / "data", progress)
        except Exception:
            with contextlib.suppress(StorageError):  # a bucket that is gone; the next attempt finds the marker
                upload.undo()
            raise


class _Upload:
    """A directory on its way to a prefix. Until the manifest is there nobody takes it for a data set.

    The marker claims the prefix. Who finds one without a manifest takes it over with what was uploaded so far; an
    upload that was only believed dead sees the marker changed, and gives up.
    """

    def __init__(self, prefix: Prefix):
        self.prefix = prefix
        reason, marker, leftovers = _survey(prefix)
        if reason is not None:
            raise StorageError(f"{prefix.url}: {reason}")
        self._names = [found.name for found in leftovers]
        self._id = uuid.uuid4().hex  # so that no two uploads write the same marker
        self._generation = 0 if marker is None else marker.generation
        self._claim()
        if prefix.find(MANIFEST) is not None:  # it came between the look and the claim
            raise StorageError(f"{prefix.url}: somebody else writes there at the same time; choose another place")
        prefix.delete(leftovers)

    def run(self, directory: Path, progress: Progress | None) -> None:
        """Uploads everything."""
        there = [path.relative_to(directory).as_posix() for path in sorted(directory.rglob("*")) if path.is_file()]
        others = [name for name in there if name != MANIFEST]
        assert len(others) < len(there)  # a build writes a manifest
        self._names = there
        self._claim()

        def count(done: int) -> None:
            if progress is not None:
                progress("files", "upload", done, len(there))

        self.prefix.upload(directory, others, count)
        now = {found.name: found for found in self.prefix.list()}
        if set(now) != {*others, MARKER} or now[MARKER].generation != self._generation:
            raise StorageError(f"{self.prefix.url}: somebody else writes there at the same time; choose another place")
        self.prefix.upload(directory, [MANIFEST], lambda done: count(len(there)))
        marker = self.prefix.find(MARKER)  # who takes over claims, then looks for a manifest: one of us sees the other
        if marker is None or marker.generation != self._generation:
            if (ours := self.prefix.find(MANIFEST)) is not None:
                self.prefix.delete([ours])
            raise StorageError(f"{self.prefix.url}: somebody else writes there at the same time; choose another place")
        with contextlib.suppress(StorageError):  # the data set is whole; readers do not look at the marker
            self.prefix.delete([now[MARKER]])

    def undo(self) -> None:
        """Removes what was uploaded, unless the prefix has been taken over; the manifest first, the marker last."""
        now = {found.name: found for found in self.prefix.list()}
        if MARKER in now and now[MARKER].generation == self._generation:
            self.prefix.delete([now[name] for name in (MANIFEST,) if name in now])
            self.prefix.delete([now[name] for name in self._names if name in now and name != MANIFEST])
            self.prefix.delete([now[MARKER]])

    def _claim(self) -> None:
        content = json.dumps({"janus_jax": __version__, "id": self._id, "files": self._names}, indent=1) + "\n"
        self._generation = self.prefix.write(MARKER, content.encode(), self._generation)


def _survey(prefix: Prefix) -> tuple[str | None, Object | None, list[Object]]:
    """(why nothing can be uploaded, the marker of an interrupted upload, what it left)."""
    objects = {found.name: found for found in prefix.list()}
    marker = objects.pop(MARKER, None)
    files: list[str] = []
    if marker is not None:
        try:
            files = list(json.loads(prefix.read(marker))["files"])
        except (ValueError, KeyError, TypeError):
            return f"holds a {MARKER} that no upload wrote; choose another place or remove it", marker, []
    foreign = [name for name in objects if name == MANIFEST or name not in files]
    if foreign:
        return f"exists and is not empty (it holds {foreign[0]}); choose another place or remove it", marker, []
    return None, marker, list(objects.values())


def _manifest(prefix: Prefix) -> tuple[Object, bytes]:
    found = prefix.find(MANIFEST)
    if found is not None:
        return found, prefix.read(found)
    state = "an upload to it has not come to its end" if prefix.find(MARKER) else "`janus data build` makes a data set"
    raise StorageError(f"{prefix.url_of(MANIFEST)}: cannot be read: no such object; {state}")


def _place(kind: str, url: str, content: bytes) -> Path:
    return cache() / kind / hashlib.sha256(url.encode() + b"\0" + content).hexdigest()[:32]


def _renamed(found: Object, name: str) -> Object:
    return Object(name, found.size, found.crc32c, found.generation)


def _url_of(place: Path) -> str:
    try:
        return (place / ".url").read_text(encoding="utf-8")
    except OSError:  # removed meanwhile
        return str(place)


def _stage(place: Path, url: str | None, fill: Callable[[Path], None]) -> None:
    """Makes a directory of the cache, if it is not there, whole or not at all. Processes of one machine take turns."""
    if place.is_dir():
        return
    with _turn(place):
        if place.is_dir():
            return
        try:
            with storage.atomic_directory(place) as new:
                if url is not None:
                    (new / ".url").write_text(url, encoding="utf-8")
                fill(new)
        except StorageError:
            if not place.is_dir():  # where locks do nothing, somebody else may have been first
                raise


@contextlib.contextmanager
def _turn(place: Path) -> Iterator[None]:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = (place.parent / f".{place.name}.lock").open("w")
    except OSError as error:
        raise StorageError(f"{place.parent}: cannot be written (JANUS_CACHE): {error.strerror or error}") from error
    with lock:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
            for leftover in place.parent.glob(f".{place.name}.*.incomplete"):  # of a process that was killed
                shutil.rmtree(leftover, ignore_errors=True)
        # Some network file systems have no locks: then everyone copies, and the first one's copy stays.
        yield
