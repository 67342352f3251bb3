"""Training state on disk: Orbax steps with the items params, optimizer, data (JSON) and meta (JSON)."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint._src.serialization import tensorstore_utils

from janus_jax.checkpoint import checksums
from janus_jax.checkpoint.checksums import named_leaves
from janus_jax.checkpoint.damage import Notify, read_meta, read_values, set_aside, set_aside_incomplete
from janus_jax.checkpoint.item import CHUNK_BYTES, retries
from janus_jax.checkpoint.quiet import end_threads, quiet_orbax
from janus_jax.checkpoint.restore import JSON_FILE, read_json_item, reading, refused, restore_item, stored_leaves
from janus_jax.checkpoint.retention import Deletion, Policy, Retention, room_for, space_note, unmakeable
from janus_jax.checkpoint.run_dir import COMMITTED, committed_steps, step_directory
from janus_jax.checkpoint.together import Together
from janus_jax.errors import ConversionError, DamagedError, StorageError
from janus_jax.parallel import processes
from janus_jax.storage import gs_path
from janus_jax.storage.bucket import is_url, os_errors
from janus_jax.storage.local import Place, absolute, place, write_whole
from janus_jax.storage.writable import require_writable

_THREADS_S = 10.0
"""How long threads of a failed save may go on writing before its leftovers are removed."""


def note(line: str) -> None:
    """Shows a line on stderr."""
    print(f"note: {line}", file=sys.stderr, flush=True)


class Checkpoints:
    """Saves and restores steps in one directory, and deletes those that are not to be kept. Call it on every process.

    The layout is plain Orbax: `ocp.CheckpointManager(directory).restore(...)` reads it without this package. A step
    also has the item `checksums`, which `restore` compares with what it restored.

    Args:
        keep: steps to keep; a number means the newest ones.
        on_error: after a save that failed. stop: `save` raises. continue: it says so, and the next save tries again.
        notify: shows the user a line; only process 0 calls it.
        guard: called by process 0, in any thread, before a step is committed or deleted in the background; raises if it
            must not be. A save so refused raises that error.

    Raises:
        StorageError: the directory cannot be written.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep: int | Retention,
        on_error: Literal["stop", "continue"] = "stop",
        notify: Notify = note,
        guard: Callable[[], None] = lambda: None,
    ):
        quiet_orbax()
        self.directory = absolute(directory)
        self.failed = 0
        """Saves that failed so far."""
        self._retention = Retention(keep) if isinstance(keep, int) else keep
        self._on_error = on_error
        self._notify = notify if processes.is_main() else _no_line
        self._values: dict[int, float | None] = {}
        self._newest: int | None = None  # the newest whole step, as far as this process knows
        self._saving: int | None = None  # the step that is being written
        self._guard = guard
        self._deletion = Deletion(self._notify, guard)
        self._unsaved: StorageError | None = None  # why the last save failed
        with _storage_errors(self.directory, "cannot be written"):
            self.directory.mkdir(parents=True, exist_ok=True)
            with processes.agreement("checkpoints are listed"):
                if processes.is_main():
                    set_aside_incomplete(self._place, self._notify)
            self._values = self._read_values()
            self._newest = self.latest_step()
            self._manager: ocp.CheckpointManager | None = self._open()

    @property
    def _place(self) -> Place:
        """The directory, to be listed anew."""
        return place(self.directory)

    def latest_step(self) -> int | None:
        """The newest committed step; the same on every process. Collective: call it on every process."""
        latest = -1
        with processes.agreement("newest step"):
            if processes.is_main():
                latest = max(committed_steps(self._place), default=-1)
        if jax.process_count() > 1:  # a slow file system may not show every process the same
            latest = int(multihost_utils.broadcast_one_to_all(np.int32(latest)))
        return None if latest < 0 else latest

    def save(self, step: int, *, params: Any, optimizer: Any, data: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        """Starts to write a step. Returns when the arrays are copied to the host and may be donated; see `wait`.

        Args:
            params: any pytree of jax arrays.
            optimizer: any optax state.
            data, meta: JSON objects, the same on every process. `meta["evaluation"]`, if it is there, has the held-out
                metrics by which the best steps are kept.

        Raises:
            StorageError: this write or the previous one failed, with `on_error: stop`.
        """
        self.settle()
        sums = checksums.of_step(params, optimizer, dict(data), dict(meta))
        arguments = ocp.args.Composite(
            params=save_args(params),
            optimizer=save_args(optimizer),
            data=ocp.args.JsonSave(dict(data)),
            meta=ocp.args.JsonSave(dict(meta)),
            checksums=ocp.args.JsonSave(sums),
        )
        self._values[step] = _value(meta, self._retention)
        try:
            self._make_room(step, _bytes((params, optimizer)))
            if self._manager is None:  # an earlier save failed
                self._manager = self._open()
            self._together.step = self.directory / str(step)
            with processes.agreement(f"checkpoint {step}"), _storage_errors(self.directory / str(step)):
                self._manager.save(step, args=arguments, force=True)
            self._saving = step
        except StorageError as error:
            self._failed(error)

    def poll(self) -> None:
        """Reports a save that failed in the background, as `save` does. Costs nothing; call it after each step.

        Several processes have to agree, so there the next `save` reports it.

        Raises:
            StorageError: a save failed, with `on_error: stop`.
        """
        if self._saving is not None and jax.process_count() == 1 and not self.saving():
            self.settle()

    def settle(self) -> bool:
        """Waits for the save under way; reports its failure as `save` does. Returns whether it is whole."""
        try:
            self._settle()
        except StorageError as error:
            self._failed(error)
        return self._unsaved is None

    def restore(self, step: int, *, params: Any, optimizer: Any) -> tuple[Any, Any, dict[str, Any], dict[str, Any]]:
        """(params, optimizer, data, meta) of a step, compared with its checksums.

        Args:
            params, optimizer: trees of `jax.ShapeDtypeStruct` with shardings, of any mesh and number of processes.

        Raises:
            ConversionError: the step does not exist, or its names, shapes or dtypes differ from the trees'.
            DamagedError: it is not what was written; the same on every process.
            StorageError: it cannot be read.
        """
        with processes.agreement(f"restore {step}"):
            directory = step_directory(self._place, step)
            data, meta, record = read_values(directory)
            wanted = {"params": params, "optimizer": optimizer}
            for item, abstract in wanted.items():
                if record is None:
                    with reading(directory):
                        stored = stored_leaves(directory / item)
                    checksums.require_same_leaves(directory / item, _shapes(stored), _shapes(named_leaves(abstract)))
                else:
                    needed = _shapes(named_leaves(abstract), dtypes=True)
                    checksums.require_same_leaves(directory / item, record[item], needed)
            with reading(directory):
                restored = {item: restore_item(directory / item, abstract) for item, abstract in wanted.items()}
        if record is None:
            self._notify(f"{directory}: an older version wrote it, without checksums: nothing to compare it with")
        else:
            checksums.require_same_arrays(directory, record, **restored)
        return restored["params"], restored["optimizer"], data, meta

    def set_aside(self, step: int, error: DamagedError) -> None:
        """Renames a step that `restore` refused to STEP.damaged."""
        with processes.agreement(f"set {step} aside"):
            if processes.is_main():
                set_aside(self._place / str(step), error, self._notify)
        self._newest = self.latest_step()

    def meta(self, step: int) -> dict[str, Any]:
        """The `meta` that `save` wrote."""
        return read_json_item(step_directory(self._place, step) / "meta")

    def replace_meta(self, step: int, meta: Mapping[str, Any]) -> None:
        """Says something else of a saved step. Collective: call it on every process.

        Raises:
            StorageError: it cannot be written; the step is as it was.
        """
        directory = step_directory(self._place, step)
        self._values[step] = _value(meta, self._retention)
        with processes.agreement("meta"):
            if processes.is_main():
                before, record = read_meta(directory)
                if record is not None:  # a kill in between leaves a step that is whole: by the one sum or the other
                    _write_item(directory / checksums.ITEM, checksums.with_meta(record, before, meta))
                _write_item(directory / "meta", meta)
                if record is not None:
                    _write_item(directory / checksums.ITEM, checksums.with_meta(record, meta))

    def space_note(self, *trees: Any) -> str | None:
        """A sentence if this disk cannot hold the steps that are to be kept, whose arrays these trees describe."""
        if is_url(self.directory):
            return None
        with os_errors(self.directory, "cannot be read"):
            return space_note(self.directory, self._retention, _bytes(trees))

    def saving(self) -> bool:
        """Whether a save is going on in the background."""
        return self._manager is not None and self._manager.is_saving_in_progress()

    def wait(self) -> None:
        """Returns when every save is committed.

        Raises:
            StorageError: the last save failed, whatever `on_error` says.
        """
        try:
            self._settle()
        except StorageError as error:
            self._failed(error, go_on=True)
        if self._unsaved is not None:
            raise self._unsaved

    def close(self) -> None:
        """Waits for every save, then ends Orbax's threads. In a bucket it deletes no older step for a save that nobody
        waited for: an error ends the run then, and the steps may be those of another start already."""
        with _storage_errors(self.directory, "a checkpoint could not be written"):
            if self._manager is not None:
                self._manager.close()
            self._deletion.wait()

    def _open(self) -> ocp.CheckpointManager:
        together = self._together = Together(self.directory, self._guard)
        gs_path.guard(self.directory, COMMITTED, self._guard)
        for context in (tensorstore_utils._BASE_TS_CONTEXT, tensorstore_utils._DEFAULT_OCDBT_TS_CONTEXT):
            context["gcs_request_retries"] = retries()  # Orbax offers no option; without it, for a quarter of an hour
        ours = is_url(self.directory)  # there Orbax asks for permissions that whoever writes objects need not have
        return ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=None if ours else Policy(self._retention, self._values),
                cleanup_tmp_directories=not ours,  # it would take what is set aside for temporary
                lightweight_initialize=True,  # so that damaged metadata of a step is no error here
                async_options=together.options(),
            ),
            handler_registry=_handlers(together),
        )

    def _read_values(self) -> dict[int, float | None]:
        """The metric of each step that has one, if it decides what is kept."""
        values: list[tuple[int, float | None]] = []
        with processes.agreement("metrics of checkpoints"):
            for step in committed_steps(self._place) if self._retention.best and processes.is_main() else ():
                with contextlib.suppress(ConversionError):
                    values.append((step, _value(self.meta(step), self._retention)))
        return {step: value for step, value in processes.broadcast("metrics of checkpoints", values)}

    def _settle(self) -> None:
        """Waits for the save under way. All processes raise StorageError, or none."""
        if self._saving is None:
            return
        step, self._saving = self._saving, None
        with processes.agreement(f"checkpoint {step} is written"), _storage_errors(self.directory / str(step)):
            assert self._manager is not None
            self._manager.wait_until_finished()
        self._unsaved, self._newest = None, step
        self._delete_old()

    def _delete_old(self) -> None:
        if is_url(self.directory) and processes.is_main():
            self._deletion.begin(self._place, self._retention, dict(self._values))

    def _make_room(self, step: int, size: int) -> None:
        """Deletes steps that this save will push out, if only that makes room for it. The newest stays in any case.

        Raises:
            StorageError: not even that makes enough room.
        """
        plan: tuple[list[int], str | None] = ([], None)
        if processes.is_main():
            try:
                with os_errors(self.directory, "cannot be read"):
                    if not is_url(self.directory):
                        plan = room_for(self.directory, step, self._retention, self._values, size)
                        plan = ([], reason) if (reason := unmakeable(self._place, step)) and not plan[0] else plan
                    elif self._manager is None or jax.process_count() > 1:
                        self._deletion.wait()
                        set_aside_incomplete(self._place, self._notify)
                        require_writable(self.directory)  # of the first write that fails, others would not hear
            except StorageError as error:
                plan = ([], str(error.args[-1]))
        steps, failure = processes.broadcast("room for a checkpoint", plan)
        if failure is not None:
            raise StorageError(self.directory / str(step), failure)
        for old in steps:
            self._notify(f"{self.directory / str(old)}: deleted before the save of step {step}, which needs its room")
            with _storage_errors(self.directory / str(old), "cannot be deleted"):
                assert self._manager is not None
                self._manager.delete(old)

    def _failed(self, error: StorageError, *, go_on: bool = False) -> None:
        """Removes what a failed save has left. Then raises the error, or says it and goes on."""
        self.failed += 1
        manager, self._manager = self._manager, None
        for _ in range(3):  # it raises each error of its threads once
            with contextlib.suppress(Exception):
                if manager is not None:
                    manager.close()
                break
        end_threads(_THREADS_S)
        if not is_url(self.directory):  # a bucket is asked again by the next save
            with _storage_errors(self.directory, "cannot be written"):
                self._manager = self._open()
        newest = self._newest
        safe = "no checkpoint is whole" if newest is None else f"the newest whole checkpoint is of step {newest}"
        self._unsaved = StorageError(*error.args[:-1], f"{error.args[-1]}; {safe}")
        if self._on_error == "stop" and not go_on:
            raise self._unsaved from error
        if not go_on:
            self._notify(f"{self._unsaved}; the run goes on, and the next save tries again (checkpoint.on_error)")


