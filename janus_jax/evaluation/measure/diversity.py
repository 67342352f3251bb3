"""How alike the answers to one instruction are under different system messages: ROUGE-L of every two of them."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from janus_jax.errors import ConfigError, counted
from janus_jax.evaluation.intervals import Cell, mean_cell
from janus_jax.evaluation.measure.answers import AnswerRow
from janus_jax.evaluation.result_table import Row, Table
from janus_jax.text.rouge import rouge_l, unseen_share, words

COLUMNS = ("average", "maximum", "instructions", "pairs")
_POSTER = 3
_UNSEEN = 0.05
"""Share of letters outside a to z that is worth a note."""


@dataclasses.dataclass(frozen=True)
class Diversity:
    """Of one model."""

    averages: np.ndarray
    """Of each instruction, the mean ROUGE-L of its pairs of answers."""
    maxima: np.ndarray
    pairs: int
    notes: tuple[str, ...] = ()
    """What is left out, and what the number does not see."""
    instructions: frozenset[str] = frozenset()
    """What tells them apart."""

    def row(self, name: str) -> Row:
        counts = Cell(len(self.averages)), Cell(self.pairs)
        return Row.from_cells(name, [mean_cell(self.averages), mean_cell(self.maxima), *counts])


def diversity(rows: Sequence[AnswerRow], *, by_key: bool = False, samples: bool = False) -> Diversity:
    """Compares the first answers of rows with one prompt and different system messages. Empty answers are left out.

    Args:
        by_key: compare all rows with one `key` instead, whatever their prompts and system messages.
        samples: compare the answers inside each row instead.

    Raises:
        ConfigError: no instruction has two answers to compare.
    """
    left_out: Counter[tuple[str, str]] = Counter()
    groups: dict[str, list[str]] = {}
    systems: dict[str, set[str]] = {}
    for number, row in enumerate(rows):
        group = str(number) if samples else row.key if by_key else row.prompt
        answers = groups.setdefault(group, [])
        if not samples and not by_key:
            if row.system in systems.setdefault(group, set()):
                left_out["row", "with the prompt and system message of an earlier one"] += 1
                continue
            systems[group].add(row.system)
        if not samples and len(row.answers) > 1:
            left_out["answer", "after the first of its row"] += len(row.answers) - 1
        answers += [one.text for one in (row.answers if samples else row.answers[:1])]
    averages, maxima, pairs, texts = [], [], 0, []
    compared: dict[str, int] = {}
    for group, answers in groups.items():
        split = [(text, own) for text in answers if (own := words(text))]
        empty = sum(not text.strip() for text in answers)
        left_out["answer", "without text"] += empty
        left_out["answer", "without a letter a to z or a digit"] += len(answers) - len(split) - empty
        if len(split) < 2:
            left_out["instruction", "with fewer than two answers to compare"] += 1
            continue
        scores = [rouge_l(one, other) for (_, one), (_, other) in itertools.combinations(split, 2)]
        averages.append(np.mean(scores))
        maxima.append(max(scores))
        pairs += len(scores)
        compared[group] = len(split)
        texts += [text for text, _ in split]
    if not averages:
        raise ConfigError(_nothing(groups, left_out, by_key, samples))
    notes = [f"left out: {_phrase(count, *what)}" for what, count in left_out.items() if count]
    if others := sum(count != _POSTER for count in compared.values()):
        what = f"{counted(others, 'instruction')} with more or fewer than the poster's {_POSTER} answers"
        notes.append(f"{what}; the maximum grows with their number")
    if (unseen := unseen_share(texts)) > _UNSEEN:
        notes.append(f"ROUGE-L does not see {unseen:.0%} of the letters: it reads a to z and digits alone")
    return Diversity(np.array(averages), np.array(maxima), pairs, tuple(notes), frozenset(compared))


def _phrase(count: int, noun: str, rest: str) -> str:
    return f"{counted(count, noun)} {rest}"


def _nothing(
    groups: Mapping[str, Sequence[str]], left_out: Mapping[tuple[str, str], int], by_key: bool, samples: bool
) -> str:
    answers = sum(map(len, groups.values()))
    parts = [f"{counted(len(groups), 'row' if samples else 'instruction')} and {counted(answers, 'answer')}"]
    lost = [_phrase(count, *what) for what, count in left_out.items() if count and what[0] != "instruction"]
    parts += [f"left out: {', '.join(lost)}"] if lost else []
    needed = "two answers" if samples else "two rows" if by_key else "two rows with different system messages"
    if not samples and not by_key:
        parts.append("files of one NAME are read together, --samples compares the answers inside a row")
    return f"no {'row' if samples else 'instruction'} has {needed} with text; found: {'; '.join(parts)}"


def table(measured: Mapping[str, Diversity], settings: Mapping[str, object]) -> Table:
    """Of several models, by name."""
    notes = [f"note: {name}: {note}" for name, one in measured.items() for note in one.notes]
    if len({one.instructions for one in measured.values()}) > 1:
        notes.append("note: the files have different instructions, so their numbers do not compare")
    return Table(
        "diversity",
        "ROUGE-L between the answers to one instruction, mean over instructions; lower is more diverse",
        COLUMNS,
        [one.row(name) for name, one in measured.items()],
        notes,
        {"measure": "ROUGE-L, F-measure, no stemmer, as rouge-score 0.1.2", **settings},
        "diversity",
    )
