"""What lies on gs:// copied here to be read, and directories made here and uploaded, whole or not at all.

    CACHE/data/KEY/      a built data set (`data/fetch.py`)
    CACHE/models/KEY/    a Hugging Face directory, a tokenizer or the description of a checkpoint
    CACHE/sources/KEY/   files of a source of rows, a tokenizer
    CACHE/*/KEY/.url     which URL it is a copy of

CACHE is $JANUS_CACHE, or ~/.cache/janus_jax. KEY is a hash of the URL and of what lies there: the manifest of a data
set, the listing of anything else. So a copy is never stale. All of it may be removed while nothing runs.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from janus_jax import __version__
from janus_jax.errors import ConfigError, ConversionError, DataError, StorageError
from janus_jax.storage import local
from janus_jax.storage.bucket import WORTH_A_WORD, Object, Prefix, is_url

MARKER = ".janus-upload.json"
"""Written before all else, with the names of what will follow; deleted after the file that is uploaded last."""

_LAST = "manifest.json"  # of uploads whose marker does not say: once there were data sets only
_COPY = " (read from the copy "

Progress = Callable[[str, str, int, int | None], None]
"""Called with "files", "upload", files done, files in all."""


def cache() -> Path:
    """Where copies lie."""
    return Path(os.path.abspath(os.path.expanduser(os.environ.get("JANUS_CACHE") or "~/.cache/janus_jax")))


def files(url: str, wanted: Callable[[str], bool], kind: Literal["models", "sources"] = "sources") -> Path:
    """A copy of one object, or of the wanted ones below a URL (by their names there).

    Args:
        kind: which folder of the cache it belongs to.
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
            raise StorageError(prefix.url, "cannot be read: no such object, and nothing below it")
        objects = [found for found in objects if wanted(found.name)]
    place = place_of(kind, prefix.url, repr(objects).encode())
    stage(place, prefix.url, lambda new: prefix.download(objects, new))
    return place / name


@contextlib.contextmanager
def naming_urls() -> Iterator[None]:
    """Inside, errors about data and models that name a copy name its URL instead, which is what the user knows."""
    try:
        yield
    except (ConfigError, ConversionError, DataError) as error:
        pattern = rf"{re.escape(str(cache()))}/(data|models|sources)/[0-9a-f]{{32}}"
        copies = {found[0]: found[1] for found in re.finditer(pattern, str(error))}
        if copies and _COPY not in str(error):  # not told by an inner one of these already
            told = re.sub(pattern, lambda found: _url_of(Path(found[0])), str(error))
            kind = {DataError: "data", ConversionError: "models"}.get(type(error))
            if of_kind := [copy for copy in copies if copies[copy] == kind]:
                told += f"{_COPY}{of_kind[0]}; if that was damaged here, remove it)"
            error.args = (told,)
        raise


def occupied(out: str | os.PathLike[str]) -> str | None:
    """Why `output` would refuse a path or URL, or None."""
    return _survey(Prefix(out)).refusal if is_url(out) else local.occupied(out)


def require_free(out: str | os.PathLike[str]) -> None:
    """What `output` checks, for a refusal before long work.

    Raises:
        StorageError: `out` holds something.
    """
    if not is_url(out):
        local.require_free(out)
    elif reason := occupied(out):
        raise StorageError(os.fspath(out), f"{reason}")


def require_room(out: str | os.PathLike[str], size: int) -> None:
    """Says that an output on gs:// is made here first, where it is large.

    Raises:
        StorageError: the temporary directory has less than `size` bytes left.
    """
    if not is_url(out):
        return
    here = tempfile.gettempdir()
    if (left := shutil.disk_usage(here).free) < size:
        sizes = (
            f"{size / 1e9:.1f} GB are made in {here} before they are uploaded, and {left / 1e9:.1f} GB are free there"
        )
        raise StorageError(os.fspath(out), f"{sizes}; set TMPDIR to a directory that has room")
    if size >= WORTH_A_WORD:
        print(f"{os.fspath(out)}: made in {here} first, {size / 1e9:.1f} GB", file=sys.stderr, flush=True)


