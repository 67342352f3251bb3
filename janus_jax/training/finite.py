"""Steps whose loss or gradient is not finite: how many were skipped, what their batches held, and what to say."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from janus_jax.data.dataset import Dataset
from janus_jax.data.epoch import PackedEpochs, Position

_SHOWN = 8
"""Examples that a message names; metrics.jsonl has all."""


@dataclasses.dataclass(frozen=True)
class Skipped:
    """Steps whose update was not applied, since the run began."""

    total: int = 0
    in_a_row: int = 0  # up to the last step

    def after(self, *, skipped: bool) -> "Skipped":
        """After one more step."""
        return Skipped(self.total + 1, self.in_a_row + 1) if skipped else Skipped(self.total)

    def updates_before(self, step: int) -> int:
        """Updates that were applied before step `step`, the last one, counted from 1."""
        return step - 1 - self.total + min(1, self.in_a_row)


NONE_SKIPPED = Skipped()


def not_finite(scalars: Mapping[str, float]) -> dict[str, float]:
    """Those of a step's scalars that are NaN or infinite; the jitted step skips its update for the same reason."""
    return {name: scalars[name] for name in sorted(scalars, reverse=True) if not math.isfinite(scalars[name])}


def batch_facts(loader: PackedEpochs, position: Position) -> dict[str, Any]:
    """What the batch at `position` holds, for metrics.jsonl: epoch, and example numbers by data set, on all processes.

    Numbers are those that `janus data inspect` shows: each part of a mixture has its own.
    """
    row = {"row": position.row} if loader.settings.examples is None else {}  # otherwise it depends on the mesh
    return {"epoch": position.epoch, **row, "batch": located(loader.dataset, loader.example_ids(position))}


def located(dataset: Dataset, numbers: Iterable[int]) -> list[dict[str, Any]]:
    """Examples of a data set or a mixture by built split: `data`, `split`, and their numbers there, ascending."""
    parts, start, ids = [], 0, sorted({int(number) for number in numbers})
    for part in dataset.parts:
        if mine := [number - start for number in ids if start <= number < start + len(part)]:
            parts.append({"data": part.name, "split": part.split, "examples": mine})
        start += len(part)
    return parts


def described(facts: Mapping[str, Any]) -> str:
    """`batch_facts` in words."""
    first = f" from row {facts['row']}" if "row" in facts else ""
    return f"its batch (epoch {facts['epoch']}{first}) holds {listed(facts['batch'])}"


def listed(parts: Iterable[Mapping[str, Any]]) -> str:
    """`located` in words: the first few."""
    shown = []
    for part in parts:
        numbers = part["examples"]
        more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
        noun = "example" if len(numbers) == 1 else "examples"
        shown.append(f"{noun} {', '.join(map(str, numbers[:_SHOWN]))}{more} of {part['data']}, split {part['split']}")
    return "; ".join(shown)