def _no_line(line: str) -> None:
    """Shows nothing: another process does."""


def _value(meta: Mapping[str, Any], retention: Retention) -> float | None:
    return (meta.get("evaluation") or {}).get(retention.metric)


def _bytes(trees: Any) -> int:
    return sum(leaf.size * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(trees))


def _shapes(leaves: Mapping[str, Any], *, dtypes: bool = False) -> dict[str, Any]:
    return {
        name: {"shape": list(leaf.shape), **({"dtype": str(np.dtype(leaf.dtype))} if dtypes else {})}
        for name, leaf in leaves.items()
    }


def _write_item(item: Place, value: Mapping[str, Any]) -> None:
    write_whole(item / JSON_FILE, json.dumps(dict(value)))


def _handlers(together: Together) -> ocp.handlers.CheckpointHandlerRegistry:
    """Handlers that save arrays as they lie on the devices.

    By default Orbax has replicas share the writing. Each cuts its part out on the device, which with two replicas takes
    half a state more memory than the steps of the run.
    """

    def arrays() -> ocp.PyTreeCheckpointHandler:
        handler = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
        types = ocp.type_handlers.create_type_handler_registry((jax.Array, handler))
        return ocp.PyTreeCheckpointHandler(type_handler_registry=types)

    handlers: dict[str, Any] = {"params": arrays(), "optimizer": arrays()}
    handlers |= {item: ocp.JsonCheckpointHandler() for item in ("data", "meta", checksums.ITEM)}
    watched = {item: together.watched(handler) for item, handler in handlers.items()}
    return ocp.handlers.create_default_handler_registry(**watched)


def save_args(tree: Any) -> ocp.args.PyTreeSave:
    """Orbax arguments that store `tree` in chunks of at most `CHUNK_BYTES`, one layer each if layers are stacked."""

    def chunks(path: tuple[Any, ...], leaf: Any) -> ocp.SaveArgs:
        # Orbax cuts a shard axis into single entries, whatever their size: right for layers, wrong for a vocabulary.
        stacked = np.ndim(leaf) > 1 and any(getattr(key, "key", None) == "layers" for key in path)
        return ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES, shard_axes=(0,) if stacked else ())

    return ocp.args.PyTreeSave(tree, save_args=jax.tree_util.tree_map_with_path(chunks, tree))


@contextlib.contextmanager
def _storage_errors(path: epath.Path, failure: str = "cannot be written") -> Iterator[None]:
    try:
        with os_errors(path, failure):
            yield
    except ValueError as error:  # tensorstore reports a full or failing disk this way
        if reason := refused(error):
            raise StorageError(path, f"{failure}: {reason}") from error
        raise
