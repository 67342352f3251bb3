"""Copies of gs:// content to read locally, and directories that are made locally and uploaded, whole or not at all.

    CACHE/data/KEY/      a built data set (`data/fetch.py`)
    CACHE/models/KEY/    a Hugging Face directory, a tokenizer or the description of a checkpoint
    CACHE/sources/KEY/   files of a source of records, a tokenizer
    CACHE/*/KEY/.url     the URL of the copy

CACHE is $JANUS_CACHE, or ~/.cache/janus_jax. KEY is a hash of the URL and of its content: a data set's manifest, or the
listing of anything else. So a copy is never stale. You can remove all of CACHE while nothing runs.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from janus_jax import __version__
from janus_jax.errors import ConfigError, ConversionError, DataError, JanusError, StorageError
from janus_jax.storage import local
from janus_jax.storage.bucket import LARGE_BYTES, Object, Prefix, is_url, os_errors

MARKER = ".janus-upload.json"
"""Uploaded first, with the names of the files that will follow; deleted after the last file is uploaded."""

_LAST = "manifest.json"  # for markers that do not say, of versions that uploaded only data sets

Progress = Callable[[str, str, int, int | None], None]
"""Called with "files", "upload", the number of files done and in all."""


def cache() -> Path:
    """The directory of all copies."""
    return Path(os.path.abspath(os.path.expanduser(os.environ.get("JANUS_CACHE") or "~/.cache/janus_jax")))


def files(url: str, select: Callable[[str], bool], kind: Literal["models", "sources"] = "sources") -> Path:
    """A local copy of one object, or of the selected objects below a URL.

    Args:
        select: called with each name below the URL; True to copy it.
        kind: the folder of the cache.
    Raises:
        StorageError: there is nothing at the URL, or it cannot be read.
    """
    prefix = Prefix(url)
    if prefix.path and (single := prefix.find("")) is not None:
        parent, _, name = prefix.url.rpartition("/")
        prefix, objects = Prefix(parent), [dataclasses.replace(single, name=name)]
    else:
        name, objects = "", prefix.list()
        if not objects:
            raise StorageError(prefix.url, "cannot be read: no such object, and nothing below it")
        objects = [item for item in objects if select(item.name)]
    place = place_of(kind, prefix.url, repr(objects).encode())
    stage(place, prefix.url, lambda new: prefix.download(objects, new))
    return place / name


@contextlib.contextmanager
def naming_urls() -> Iterator[None]:
    """Inside, an error in a copy names the copy's URL instead, which is the name that the user knows."""
    try:
        yield
    except (ConfigError, ConversionError, DataError) as error:
        kind = {DataError: "data", ConversionError: "models"}.get(type(error))
        for copy in {copy for place in error.places if (copy := _copy_of(place))}:
            with contextlib.suppress(OSError):  # removed in the meantime
                error.rename(copy, (copy / ".url").read_text(encoding="utf-8"))
            if copy.parent.name == kind:
                hint = f" (read from the copy {copy}; if that was damaged here, remove it)"
                error.args = (*error.places, f"{error.args[-1]}{hint}")
        raise


def original(place: str) -> str:
    """A place with the URL of the copy that it lies in, if it lies in one."""
    copy = _copy_of(place)
    with contextlib.suppress(OSError):  # removed in the meantime
        return place if copy is None else (copy / ".url").read_text(encoding="utf-8") + place[len(str(copy)) :]
    return place


def _copy_of(place: str) -> Path | None:
    """The copy in which a place lies."""
    root = cache()
    try:
        kind, key, *_ = Path(place).relative_to(root).parts
    except ValueError:
        return None
    return root / kind / key


def occupied(out: str | os.PathLike[str]) -> str | None:
    """Why `output` would refuse a path or URL, or None."""
    return _survey(Prefix(out)).refusal if is_url(out) else local.occupied(out)


def require_free(out: str | os.PathLike[str]) -> None:
    """Does the checks of `output` early, before long work.

    Raises:
        StorageError: `out` holds something.
    """
    if not is_url(out):
        local.require_free(out)
    elif reason := occupied(out):
        raise StorageError(os.fspath(out), f"{reason}")


def require_room(out: str | os.PathLike[str], size: int) -> None:
    """Announces that a large output on gs:// is made locally first.

    Raises:
        StorageError: the temporary directory has less than `size` bytes free.
    """
    if not is_url(out):
        return
    here = tempfile.gettempdir()
    if (left := shutil.disk_usage(here).free) < size:
        needed = f"{size / 1e9:.1f} GB are made in {here} before they are uploaded"
        free = f"{left / 1e9:.1f} GB are free there; set TMPDIR to a directory with more room"
        raise StorageError(os.fspath(out), f"{needed}, and {free}")
    if size >= LARGE_BYTES:
        print(f"{os.fspath(out)}: made in {here} first, {size / 1e9:.1f} GB", file=sys.stderr, flush=True)


@contextlib.contextmanager
def output(out: str | os.PathLike[str], last: str, progress: Progress | None = None) -> Iterator[Path]:
    """Like `local.atomic_directory`; for a gs:// URL, yields a temporary directory and uploads it at the end.

    Args:
        last: the file that makes the directory valid for readers; it is uploaded after all others.
    Raises:
        StorageError: `out` holds something, or cannot be written.
    """
    if not is_url(out):
        with local.atomic_directory(out) as directory:
            yield directory
        return
    upload = _Upload(Prefix(out), last)
    with tempfile.TemporaryDirectory(prefix="janus_output_") as scratch:
        try:
            with local.atomic_directory(Path(scratch) / "new") as directory:
                yield directory
            upload.run(Path(scratch) / "new", progress)
        except Exception as error:
            if isinstance(error, JanusError):
                error.rename(Path(scratch) / "new", upload.prefix.url)
            with contextlib.suppress(StorageError):  # the bucket cannot be reached; the next attempt finds the marker
                upload.undo()
            raise


