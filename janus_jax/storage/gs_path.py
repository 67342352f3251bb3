"""gs:// as Orbax sees it: the class that `epath.Path` makes of such a URL once this module is imported.

Every request goes through `storage.bucket`, with its retries, checksums and errors. epath alone would go through
TensorFlow or gcsfs, where none of these is bounded. Directories need not be made: they are what lies below them.
"""

import fnmatch
import io
from collections.abc import Iterator
from typing import Any

from etils import epath
from etils.epath.stat_utils import StatResult

from janus_jax.storage.bucket import Prefix


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
            return _Bytes(self) if "b" in mode else io.TextIOWrapper(_Bytes(self), encoding="utf-8")
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
    """What becomes an object when it is closed."""

    def __init__(self, path: GsPath):
        super().__init__()
        self._path = path

    def close(self) -> None:
        if not self.closed:
            content = self.getvalue()
            super().close()
            Prefix(self._path).write("", content, None)
