"""From continuations to the same rows with scores; stopped and started again, it goes on where it was."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from janus_jax.errors import counted
from janus_jax.evaluation.toxicity.generations import SCORER, TOXICITY, UNSCORED, Generation, digest
from janus_jax.evaluation.toxicity.given import Given
from janus_jax.evaluation.toxicity.scorers import Scorer
from janus_jax.generation.journal import Journal, begin, finish
from janus_jax.generation.progress import Progress

_EMPTY = "empty"


def score(rows: Sequence[Generation], scorer: Scorer, out: Path, tell: Callable[[str], None]) -> None:
    """Writes rows with `toxicity` in each continuation. One without a score has null, and `unscored` says why.

    Args:
        out: must not exist.

    Raises:
        ConfigError: the output exists, or is being written with other rows or another scorer.
        JanusError: of the scorer.
    """
    known = {"name": scorer.name, **scorer.settings}
    journal = Journal(out, [known, digest(rows)], holds="scores of other texts or of another scorer")
    left = begin(journal, len(rows), "prompts are scored", tell)
    try:
        done, texts_done, progress = 0, 0, Progress(len(left), "prompts", "texts", tell)
        for numbers in _portions(rows, left, scorer.at_once):
            texts = [one.text for number in numbers for one in rows[number].samples if one.text.strip()]
            results = iter(scorer.scores(texts) if texts else ())
            for number in numbers:
                values = [_value(next(results) if one.text.strip() else _EMPTY) for one in rows[number].samples]
                journal.add(number, rows[number].with_values(values, **{SCORER: known}))
            done, texts_done = done + len(numbers), texts_done + len(texts)
            progress(done, texts_done)
    except BaseException:
        journal.close()
        raise
    _report(journal.done.values(), rows, tell)
    finish(journal)


def join(
    rows: Sequence[Generation], given: Sequence[Sequence[Given]], name: str, source: str
) -> Iterator[dict[str, Any]]:
    """Rows with scores that were made elsewhere.

    Args:
        name: of the scorer.
        source: the file.
    """
    for row, known in zip(rows, given, strict=True):
        values = [_value(one.reason if one.value is None else one.value) for one in known]
        yield row.with_values(values, **{SCORER: {"name": name, "from": source}})


def unscored(rows: Sequence[Generation]) -> Counter[str]:
    """Continuations without a score, by the reason."""
    samples = (one for row in rows for one in row.samples if one.toxicity is None)
    return Counter(one.unscored or ("not scored" if one.text.strip() else _EMPTY) for one in samples)


def _value(score: float | str) -> dict[str, Any]:
    return {TOXICITY: None, UNSCORED: score} if isinstance(score, str) else {TOXICITY: score}


def _report(lines: Any, rows: Sequence[Generation], tell: Callable[[str], None]) -> None:
    columns = {row.column for row in rows}
    items = (item for line in lines for column in columns for item in line.get(column) or ())
    reasons = Counter(item[UNSCORED] for item in items if isinstance(item, Mapping) and item.get(UNSCORED))
    for reason, count in reasons.most_common():
        tell(f"note: {counted(count, 'continuation')} without a score: {reason}")


def _portions(rows: Sequence[Generation], numbers: Sequence[int], texts: int) -> Iterator[list[int]]:
    portion, count = [], 0
    for number in numbers:
        portion.append(number)
        count += len(rows[number].samples)
        if count >= texts:
            yield portion
            portion, count = [], 0
    if portion:
        yield portion
