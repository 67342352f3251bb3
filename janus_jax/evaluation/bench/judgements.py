"""The directory of a judge's verdicts: settings.json, rows.jsonl, judgements.jsonl, and the journal of its replies."""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from janus_jax.data.columns import alike
from janus_jax.errors import ConfigError, first_line
from janus_jax.evaluation.bench.rows import BenchRow, digest
from janus_jax.storage import local
from janus_jax.storage.json_text import difference

JOURNAL, SETTINGS, ROWS, JUDGEMENTS = "replies.jsonl", "settings.json", "rows.jsonl", "judgements.jsonl"
NOT_ASKED = "not asked yet"
_VERDICTS = {"absolute": ("rubric", "score"), "pairwise": ("order", "winner")}
"""Kind of judgement -> what its lines in judgements.jsonl also have."""
COMPARED = ("judge", "runs", "temperature", "top_p", "max_tokens", "max_completion_tokens", "show_system", "prompts")
"""Settings that must be the same where scores are compared."""
_NEEDED = ("kind", "judge", "runs", "show_system", "prompts")
"""Settings of every judge."""
_FREE = ("bench", "answers", "against", "bench_rows", "rows", "rows_digest", "asks")
"""Settings that may differ when a judge goes on: names of files, what rows.jsonl says row by row, and what changes no
request."""


@dataclasses.dataclass(frozen=True)
class Judged:
    """What a directory holds."""

    path: Path
    settings: dict[str, Any]
    rows: list[dict[str, Any]]
    """id, source, prompt (a digest), words of the responses, digests of the row and of the responses."""
    lines: list[dict[str, Any]]
    """One for each verdict that is needed."""


