"""How long answers are, beside the reference answers to the same rows; how many are cut off or run in circles."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from janus_jax.checkpoint.stored_model import open_model
from janus_jax.data.tally import located
from janus_jax.errors import ConfigError, DataError, counted
from janus_jax.evaluation.intervals import Cell, mean_cell
from janus_jax.evaluation.measure.answers import AnswerRow
from janus_jax.evaluation.result_table import Row, Table
from janus_jax.text.tokenizer import load_tokenizer

COLUMNS = (
    *("answers", "mean", "quartile 1", "median", "quartile 3", "95th percentile", "of reference", "its median"),
    *("cut", "looping", "distinct 2-grams"),
)
REFERENCE = "reference"
_LOOP, _OFTEN = 8, 5
_LONG_WORD = 15
"""Mean characters of a word: more are seen in texts that put no blanks between words."""

Length = Callable[[str], int]


@dataclasses.dataclass(frozen=True)
class Verbosity:
    """Of one model, or of the reference answers. Lists have one value for each row, the mean of its answers."""

    lengths: np.ndarray
    """Of all answers."""
    means: np.ndarray
    ratios: np.ndarray
    """Length of an answer / of its reference; of rows whose reference has words."""
    cut: np.ndarray
    """Share of the answers at which the model was stopped; of rows that say it."""
    looping: np.ndarray
    distinct: np.ndarray
    """Of answers with two words or more."""
    notes: tuple[str, ...] = ()
    references: Mapping[Hashable, str] = dataclasses.field(default_factory=dict)
    """The references that were answered, by what tells them apart."""

    def row(self, name: str) -> Row:
        quartiles = np.quantile(self.lengths, [0.25, 0.5, 0.75, 0.95]).tolist()
        ratio = float(np.median(self.ratios)) if len(self.ratios) else None
        cells = [
            Cell(len(self.lengths)),
            mean_cell(self.means),
            *map(Cell, quartiles),
            mean_cell(self.ratios),
            Cell(ratio),
            *map(mean_cell, (self.cut, self.looping, self.distinct)),
        ]
        return Row.from_cells(name, cells)


def in_words(text: str) -> int:
    """Words between blanks."""
    return len(text.split())


def in_tokens(model: str) -> Length:
    """Counts tokens as a stored model reads them, or as the tokenizer of a directory does.

    Raises:
        ConversionError, DataError: neither can be read, or the model has no tokenizer.
    """
    directory = Path(model).expanduser()
    if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        directory = open_model(model).tokenizer_directory
        if directory is None:
            raise ConfigError(f"--tokenizer {model}", "has no tokenizer; allowed: a model or a directory with one")
    tokenizer = load_tokenizer(directory)
    return lambda text: len(tokenizer.encode(text)) if text else 0


def loops(words: Sequence[str]) -> bool:
    """Whether the same eight words in a row stand in a text more than five times."""
    grams = Counter(zip(*(words[at:] for at in range(_LOOP)), strict=False))
    return max(grams.values(), default=0) > _OFTEN


def distinct_pairs(words: Sequence[str]) -> float | None:
    """Share of pairs of neighbouring words that differ from all earlier ones; None without a pair."""
    pairs = list(itertools.pairwise(words))
    return len(set(pairs)) / len(pairs) if pairs else None


def verbosity(
    rows: Sequence[AnswerRow], references: Sequence[AnswerRow] | None = None, length: Length = in_words
) -> Verbosity:
    """Lengths of all answers.

    Args:
        references: rows whose first answer is the reference; None: those that stand in the rows themselves.
        length: of a text.

    Raises:
        ConfigError: the references are to other rows.
        DataError: "FILE:ROW: ..." for an answer with the id of a reference to another prompt.
    """
    texts = _own(rows) if references is None else _matched(rows, references)
    if references is not None and not texts:
        ids = f"ids such as {rows[0].id!r} and {references[0].id!r}"
        what = (
            f"{counted(len(rows), 'row')} and {counted(len(references), 'reference')} share no id and no prompt; {ids}"
        )
        raise ConfigError(what)
    used = dict(texts.values())
    measured = {key: length(text) for key, text in used.items()}
    lengths, ratios, notes = [[length(one.text) for one in row.answers] for row in rows], [], []
    for at, (key, _) in texts.items():
        if measured[key]:
            ratios.append(np.mean(lengths[at]) / measured[key])
    made = _measured([[one.text for one in row.answers] for row in rows], lengths)
    cut = [np.mean(known) for row in rows if (known := [one.is_cut for one in row.answers if one.is_cut is not None])]
    if empty := [row.place for row in rows for one in row.answers if one.is_empty]:
        notes.append(
            f"{counted(len(empty), 'answer')} without text, counted with length 0{located(len(empty), empty[:3])}"
        )
    if texts and (lost := len(rows) - len(texts)):
        notes.append(
            f"{counted(lost, 'row')} without a reference; {'it counts' if lost == 1 else 'they count'} in no ratio"
        )
    if len(ratios) < len(texts):
        notes.append(f"{counted(len(texts) - len(ratios), 'reference')} of length 0; no ratio to it")
    if length is in_words and (letters := _letters_of_a_word(one.text for row in rows for one in row.answers)):
        notes.append(f"a word has {letters:.0f} characters: such texts have no blanks; --tokenizer counts tokens")
    return dataclasses.replace(made, ratios=np.array(ratios), cut=np.array(cut), notes=tuple(notes), references=used)


def of_references(measured: Iterable[Verbosity], length: Length = in_words) -> Verbosity | None:
    """The references that models answered, each once; None without any."""
    texts = {key: text for one in measured for key, text in one.references.items()}
    return (
        _measured([[text] for text in texts.values()], [[length(text)] for text in texts.values()]) if texts else None
    )


def _measured(texts: Sequence[Sequence[str]], lengths: Sequence[Sequence[int]]) -> Verbosity:
    split = [[text.split() for text in of_row] for of_row in texts]
    shares = [[share for words in of_row if (share := distinct_pairs(words)) is not None] for of_row in split]
    return Verbosity(
        np.array([one for of_row in lengths for one in of_row]),
        np.array([np.mean(of_row) for of_row in lengths]),
        np.zeros(0),
        np.zeros(0),
        np.array([np.mean([loops(words) for words in of_row]) for of_row in split]),
        np.array([np.mean(of_row) for of_row in shares if of_row]),
    )


def _letters_of_a_word(texts: Iterable[str]) -> float | None:
    """Mean number of characters between blanks, if it is that of a script without them."""
    words = [len(word) for text in texts for word in text.split()]
    mean = sum(words) / len(words) if words else 0
    return mean if mean > _LONG_WORD else None


def _own(rows: Sequence[AnswerRow]) -> dict[int, tuple[Hashable, str]]:
    """Number of a row -> its reference. Rows with one id and text have the same one."""
    return {at: ((row.id, row.reference), row.reference) for at, row in enumerate(rows) if row.reference is not None}


def _matched(rows: Sequence[AnswerRow], references: Sequence[AnswerRow]) -> dict[int, tuple[Hashable, str]]:
    """By id; else by system message and prompt; else by a prompt that only one reference has."""
    last = list(enumerate(references))[::-1]  # of several, the first one counts
    ids = {row.id: number for number, row in last}
    asked = {(row.system, row.prompt): number for number, row in last}
    once = Counter(row.prompt for row in references)
    prompts = {row.prompt: number for number, row in last if once[row.prompt] == 1}
    matched: dict[int, tuple[Hashable, str]] = {}
    for at, row in enumerate(rows):
        number = None if row.id is None else ids.get(row.id)
        if number is not None and row.prompt and references[number].prompt not in ("", row.prompt):
            raise DataError(row.place, f"has the id {row.id!r} of {references[number].place}, which has another prompt")
        if number is None and row.prompt:
            number = asked.get((row.system, row.prompt), prompts.get(row.prompt))
        if number is not None:
            matched[at] = number, references[number].answers[0].text
    return matched


def table(
    measured: Mapping[str, Verbosity], reference: Verbosity | None, unit: str, settings: Mapping[str, Any]
) -> Table:
    """Of several models, the reference answers first."""
    notes = [f"note: {name}: {note}" for name, one in measured.items() for note in one.notes]
    answered = {frozenset(one.references) for one in measured.values()}
    if reference is not None and len(answered) > 1:
        notes.append("note: the files answer different rows; the reference row is of all that one of them answers")
    rows = [] if reference is None else [reference.row(REFERENCE)]
    return Table(
        "verbosity",
        f"Lengths of answers in {unit}",
        COLUMNS,
        [*rows, *(one.row(name) for name, one in measured.items())],
        [
            *notes,
            "of reference: length / length of the reference, mean over rows; its median beside it",
            f"cut: share of answers at their limit; looping: with the same {_LOOP} words more than {_OFTEN} times",
        ],
        {"unit": unit, **settings},
    )
