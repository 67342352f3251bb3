"""Mean scores of judged answers, by source and by membership in sets of prompts, beside the paper's."""

import dataclasses
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from janus_jax.data.columns import columns_of, text
from janus_jax.errors import ConfigError, DataError, counted, named
from janus_jax.evaluation.bench import judgements
from janus_jax.evaluation.bench.judgements import Judged, prompt_digest
from janus_jax.evaluation.bench.rows import ALIASES, raw_rows
from janus_jax.evaluation.intervals import mean_interval
from janus_jax.evaluation.paper import paper
from janus_jax.evaluation.result_table import Row, Table

SEVERAL, NONE = "several sets", "no set"


@dataclasses.dataclass(frozen=True)
class Group:
    """Mean score of a model's answers to some rows."""

    model: str
    by: str
    """all, source, or set."""
    name: str
    rows: int
    scored: int
    """Rows with at least one score; the mean is of them."""
    mean: float
    low: float
    high: float
    """Ends of the 95 % bootstrap interval."""
    verdicts: int
    failed: int
    """Verdicts without a score, which count nowhere."""


def read_set(source: str | os.PathLike[str]) -> set[str]:
    """Digests of the prompts in a file with rows of any schema that has a prompt.

    Raises:
        DataError: it cannot be read, or a row has no prompt.
    """
    digests: set[str] = set()
    for place, raw in raw_rows(source):
        with named(place):
            columns = columns_of(raw)
            name = next(filter(columns.has, (*ALIASES["prompt"], "input")), None)
            if name is None:
                raise DataError(f"has no prompt: {', '.join(ALIASES['prompt'])} or input is needed")
            digests.add(prompt_digest(text(columns[name], name)))
    return digests


def row_scores(judged: Judged) -> dict[str, float]:
    """id -> mean over its rubrics of the mean over runs. Rows without any score are left out."""
    scores: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for line in judged.lines:
        if line["score"] is not None:
            scores[line["id"]][line["rubric"]].append(line["score"])
    return {id: float(np.mean([np.mean(runs) for runs in own.values()])) for id, own in scores.items()}


def run_means(judged: Judged) -> list[float]:
    """The model's score in each run alone."""
    runs = sorted({line["run"] for line in judged.lines})
    parts = [dataclasses.replace(judged, lines=[one for one in judged.lines if one["run"] == run]) for run in runs]
    return [float(np.mean(scores)) for part in parts if (scores := [*row_scores(part).values()])]


def groups(judged: Judged, name: str, sets: Mapping[str, set[str]]) -> list[Group]:
    """All rows, then by source, then by membership in sets. A row of several sets is in none of their groups."""
    scores = row_scores(judged)
    verdicts: dict[str, list[bool]] = defaultdict(list)
    for line in judged.lines:
        verdicts[line["id"]].append(line["reason"] not in ("", judgements.NOT_ASKED))

    def group(by: str, label: str, ids: Sequence[str]) -> Group:
        values = np.array([scores[one] for one in ids if one in scores])
        low, high = mean_interval(values)
        failures = [failed for one in ids for failed in verdicts[one]]
        mean = float(values.mean()) if len(values) else float("nan")
        return Group(name, by, label, len(ids), len(values), mean, low, high, len(failures), sum(failures))

    made = [group("all", "all", [row["id"] for row in judged.rows])]
    by_source: dict[str, list[str]] = defaultdict(list)
    by_set: dict[str, list[str]] = {label: [] for label in (*sets, SEVERAL, NONE)} if sets else {}
    for row in judged.rows:
        by_source[row["source"] or "no source"].append(row["id"])
        if sets:
            member = [label for label, digests in sets.items() if row["prompt"] in digests]
            by_set[member[0] if len(member) == 1 else SEVERAL if member else NONE].append(row["id"])
    ordered = sorted(by_source.items(), key=lambda item: (-len(item[1]), item[0]))
    made += [group("source", label, ids) for label, ids in ordered]
    return made + [group("set", label, ids) for label, ids in by_set.items()]


def names_of(directories: Sequence[Path]) -> list[str]:
    """What each directory is called in a table: its name, or its path if names are not unique.

    Raises:
        ConfigError: one is given twice.
    """
    seen: set[Path] = set()
    for path in directories:
        if (place := path.resolve()) in seen:
            raise ConfigError(f"{path}", "is given twice")
        seen.add(place)
    names = [path.resolve().name for path in directories]
    return names if len(set(names)) == len(names) else [str(path) for path in directories]


def table(judged: Sequence[Judged], made: Sequence[Sequence[Group]]) -> Table:
    """The groups of all models as one table."""
    names, facts = [own[0].model for own in made], paper("absolute")
    rows, notes = [], []
    for name, one, own in zip(names, judged, made, strict=True):
        for group in own:
            label = f"{group.name} only" if group.by == "set" and group.name not in (SEVERAL, NONE) else group.name
            values, none = [group.scored, group.failed, group.mean], (None, None)
            shown = name if group.by == "all" else f"{name}: {label}"
            rows.append(Row(shown, values, [*none, group.low], [*none, group.high]))
        means = ", ".join(f"{mean:.2f}" for mean in run_means(one)) or "none"
        notes += judgements.notes(one, name, {"means of the runs": means})
        if without := own[0].rows - own[0].scored:
            notes.append(f"warning: {name}: {counted(without, 'row')} without any score, in no mean")
        if several := [group.rows for group in own if group.by == "set" and group.name == SEVERAL and group.rows]:
            notes.append(f"warning: {name}: {several[0]:,} rows lie in several sets, so no set's mean is exact")
        if one.settings["judge"] != facts["judge"]:
            notes.append(f"note: {name}: the paper's judge was {facts['judge']}; scores of judges differ")
    first = judged[0].settings
    for name, one in zip(names[1:], judged[1:], strict=True):
        if unlike := judgements.unlike(one.settings, first, "rows_digest"):
            what = f"{', '.join(unlike)} differ, so their means do not compare"
            notes.append(f"warning: {names[0]} and {name}: {what}")
    settings = {name: one.settings for name, one in zip(names, judged, strict=True)}
    title = "Mean scores from 1 to 5, with 95 % bootstrap intervals over rows"
    return Table("bench", title, ("rows", "failed verdicts", "score"), rows, notes, settings, "absolute")


def as_json(judged: Sequence[Judged], made: Sequence[Sequence[Group]]) -> dict[str, Any]:
    """What programs also read: every group with its counts."""
    models = [
        {
            "model": own[0].model,
            "settings": one.settings,
            "run_means": run_means(one),
            "groups": [dataclasses.asdict(group) for group in own],
        }
        for one, own in zip(judged, made, strict=True)
    ]
    return {"models": models}


def parse_sets(given: Sequence[str]) -> dict[str, set[str]]:
    """NAME=FILE -> prompts of the file.

    Raises:
        ConfigError, DataError: a value has another form, or its file cannot be read.
    """
    sets: dict[str, set[str]] = {}
    for one in given:
        name, _, file = one.partition("=")
        if not name.strip() or not file or name in (*sets, SEVERAL, NONE):
            raise ConfigError(f"--set {one}: allowed: NAME=FILE, with a new name")
        sets[name] = read_set(file)
    return sets
