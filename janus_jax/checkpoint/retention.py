"""Which steps of a run are kept."""

import dataclasses
import math
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from janus_jax.checkpoint.run_dir import COMMITTED, committed_steps
from janus_jax.config.run import RunConfig
from janus_jax.errors import LostLockError, StorageError
from janus_jax.storage import trees
from janus_jax.storage.local import Place, refusal

HIGHER_IS_BETTER = ("rewards/accuracies", "rewards/margins")
"""Held-out metrics that improve when they rise; the others improve when they fall."""

_COMPRESSED = 0.5
"""The least share of its arrays' bytes that a real step takes on disk: moments of unread tokens are zeros."""


@dataclasses.dataclass(frozen=True)
class Retention:
    """Keeps the newest steps, the first step of each `every` steps, and those that are best by a held-out metric."""

    newest: int = 2
    every: int | None = None
    best: int | None = None
    metric: str = "loss"

    @classmethod
    def of_config(cls, config: RunConfig) -> "Retention":
        """What a configuration says."""
        section = config.checkpoint
        return cls(section.keep, section.keep_every_steps, section.keep_best, config.eval.stop_metric)

    def kept(self, steps: Iterable[int], values: Mapping[int, float | None]) -> set[int]:
        """The steps to keep. The newest is always among them.

        Args:
            steps: whole steps.
            values: the metric, of those that were evaluated; a value that is not finite is never among the best.
        """
        ordered = sorted(steps)
        kept = set(ordered[-self.newest :])
        if self.every:
            # The first checkpoint at or after each multiple: saves need not fall on one.
            firsts = {step // self.every: step for step in reversed(ordered) if step >= self.every}
            kept |= set(firsts.values())
        if self.best:
            sign = -1 if self.metric in HIGHER_IS_BETTER else 1
            known = [(value, step) for step in ordered if (value := values.get(step)) is not None]
            ranked = sorted((sign * value, step) for value, step in known if math.isfinite(value))
            kept |= {step for _, step in ranked[: self.best]}
        return kept

    def __str__(self) -> str:
        parts = [f"the newest {self.newest:,}" if self.newest > 1 else "the newest one"]
        parts += [f"the first of every {self.every:,} steps"] if self.every else []
        order = "highest" if self.metric in HIGHER_IS_BETTER else "lowest"
        parts += [f"the {self.best:,} of the {order} held-out {self.metric}"] if self.best else []
        return ", ".join(parts)


@dataclasses.dataclass
class Policy:
    """`Retention` as Orbax asks for it: it deletes what is not preserved, after the new step is committed."""

    retention: Retention
    values: dict[int, float | None]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """For each checkpoint (with a `step`) whether it stays."""
        kept = self.retention.kept((info.step for info in checkpoints), self.values)
        return [info.step in kept for info in checkpoints]


class Deletion:
    """Deletes steps in a bucket that are not to be kept, in the background; a file system's steps are left to Orbax.

    A step that cannot be deleted is said, and tried again after the next save.

    Args:
        guard: called before each deletion; raises LostLockError if it must not be.
    """

    def __init__(self, notify: Callable[[str], None], guard: Callable[[], None]):
        self._notify, self._guard = notify, guard
        self._thread: threading.Thread | None = None

    def begin(self, checkpoints: Place, retention: Retention, values: Mapping[int, float | None]) -> None:
        """Starts, after the last one has ended."""
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(checkpoints, retention, values), daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Returns when nothing is being deleted."""
        if self._thread is not None:
            self._thread.join()

    def _run(self, checkpoints: Place, retention: Retention, values: Mapping[int, float | None]) -> None:
        try:
            steps = committed_steps(checkpoints)
            for step in sorted(set(steps) - retention.kept(steps, values)):
                self._guard()
                trees.remove(checkpoints / str(step), COMMITTED)
        except LostLockError:  # whoever has the lock deletes what is not to be kept
            return
        except StorageError as error:
            self._notify(f"{error}; an older checkpoint stays until the next save")


def room_for(
    checkpoints: os.PathLike[str], step: int, retention: Retention, values: Mapping[int, float | None], size: int
) -> tuple[list[int], str | None]:
    """What to delete so that a step fits on a local disk: the fewest of the steps that it will push out anyway, oldest
    first, and never the newest. Nothing where there is room. Where not even that suffices: nothing, and the reason.

    A step takes what the newest one takes. The first takes `size` bytes, or less if Orbax finds much to compress.
    """
    directory = Path(checkpoints)
    steps = committed_steps(directory)
    free = shutil.disk_usage(directory).free
    needed = _bytes_of(directory / str(steps[-1])) if steps else round(_COMPRESSED * size)
    pushed_out = sorted(set(steps[:-1]) - retention.kept([*steps, step], values))
    chosen: list[int] = []
    for old in pushed_out:
        if free >= needed:
            break
        chosen.append(old)
        free += _bytes_of(directory / str(old))
    if free >= needed:
        return chosen, None
    beside = f", {_shown(free)} with what checkpoint.keep no longer needs" if chosen else ""
    free = shutil.disk_usage(directory).free
    return (
        [],
        f"cannot be written: a checkpoint takes about {_shown(needed)}; free on this disk: {_shown(free)}{beside}",
    )


def space_note(checkpoints: os.PathLike[str], retention: Retention, size: int) -> str | None:
    """A sentence if a local disk cannot hold the newest steps and the one that is being written; None if it can.

    Args:
        size: bytes of the arrays of a step; of a run that has steps, the newest of them counts.
    """
    directory = Path(checkpoints)
    steps = committed_steps(directory)
    size = _bytes_of(directory / str(steps[-1])) if steps else size
    most = retention.newest + (retention.best or 0) + 1
    free = shutil.disk_usage(directory).free + sum(_bytes_of(directory / str(step)) for step in steps)
    if most * size <= free:
        return None
    keys = f"checkpoint.keep={retention.newest}" + (f" and keep_best={retention.best}" if retention.best else "")
    return (
        f"{directory}: a checkpoint takes about {_shown(size)}, and with {keys} up to {most} are there while one is "
        f"written: {_shown(most * size)}; the disk has {_shown(free)} for them; "
        + ("keep fewer, or " if size * 2 <= free else "")
        + "make room, or choose another run.dir"
    )


def unmakeable(checkpoints: os.PathLike[str], step: int) -> str | None:
    """Why the directory of a step cannot be made on a local disk; None if it can.

    Orbax makes it in one process, and the others would wait for it for ever.
    """
    if Path(checkpoints, str(step)).exists():
        return "cannot be written: it exists already"
    attempt = Path(checkpoints, f".{step}.attempt")
    try:
        attempt.mkdir(exist_ok=True)
        attempt.rmdir()
    except OSError as error:
        return f"cannot be written: {refusal(error)}"
    return None


def _bytes_of(directory: Path) -> int:
    """What a directory takes on its disk."""
    files = [path.stat() for path in directory.rglob("*")]
    return sum(file.st_blocks * 512 for file in files)


def _shown(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
