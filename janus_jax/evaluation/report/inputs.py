"""What `janus report` is given: each path is recognised by what it holds."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from janus_jax.errors import DataError
from janus_jax.evaluation.report.results import Result, is_judged, is_table, of_directory, of_json
from janus_jax.evaluation.report.run_files import RunFiles, looks_like_a_run, read_run
from janus_jax.evaluation.report.samples import Sample, read_lines
from janus_jax.storage import parts
from janus_jax.storage.bucket import BucketPath, is_url
from janus_jax.storage.local import Place, place

ALLOWED = (
    "allowed: a run.dir of `janus train`, a directory of `janus bench judge` or `compare`, a JSON table (--json) of an "
    "evaluation, or answers (.jsonl) of `janus generate` or `janus bench run`"
)


@dataclasses.dataclass
class Inputs:
    """Everything that was given, by kind, in the order of the command line."""

    runs: list[RunFiles] = dataclasses.field(default_factory=list)
    results: list[Result] = dataclasses.field(default_factory=list)
    answers: list[Sample] = dataclasses.field(default_factory=list)
    files: list[tuple[str, str, int]] = dataclasses.field(default_factory=list)
    """Label, path and number of answered prompts of each answer file."""
    notes: list[str] = dataclasses.field(default_factory=list)
    """What of them cannot be read."""


def read(given: Sequence[str]) -> Inputs:
    """Reads PATH or NAME=PATH, in any mix.

    Raises:
        DataError: a path does not exist, is given twice, or is nothing that a report can show.
        StorageError: it cannot be read.
    """
    named = [_named(text) for text in given]
    paths = [path for _, path in named]
    ends = _labels(paths)
    inputs, seen = Inputs(), set[str]()
    for (name, path), end in zip(named, ends, strict=True):
        same = path.rstrip("/") if is_url(path) else os.path.realpath(os.path.expanduser(path))
        if same in seen:
            raise DataError(path, "is given twice")
        seen.add(same)
        _add(inputs, path, name or end)
    for labels in ([one.label for one in inputs.runs], [one.label for one in inputs.results]):
        if repeated := [label for label in labels if labels.count(label) > 1]:
            raise DataError(f"{repeated[0]}=", "names two inputs; allowed: a name for each")
    return inputs


def _named(text: str) -> tuple[str, str]:
    """Label and path; a path that exists is no label, whatever is in its name."""
    name, equals, path = text.partition("=")
    if not equals or not name or "/" in name or os.path.exists(text):
        path, name = text, ""
    if not path.strip():
        raise DataError(f"{text!r}", "names no path; allowed: PATH or NAME=PATH")
    return name, path


def _labels(paths: Sequence[str]) -> list[str]:
    """The shortest ends of the paths that differ."""
    split = [path.rstrip("/").split("/") if is_url(path) else Path(os.path.abspath(path)).parts for path in paths]
    for count in range(1, max(map(len, split)) + 1):
        labels = ["/".join(part[-count:]) for part in split]
        if len(set(labels)) == len(labels):
            return labels
    return list(paths)


def _add(inputs: Inputs, path: str, label: str) -> None:
    where = place(path)
    if where.is_dir():
        if looks_like_a_run(where):
            inputs.runs.append(read_run(path, label))
        elif not is_url(path) and is_judged(local := Path(os.path.expanduser(path))):
            inputs.results.append(of_directory(local, label))
        else:
            raise DataError(path, f"holds none of the files of a run or of a judge{_runs_below(where)}; {ALLOWED}")
        return
    # A pipe is not read: nothing would end the wait for what nobody writes into it.
    readable = is_url(path) or not where.exists() or Path(os.path.expanduser(path)).is_file()
    content = parts.content(where) if readable else None
    if content is None:
        what = "is no file and no directory" if where.exists() else "no such file or directory"
        raise DataError(path, f"{what}; {ALLOWED}")
    value = _json(content)
    if is_table(value):
        inputs.results.append(of_json(value, label, path))
        return
    samples, unread = read_lines(content, label, path)
    if not samples:
        what = "is empty" if not content.strip() else "is not recognised"
        if isinstance(value, dict) and {"results", "configs"} <= value.keys():
            what = "holds results of lm-eval; give the table that `janus eval --json` writes"
        raise DataError(path, f"{what}; {ALLOWED}")
    inputs.answers += samples
    inputs.files.append((label, path, len(samples)))
    inputs.notes += unread


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _runs_below(directory: Path | Place) -> str:
    """A hint for a directory of runs."""
    if isinstance(directory, BucketPath):
        return ""
    below = [entry.name for entry in sorted(directory.iterdir()) if entry.is_dir() and looks_like_a_run(entry)]
    return f"; it holds the runs {', '.join(below[:5])}{' ...' if below[5:] else ''}: name them" if below else ""
