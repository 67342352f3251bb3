"""The records that a run has written, over all its starts: of metrics.jsonl, and in a bucket of its parts."""

import dataclasses
import functools
import json
import math
from typing import Any

from janus_jax.checkpoint.run_dir import RunDir, start_of_part
from janus_jax.storage import parts
from janus_jax.training.metrics import better


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of metrics."""

    file: str
    number: int  # in the file, from 1
    text: str

    @functools.cached_property
    def step(self) -> float:
        """Infinite for a line that is cut short by a kill, or no record."""
        try:
            return float(json.loads(self.text)["step"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return math.inf


def lines(run: RunDir[Any]) -> list[Line] | None:
    """All lines that count, in order; None if the directory holds no metrics.

    Where a start resumed after a step, what earlier starts wrote of later steps does not count: it belongs to a future
    that is run again. metrics.jsonl is older than all parts: a local start takes in those that were copied beside it.

    Raises:
        StorageError: they cannot be read.
    """
    whole = parts.content(run.metrics)
    counted, latest = [] if whole is None else _split(run.metrics, whole), None
    for name, content in parts.contents(run.metrics_parts).items():
        if (start := start_of_part(name)) is None:
            continue
        if start != latest:
            counted, latest = _until(start[1], counted), start
        counted += _split(run.metrics_parts / name, content)
    return None if whole is None and latest is None else counted


def kept(run: RunDir[Any], resumed_at: int) -> list[str]:
    """The lines that a start keeps which resumes after this step; none if it begins the run (0).

    Raises:
        StorageError: they cannot be read.
    """
    return [line.text for line in _until(resumed_at, lines(run) or [])] if resumed_at else []


def newest_start(run: RunDir[Any]) -> int:
    """When the newest start began that has parts, in seconds as its name says; 0 without one."""
    starts = [start_of_part(name) for name in parts.names(run.metrics_parts)]
    return max((int(start[0].partition(".")[0]) for start in starts if start), default=0)


def last_records(run: RunDir[Any]) -> dict[str, dict[str, float]]:
    """Kind -> the numbers of its last record."""
    records = [json.loads(line.text) for line in lines(run) or [] if line.step < math.inf]
    return {record.pop("kind"): {k: v for k, v in record.items() if k != "step"} for record in records}


def best_record(run: RunDir[Any], until_step: int) -> dict[str, float]:
    """The held-out record with the smallest loss up to a step, as `better` returns it."""
    best: dict[str, float] = {}
    for line in lines(run) or []:
        if line.step <= until_step and (record := json.loads(line.text)).pop("kind", None) == "eval":
            best = better(best, record)
    return best


def _until(step: int, these: list[Line]) -> list[Line]:
    return [line for line in these if line.step <= step] if step else []


def _split(file: Any, content: bytes) -> list[Line]:
    name, texts = str(file), content.decode("utf-8", "replace").splitlines()
    return [Line(name, number, text) for number, text in enumerate(texts, 1)]
