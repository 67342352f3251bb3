"""Where a process writes what grows: metrics, TensorBoard's events, wandb's directory, profiles."""

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from janus_jax.checkpoint.run_dir import RunDir, start_of_part
from janus_jax.config.run import RunConfig
from janus_jax.errors import LostLockError
from janus_jax.storage import parts
from janus_jax.storage.bucket import BucketPath
from janus_jax.training import history
from janus_jax.training.event_file import ends_of_events
from janus_jax.training.metrics import JsonLines, TensorBoard, Wandb, Writer


class Outputs:
    """The files of one process that grow. Those of a run in a bucket are written here, and uploaded by a thread.

    Args:
        resumed_at: the step after which this process goes on; 0 at the beginning of a run.
        main: whether this is the process that writes metrics.
        notify: shows a line when the bucket refuses, which ends nothing.
    Raises:
        StorageError: of every method: a local directory cannot be written.
    """

    def __init__(self, run: RunDir[Any], resumed_at: int, *, main: bool, notify: Callable[[str], None]):
        self._run, self._resumed_at, self._main, self._notify = run, resumed_at, main, notify
        self._uploads: parts.Uploads | None = None
        self._closed = False

    @functools.cached_property
    def local(self) -> RunDir[Path]:
        """The run directory, or a local one with entries of the same names, whose files will be in the bucket."""
        run = self._run
        if not isinstance(run.path, BucketPath):
            return run
        uploads = parts.Uploads(run.path, self._notify, after=history.newest_start(run) if self._main else 0)
        local, self._uploads = RunDir(uploads.directory), uploads
        uploads.folder(local.profile, run.profile)
        uploads.folder(local.samples, run.samples, replaces=True)
        return local

    @property
    def failed(self) -> int:
        """Uploads that failed so far."""
        return 0 if self._uploads is None else self._uploads.failed

    def writers(self, config: RunConfig) -> list[Writer]:
        """Opens the writers of metrics that a configuration asks for. Only the main process calls this."""
        run, local, step = self._run, self.local, self._resumed_at
        uploads = self._uploads
        writers: list[Writer] = [JsonLines(local.metrics, () if uploads else history.kept(run, step))]
        if uploads:
            uploads.grows(
                local.metrics, lambda number: run.metrics_part(uploads.start, step, number), parts.ends_of_lines
            )
        else:
            _forget_parts(run.metrics_parts)
        if config.logging.tensorboard:
            writers.append(TensorBoard(local.tensorboard, step))
            if uploads:
                (events,) = local.tensorboard.iterdir()
                name = functools.partial(run.tensorboard_part, uploads.start)
                uploads.grows(events, name, ends_of_events, headed=True)
        if config.logging.wandb:
            values = config.model_dump(mode="json", by_alias=True)
            writers.append(Wandb(local.path, values, name=run.path.name))
            if uploads:
                uploads.folder(local.wandb, run.wandb)
        return writers

    def soon(self) -> None:
        """Has the newest records uploaded at once, so that a checkpoint that is whole rarely lacks those before it."""
        if self._uploads is not None:
            self._uploads.soon()

    def close(self) -> None:
        """Uploads the rest; the writers are closed before. Bounded in time; raises nothing. Then `failed` is final."""
        if self._uploads is not None and not self._closed:
            self._closed = True
            self._uploads.close()

    def __enter__(self) -> "Outputs":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """`close`, unless the directory is another start's now."""
        if self._uploads is not None and not self._closed and isinstance(error, LostLockError):
            self._closed = True
            self._uploads.drop()
        self.close()


def _forget_parts(folder: Path) -> None:
    """Removes parts that were copied from a bucket, after their lines are in metrics.jsonl."""
    for name in parts.names(folder):
        if start_of_part(name):
            (folder / name).unlink()
    with contextlib.suppress(OSError):  # does not exist, or holds something else
        folder.rmdir()
