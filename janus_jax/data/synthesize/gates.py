"""Gates that a text passes before it is accepted. Each raises `Rejected` with the name under which it is counted."""

import dataclasses
import itertools
import math
import re
import statistics
from collections.abc import Iterable, Sequence

from janus_jax.data.synthesize.asking import Outcome, Rejected
from janus_jax.data.synthesize.language import LANGUAGES, is_english
from janus_jax.text.rouge import rouge_l, words

MARKUP = re.compile(
    r"<\|\w+\|>|<\|/?\w+\|?>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>|\[/?(?:SYSTEM_PROMPT|AVAILABLE_TOOLS)\]"
)
"""Marks of chat templates."""
_NORMAL = 1.4826
"""The standard deviation of normal values, for a median absolute deviation of 1."""
_DENSE = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]")
"""Kana, Han and Hangul."""
_SPEAKER = re.compile(r"^\s*(?:###\s*)?(?:Human|User|Assistant|System)\s*:", re.MULTILINE)
_MARK = "['\u2019]"
_CANNOT = rf"\bi (?:can(?:no|{_MARK})t|can not|am (?:unable|not able) to|won{_MARK}t|must decline|will not be able)"
_SORRY = rf"(?:i{_MARK}?m|i am) (?:\w+ ){{0,2}}(?:sorry|afraid)|i (?:\w+ )?apologi[sz]e|sorry|unfortunately"
_DECLINED = "assist|help|comply|fulfill?|provide|create|generate|answer|do that|discuss|engage|support|write"
_REFUSAL = re.compile(
    rf"^\W*(?:(?:{_SORRY})\b[^.!?\n]{{0,80}}{_CANNOT}|{_CANNOT} (?:\w+ )?(?:{_DECLINED})|"
    rf"as an? (?:\w+ ){{0,2}}(?:ai|language model|assistant)\b[^.!?\n]{{0,80}}"
    rf"(?:{_CANNOT}|\bi (?:do not|don{_MARK}t)))",
    re.IGNORECASE,
)
_PREAMBLE = re.compile(
    rf"^\W*(?:sure|certainly|of course|absolutely)[,!.]|^\W*here(?: i|{_MARK})s (?:a|an|the|your) [^\n]{{0,60}}:\s*$|"
    r"^\W*system (?:message|prompt)\W*:",
    re.IGNORECASE | re.MULTILINE,
)

_FAULTS = {
    "alike": "it was too like another text",
    "bad_json": "it was no valid JSON",
    "chat_markup": "it had marks of a chat template, or names of speakers",
    "copied_example": "it copied these words of an example: {detail}",
    "copied_form": "it repeated what only shows the form of an answer: {detail}",
    "copied_system": "it copied these words of the system message: {detail}",
    "empty": "it had no text, or an empty one",
    "no_description": "it did not describe every name as it was given ({detail})",
    "preamble": "it had words about the text, and not the text alone",
    "repeated_text": "two of its texts were the same",
    "too_long": "it was too long ({detail})",
    "too_short": "it was too short ({detail})",
    "truncated": "it was cut off, because it was too long; a shorter one is needed",
    "wrong_count": "it had another number of items than asked for ({detail})",
    "wrong_form": "its JSON had another form ({detail})",
    "wrong_language": "it was not in English",
}
"""Gate -> what a model can do something about, in words.

The words are part of a request, and so of its key in a journal: after a change of them, further requests that were
paid for are sent again. So a detail stands only where it follows from the answer and the settings of the step. What
`alike` compares with is not always the same: an answer may come later than others. A detail is of our own words, and
never of a library's, which change with its version. It has no words of the answer that may be marks of a chat template:
some servers end the prompt at them.
"""


def fault(gate: str, detail: str) -> str:
    """What was wrong with an answer, for the model; empty for a refusal, which is not argued with."""
    return _FAULTS.get(gate, "").replace("{detail}", " ".join(detail.split())[:120])


def refusal(text: str) -> None:
    """A text that begins by declining."""
    if match := _REFUSAL.match(text.strip()[:400]):
        raise Rejected("refusal", match[0][:80])


