"""What a system message changes: answers to the same prompts under several conditions, compared two by two."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from janus_jax.checkpoint.stored_model import StoredModel
from janus_jax.errors import ConfigError, DataError, counted
from janus_jax.evaluation.bench import judgements
from janus_jax.evaluation.bench.tables import row_scores
from janus_jax.evaluation.intervals import Cell, mean_cell
from janus_jax.evaluation.measure.answers import AnswerRow
from janus_jax.evaluation.measure.verbosity import in_words
from janus_jax.evaluation.result_table import Row, Table
from janus_jax.generation.progress import Progress
from janus_jax.generation.response_file import Response, ResponseRow
from janus_jax.generation.scores import LogProbScorer
from janus_jax.text.rouge import rouge_l, words

_COMPARED = 4
"""Answers of a row that are compared with others; of more, the first ones."""
_SCORED = 64
"""Answers that go to the model at once."""
Conditions = Mapping[str, Sequence[AnswerRow]]


@dataclasses.dataclass(frozen=True)
class Measured:
    """One condition, or the difference of two: a number for each row, NaN where it has none."""

    name: str
    similarity: np.ndarray
    """ROUGE-L between the answers of two conditions; of one, between its own answers to a row."""
    words: np.ndarray
    score: np.ndarray
    """Of a judge, 1 to 5."""
    log_prob: np.ndarray
    """Mean log-prob of a token."""
    is_difference: bool = False

    def cells(self) -> dict[str, Cell]:
        """Column -> its mean."""
        columns = {
            "ROUGE-L": self.similarity,
            "words": self.words,
            "score": self.score,
            "log-prob of a token": self.log_prob,
        }
        return {name: mean_cell(values[~np.isnan(values)]) for name, values in columns.items()}


def align(conditions: Conditions) -> tuple[dict[str, list[AnswerRow]], list[str]]:
    """The rows that all conditions answer, in one order, and notes on the others.

    Rows belong together by their ids. Where some have none, or the files share none, they do by their prompts, of which
    a file has each once. Several files of a condition give several answers to its rows.

    Raises:
        ConfigError: no row is answered under all conditions.
        DataError: "FILE:ROW: ..." for a row that stands twice in a file, or has another prompt than elsewhere.
    """
    ids = [{row.id for row in rows} for rows in conditions.values()]
    prompts_repeat = any(len({row.prompt for row in rows}) < len(rows) for rows in conditions.values())
    by_id = all(row.is_named for rows in conditions.values() for row in rows) and (
        prompts_repeat or bool(set.intersection(*ids))
    )
    keyed: dict[str, dict[str, AnswerRow]] = {}
    for name, rows in conditions.items():
        own = keyed.setdefault(name, {})
        for row in rows:
            key = str(row.id) if by_id else row.prompt
            if (other := own.setdefault(key, row)) is not row:
                own[key] = _together(other, row, by_id)
    first, *others = keyed.values()
    shared = [key for key in first if all(key in own for own in others)]
    if not shared:
        sizes = ", ".join(f"{counted(len(own), 'row')} of {name}" for name, own in keyed.items())
        raise ConfigError(f"share no {'id' if by_id else 'prompt'}: {sizes}")
    for key, own in itertools.product(shared, others):
        if own[key].prompt != first[key].prompt:
            raise DataError(own[key].place, f"has the id {key!r} of {first[key].place}, but another prompt")
    notes = [
        f"left out: {counted(lost, 'row')} of {name} that another file does not answer"
        for name, own in keyed.items()
        if (lost := len(own) - len(shared))
    ]
    aligned = {name: [own[key] for key in shared] for name, own in keyed.items()}
    for one, other in itertools.combinations(aligned, 2):
        pairs = zip(aligned[one], aligned[other], strict=True)
        if same := sum(a.system == b.system for a, b in pairs):
            notes.append(f"{one} and {other}: {counted(same, 'row')} of {len(shared):,} with the same system message")
    return aligned, notes


def _together(one: AnswerRow, other: AnswerRow, by_id: bool) -> AnswerRow:
    """The row with the answers of two files to it, such as those of two seeds."""
    what = f"has the {'id' if by_id else 'prompt'} of {one.place}"
    if one.place.rpartition(":")[0] == other.place.rpartition(":")[0]:
        raise DataError(other.place, what if by_id else f"{what}; rows with one prompt need ids")
    if (one.system, one.prompt) != (other.system, other.prompt):
        raise DataError(other.place, f"{what}, but another system message or prompt")
    return dataclasses.replace(one, answers=one.answers + other.answers)


def judged_scores(directory: Path, rows: Sequence[AnswerRow]) -> tuple[np.ndarray, dict[str, Any]]:
    """The mean score of each row, NaN where it has none, and the settings of the judge.

    Raises:
        ConfigError: it holds no verdicts, or those of other answers.
    """
    judged = judgements.read(directory, "absolute")
    scores, known = row_scores(judged), {row["id"]: row for row in judged.rows}
    if not any(row.id in known for row in rows):
        what = f"judged none of these rows; ids such as {judged.rows[0]['id']!r} and {rows[0].id!r}"
        raise ConfigError(f"{directory}", what)
    for row in rows:
        if row.id in known:
            judged_words, own = int(np.ravel(known[row.id]["words"])[0]), in_words(row.answers[0].text)
            if judged_words != own:
                what = f"the one to {row.id!r} has {judged_words} words there, but {own} in {row.place}"
                raise ConfigError(f"{directory}", f"judged other answers: {what}")
    return np.array([scores.get(str(row.id), np.nan) for row in rows]), judged.settings


def log_probs(
    model: StoredModel, aligned: Conditions, answered: str, *, template: str | None = None, tell: Callable[[str], None]
) -> dict[str, np.ndarray]:
    """Condition -> mean log-prob of a token of the same answers, given the system messages of that condition.

    Args:
        answered: the condition whose first answers are read. NaN for those without text.
        template: of the model, if its files name none.
        tell: gets notes on the mesh, and lines of progress.

    Raises:
        ConversionError: the model lacks a tokenizer or template.
        DataError: "FILE:ROW: ..." for an answer that the model cannot read.
    """
    scorer = LogProbScorer(model, template)
    scored = [at for at, row in enumerate(aligned[answered]) if not row.answers[0].is_empty]
    texts = [Response(row.answers[0].text, bool(row.answers[0].is_cut)) for row in aligned[answered]]
    pairs = [
        scorer.pairs(ResponseRow(rows[at].messages, (texts[at],), {}, "response", rows[at].place))[0]
        for rows in aligned.values()
        for at in scored
    ]
    scores, notes = scorer.open()
    for note in notes:
        tell(f"note: {note}")
    means: list[float] = []
    tokens, progress = 0, Progress(len(pairs), "answers", "tokens", tell)
    for start in range(0, len(pairs), _SCORED):
        made = scores(pairs[start : start + _SCORED])
        means += [np.nan if one["mean"] is None else one["mean"] for one in made]
        tokens += sum(one["tokens"] for one in made)
        progress(len(means), tokens)
    of_rows = {name: np.full(len(aligned[answered]), np.nan) for name in aligned}
    for values, part in zip(of_rows.values(), np.reshape(means, (len(of_rows), -1)), strict=True):
        values[scored] = part
    return of_rows


def compare(
    aligned: Conditions, scores: Mapping[str, np.ndarray], log_probs: Mapping[str, np.ndarray]
) -> tuple[list[Measured], list[str]]:
    """Every condition, then the differences of every two, later minus earlier; and notes.

    Args:
        aligned: as `align` gives it.
        scores: condition -> score of each row, of those that were judged.
        log_probs: the same for log-probs.
    """
    count = len(next(iter(aligned.values())))
    nothing = np.full(count, np.nan)
    texts = {
        name: [[words(one.text) for one in row.answers[:_COMPARED]] for row in rows] for name, rows in aligned.items()
    }
    made, notes = {}, []
    for name, rows in aligned.items():
        own = np.array(
            [_mean([rouge_l(*two) for two in itertools.combinations(filter(None, row), 2)]) for row in texts[name]]
        )
        lengths = np.array([np.mean([in_words(one.text) for one in row.answers]) for row in rows])
        made[name] = Measured(name, own, lengths, scores.get(name, nothing), log_probs.get(name, nothing))
        empty = Counter(bool(one.text.strip()) for row in rows for one in row.answers)[False]
        if empty:
            notes.append(f"{name}: {counted(empty, 'answer')} without text, of length 0 and in no ROUGE-L")
        if more := sum(max(0, len(row.answers) - _COMPARED) for row in rows):
            notes.append(f"{name}: {counted(more, 'answer')} after the first {_COMPARED} of a row, in no ROUGE-L")
    differences = []
    for before, after in itertools.combinations(made.values(), 2):
        pairs = zip(texts[before.name], texts[after.name], strict=True)
        alike = [
            _mean([rouge_l(one, other) for one, other in itertools.product(*two) if one and other]) for two in pairs
        ]
        parts = (getattr(after, part) - getattr(before, part) for part in ("words", "score", "log_prob"))
        differences.append(Measured(f"{after.name} - {before.name}", np.array(alike), *parts, is_difference=True))
    return [*made.values(), *differences], notes


def judge_notes(settings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Which judge scored, and what differs between conditions."""
    notes = []
    (name, first), *others = settings.items()
    notes.append(f"{name}: judge {first['judge']}, {first['runs']} runs")
    for other, own in others:
        if unlike := judgements.unlike(own, first):
            notes.append(f"warning: {name} and {other}: {' and '.join(unlike)} differ, so their scores do not compare")
    return notes


def table(measured: Sequence[Measured], notes: Sequence[str], settings: Mapping[str, Any]) -> Table:
    """Conditions, then differences. Columns without any number are left out."""
    cells = {one.name: one.cells() for one in measured}
    columns = [
        column for column in cells[measured[0].name] if any(own[column].value is not None for own in cells.values())
    ]
    rows = [
        Row.from_cells(one.name, [Cell(len(one.words)), *(cells[one.name][column] for column in columns)])
        for one in measured
    ]
    what = "a - b: ROUGE-L between the answers of both, and means of a minus b on the same rows"
    return Table(
        "system_effect", "Effect of the system message", ["rows", *columns], rows, [*notes, what], dict(settings)
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else np.nan