def row_lines(rows: Sequence[BenchRow], answers: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """The lines of rows.jsonl. Args: answers: one list for each model, in the order of the rows."""
    return [
        {
            "id": row.id,
            "source": row.source,
            "prompt": prompt_digest(row.prompt),
            "words": [len(text.split()) for text in texts],
            "row": digest(dataclasses.asdict(dataclasses.replace(row, place=""))),
            "responses": [digest(text) for text in texts],
        }
        for row, *texts in zip(rows, *answers, strict=True)
    ]


def require_same(directory: Path, settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuses a directory of other settings, rows or answers, or with other files. It may have more rows, or fewer.

    One for which nothing was answered yet may be of anything.

    Args:
        rows: as `row_lines`.

    Raises:
        ConfigError: names the first setting or row that differs.
    """
    path = directory / SETTINGS
    if not path.exists():
        left = (
            JOURNAL,
            *(f"{JOURNAL}.index{end}" for end in ("", "-wal", "-shm")),
            ".incomplete",
        )  # of one that was killed before it wrote settings
        if directory.is_dir() and not all(one.name.endswith(left) for one in directory.iterdir()):
            raise ConfigError(
                f"--out {directory}: holds other files; allowed: an empty directory, or one of this judge"
            )
        return
    if not _has_replies(directory):
        return
    before = _json(path)
    if (changed := difference(before, settings, _FREE)) is not None:
        name, old, new = changed
        what = f"{name} is {old} there, but {new} now; go on with the same settings, or choose another --out"
        raise ConfigError(f"--out {path}", what)
    for number, (old, new) in enumerate(zip(_rows(directory), rows, strict=False), 1):
        if old != new:
            same = old["id"] == new["id"] and old.get("row") == new["row"]
            what = f"has another answer to the row {new['id']!r}" if same else f"has another row than {new['id']!r}"
            raise ConfigError(f"--out {directory / ROWS}:{number}", f"{what}; choose another --out")


def write_settings(directory: Path, settings: Mapping[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """Writes settings.json and rows.jsonl. Rows that are there already, beyond these, stay."""
    if _has_replies(directory):
        rows = [*rows, *_rows(directory)[len(rows) :]]
    else:
        (directory / JUDGEMENTS).unlink(missing_ok=True)
    counts = {"rows": len(rows), "rows_digest": digest([row["row"] for row in rows])}
    local.write_json(directory / SETTINGS, {**settings, **counts})
    _write_lines(directory / ROWS, rows)


def write_lines(directory: Path, lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Writes judgements.jsonl whole, and returns what it has of these lines.

    Where a command ended before it came to a verdict that an earlier one had, the earlier line stays. So do lines of
    rows that this command does not ask about.
    """
    path = directory / JUDGEMENTS
    old = {key_of(line): line for line in _lines(path, ("id", "run", "reason", "asked"))} if path.exists() else {}
    kept = []
    for line in lines:
        before = old.pop(key_of(line), None)
        if before is not None and line["reason"]:  # a verdict is not lost, nor how often it was asked for in vain
            untried = line["reason"] == NOT_ASKED or line["asked"] < before["asked"]
            kept.append(before if untried or not before["reason"] else line)
        else:
            kept.append(line)
    _write_lines(path, [*kept, *old.values()])
    return kept


def replies_before(directory: Path) -> dict[tuple[Any, ...], int]:
    """(id, rubric or order, run) -> replies that were asked for in vain."""
    path = directory / JUDGEMENTS
    if not path.exists():
        return {}
    return {key_of(line): line["asked"] for line in _lines(path, ("id", "run", "asked")) if line.get("reason")}


def key_of(line: Mapping[str, Any]) -> tuple[Any, ...]:
    return line["id"], line.get("rubric", line.get("order")), line["run"]


def read(directory: Path, kind: str) -> Judged:
    """What a judge has left.

    Raises:
        ConfigError: it holds no verdicts of this kind, or a file is damaged.
    """
    for name in (SETTINGS, ROWS, JUDGEMENTS):
        if not (directory / name).is_file():
            hint = "; judge it to its end first" if (directory / JOURNAL).exists() else ""
            raise ConfigError(f"{directory}", f"holds no verdicts: {name} is missing{hint}")
    settings = _json(directory / SETTINGS)
    if settings.get("kind") != kind:
        raise ConfigError(f"{directory}", f"holds verdicts of kind {settings.get('kind')!r}; allowed: {kind!r}")
    rows = _rows(directory)
    lines = _lines(directory / JUDGEMENTS, ("id", "run", "reason", *_VERDICTS[kind]))
    if other := {line["id"] for line in lines} - {row["id"] for row in rows}:
        raise ConfigError(f"{directory / JUDGEMENTS}", f"has the id {min(other)!r}, which {ROWS} does not have")
    return Judged(directory, settings, rows, lines)


def notes(judged: Judged, name: str, settings: Mapping[str, Any]) -> list[str]:
    """Who judged, and what is not judged, for a table.

    Args:
        name: of the model or pair.
        settings: names and values to show beside those of every judge.
    """
    own = judged.settings
    options = ("temperature", "top_p", "max_tokens", "max_completion_tokens", "seed")
    shown = {"runs": own["runs"], **settings, **{key: own[key] for key in options if own.get(key) is not None}}
    shown |= {"system message": "shown" if own["show_system"] else "not shown", "prompts": own["prompts"]}
    lines = [f"{name}: judge {own['judge']}, {', '.join(f'{key} {value}' for key, value in shown.items())}"]
    asked = {line["id"] for line in judged.lines if line["reason"] != NOT_ASKED}
    rows = max(own.get("bench_rows", 0), len(judged.rows))
    if len(asked) < rows:
        lines.append(f"warning: {name}: {len(asked):,} of the bench's {rows:,} rows are judged")
    waiting = sum(line["reason"] == NOT_ASKED and line["id"] in asked for line in judged.lines)
    failed = Counter(line["reason"] for line in judged.lines if line["reason"] not in ("", NOT_ASKED))
    if waiting:
        lines.append(f"warning: {name}: {waiting:,} verdicts on these rows are not asked for yet")
    if failed:
        what = f"{failed.total():,} of {len(judged.lines):,} verdicts failed; they count nowhere"
        lines.append(f"warning: {name}: {what}; most often: {failed.most_common(1)[0][0]}")
    return lines


def unlike(settings: Mapping[str, Any], other: Mapping[str, Any], *more: str) -> list[str]:
    """The settings of two judges, and `more` of them, that differ so that their scores do not compare."""
    return [name for name in (*COMPARED, *more) if settings.get(name) != other.get(name)]


def prompt_digest(prompt: str) -> str:
    """Equal for prompts that are the same text but for blanks."""
    return digest(" ".join(alike(prompt).split()))


def _has_replies(directory: Path) -> bool:
    """Whether a judge was paid for something, or has come to a verdict."""
    journal, path = directory / JOURNAL, directory / JUDGEMENTS
    paid = journal.exists() and journal.read_bytes().count(b"\n") > 1
    return paid or (path.exists() and not all(line["reason"] for line in _lines(path, ("reason",))))


def _rows(directory: Path) -> list[dict[str, Any]]:
    path = directory / ROWS
    return _lines(path, ("id", "source", "prompt", "words", "row")) if path.exists() else []


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}", f"cannot be read: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}", "is damaged: allowed: an object")
    if missing := [key for key in _NEEDED if key not in value]:
        raise ConfigError(f"{path}", f"is damaged: {missing[0]} is missing")
    return value


def _lines(path: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    lines = []
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            value = json.loads(line)
            if not isinstance(value, dict):
                raise ConfigError(f"{path}:{number}", "is damaged: allowed: an object")
            if missing := [key for key in keys if key not in value]:
                raise ConfigError(f"{path}:{number}", f"is damaged: {missing[0]} is missing")
            lines.append(value)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}:{len(lines) + 1}", f"is damaged: {first_line(error)}") from error
    return lines


def _write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    local.write_whole(path, "".join(json.dumps(line) + "\n" for line in lines))