def length(text: str, least: int, most: int, what: str = "") -> None:
    """Characters outside the bounds. Both stand in the note to the model: other bounds make another request of it.

    Args:
        what: comes before the number, if the text is not all of the answer.
    """
    if len(text) < least:
        raise Rejected("too_short", f"{what}{len(text):,} characters; at least {least:,}")
    if len(text) > most:
        raise Rejected("too_long", f"{what}{len(text):,} characters; at most {most:,}")


def length_in_letters(text: str, least: int, what: str = "") -> None:
    """Too few characters. A letter of Chinese, Japanese or Korean counts as three: few of them are a sentence."""
    if len(text) + 2 * len(_DENSE.findall(text)) < least:
        raise Rejected("too_short", f"{what}{len(text)} characters; at least {least}")


def markup(text: str, asked: str = "") -> None:
    """Marks of a chat template, or speakers' names at the start of a line, that the instruction does not have."""
    for match in itertools.chain(MARKUP.finditer(text), _SPEAKER.finditer(text)):
        if match[0].strip() not in asked:
            raise Rejected("chat_markup", match[0].strip()[:40])


def language(text: str, wanted: str | None, asked: str = "") -> None:
    """Another language than wanted, unless the instruction names one or is in another one itself."""
    if wanted == "en" and not is_english(text) and not LANGUAGES.search(asked) and is_english(asked):
        raise Rejected("wrong_language", text[:40])


def copied(text: str, originals: Iterable[str], number: int, gate: str) -> None:
    """So many words in a row of one of the originals; of a shorter original, all of them."""
    own = re.findall(r"\w+", text.casefold())
    for original in originals:
        theirs = re.findall(r"\w+", original.casefold())
        size = min(number, len(theirs))
        if size < 5:  # too few to tell
            continue
        runs = {tuple(theirs[at : at + size]) for at in range(len(theirs) - size + 1)}
        for at in range(len(own) - size + 1):
            if tuple(own[at : at + size]) in runs:
                raise Rejected(gate, " ".join(own[at : at + size])[:80])


def preamble(text: str) -> None:
    """Words about the text instead of the text alone."""
    if match := _PREAMBLE.search(text[:200]):
        raise Rejected("preamble", match[0].strip()[:60])


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Which lengths are usual among texts of one kind.

    Iglewicz and Hoaglin (1993), "How to Detect and Handle Outliers": distances from the median, in units of 1.4826
    times the median absolute deviation, which is the standard deviation of normal values. Lengths are compared as
    logarithms, because they spread by factors.
    """

    median: float
    deviation: float
    """Of the natural logarithm of the number of characters."""

    @classmethod
    def of(cls, numbers: Sequence[int], least: int) -> "Lengths | None":
        """Of numbers of characters; None: there are fewer than `least`, or half of them are equal."""
        if len(numbers) < least:
            return None
        logs = [math.log(max(number, 1)) for number in numbers]
        median = statistics.median(logs)
        deviation = _NORMAL * statistics.median(abs(one - median) for one in logs)
        return cls(median, deviation) if deviation else None

    def distance(self, number: int) -> float:
        """Of a number of characters from the median, in robust standard deviations."""
        return (math.log(max(number, 1)) - self.median) / self.deviation

    def bounds(self, most: float) -> tuple[int, int]:
        """The fewest and the most characters within a distance."""
        reach = most * self.deviation
        return math.ceil(math.exp(self.median - reach)), math.floor(math.exp(self.median + reach))


def too_alike(outcomes: Sequence[Outcome], most: float) -> list[tuple[int, str]]:
    """The later ones of every two texts with such a ROUGE-L, or equal: (number, detail)."""
    texts = [str(one.value) for one in outcomes]
    split = list(map(words, texts))
    out: dict[int, str] = {}
    for one, other in itertools.combinations(range(len(texts)), 2):
        if one in out or other in out:
            continue
        value = 1.0 if texts[one].strip() == texts[other].strip() else rouge_l(split[one], split[other])
        if value >= most:
            out[other] = f"ROUGE-L {value:.2f}"
    return list(out.items())
