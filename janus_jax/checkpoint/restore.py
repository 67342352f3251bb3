"""Items of a step or converted directory, read from disk: JSON values, and arrays onto any mesh."""

import contextlib
import errno
import json
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from janus_jax.checkpoint.checksums import named_leaves, require_same_leaves
from janus_jax.checkpoint.hf.keys import nest
from janus_jax.checkpoint.item import ItemReader, restore_blocks, tensorstore_message
from janus_jax.errors import ConversionError, DamagedError, JanusError, StorageError
from janus_jax.storage.bucket import BucketPath
from janus_jax.storage.local import Place, absolute, refusal

_OF_BAD_DATA = (OSError, ValueError, LookupError)
"""What Orbax and tensorstore raise for damaged files; they have no class of their own."""


JSON_FILE = "metadata"
"""What a JSON item consists of."""


def read_json_item(item: Place) -> dict[str, Any]:
    """A JSON item of a step or converted directory."""
    try:
        if isinstance(item, BucketPath):
            return json.loads((item / JSON_FILE).read_bytes())
        handler: Any = ocp.JsonCheckpointHandler()  # not through a Checkpointer, which waits for all processes
        return handler.restore(absolute(item))
    except (OSError, ValueError) as error:
        raise ConversionError(item, f"cannot be read: {error}") from error


def restore_item(item: Place, abstract: Any) -> Any:
    """Arrays of a `params` item, cast to the dtypes of `abstract`.

    Args:
        abstract: tree of ShapeDtypeStructs. A leaf with a sharding becomes a jax array, any other a numpy array.

    Raises:
        ConversionError: the stored names or shapes differ from those of `abstract`, or the item is damaged.
    """
    check_tree(item, abstract)
    if isinstance(item, BucketPath):
        return restore_blocks(item, abstract)

    def leaf_args(leaf: jax.ShapeDtypeStruct) -> ocp.RestoreArgs:
        if leaf.sharding is None:
            return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
        return ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype)

    try:
        with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
            return handler.restore(absolute(item), item=abstract, restore_args=jax.tree.map(leaf_args, abstract))
    except _OF_BAD_DATA as error:
        reason = tensorstore_message(error).partition(" See full TensorStore")[0]  # the rest is an object's address
        raise DamagedError(item, f"is damaged and cannot be read: {reason}") from error


def stored_leaves(item: Place) -> dict[str, Any]:
    """{path/of/leaf: metadata with shape and dtype} of an item."""
    if isinstance(item, BucketPath) or item.name == "params":
        # Orbax opens all leaves at once: if one is damaged, the others print that their event loop is closed.
        return named_leaves(nest(ItemReader(item).leaves()))
    try:  # not through a Checkpointer, which warns that the item lacks a metadata file
        return named_leaves(ocp.PyTreeCheckpointHandler().metadata(absolute(item)).tree)
    except (OSError, ValueError) as error:
        raise ConversionError(item, f"not an Orbax item, or a damaged one: {tensorstore_message(error)}") from error


def check_tree(item: Place, abstract: Any) -> None:
    """Raises ConversionError if names or shapes of an item differ from those of `abstract`. Reads no array."""
    stored = {name: {"shape": list(leaf.shape)} for name, leaf in stored_leaves(item).items()}
    needed = {name: {"shape": list(leaf.shape)} for name, leaf in named_leaves(abstract).items()}
    require_same_leaves(item, stored, needed)


_GONE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
_REFUSED = ("RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAVAILABLE", "UNAUTHENTICATED", "DEADLINE_EXCEEDED", "ABORTED")


def refused(error: BaseException | None) -> str | None:
    """What the operating system or the service said when it refused to read; None if what it gave is wrong.

    A file that is not there is damage. One that may not be read, or cannot be now, says nothing about its content.
    """
    if error is None:
        return None
    if isinstance(error, OSError):
        return None if error.errno in (None, *_GONE) else refusal(error)
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if any(sign in str(error) for sign in _REFUSED) or (code and int(code[1]) not in _GONE):
        return refusal(error) if isinstance(error, Exception) else str(error)
    return None


@contextlib.contextmanager
def reading(step: Place) -> Iterator[None]:
    """Sorts what goes wrong inside: DamagedError if stored data are wrong, StorageError if they cannot be had now.

    All else passes: too little memory, lost peers and mistakes of this code say nothing about the step.
    """
    try:
        yield
    except StorageError:
        raise
    except (JanusError, *_OF_BAD_DATA) as error:
        if reason := refused(error.__cause__ if isinstance(error, JanusError) else error):
            raise StorageError(step, f"cannot be read: {reason}") from error
        if isinstance(error, DamagedError):
            raise
        if isinstance(error, JanusError):
            raise DamagedError(*error.args) from error
        raise DamagedError(step, f"cannot be read: {tensorstore_message(error)}") from error