@contextlib.contextmanager
def output(out: str | os.PathLike[str], last: str, progress: Progress | None = None) -> Iterator[Path]:
    """As `local.atomic_directory`; what was made for a gs:// URL is uploaded at the end.

    Args:
        last: the file without which readers take the directory for nothing: it is uploaded after all others.
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
        except Exception:
            with contextlib.suppress(StorageError):  # a bucket that is gone; the next attempt finds the marker
                upload.undo()
            raise


class _Upload:
    """A directory on its way to a prefix. Until its last file is there nobody takes it for what it will be.

    The marker claims the prefix. Who finds one without its last file takes it over with what was uploaded so far; an
    upload that was only believed dead sees the marker changed, and gives up.
    """

    def __init__(self, prefix: Prefix, last: str):
        self.prefix, self.last = prefix, last
        refusal, marker, their_last, leftovers = _survey(prefix)
        if refusal is not None:
            raise StorageError(prefix.url, f"{refusal}")
        self._names = [found.name for found in leftovers]
        self._id = uuid.uuid4().hex  # so that no two uploads write the same marker
        self._generation = 0 if marker is None else marker.generation
        self._claim()
        if any(prefix.find(name) for name in {last, their_last}):  # it came between the look and the claim
            raise StorageError(prefix.url, "somebody else writes there at the same time; choose another place")
        prefix.delete(leftovers)

    def run(self, directory: Path, progress: Progress | None) -> None:
        """Uploads everything."""
        there = [path.relative_to(directory).as_posix() for path in sorted(directory.rglob("*")) if path.is_file()]
        others = [name for name in there if name != self.last]
        assert len(others) < len(there)  # whoever names a last file writes it
        self._names = there
        self._claim()

        def count(done: int) -> None:
            if progress is not None:
                progress("files", "upload", done, len(there))

        self.prefix.upload(directory, others, count)
        now = {found.name: found for found in self.prefix.list()}
        if set(now) != {*others, MARKER} or now[MARKER].generation != self._generation:
            raise StorageError(self.prefix.url, "somebody else writes there at the same time; choose another place")
        self.prefix.upload(directory, [self.last], lambda done: count(len(there)))
        marker = self.prefix.find(MARKER)  # who takes over claims, then looks for our last: one of us sees the other
        if marker is None or marker.generation != self._generation:
            if (ours := self.prefix.find(self.last)) is not None:
                self.prefix.delete([ours])
            raise StorageError(self.prefix.url, "somebody else writes there at the same time; choose another place")
        with contextlib.suppress(StorageError):  # all is there; readers do not look at the marker
            self.prefix.delete([now[MARKER]])

    def undo(self) -> None:
        """Removes what was uploaded, unless the prefix has been taken over; its last file first, the marker last."""
        now = {found.name: found for found in self.prefix.list()}
        if MARKER in now and now[MARKER].generation == self._generation:
            self.prefix.delete([now[name] for name in (self.last,) if name in now])
            self.prefix.delete([now[name] for name in self._names if name in now and name != self.last])
            self.prefix.delete([now[MARKER]])

    def _claim(self) -> None:
        told = {"janus_jax": __version__, "id": self._id, "last": self.last, "files": self._names}
        content = json.dumps(told, indent=1) + "\n"
        self._generation = self.prefix.write(MARKER, content.encode(), self._generation)


class _Survey(NamedTuple):
    """What lies where something shall be uploaded."""

    refusal: str | None = None
    marker: Object | None = None
    last: str = _LAST  # of the upload that wrote the marker
    leftovers: Sequence[Object] = ()


def _survey(prefix: Prefix) -> _Survey:
    objects = {found.name: found for found in prefix.list()}
    marker = objects.pop(MARKER, None)
    files: list[str] = []
    last = _LAST
    if marker is not None:
        try:
            files, last = _told(prefix.read(marker))
        except (ValueError, KeyError, TypeError):
            return _Survey(f"holds a {MARKER} that no upload wrote; choose another place or remove it")
    foreign = [name for name in objects if name == last or name not in files]
    if foreign:
        return _Survey(f"exists and is not empty (it holds {foreign[0]}); choose another place or remove it")
    return _Survey(None, marker, last, list(objects.values()))


def is_cut_off(url: str, is_there: Callable[[str], bool]) -> bool:
    """Whether the marker below a URL is of an upload that has not come to its last file.

    Args:
        is_there: tells it of a name below the URL.
    """
    prefix = Prefix(url)
    if (marker := prefix.find(MARKER)) is None:
        return False
    try:
        return not is_there(_told(prefix.read(marker))[1])
    except (ValueError, KeyError, TypeError):
        return False


def _told(marker: bytes) -> tuple[list[str], str]:
    """The names and the last file of the upload that wrote a marker."""
    value = json.loads(marker)
    return list(value["files"]), value.get("last", _LAST)


def place_of(kind: str, url: str, content: bytes) -> Path:
    """Where the copy of a URL lies, by what is there now."""
    return cache() / kind / hashlib.sha256(url.encode() + b"\0" + content).hexdigest()[:32]


def _renamed(found: Object, name: str) -> Object:
    return Object(name, found.size, found.crc32c, found.generation)


def _url_of(place: Path) -> str:
    try:
        return (place / ".url").read_text(encoding="utf-8")
    except OSError:  # removed meanwhile
        return str(place)


def stage(place: Path, url: str | None, fill: Callable[[Path], None]) -> None:
    """Makes a directory of the cache, if it is not there, whole or not at all. Processes of one machine take turns."""
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
            if not place.is_dir():  # where locks do nothing, somebody else may have been first
                raise


@contextlib.contextmanager
def _turn(place: Path) -> Iterator[None]:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = (place.parent / f".{place.name}.lock").open("w")
    except OSError as error:
        raise StorageError(place.parent, f"cannot be written (JANUS_CACHE): {error.strerror or error}") from error
    with lock:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
            for leftover in place.parent.glob(f".{place.name}.*.incomplete"):  # of a process that was killed
                shutil.rmtree(leftover, ignore_errors=True)
        # Some network file systems have no locks: then everyone copies, and the first one's copy stays.
        yield
