"""gs:// as Orbax sees it: the class that `epath.Path` makes of such a URL once this module is imported.

Every request goes through `storage.bucket`, with its retries, checksums and errors. epath alone would go through
TensorFlow or gcsfs, where none of these is bounded. Directories need not be made: they are what lies below them.
"""

import fnmatch
import io
import os
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath
from etils.epath.stat_utils import StatResult

from janus_jax.storage.bucket import Prefix, briefly

_GUARDED_S = 20.0
"""How long a guarded write is repeated: less than a lock outlives its holder."""

_guards: dict[tuple[str, str], Callable[[], None]] = {}


def guard(directory: str | os.PathLike[str], name: str, permitted: Callable[[], None]) -> None:
    """From now on `permitted` is called before an object of this name is written anywhere below a directory; it raises
    if the object must not be written. Orbax has no such call: between its last one and the commit it makes requests."""
    _guards[os.fspath(directory), name] = permitted


@epath.register_path_cls("gs://")
class GsPath(type(epath.Path("/"))):
    """A place in a bucket with the part of epath's interface that saving takes. All methods raise StorageError."""

    @property
    def _backend(self) -> Any:
        raise NotImplementedError(f"{self}: not offered for gs://")

    def exists(self) -> bool:
        prefix = Prefix(self)
        return (bool(prefix.path) and prefix.find("") is not None) or prefix.holds_any()

    def is_dir(self) -> bool:
        return Prefix(self).holds_any()

    def iterdir(self) -> Iterator["GsPath"]:
        return (self / name for name in Prefix(self).children())

    def glob(self, pattern: str) -> Iterator["GsPath"]:
        return (self / name for name in fnmatch.filter(Prefix(self).children(), pattern))

    def mkdir(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing."""

    def open(self, mode: str = "r", **kwargs: Any) -> Any:
        """Reads a whole object, or writes one when the file is closed."""
        if "w" in mode:
            return _Bytes(self) if "b" in mode else _Text(_Bytes(self), encoding="utf-8")
        content = io.BytesIO(Prefix(self).read(self._object()))
        return content if "b" in mode else io.TextIOWrapper(content, encoding="utf-8")

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            Prefix(self).delete([self._object()])
        except FileNotFoundError:
            if not missing_ok:
                raise

    def stat(self) -> StatResult:
        if (item := Prefix(self).find("")) is None:
            return StatResult(is_directory=True, length=0, mtime=0)
        return StatResult(is_directory=False, length=item.size, mtime=int(item.updated_s))

    def resolve(self, strict: bool = False) -> "GsPath":
        return self

    def _object(self) -> Any:
        if (item := Prefix(self).find("")) is None:
            raise FileNotFoundError(f"{self}: no such object")
        return item


class _Bytes(io.BytesIO):
    """What becomes an object when it is closed; unless an error ends the `with`, or nobody closes it."""

    def __init__(self, path: GsPath):
        super().__init__()
        self._path, self.dropped = path, False

    def __exit__(self, kind: Any, *error: Any) -> None:
        self.dropped = self.dropped or kind is not None
        super().__exit__(kind, *error)

    def __del__(self) -> None:
        self.dropped = True
        super().__del__()

    def close(self) -> None:
        if not self.closed:
            content = self.getvalue()
            super().close()
            if not self.dropped:
                _write(self._path, content)


class _Text(io.TextIOWrapper):
    """`_Bytes` as text."""

    buffer: _Bytes

    def __exit__(self, kind: Any, *error: Any) -> None:
        self.buffer.dropped = kind is not None
        super().__exit__(kind, *error)

    def __del__(self) -> None:
        self.buffer.dropped = True
        super().__del__()


def _write(path: GsPath, content: bytes) -> None:
    for (directory, name), permitted in list(_guards.items()):
        if path.name == name and str(path).startswith(f"{directory}/"):
            permitted()
            with briefly(_GUARDED_S):
                Prefix(path).write("", content, None)
            return
    Prefix(path).write("", content, None)
