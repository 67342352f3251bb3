"""The splits that words of names say: of files that are built, and of another trainer's recipe."""

import re

_WORDS_OF_SPLITS = {
    "train": "train training",
    "validation": "validation valid val dev development eval evaluation heldout holdout",
    "test": "test testing",
}
SPLITS = tuple(_WORDS_OF_SPLITS)
"""The splits of a build."""
SPLIT_WORDS = {word: split for split, words in _WORDS_OF_SPLITS.items() for word in words.split()}
"""Word in lower case -> the split that it names."""


def splits_in(name: str) -> set[str]:
    """Splits that are words of a name: `rows_test`, `TestSet`, `train1`, `split=dev`; not `contest`."""
    joined = re.sub(r"(?i)(held|hold)[-_. ]?out", "heldout", name)
    words = (word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", joined))
    stems = (re.sub(r"(?<=[a-z])(s|sets?|splits?|data)$", "", word) for word in words)
    return {SPLIT_WORDS[stem] for stem in stems if stem in SPLIT_WORDS}
