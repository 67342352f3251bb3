"""Directories, local or on gs://, moved and removed. A bucket has neither rename nor directories.

There, a move is a copy within the service, then a deletion. A `mark`, the object that makes a directory count, is
copied last and deleted first. So a kill leaves the old directory as it was, or both, or remains that do not count.
"""

from etils import epath

from janus_jax.storage.bucket import BucketPath, Prefix
from janus_jax.storage.local import Place


def move(source: Place, target: Place, mark: str) -> None:
    """Renames a directory. `target` must not exist, or, on gs://, be what a move that was cut off has left.

    Raises:
        StorageError: the bucket refuses.
        OSError: the file system does.
    """
    if not isinstance(source, BucketPath):
        assert isinstance(target, epath.Path)
        source.rename(target)
        return
    prefix, others = Prefix(source), Prefix(target)
    objects = prefix.list()
    marks = [item for item in objects if item.name == mark]
    rest = [item for item in objects if item.name != mark]
    prefix.copy(rest, others)
    prefix.copy(marks, others)
    prefix.delete(marks)
    prefix.delete(rest)


def remove(directory: Place, mark: str) -> None:
    """Removes a directory that may not exist.

    Raises:
        StorageError: the bucket refuses.
        OSError: the file system does.
    """
    if not isinstance(directory, BucketPath):
        directory.rmtree(missing_ok=True)
        return
    prefix = Prefix(directory)
    objects = prefix.list()
    prefix.delete(item for item in objects if item.name == mark)
    prefix.delete(item for item in objects if item.name != mark)
