"""ROUGE-L of two texts, equal to that of the package rouge-score (rougeL, F-measure, no stemmer), many times faster.

Lin (2004): precision and recall are the length of the longest common subsequence of words, divided by the number of
words of the one and of the other text; ROUGE-L is their harmonic mean. A word is a run of the letters a to z and of
digits, in lower case: other scripts are not seen.
"""

import re
from collections.abc import Sequence

_WORD = re.compile("[a-z0-9]+")


def words(text: str) -> list[str]:
    """What ROUGE-L compares."""
    return _WORD.findall(text.lower())


def unseen_share(texts: Sequence[str]) -> float:
    """Share of the letters and digits in the texts that are in no word; 0 without any."""
    letters = seen = 0
    for text in texts:
        letters += sum(map(str.isalnum, text.lower()))
        seen += sum(map(len, words(text)))
    return 1 - seen / letters if letters else 0.0


def longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence.

    Hyyrö (2004), "Bit-parallel LCS-length computation revisited": bits of one integer hold a column of the table, so a
    word costs a few operations on whole integers.
    """
    places: dict[str, int] = {}
    for at, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << at
    everywhere = (1 << len(one)) - 1
    column = everywhere
    for word in other:
        if place := places.get(word):
            matched = column & place
            column = (column + matched | column - matched) & everywhere
    return len(one) - column.bit_count()


def rouge_l(one: Sequence[str], other: Sequence[str]) -> float:
    """ROUGE-L of the words of two texts; 0 if one has none."""
    common = longest_common(one, other)
    if not common:
        return 0.0
    precision, recall = common / len(other), common / len(one)
    return 2 * precision * recall / (precision + recall)