class _Upload:
    """A directory that is uploaded to a prefix. Readers ignore it until its last file is there.

    The marker claims the prefix. An upload that finds a marker without its last file takes the prefix over, with
    everything uploaded so far. If the earlier upload is still alive, it sees that the marker changed and gives up.
    """

    def __init__(self, prefix: Prefix, last: str):
        self.prefix, self.last = prefix, last
        refusal, marker, their_last, leftovers = _survey(prefix)
        if refusal is not None:
            raise StorageError(prefix.url, refusal)
        self._names = [item.name for item in leftovers]
        self._id = uuid.uuid4().hex  # no two uploads write the same marker
        self._generation = 0 if marker is None else marker.generation
        self._claim()
        if any(prefix.find(name) for name in {last, their_last}):  # it came between the survey and the claim
            raise self._collision()
        prefix.delete(leftovers)

    def run(self, directory: Path, progress: Progress | None) -> None:
        """Uploads everything."""
        names = [path.relative_to(directory).as_posix() for path in sorted(directory.rglob("*")) if path.is_file()]
        others = [name for name in names if name != self.last]
        assert len(others) < len(names)  # the caller that names a last file writes it
        self._names = names
        self._claim()

        def count(done: int) -> None:
            if progress is not None:
                progress("files", "upload", done, len(names))

        self.prefix.upload(directory, others, count)
        now = {item.name: item for item in self.prefix.list()}
        if set(now) != {*others, MARKER} or now[MARKER].generation != self._generation:
            raise self._collision()
        self.prefix.upload(directory, [self.last], lambda done: count(len(names)))
        marker = self.prefix.find(MARKER)  # another upload claims, then looks for our last file
        if marker is None or marker.generation != self._generation:
            if (ours := self.prefix.find(self.last)) is not None:
                self.prefix.delete([ours])
            raise self._collision()
        with contextlib.suppress(StorageError):  # the upload is whole; readers ignore the marker
            self.prefix.delete([now[MARKER]])

    def undo(self) -> None:
        """Removes what was uploaded, its last file first and the marker last, unless the prefix was taken over."""
        now = {item.name: item for item in self.prefix.list()}
        if MARKER in now and now[MARKER].generation == self._generation:
            self.prefix.delete([now[name] for name in (self.last,) if name in now])
            self.prefix.delete([now[name] for name in self._names if name in now and name != self.last])
            self.prefix.delete([now[MARKER]])

    def _collision(self) -> StorageError:
        return StorageError(self.prefix.url, "somebody else writes there at the same time; choose another place")

    def _claim(self) -> None:
        marker = {"janus_jax": __version__, "id": self._id, "last": self.last, "files": self._names}
        content = json.dumps(marker, indent=1) + "\n"
        self._generation = self.prefix.write(MARKER, content.encode(), self._generation)


class _Survey(NamedTuple):
    """What an upload finds at its prefix."""

    refusal: str | None = None
    marker: Object | None = None
    last: str = _LAST  # the last file of the upload that wrote the marker
    leftovers: Sequence[Object] = ()


def _survey(prefix: Prefix) -> _Survey:
    objects = {item.name: item for item in prefix.list()}
    files, last = [], _LAST
    if (marker := objects.pop(MARKER, None)) is not None:
        if (content := _read_marker(prefix, marker)) is None:
            return _Survey(f"holds a {MARKER} that no upload wrote; choose another place or remove it")
        files, last = content
    foreign = [name for name in objects if name == last or name not in files]
    if foreign:
        return _Survey(f"exists and is not empty (it holds {foreign[0]}); choose another place or remove it")
    return _Survey(None, marker, last, list(objects.values()))


def is_cut_off(url: str, exists: Callable[[str], bool]) -> bool:
    """Whether there is a marker below a URL, of an upload without its last file.

    Args:
        exists: whether a name below the URL exists.
    """
    prefix = Prefix(url)
    marker = prefix.find(MARKER)
    content = None if marker is None else _read_marker(prefix, marker)
    return content is not None and not exists(content[1])


def _read_marker(prefix: Prefix, marker: Object) -> tuple[list[str], str] | None:
    """The file names and the last file in a marker; None if no upload wrote it."""
    try:
        value = json.loads(prefix.read(marker))
        return list(value["files"]), value.get("last", _LAST)
    except (ValueError, KeyError, TypeError):
        return None


def place_of(kind: str, url: str, content: bytes) -> Path:
    """The directory for a copy of a URL whose content (or listing) is this."""
    return cache() / kind / hashlib.sha256(url.encode() + b"\0" + content).hexdigest()[:32]


def stage(place: Path, url: str | None, fill: Callable[[Path], None]) -> None:
    """Makes a directory of the cache if it is missing, whole or not at all. Processes of one machine take turns."""
    if place.is_dir():
        return
    with _turn(place):
        if place.is_dir():
            return
        try:
            with local.atomic_directory(place) as new:
                if url is not None:
                    (new / ".url").write_text(url, encoding="utf-8")
                fill(new)
        except StorageError:
            if not place.is_dir():  # without locks, another process may have been first
                raise


@contextlib.contextmanager
def _turn(place: Path) -> Iterator[None]:
    with os_errors(place.parent, "cannot be written (JANUS_CACHE)"):
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = (place.parent / f".{place.name}.lock").open("w")
    with lock:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
            for leftover in place.parent.glob(f".{place.name}.*.incomplete"):  # left by a killed process
                shutil.rmtree(leftover, ignore_errors=True)
        # Some network file systems have no locks: then every process copies, and the first copy stays.
        yield
