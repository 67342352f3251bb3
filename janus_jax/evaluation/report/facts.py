"""What the page says of runs in words and numbers."""

import dataclasses
import datetime
import json
import os
import re
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from janus_jax.errors import counted
from janus_jax.evaluation.report.run_files import RunFiles
from janus_jax.storage.bucket import is_url
from janus_jax.training.curves import ACCURACY
from janus_jax.training.goodput import PHASES, duration

_DIFFERENCES = 80
"""Settings that are shown where runs differ; the rest are counted."""
_COLOURS = 13
"""Of phases, in the style sheet."""
_STEPS = 30
"""Checkpoints that are listed of a run."""

_READ = {
    "examples": "examples that are read",
    "overlong": "over-long examples",
    "left_out": "examples left out",
    "held_out": "held out",
}
"""Key of the summary -> what it counts."""
_DIGEST = re.compile("[0-9a-f]{40,}")


@dataclasses.dataclass(frozen=True)
class State:
    """How a run stands."""

    level: str
    """good, look or bad, for its colour."""
    text: str


@dataclasses.dataclass(frozen=True)
class Link:
    """A place of a run. `href` is empty where no relative link can be made."""

    text: str
    href: str


def state(run: RunFiles) -> State:
    """Finished, stopped early, interrupted, going on, or unknown."""
    ended, total = run.summary.get("ended"), run.summary.get("total_steps")
    if run.held_by:
        return State("look", f"going on, or killed: its lock names {run.held_by}; step {run.last_step:,} is the newest")
    if not run.summary:
        return State("look", f"no final record; step {run.last_step:,} is the newest")
    if ended == "finished":
        return State("good", "finished")
    where = f" at step {run.last_step:,}" + (f" of {total:,}" if isinstance(total, int) else "")
    return State("look", f"interrupted{where}" if ended == "interrupted" else f"stopped early{where}: {ended}")


def summary_rows(runs: Sequence[RunFiles]) -> list[tuple[str, list[str]]]:
    """Facts that stand at the top: a name, and a cell for each run. Facts that no run has are left out."""
    rows: dict[str, list[str]] = {}
    for number, run in enumerate(runs):
        for name, text in _summary(run):
            rows.setdefault(name, [""] * len(runs))[number] = text
    return list(rows.items())


def _summary(run: RunFiles) -> Iterator[tuple[str, str]]:
    summary, config, model = run.summary, run.config, run.meta.get("model")
    yield "objective", run.curves.objective or "not known"
    yield "starts from", _source(config)
    base = _part(run.meta, "facts").get("base_model")
    if base:
        yield "base model", words(base)
    if isinstance(model, dict) and "num_layers" in model:
        yield "model", f"{words(model['num_layers'])} layers of width {words(model.get('hidden_size'))}"
    total = summary.get("total_steps")
    yield "steps", f"{run.last_step:,}" + (f" of {total:,}" if isinstance(total, int) else "")
    for title, kind, metric in (
        ("loss, last batch", "train", "loss"),
        ("held-out loss", "eval", "loss"),
        ("held-out accuracy", "eval", ACCURACY),
        ("held-out margin", "eval", "rewards/margins"),
    ):
        steps, values = run.curves.points(kind, metric)
        if len(values):
            yield title, f"{values[-1]:.4g} (step {int(steps[-1]):,})"
    best = _part(summary, "best")
    if "loss" in best and "step" in best:
        yield "smallest held-out loss", f"{words(best['loss'])} (step {words(best['step'])})"
    for title, key in (("tokens", "tokens"), ("tokens/s, median", "tokens_per_s")):
        if key in summary:
            yield title, words(summary[key])
    if isinstance(fill := summary.get("fill"), float):
        yield "mean fill of rows", f"{fill:.1%}"
    if run.timed:
        yield "share of training", f"{run.seconds.get('step', 0.0) / sum(run.seconds.values()):.0%}"
    for title, key in (
        ("skipped steps", "skipped"),
        ("saves that failed", "failed_saves"),
        ("uploads that failed", "failed_uploads"),
    ):
        if summary.get(key):
            yield title, words(summary[key])
    if run.nonfinite:
        yield "steps that were not finite", f"{len(run.nonfinite):,}"


def goodput_words(run: RunFiles) -> str:
    """The share of training in the time, and what took most of the rest."""
    seconds = {name: value for name, value in run.seconds.items() if value > 0}
    total = sum(seconds.values())
    if not total:
        return "Where the time went is not known"
    starts = sum(start.starts for start in run.starts) or 1
    others = sorted((name for name in seconds if name != "step"), key=lambda name: -seconds[name])
    rest = f"; most of the rest: {others[0].replace('_', ' ')}, {duration(seconds[others[0]])}" if others else ""
    return (
        f"{seconds.get('step', 0) / total:.0%} of {duration(total)} was training, in {counted(starts, 'start')}{rest}"
    )


def time_rows(runs: Sequence[RunFiles]) -> list[tuple[str, str, list[str], list[float]]]:
    """Phase, what it is, and of each run its time and its share. Phases without time are left out."""
    totals = [sum(run.seconds.values()) or 1.0 for run in runs]
    rows = []
    for name, what in PHASES.items():
        seconds = [run.seconds.get(name, 0.0) for run in runs]
        if any(value >= 0.5 for value in seconds):
            shares = [value / total for value, total in zip(seconds, totals, strict=True)]
            cells = [f"{duration(s)} ({share:.0%})" for s, share in zip(seconds, shares, strict=True)]
            rows.append((name.replace("_", " "), what, cells, shares))
    return rows


