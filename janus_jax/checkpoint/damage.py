"""Steps that are not what was written: recognised, named, set aside and kept."""

import contextlib
from collections.abc import Callable
from typing import Any

from janus_jax.checkpoint import checksums
from janus_jax.checkpoint.restore import read_json_item, reading
from janus_jax.checkpoint.run_dir import COMMITTED, ITEMS, is_committed, is_marked
from janus_jax.errors import ConversionError, DamagedError, JanusError, first_line
from janus_jax.storage import trees
from janus_jax.storage.bucket import BucketPath, os_errors
from janus_jax.storage.local import Place, place, write_whole

_DAMAGED = ".damaged"
_REASON = "damage.txt"

Notify = Callable[[str], None]


def read_values(step: Place) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any] | None]:
    """(data, meta, checksums) of a step; no checksums if an older version wrote it.

    Raises:
        DamagedError: one of them is not what was written.
        StorageError: one of them cannot be read.
    """
    with reading(step):
        meta, record = read_meta(step)
        data = read_json_item(step / "data")
        if record is not None:
            checksums.require_same_json(step, record, data=data)
    return data, meta, record


def read_meta(directory: Place) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """(meta, checksums) of a step or converted directory; no checksums if it was written without them.

    Raises:
        ConversionError: one of them cannot be read, or is not what was written.
    """
    record = read_json_item(directory / checksums.ITEM) if _has_checksums(directory) else None
    if record is not None:
        checksums.require_whole(directory, record)
    meta = read_json_item(directory / "meta")
    if record is not None:
        checksums.require_same_json(directory, record, meta=meta)
    return meta, record


def _has_checksums(step: Place) -> bool:
    """Whether the step was written with checksums, even if they are gone: Orbax lists the items of a step."""
    if (step / checksums.ITEM).is_dir():
        return True
    listing = step / "_CHECKPOINT_METADATA"
    return listing.exists() and f'"{checksums.ITEM}"' in listing.read_text()


def newest_good(checkpoints: Place, notify: Notify) -> tuple[int, dict[str, Any]] | None:
    """The newest step whose values are whole, and its `meta`. Sets aside the newer ones. Call it on one process.

    Reads no array: `Checkpoints.restore` compares those.

    Raises:
        ConversionError: steps exist, and none is good.
        StorageError: a step cannot be read.
    """
    if not checkpoints.is_dir():
        return None
    steps = sorted((int(path.name) for path in checkpoints.iterdir() if path.name.isdecimal()), reverse=True)
    for step in steps:
        directory = checkpoints / str(step)
        if not is_marked(directory):  # never finished: `set_aside_incomplete` has it
            continue
        try:
            if not is_committed(directory):
                missing = [item for item in ITEMS if not (directory / item).is_dir()]
                raise DamagedError(directory, f"{', '.join(missing)} does not exist")
            _, meta, _ = read_values(directory)
            return step, meta
        except DamagedError as error:
            set_aside(directory, error, notify)
    if tried := _damaged(place(checkpoints)):  # listed anew
        reasons = "; ".join(f"{name}: {reason}" for name, reason in tried.items())
        raise ConversionError(
            checkpoints,
            f"holds no whole checkpoint; tried {reasons}; to try one again, take {_DAMAGED} off its name; to begin "
            "anew, choose another run.dir",
        )
    return None


def newer_metas(checkpoints: Place, step: int) -> list[dict[str, Any]]:
    """The `meta` of the steps after `step` that were set aside, newest first, as far as that item is whole."""
    metas = []
    for path in checkpoints.iterdir():
        number, _, rest = path.name.partition(".")
        if number.isdecimal() and int(number) > step and f".{rest}".startswith(_DAMAGED):
            with contextlib.suppress(JanusError):
                metas.append((int(number), read_meta(path)[0]))
    return [meta for _, meta in sorted(metas, key=lambda pair: -pair[0])]


def set_aside(step: Place, error: DamagedError, notify: Notify) -> None:
    """Renames a damaged step to STEP.damaged, with the reason in it. Call it on one process.

    Raises:
        StorageError: it cannot be renamed.
    """
    reason = str(error).replace(f"{step}/", "").replace(f"{step}: ", "")
    target, count = step.parent / f"{step.name}{_DAMAGED}", 1
    in_bucket = isinstance(step, BucketPath)
    with os_errors(step, "is damaged and cannot be renamed"):
        while is_marked(target) if in_bucket else target.exists():  # unmarked: a move that was cut off
            count += 1
            target = step.parent / f"{step.name}{_DAMAGED}-{count}"
        trees.move(step, target, COMMITTED)
        write_whole(target / _REASON, f"{reason}\n")
    notify(f"{step}: {reason}; it is kept as {target.name}, and the run looks for an older checkpoint")


def set_aside_incomplete(checkpoints: Place, notify: Notify) -> None:
    """Renames steps that are not whole, so that they neither block a save of the same number nor count as kept.

    In a bucket Orbax saves a step where it stays, so one without its commit mark is a save that was cut off: removed.
    """
    for path in list(checkpoints.iterdir()):
        if path.name.isdecimal() and not is_committed(path):
            if isinstance(path, BucketPath) and not is_marked(path):
                trees.remove(path, COMMITTED)
                notify(f"{path}: its write or deletion was interrupted; its remains are removed")
                continue
            target = checkpoints / f"{path.name}.incomplete"
            if target.exists():
                trees.remove(target, COMMITTED)
            trees.move(path, target, COMMITTED)
            notify(f"{path}: its write, copy or deletion was interrupted; it is kept as {target.name}")


def _damaged(checkpoints: Place) -> dict[str, str]:
    """{name: reason} of all steps that were set aside."""
    reasons = {}
    for path in sorted(checkpoints.iterdir(), key=str):
        if _DAMAGED in path.name and path.is_dir():
            file = path / _REASON
            reasons[path.name] = first_line(file.read_text()) if file.exists() else "damaged"
    return reasons
