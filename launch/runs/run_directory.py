"""What a run directory in a bucket says of its run: metrics, whole checkpoints, exports, where the time went."""

import dataclasses
import re
from typing import Any

from launch.cloud.bucket import Bucket
from launch.runs.snapshot import objects

_PATTERNS = (
    "metrics/*",
    "checkpoints/*/commit_success.txt",  # Orbax writes it last
    "exports/*/conversion_report.json",  # an export has it once it is verified
    "goodput.json",
    "summary.json",
)
_PART = re.compile(r"metrics/(\d+)\.([0-9a-f]+)-from-(\d+)-(\d+)\.jsonl")


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """The state of a run directory."""

    train: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Newest record of training: step, loss, tokens_per_s, ..."""
    eval: dict[str, Any] = dataclasses.field(default_factory=dict)
    checkpoints: tuple[int, ...] = ()
    """Whole steps, ascending."""
    checkpoint_s: float | None = None
    """When the newest one was finished, by the store's clock."""
    exports: tuple[int, ...] = ()
    goodput: float | None = None
    """Share of the time, over all starts, in which the run trained."""
    starts: int = 0
    ended: str | None = None
    """How the run ended, once it has."""


def look(bucket: Bucket) -> RunDirectory:
    """Reads a run directory with two calls.

    Raises:
        CloudError: the bucket refused.
    """
    entries = bucket.entries(*_PATTERNS)
    names = [entry.name for entry in entries]
    parts = sorted((int(match[1]), match[2], int(match[4]), name) for name in names if (match := _PART.fullmatch(name)))
    read = [part[-1] for part in parts[-2:] if part[:2] == parts[-1][:2]]
    read += [name for name in ("goodput.json", "summary.json") if name in names]
    values = objects(bucket.text(read))
    records = [value for value in values if "kind" in value and "step" in value]
    accounts = [value for value in values if isinstance(value.get("starts"), list)]
    summary = next((value for value in values if "ended" in value), {})
    saved = {_step(entry.name): entry.updated_s for entry in entries if entry.name.startswith("checkpoints/")}
    saved.pop(-1, None)
    goodput, starts = _goodput(accounts[-1]["starts"]) if accounts else (None, 0)
    return RunDirectory(
        train=next((record for record in reversed(records) if record["kind"] == "train"), {}),
        eval=next((record for record in reversed(records) if record["kind"] == "eval"), {}),
        checkpoints=tuple(sorted(saved)),
        checkpoint_s=saved[max(saved)] if saved else None,
        exports=tuple(sorted(step for name in names if name.startswith("exports/") and (step := _step(name)) >= 0)),
        goodput=goodput,
        starts=starts,
        ended=None if not summary else str(summary["ended"]),
    )


def _step(name: str) -> int:
    """The number of a step in a name like checkpoints/STEP/...; -1 for other names."""
    step = name.split("/")[1]
    return int(step) if step.isdecimal() else -1


def _goodput(starts: list[dict[str, Any]]) -> tuple[float | None, int]:
    """Share of training in all seconds, and the number of starts; see `janus_jax/training/goodput.py`."""
    accounts = [start.get("seconds", {}) for start in starts]
    total = sum(sum(seconds.values()) for seconds in accounts)
    step = sum(seconds.get("step", 0.0) for seconds in accounts)
    return (step / total if total else None), sum(int(start.get("starts", 1)) for start in starts)
