"""Texts of a model for a terminal: harmless, and broken into lines while they come."""

import unicodedata

from rich.cells import cell_len

_JOINER = "\u200d"
_HARMLESS = {"\n", "\u200c", _JOINER}
"""Not printable by Python's rule, but parts of ordinary texts: line ends, joiners of Persian, Hindi and emoji."""

Columns = int
"""Of a terminal; an East Asian character or an emoji takes two."""


def harmless(text: str) -> str:
    """A text without what could move the cursor, set colours or reverse writing: that is shown escaped, as in \\x1b.
    Tabs become four spaces."""
    return "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character in _HARMLESS or character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    return "    " if character == "\t" else ascii(character)[1:-1]


def one_line(text: str, width: Columns) -> str:
    """The beginning of a text, at most so wide."""
    text = " ".join(harmless(text).split())
    if cell_len(text) <= width:
        return text
    while text and cell_len(text) > width - 1:
        text = text[:-1]
    return f"{text.rstrip()}…"


class Flow:
    """Breaks a text that comes in pieces into lines: between words, or beside wide characters.

    A line begins with the blanks that the text has there. A word that is wider than a line is broken.

    Args:
        width: of a line.
    """

    def __init__(self, width: Columns):
        self._width = width
        self._at = 0
        self._blanks = ""
        self._word: list[str] = []  # characters, each with what joins it

    def push(self, text: str) -> str:
        """What can be shown now, with line ends. The last word is held back: more of it may come."""
        return "".join(map(self._take, text))

    def finish(self) -> str:
        """The rest."""
        out, self._blanks = self._place(), ""
        return out

    def _take(self, character: str) -> str:
        if character == "\n":
            out, self._at, self._blanks = self._place() + "\n", 0, ""
            return out
        if character.isspace():
            out = self._place()
            self._blanks += character
            return out
        out = ""
        if self._word and (cell_len(character) == 0 or self._word[-1].endswith(_JOINER)):
            self._word[-1] += character
        else:
            if self._word and max(cell_len(character), cell_len(self._word[0])) > 1:
                out = self._place()
            self._word.append(character)
        if len(self._word) > 1 and cell_len("".join(self._word)) > self._width:
            *fits, last = self._word
            self._word = fits
            out += self._place()
            self._word = [last]
        return out

    def _place(self) -> str:
        """Ends the word."""
        word, blanks = "".join(self._word), self._blanks
        if not word:
            return ""
        self._word, self._blanks = [], ""
        if self._at + cell_len(blanks) + cell_len(word) <= self._width:
            self._at += cell_len(blanks) + cell_len(word)
            return blanks + word
        begun, self._at = self._at > 0, cell_len(word)
        return f"\n{word}" if begun else word


def wrapped(text: str, width: Columns) -> list[str]:
    """The lines of a text that is not trusted."""
    flow = Flow(width)
    return (flow.push(harmless(text)) + flow.finish()).split("\n")


def padded(line: str, width: Columns) -> str:
    return line + " " * max(0, width - cell_len(line))
