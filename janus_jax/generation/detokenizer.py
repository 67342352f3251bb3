"""Token ids to text while they come: whole characters, and in the end the text of all ids together."""

import re
from collections.abc import Iterable, Sequence

from janus_jax.generation.stopping import StopStrings
from janus_jax.text.tokenizer import Tokenizer

_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")
_NO_CHARACTER = "\N{REPLACEMENT CHARACTER}"
_UNFINISHED = 3
"""Bytes, shown as so many replacement characters at most, of which a fourth can make a character."""


class Detokenizer:
    """Makes text of a tokenizer's ids. An id that the tokenizer does not have is no text."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        vocabulary = tokenizer.vocabulary()
        bytes_of = {int(token[3:5], 16): number for token, number in vocabulary.items() if _BYTE.fullmatch(token)}
        probe = [bytes_of[value] for value in b"\xc3\xa9\xff" if value in bytes_of]
        self._waits: frozenset[int] = frozenset()
        """Ids after which earlier text may still change. The `tokenizers` library makes text of a run of bytes only if
        the whole run is UTF-8, and a control token does not end the run."""
        if bytes_of and not (len(probe) == 3 and "é" in self.decode(probe)):
            control = map(tokenizer.control_id, tokenizer.control_tokens())
            self._waits = frozenset([*bytes_of.values(), *(number for number in control if number is not None)])
        self._anchor = self._find_anchor()

    def decode(self, ids: Iterable[int]) -> str:
        return self._tokenizer.decode([number for number in ids if 0 <= number < self._tokenizer.vocab_size])

    def inside(self, number: int) -> str:
        """The text of one id that follows other text."""
        before, letter = self._anchor or (None, "")
        return self.decode([number] if before is None else [before, number])[len(letter) :]

    def stream(self, stop: Sequence[str] = (), *, inside: bool = False) -> "TextStream":
        """The text of one answer, which ends before any of the `stop` strings.

        Args:
            inside: it follows other text, so a blank at its beginning stays.
        """
        return TextStream(self, stop, inside)

    def _find_anchor(self) -> tuple[int, str] | None:
        """An ordinary id and its text. After it ids are read as inside a text, where no blank is left out."""
        for letter in "aeiotnsrAEIOTNSR0123456789.,":
            number = (self._tokenizer.encode(letter) or [-1])[-1]
            if number not in self._waits and self.decode([number]) == letter:
                return number, letter
        return None


class TextStream:
    """Takes the ids of one answer as they come, and gives its text: `decode` of all ids, cut before a stop string."""

    def __init__(self, detokenizer: Detokenizer, stop: Sequence[str] = (), inside: bool = False):
        self._detokenizer, self._stops = detokenizer, StopStrings(stop)
        self._window: list[int] = []  # ids since the last place where no character was unfinished
        self._begun = inside  # whether the window stands after text
        self._sent = 0  # characters of the window's text
        self.count = 0
        """Ids taken, up to the one that completes a stop string."""

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the text."""
        return self._stops.matched

    def push(self, ids: Iterable[int]) -> str:
        """The text that is new, as far as no further id can change it. Ids after a stop string are not taken."""
        shown = ""
        for number in ids:
            if self.stopped is not None:
                break
            self.count += 1
            shown += self._stops.push(self._add(number))
        return shown

    def finish(self) -> str:
        """The rest of the text, after the last id."""
        rest = self._text()[self._sent :]
        self._window, self._sent, self._begun = [], 0, True
        return self._stops.push(rest) + self._stops.finish()

    def _add(self, number: int) -> str:
        self._window.append(number)
        if number in self._detokenizer._waits:
            return ""
        text = self._text()
        certain = len(text)
        while certain > max(0, len(text) - _UNFINISHED) and text[certain - 1] == _NO_CHARACTER:
            certain -= 1
        new = text[self._sent : certain]
        self._sent = max(self._sent, certain)
        if certain == len(text) and (text or self._begun) and self._detokenizer._anchor is not None:
            self._window, self._sent, self._begun = [], 0, True
        return new

    def _text(self) -> str:
        """Text of the window's ids."""
        if not self._begun or self._detokenizer._anchor is None:
            return self._detokenizer.decode(self._window)
        number, letter = self._detokenizer._anchor
        return self._detokenizer.decode([number, *self._window])[len(letter) :]
