"""The directory of a step: its rows, what it left out, what it was made from. All state of a synthesis is in files.

OUT/steps/NAME/rows.jsonl             accepted rows; a person may edit them
OUT/steps/NAME/dropped.jsonl          what was left out, with a reason each
OUT/steps/NAME/dropped.failed.jsonl   what the last try left out, if that was everything, which is an error
OUT/steps/NAME/step.json              settings, digests of inputs, counts; written last
OUT/steps/NAME/replies.jsonl          journal of the endpoint
OUT/steps/NAME/batch/                 requests for a batch API
"""

import contextlib
import fcntl
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from janus_jax.errors import DataError, HeldError, counted
from janus_jax.storage import local
from janus_jax.storage.bucket import os_errors

ROWS, DROPPED, STEP, JOURNAL, BATCH = "rows.jsonl", "dropped.jsonl", "step.json", "replies.jsonl", "batch"
FAILED = "dropped.failed.jsonl"
UNANSWERED = "no_answer"
"""The reason of what is dropped because its request has no answer."""
INCOMPLETE = "incomplete"
"""The reason of an instruction that lacks a response."""
_SHOWN = 3


class StepDirectory:
    """One step's files under the output directory."""

    def __init__(self, out: Path, name: str):
        self.name, self.path = name, out / "steps" / name

    @property
    def journal(self) -> Path:
        return self.path / JOURNAL

    @property
    def batch(self) -> Path:
        return self.path / BATCH

    def facts(self) -> dict[str, Any]:
        """step.json; empty if the step has not ended yet.

        Raises:
            DataError: it is damaged.
        """
        path = self.path / STEP
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise DataError(path, f"cannot be read ({error}); remove it, and the step is made again") from error
        if not isinstance(value, dict):
            raise DataError(path, "is no object; remove it, and the step is made again")
        return value

    def rows(self) -> Iterator[dict[str, Any]]:
        """Its rows, read as they are asked for.

        Raises:
            DataError: FILE:LINE is no object.
        """
        path = self.path / ROWS
        with os_errors(path), path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise DataError(f"{path}:{number}", f"is not valid JSON: {error}") from error
                if not isinstance(row, dict):
                    raise DataError(f"{path}:{number}", "is no object")
                yield row

    def digest(self) -> str:
        """Of the rows as they are; empty without any."""
        path = self.path / ROWS
        if not path.exists():
            return ""
        with os_errors(path), path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]

    def unanswered(self) -> str:
        """Why requests have no answer: the commonest reasons, with counts."""
        reasons, path = Counter[str](), self.path / DROPPED
        with os_errors(path), path.open(encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                if row["reason"] == UNANSWERED:
                    reasons[str(row.get("detail"))] += 1
        return commonest(reasons)

    def answers(self) -> Iterator[dict[str, Any]]:
        """The records of the journal that have a text."""
        with os_errors(self.journal), self.journal.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                with contextlib.suppress(ValueError):  # a killed process wrote half of it
                    record = json.loads(line)
                    if isinstance(record.get("text"), str):
                        yield record

    def is_edited(self) -> bool:
        """Whether somebody changed the rows since the step wrote them."""
        facts = self.facts()
        return bool(facts) and facts.get("digest") != self.digest()


class Writer:
    """Writes the rows of a step. Nothing is seen before `finish`, which writes step.json last."""

    def __init__(self, directory: StepDirectory):
        self._directory = directory
        self.counts: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        """Answers that did not pass, by gate, also of rows that passed later."""
        self.dropped: Counter[str] = Counter()
        with os_errors(directory.path):
            directory.path.mkdir(parents=True, exist_ok=True)
            self._files = {
                name: (directory.path / f".{name}.incomplete").open("w", encoding="utf-8") for name in (ROWS, DROPPED)
            }

    def add(self, row: Mapping[str, Any]) -> None:
        self.counts["rows"] += 1
        self._write(ROWS, row)

    def drop(self, reason: str, **what: Any) -> None:
        self.dropped[reason] += 1
        self._write(DROPPED, {"reason": reason, **what})

    def _write(self, name: str, row: Mapping[str, Any]) -> None:
        with os_errors(self._directory.path):
            self._files[name].write(json.dumps(row, ensure_ascii=False) + "\n")

    def finish(self, **facts: Any) -> dict[str, Any]:
        """Puts the files in place. Returns what step.json holds."""
        step = self._directory.path / STEP
        with os_errors(step):
            for older in (step, self._directory.path / FAILED):
                older.unlink(missing_ok=True)
            for name, file in self._files.items():
                file.flush()
                os.fsync(file.fileno())
                file.close()
                os.replace(file.name, self._directory.path / name)
        counts = {name: dict(sorted(getattr(self, name).items())) for name in ("counts", "dropped", "rejected")}
        value = {"step": self._directory.name, **facts, **counts, "digest": self._directory.digest()}
        local.write_json(step, value)
        return value

    def keep_dropped(self) -> Path:
        """Keeps what was dropped, though there are no rows. Returns the file.

        `dropped.jsonl` stays: it belongs to the rows of an earlier try, which count again if the settings change back.
        """
        path = self._directory.path / FAILED
        with os_errors(path):
            self._files[DROPPED].close()
            os.replace(self._files[DROPPED].name, path)
        return path

    def discard(self) -> None:
        """Removes what is not finished."""
        for file in self._files.values():
            with contextlib.suppress(OSError):  # the disk is full; what went wrong first is the error
                file.close()
            Path(file.name).unlink(missing_ok=True)


class Lock:
    """Keeps a second process out of an output directory: both would spend the same budget."""

    def __init__(self, out: Path):
        with os_errors(out):
            out.mkdir(parents=True, exist_ok=True)
            self._file = (out / ".lock").open("a")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise HeldError(
                f"out {out}: another process writes it; wait for its end, or choose another `out`"
            ) from error

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def digest_of(value: Any) -> str:
    """16 digits for what JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def number_of(*parts: object) -> int:
    """A number of 64 bits, drawn by the parts: a seed and what it is for."""
    whole = json.dumps([str(part) for part in parts])
    return int.from_bytes(hashlib.blake2b(whole.encode(), digest_size=8).digest())


def shuffled(values: Iterable[str], *parts: object) -> list[str]:
    """The values in an order that depends on the parts and the values, not on the order in which they come."""
    return sorted(values, key=lambda value: (number_of(*parts, value), value))


def changed_settings(facts: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """Names of what a step was made from and is no more; empty if it was not made."""
    if not facts or facts.get("asked") == digest_of(asked):
        return ""
    before, now = (dict(_leaves(one.get("settings", {}))) for one in (facts, asked))
    names = [path[-1] for path in {**before, **now} if before.get(path) != now.get(path)]
    old = facts.get("inputs", {})
    names += [f"the rows of {name}" for name, digest in asked["inputs"].items() if old.get(name) != digest]
    return ", ".join(names)


def commonest(reasons: Counter[str]) -> str:
    """The three commonest of some reasons, with counts."""
    first = reasons.most_common(_SHOWN)
    rest = reasons.total() - sum(count for _, count in first)
    return "; ".join([*(f"{count:,} x {reason}" for reason, count in first), *([f"{rest:,} others"] if rest else [])])


def summary(name: str, value: Mapping[str, Any]) -> str:
    """What a step made and left out, from its step.json."""
    read = value["counts"].get("read")
    # Rows: the collection drops whole instructions.
    per_instruction = value.get("settings", {}).get("per_instruction", 1)
    lost = ", ".join(
        f"{counted(count, 'instruction')} ({counted(count * per_instruction, 'row')}) {reason}"
        if reason == INCOMPLETE
        else f"{count:,} {reason}"
        for reason, count in value["dropped"].items()
    )
    rows = counted(value["counts"].get("rows", 0), "row") + (f" of {counted(read, 'record')}" if read else "")
    return f"{name}: {rows}" + (f"; dropped: {lost}" if lost else "")


def _leaves(settings: Mapping[str, Any], *path: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """(path, value as JSON) of each setting."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _leaves(value, *path, name)
        else:
            yield (*path, name), json.dumps(value)
