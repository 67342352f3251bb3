"""Training state on disk: Orbax steps with the items params, optimizer, data (JSON) and meta (JSON)."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from janus_jax.checkpoint.hf.keys import nest
from janus_jax.checkpoint.item import CHUNK_BYTES, ItemReader, restore_blocks, tensorstore_message
from janus_jax.checkpoint.run_dir import ITEMS, committed_steps, is_committed, step_directory
from janus_jax.errors import ConversionError, StorageError, first_line
from janus_jax.parallel import processes
from janus_jax.storage import staging
from janus_jax.storage.bucket import BucketPath, os_errors
from janus_jax.storage.local import Place, absolute, write_whole


class Checkpoints:
    """Saves and restores steps in one directory and keeps the newest `keep`. Call it on every process.

    The layout is plain Orbax: `ocp.CheckpointManager(directory).restore(...)` reads it without this package.

    Raises:
        StorageError: the directory cannot be written.
    """

    def __init__(self, directory: str | os.PathLike[str], *, keep: int):
        self.directory = absolute(directory)
        with _storage_errors(self.directory, "cannot be written"):
            self.directory.mkdir(parents=True, exist_ok=True)
            if jax.process_index() == 0:
                _set_aside(self.directory)
            multihost_utils.sync_global_devices("checkpoints are listed")
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True),
                handler_registry=_handlers(),
            )

    def latest_step(self) -> int | None:
        """The newest committed step; the same on every process."""
        latest = max(committed_steps(self.directory), default=-1)
        if jax.process_count() > 1:  # a slow file system may not show every process the same
            latest = int(multihost_utils.broadcast_one_to_all(np.int32(latest)))
        return None if latest < 0 else latest

    def save(self, step: int, *, params: Any, optimizer: Any, data: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        """Starts to write a step. Returns when the arrays are copied to the host and may be donated; see `wait`.

        Args:
            params: any pytree of jax arrays.
            optimizer: any optax state.
            data, meta: JSON objects, the same on every process.

        Raises:
            StorageError: this write or the previous one failed.
        """
        arguments = ocp.args.Composite(
            params=save_args(params),
            optimizer=save_args(optimizer),
            data=ocp.args.JsonSave(dict(data)),
            meta=ocp.args.JsonSave(dict(meta)),
        )
        with _storage_errors(self.directory / str(step), "cannot be written"):
            self._manager.save(step, args=arguments, force=True)

    def restore(self, step: int, *, params: Any, optimizer: Any) -> tuple[Any, Any, dict[str, Any], dict[str, Any]]:
        """(params, optimizer, data, meta) of a step.

        Args:
            params, optimizer: trees of `jax.ShapeDtypeStruct` with shardings, of any mesh and number of processes.

        Raises:
            ConversionError: the step does not exist or is damaged, or its names or shapes differ from the trees'.
        """
        directory = step_directory(self.directory, step)
        for name, abstract in (("params", params), ("optimizer", optimizer)):
            check_tree(directory / name, abstract)
        arguments = ocp.args.Composite(
            params=_restore_args(params),
            optimizer=_restore_args(optimizer),
            data=ocp.args.JsonRestore(),
            meta=ocp.args.JsonRestore(),
        )
        try:
            restored = self._manager.restore(step, args=arguments)
        except Exception as error:  # Orbax has no class of its own for damaged files
            raise ConversionError(
                directory,
                f"is damaged and cannot be restored: {tensorstore_message(error)}; move it away to "
                "continue from an older step",
            ) from error
        params, optimizer, data, meta = (restored[item] for item in ITEMS)
        return params, optimizer, data, meta

    def meta(self, step: int) -> dict[str, Any]:
        """The `meta` that `save` wrote."""
        return read_json_item(step_directory(self.directory, step) / "meta")

    def replace_meta(self, step: int, meta: Mapping[str, Any]) -> None:
        """Says something else of a saved step. Collective: call it on every process.

        Raises:
            StorageError: it cannot be written; the step is as it was.
        """
        item = step_directory(self.directory, step) / "meta"
        with processes.agreement("meta"):
            if processes.is_main():
                write_whole(Path(item / "metadata"), json.dumps(dict(meta)))

    def saving(self) -> bool:
        """Whether a save is going on in the background."""
        return self._manager.is_saving_in_progress()

    def wait(self) -> None:
        """Returns when every save is committed.

        Raises:
            StorageError: a save failed.
        """
        with _storage_errors(self.directory, "a checkpoint could not be written"):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for every save, then ends Orbax's threads."""
        with _storage_errors(self.directory, "a checkpoint could not be written"):
            self._manager.close()