def start_rows(run: RunFiles) -> list[list[str]]:
    """A row for each start: number, began, last sign of life, training, saved steps, how it ended."""
    rows, number = [], 0
    for at, start in enumerate(run.starts):
        first, number = number + 1, number + start.starts
        newest = at == len(run.starts) - 1
        if start.finished:
            how = "finished"
        elif newest:
            how = "going on, or killed" if run.held_by else "ended before the last step"
        else:
            gap = run.starts[at + 1].began - start.ended
            how = "ended before the last step" + (f"; the next one began {duration(gap)} later" if gap > 0 else "")
        saved = f"{counted(len(start.saved), 'save')}, newest step {start.saved[-1]:,}" if start.saved else "none"
        lost = start.seconds.get("lost_work", 0.0)
        trained = duration(start.seconds.get("step", 0.0)) + (f", and {duration(lost)} lost" if lost >= 0.5 else "")
        name = f"{number}" if first == number else f"{first} to {number}"
        rows.append([name, _moment(start.began), _moment(start.ended), trained, saved, how])
    return rows


def data_facts(run: RunFiles) -> list[tuple[str, str]]:
    """What the run read, as far as its records say."""
    data, summary = _part(run.config, "data"), run.summary
    facts = [(f"data.{key}", words(value)) for key, value in data.items() if value is not None]
    for key, name in _READ.items():
        if summary.get(key) not in (None, {}, ""):
            facts.append((name, words(summary[key])))
    for name in ("template", "data_fingerprint"):
        if run.meta.get(name):
            facts.append((name.replace("_", " "), words(run.meta[name])))
    if (read := _part(run.meta, "read")) and "examples" not in summary:
        facts.append(("read, by the newest checkpoint", words(read)))
    if tokenizer := _part(run.meta, "tokenizer"):
        facts.append(("tokenizer", words(tokenizer)))
    epochs = run.curves.points("train", "epoch")[1]
    if len(epochs):
        facts.append(("epochs read", f"{epochs[-1]:.4g}"))
    return facts


def data_sets(run: RunFiles) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: the data sets that the newest checkpoint names."""
    sets = run.meta.get("data")
    given = [one for one in sets if isinstance(one, dict)] if isinstance(sets, list) else []
    columns = list(dict.fromkeys(key for one in given for key in one if any(other.get(key) for other in given)))
    return columns, [[words(one.get(column)) for column in columns] for one in given] if columns else []


def differences(runs: Sequence[RunFiles]) -> tuple[list[tuple[str, list[str]]], int]:
    """Settings that are not the same in all runs, with a cell for each; and how many more."""
    flat = [dict(_flat(run.config)) for run in runs]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    rows = [(key, [one.get(key, "not set") for one in flat]) for key in keys]
    unlike = [(key, cells) for key, cells in rows if len(set(cells)) > 1 and set(cells) != {"null", "not set"}]
    return unlike[:_DIFFERENCES], len(unlike[_DIFFERENCES:])


def places(run: RunFiles, out: Path) -> list[tuple[str, list[Link], int]]:
    """Exports, checkpoints and curves of a run, with how many more; links are relative to the page."""
    shown, more = run.checkpoints[-_STEPS:], len(run.checkpoints[:-_STEPS])
    groups = [
        ("exports", [link(f"{run.path}/exports/{step}", f"step {step:,}", out) for step in run.exports[-_STEPS:]], 0),
        ("checkpoints", [link(f"{run.path}/checkpoints/{step}", f"step {step:,}", out) for step in shown], more),
    ]
    return [group for group in groups if group[1]]


def link(path: str, text: str, out: Path) -> Link:
    """A link that works where page and run stay beside each other."""
    if is_url(path):
        return Link(f"{text}: {path}", "")
    relative = os.path.relpath(os.path.realpath(os.path.expanduser(path)), out.resolve().parent)
    try:
        return Link(text, "./" + urllib.parse.quote(relative, safe="/"))
    except UnicodeEncodeError:  # a name that is not UTF-8
        return Link(f"{text}: {path}", "")


def _source(config: dict[str, Any]) -> str:
    if source := _part(config, "init").get("from"):
        return words(source)
    model = config.get("model")
    if not model:
        return "not known"
    preset = model.get("preset") if isinstance(model, dict) else model
    return "random weights" + (f", preset {words(preset)}" if preset else "")


def _flat(value: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value and depth < 6:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key), depth + 1)
    else:
        yield name, words(value)


def phase_number(name: str) -> int:
    """The colour of a phase."""
    return list(PHASES).index(name.replace(" ", "_")) % _COLOURS


def not_finite(record: dict[str, Any]) -> str:
    """What of a step was not finite; a number that was not is null in its record."""
    names = [
        key.replace("_norm", "ient").replace("_", " ") for key in ("loss", "grad_norm") if record.get(key, 0) is None
    ]
    return f"{' and '.join(names) or 'something'} not finite"


def words(value: Any, depth: int = 0) -> str:
    """A value of a configuration or record as text. Of digests, it is the beginning."""
    if isinstance(value, str):
        return f"{value[:12]}…" if _DIGEST.fullmatch(value) else value
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int):
        return f"{value:,}" if abs(value) < 1 << 64 else "a number of more than 64 bits"
    if isinstance(value, float):
        return f"{value:,.6g}" if abs(value) < 1e9 else f"{value:.6g}"
    if isinstance(value, dict) and depth < 3:
        nested = any(isinstance(inner, dict) for inner in value.values())
        return ("; " if nested else ", ").join(f"{key} {words(inner, depth + 1)}" for key, inner in value.items())
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, TypeError, RecursionError):
        return "a value that is not shown"


def _part(value: dict[str, Any], key: str) -> dict[str, Any]:
    inner = value.get(key)
    return inner if isinstance(inner, dict) else {}


def _moment(seconds: float) -> str:
    try:
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return "not known"
