"""What a run directory says: configuration, records, summary, time, samples, checkpoints. What is missing is named."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from janus_jax.checkpoint.run_dir import RunDir
from janus_jax.errors import DataError
from janus_jax.evaluation.report.samples import Sample, read_samples
from janus_jax.storage import parts
from janus_jax.storage.local import Place, place
from janus_jax.training import history
from janus_jax.training.curves import BAD_YAML, Curves, curves_of, objective_in, stored_yaml
from janus_jax.training.goodput import PHASES

_NAMED = 3
"""Lines that cannot be read and are named; the rest are counted."""


@dataclasses.dataclass(frozen=True)
class Start:
    """One start of a run; of many, the earliest are one."""

    began: float
    ended: float
    finished: bool
    saved: tuple[int, ...]
    seconds: dict[str, float]
    starts: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFiles:
    """A run, as far as its directory tells."""

    label: str
    path: str
    curves: Curves
    config: dict[str, Any]
    config_text: str
    summary: dict[str, Any]
    starts: tuple[Start, ...]
    nonfinite: tuple[dict[str, Any], ...]
    """Records of steps whose loss or gradient was not finite."""
    meta: dict[str, Any]
    """What the newest checkpoint says of data, model and course; empty without one."""
    samples: tuple[Sample, ...]
    checkpoints: tuple[int, ...]
    exports: tuple[int, ...]
    held_by: str
    """Who trains here at this time, by the lock; empty if nobody does."""
    missing: tuple[str, ...]
    """What the directory does not have, or what cannot be read, as sentences."""

    @property
    def last_step(self) -> int:
        """The newest step that any record is about; 0 without one."""
        steps = [int(at.max()) for kind in self.curves.records.values() for at, _ in kind.values() if len(at)]
        return max([*steps, *self.checkpoints, _whole(self.summary.get("step"))])

    @property
    def timed(self) -> bool:
        """Whether anything is known about its time."""
        return sum(self.seconds.values()) > 0

    @property
    def seconds(self) -> dict[str, float]:
        """Phase -> seconds over all starts; from the summary where the starts are not known."""
        of_starts = {name: sum(start.seconds.get(name, 0.0) for start in self.starts) for name in PHASES}
        known = _mapping(self.summary.get("goodput"))
        return of_starts if self.starts else {name: _number(known.get(name)) for name in PHASES if name in known}


def looks_like_a_run(path: Path | Place) -> bool:
    """Whether a directory holds what `janus train` writes."""
    run = RunDir(path)
    marks = (run.metrics, run.metrics_parts, run.summary, run.goodput, run.lock, run.checkpoints)
    if any(entry.exists() for entry in marks):
        return True
    return bool(objective_in(run.config))


def read_run(directory: str | os.PathLike[str], label: str) -> RunFiles:
    """Reads a run directory, local or in a bucket.

    Raises:
        StorageError: it cannot be read.
    """
    run, missing, bad = RunDir(place(directory)), [], list[DataError]()

    def wanted(file: Path | Place, parse: Callable[[bytes], Any], without: str) -> dict[str, Any]:
        content = parts.content(file)
        if content is None:
            missing.append(f"{file.name} is missing{without}")
            return {}
        try:
            return _mapping(parse(content), strict=True)
        except (*BAD_YAML, TypeError):
            missing.append(f"{file.name} cannot be read, so nothing of it is shown")
            return {}

    config = wanted(run.config, stored_yaml, ": the settings are not known")
    lines = history.lines(run)
    if not lines:
        missing.append("no step was logged yet" if lines is None else "the metrics are empty: no step was logged yet")
    curves = curves_of(lines or [], label, objective_in(run.config), bad)
    missing += [f"a line is left out: {error}" for error in bad[:_NAMED]]
    if len(bad) > _NAMED:
        missing.append(f"{len(bad) - _NAMED:,} more lines of metrics are left out, for the same reason")
    summary = wanted(run.summary, json.loads, ": the run is still going on, or was killed before its end")
    account = wanted(run.goodput, json.loads, ": its starts are not known")
    checkpoints = tuple(run.committed_steps())
    if not checkpoints:
        missing.append("no checkpoint is whole yet")
    samples, unread = read_samples(run.samples, label)
    missing += unread
    if not samples and config.get("samples") and not unread:
        missing.append("no samples were written yet, though the configuration asks for them")
    return RunFiles(
        label=label,
        path=str(directory),
        curves=curves,
        config=config,
        config_text=(parts.content(run.config) or b"").decode("utf-8", "replace"),
        summary=summary,
        starts=_starts(account),
        nonfinite=tuple(_nonfinite(lines or [])),
        meta=_meta(run, checkpoints),
        samples=samples,
        checkpoints=checkpoints,
        exports=tuple(sorted(_steps(run.exports))),
        held_by=_held_by(parts.content(run.lock)),
        missing=tuple(missing),
    )


def _starts(account: dict[str, Any]) -> tuple[Start, ...]:
    """Those of goodput.json that have the form of today."""
    made, given = [], account.get("starts")
    for one in map(_mapping, given if isinstance(given, list) else []):
        seconds = {str(name): _number(value) for name, value in _mapping(one.get("seconds")).items()}
        saved = tuple(
            sorted(int(step) for step in _mapping(one.get("saved")) if str(step).isdecimal() and len(str(step)) < 20)
        )
        began, ended = _number(one.get("began")), _number(one.get("ended"))
        made.append(Start(began, ended, one.get("finished") is True, saved, seconds, _whole(one.get("starts")) or 1))
    return tuple(made)


def _nonfinite(lines: list[history.Line]) -> list[dict[str, Any]]:
    records = []
    for line in lines:
        if '"nonfinite"' in line.text:
            try:
                record = json.loads(line.text)
            except (ValueError, RecursionError):
                continue  # counted where curves are read
            if isinstance(record, dict) and record.get("kind") == "nonfinite":
                records.append(record)
    return records


def _meta(run: RunDir[Any], checkpoints: tuple[int, ...]) -> dict[str, Any]:
    """Orbax writes the item as one file of JSON."""
    if not checkpoints:
        return {}
    try:
        content = parts.content(run.checkpoints / str(checkpoints[-1]) / "meta" / "metadata")
        return _mapping(json.loads(content or b"{}"))
    except (ValueError, RecursionError):
        return {}


def _steps(folder: Path | Place) -> list[int]:
    return [int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal()] if folder.is_dir() else []


def _held_by(lock: bytes | None) -> str:
    try:
        held = _mapping(json.loads(lock or b"{}"))
    except (ValueError, RecursionError):
        return ""
    return ", ".join(f"{key} {held[key]}" for key in ("host", "pid") if held.get(key))


def _mapping(value: Any, *, strict: bool = False) -> dict[str, Any]:
    if strict and not isinstance(value, dict):
        raise ValueError("no object")
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and abs(value) < 1e300 else 0.0


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and 0 <= value < 1 << 53 else 0