def _handlers() -> ocp.handlers.CheckpointHandlerRegistry:
    """Handlers that save arrays as they lie on the devices.

    By default Orbax has replicas share the writing. Each cuts its part out on the device, which with two replicas takes
    half a state more memory than the steps of the run.
    """

    def arrays() -> ocp.PyTreeCheckpointHandler:
        handler = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
        types = ocp.type_handlers.create_type_handler_registry((jax.Array, handler))
        return ocp.PyTreeCheckpointHandler(type_handler_registry=types)

    return ocp.handlers.create_default_handler_registry(
        params=arrays(), optimizer=arrays(), data=ocp.JsonCheckpointHandler(), meta=ocp.JsonCheckpointHandler()
    )


def save_args(tree: Any) -> ocp.args.PyTreeSave:
    """Orbax arguments that store `tree` in chunks of at most `CHUNK_BYTES`, one layer each if layers are stacked."""

    def chunks(path: tuple[Any, ...], leaf: Any) -> ocp.SaveArgs:
        # Orbax cuts a shard axis into single entries, whatever their size: right for layers, wrong for a vocabulary.
        stacked = np.ndim(leaf) > 1 and any(getattr(key, "key", None) == "layers" for key in path)
        return ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES, shard_axes=(0,) if stacked else ())

    return ocp.args.PyTreeSave(tree, save_args=jax.tree_util.tree_map_with_path(chunks, tree))


def _restore_args(abstract: Any) -> ocp.args.PyTreeRestore:
    return ocp.args.PyTreeRestore(abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract))


def read_json_item(item: Place) -> dict[str, Any]:
    """A JSON item of a step or converted directory."""
    local = staging.files(item.url, lambda name: True, "models") if isinstance(item, BucketPath) else item
    handler: Any = ocp.JsonCheckpointHandler()  # not through a Checkpointer, which waits for all processes
    try:
        return handler.restore(absolute(local))
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
    except Exception as error:  # Orbax has no class of its own for damaged files
        reason = tensorstore_message(error).partition(" See full TensorStore")[0]  # the rest is an object's address
        raise ConversionError(item, f"is damaged and cannot be read: {reason}") from error


def stored_leaves(item: Place) -> dict[str, Any]:
    """{path/of/leaf: metadata with shape and dtype} of an item."""
    if isinstance(item, BucketPath) or item.name == "params":
        # Orbax opens all leaves at once: if one is damaged, the others print that their event loop is closed.
        return _named(nest(ItemReader(item).leaves()))
    try:  # not through a Checkpointer, which warns that the item lacks a metadata file
        return _named(ocp.PyTreeCheckpointHandler().metadata(absolute(item)).tree)
    except (OSError, ValueError) as error:
        raise ConversionError(item, f"not an Orbax item, or a damaged one: {tensorstore_message(error)}") from error


def _named(tree: Any) -> dict[str, Any]:
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}


def check_tree(item: Place, abstract: Any) -> None:
    """Raises ConversionError if names or shapes of an item differ from those of `abstract`. Reads no array."""
    stored, needed = stored_leaves(item), _named(abstract)
    for name in sorted(stored.keys() ^ needed.keys()):
        state = "is stored but not needed" if name in stored else "is needed but not stored"
        raise ConversionError(item, f"{name} {state}: another model or optimizer wrote this checkpoint")
    for name, leaf in needed.items():
        if tuple(stored[name].shape) != tuple(leaf.shape):
            raise ConversionError(item, f"{name} has shape {list(stored[name].shape)}; needed: {list(leaf.shape)}")


def _set_aside(directory: epath.Path) -> None:
    """Renames incomplete steps, so that they neither block a save of the same number nor count as kept."""
    for path in list(directory.iterdir()):
        if path.name.isdecimal() and not is_committed(path):
            target = directory / f"{path.name}.incomplete"
            if target.exists():
                target.rmtree()
            path.rename(target)


@contextlib.contextmanager
def _storage_errors(path: epath.Path, failure: str) -> Iterator[None]:
    try:
        with os_errors(path, failure):
            yield
    except ValueError as error:  # tensorstore reports a full or failing disk this way
        if any(sign in str(error) for sign in ("RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAVAILABLE", "No space")):
            raise StorageError(path, f"{failure}: {first_line(error)}") from error
        raise
