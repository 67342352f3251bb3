"""Mean scores of judged answers, by source and by membership in sets of prompts, beside the paper's."""

import csv
import dataclasses
import io
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from janus_jax.data.columns import text
from janus_jax.errors import ConfigError, DataError
from janus_jax.evaluation.bench.judgements import Judged, prompt_digest
from janus_jax.evaluation.bench.rows import ALIASES, raw_rows
from janus_jax.evaluation.intervals import mean_interval
from janus_jax.evaluation.paper import paper

_SOURCES_SHOWN = 12
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
        if isinstance(raw, DataError):
            raise DataError(place, str(raw))
        names = [name for name in (*ALIASES["prompt"], "input") if isinstance(raw, Mapping) and raw.get(name)]
        if not names:
            raise DataError(place, f"has no prompt: {', '.join(ALIASES['prompt'])} or input is needed")
        digests.add(prompt_digest(text(raw[names[0]], names[0])))
    return digests


def row_scores(judged: Judged) -> dict[str, float]:
    """id -> mean over its rubrics of the mean over runs. Rows without any score are left out."""
    scores: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for line in judged.lines:
        if line["score"] is not None:
            scores[line["id"]][line["rubric"]].append(line["score"])
    return {id: float(np.mean([np.mean(runs) for runs in of.values()])) for id, of in scores.items()}


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
        verdicts[line["id"]].append(line["score"] is None)

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
    """What each directory is called in a table: its name, or its path if names are not unique."""
    names = [path.resolve().name for path in directories]
    return names if len(set(names)) == len(names) else [str(path) for path in directories]


def lines_of(judged: Sequence[Judged], made: Sequence[Sequence[Group]]) -> list[str]:
    """The table as lines of text."""
    lines = [*_settings_lines(judged, made), ""]
    width = max(24, *(len(group.name) + 2 for of in made for group in of), *(len(of[0].model) + 2 for of in made))
    for of in made:
        lines.append(f"{of[0].model:<{width}}{'rows':>6}  {'mean':>5}  95 % interval")
        sources = [group for group in of if group.by == "source"]
        for group in (*of[:1], *sources[:_SOURCES_SHOWN], *(group for group in of if group.by == "set")):
            label = group.name if group.by != "set" or group.name in (SEVERAL, NONE) else f"{group.name} only"
            lines.append(
                f"  {label:<{width - 2}}{group.scored:>6}  {group.mean:5.2f}  {group.low:.2f} to {group.high:.2f}"
            )
        if len(sources) > _SOURCES_SHOWN:
            lines.append(f"  and {len(sources) - _SOURCES_SHOWN} more sources, in --csv and --json")
        if several := [group for group in of if group.by == "set" and group.name == SEVERAL and group.rows]:
            lines.append(f"  {several[0].rows:,} rows lie in several sets, so no column above is exact")
        lines.append("")
    facts = paper("absolute")
    lines.append(f"the paper: {facts['place']}; judge {facts['judge']}, {facts['runs']} runs; {facts['note']}")
    columns = facts["columns"]
    lines.append(f"{'':<28}" + "".join(f"{column:>15}" for column in columns))
    lines += [f"{name:<28}" + "".join(f"{value:15.2f}" for value in row) for name, row in facts["rows"].items()]
    return lines


def _settings_lines(judged: Sequence[Judged], made: Sequence[Sequence[Group]]) -> list[str]:
    lines = []
    facts = paper("absolute")
    for one, of in zip(judged, made, strict=True):
        settings, all_ = one.settings, of[0]
        shown = "shown" if settings["show_system"] else "not shown"
        means = ", ".join(f"{mean:.2f}" for mean in run_means(one)) or "none"
        lines.append(
            f"{all_.model}: judge {settings['judge']}, {settings['runs']} runs (means {means}), temperature "
            f"{settings['temperature']}, top_p {settings['top_p']}, max_tokens {settings['max_tokens']}, "
            f"seed {settings['seed']}, system message {shown}, prompts {settings['prompts']}"
        )
        if all_.failed:
            without = f", and {all_.rows - all_.scored:,} rows have none" if all_.rows > all_.scored else ""
            what = f"{all_.failed:,} of {all_.verdicts:,} verdicts have no score{without}; they count nowhere"
            lines.append(f"warning: {all_.model}: {what}")
        if settings["judge"] != facts["judge"]:
            lines.append(f"note: {all_.model}: the paper's judge was {facts['judge']}; scores of judges differ")
    first = judged[0].settings
    for one, of in zip(judged[1:], made[1:], strict=True):
        keys = ("judge", "runs", "temperature", "top_p", "max_tokens", "show_system", "prompts", "rows_digest")
        if unlike := [key for key in keys if one.settings.get(key) != first.get(key)]:
            what = f"{', '.join(unlike)} differ, so their means do not compare"
            lines.append(f"warning: {made[0][0].model} and {of[0].model}: {what}")
    return lines


def as_json(judged: Sequence[Judged], made: Sequence[Sequence[Group]]) -> dict[str, Any]:
    """The table for programs."""
    models = [
        {
            "model": of[0].model,
            "settings": one.settings,
            "run_means": run_means(one),
            "groups": [dataclasses.asdict(group) for group in of],
        }
        for one, of in zip(judged, made, strict=True)
    ]
    return {"models": models, "paper": paper("absolute")}


def as_csv(judged: Sequence[Judged], made: Sequence[Sequence[Group]]) -> str:
    """One line for each group of each model; the judge is in each."""
    out = io.StringIO()
    names = [field.name for field in dataclasses.fields(Group)]
    writer = csv.DictWriter(out, [*names, "judge"], lineterminator="\n")
    writer.writeheader()
    for one, of in zip(judged, made, strict=True):
        writer.writerows({**dataclasses.asdict(group), "judge": one.settings["judge"]} for group in of)
    return out.getvalue()


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
