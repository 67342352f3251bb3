"""The directory of a judge's verdicts: settings.json, rows.jsonl, judgements.jsonl, and the journal of its replies."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from janus_jax.data.columns import alike
from janus_jax.errors import ConfigError, first_line
from janus_jax.evaluation.bench.rows import BenchRow, digest
from janus_jax.storage import local

JOURNAL, SETTINGS, ROWS, JUDGEMENTS = "replies.jsonl", "settings.json", "rows.jsonl", "judgements.jsonl"
NOT_ASKED = "not asked yet"
_FREE = ("bench", "answers", "against", "model", "asks")
"""Settings that may differ when a judge goes on: names of files, and what does not change a request."""


@dataclasses.dataclass(frozen=True)
class Judged:
    """What a directory holds."""

    path: Path
    settings: dict[str, Any]
    rows: list[dict[str, Any]]
    """id, source, prompt (a digest), words of the responses."""
    lines: list[dict[str, Any]]
    """One for each verdict that is needed."""


def require_same(directory: Path, settings: Mapping[str, Any]) -> None:
    """Refuses a directory of other settings, or with other files.

    Raises:
        ConfigError: names the first setting that differs, with both values.
    """
    path = directory / SETTINGS
    if not path.exists():
        if directory.is_dir() and any(one.name != JOURNAL for one in directory.iterdir()):
            raise ConfigError(
                f"--out {directory}: holds other files; allowed: an empty directory, or one of this judge"
            )
        return
    before = _json(path)
    for name in [*settings, *(key for key in before if key not in settings)]:
        if name not in _FREE and before.get(name) != settings.get(name):
            there, here = (json.dumps(one.get(name)) for one in (before, settings))
            what = f"{name} is {there} there, but {here} now; go on with the same settings, or choose another --out"
            raise ConfigError(f"--out {path}", what)


def write_settings(
    directory: Path, settings: Mapping[str, Any], rows: Sequence[BenchRow], words: Sequence[Any]
) -> None:
    """Args: words: of each row, the number of words of its response, or of both."""
    local.write_json(directory / SETTINGS, dict(settings))
    lines = [
        {"id": row.id, "source": row.source, "prompt": prompt_digest(row.prompt), "words": number}
        for row, number in zip(rows, words, strict=True)
    ]
    _write_lines(directory / ROWS, lines)


def write_lines(directory: Path, lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Writes judgements.jsonl whole, and returns its lines.

    Where a command ended before it came to a verdict that an earlier one had, the earlier line stays.
    """
    path = directory / JUDGEMENTS
    old = {key_of(line): line for line in _lines(path, ("id", "run", "reason", "asked"))} if path.exists() else {}
    kept = []
    for line in lines:
        before = old.get(key_of(line))
        if before is not None and line["reason"]:  # a verdict is not lost, nor how often it was asked for in vain
            untried = line["reason"] == NOT_ASKED or line["asked"] < before["asked"]
            kept.append(before if untried or not before["reason"] else line)
        else:
            kept.append(line)
    _write_lines(path, kept)
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
    rows = _lines(directory / ROWS, ("id", "source", "prompt", "words"))
    lines = _lines(directory / JUDGEMENTS, ("id", "run", "reason"))
    if other := {line["id"] for line in lines} - {row["id"] for row in rows}:
        raise ConfigError(f"{directory / JUDGEMENTS}", f"has the id {min(other)!r}, which {ROWS} does not have")
    return Judged(directory, settings, rows, lines)


def prompt_digest(prompt: str) -> str:
    """Equal for prompts that are the same text but for blanks."""
    return digest(" ".join(alike(prompt).split()))


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}", f"cannot be read: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}", "is damaged: allowed: an object")
    return value


def _lines(path: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    lines = []
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            value = json.loads(line)
            if not isinstance(value, dict) or (missing := [key for key in keys if key not in value]):
                raise ConfigError(f"{path}:{number}", f"is damaged: {missing[0] if value else 'no object'} is missing")
            lines.append(value)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}:{len(lines) + 1}", f"is damaged: {first_line(error)}") from error
    return lines


def _write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    local.write_whole(path, "".join(json.dumps(line) + "\n" for line in lines))
