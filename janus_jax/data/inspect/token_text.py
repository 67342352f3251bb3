"""Token ids as the pieces of text that they are, one by one, safe to print."""

from collections.abc import Sequence

import numpy as np

from janus_jax.text.tokenizer import Tokenizer

MORE_BYTES = "▪"
"""Stands for a token that only carries further bytes of the character before it."""

_LONGEST_CHARACTER = 4
"""Bytes of UTF-8, each of which may be a token of its own."""


class Pieces:
    """Decodes single ids. A tokenizer drops leading spaces of a text, and bytes that are no whole character are no text
    yet: so an id is decoded behind an anchor, and together with its neighbours where it is not text by itself."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._anchor = tokenizer.encode("a")[-1:]
        self._before = tokenizer.decode(self._anchor)
        named = {tokenizer.unk_id: "<unk>", tokenizer.bos_id: "<s>", tokenizer.eos_id: "</s>"}
        self._known: dict[int, str] = {id: name for id, name in named.items() if id is not None}

    def one(self, id: int) -> str:
        """The text of an id by itself; special ids by their usual names."""
        if id not in self._known:
            text = self._text([id])
            self._known[id] = f"<{id}>" if not text or "\ufffd" in text else text
        return self._known[id]

    def run(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """One text for each id of consecutive ones."""
        found, at = [], 0
        whole = [int(id) for id in ids]
        while at < len(whole):
            size = self._character(whole, at) if self.one(whole[at]) == f"<{whole[at]}>" else 1
            if size > 1:
                found += [self._text(whole[at : at + size]), *[MORE_BYTES] * (size - 1)]
            else:
                found.append(self.one(whole[at]))
            at += size
        return found

    def text(self, ids: Sequence[int] | np.ndarray) -> str:
        """All of them as one text."""
        return self._tokenizer.decode([int(id) for id in ids])

    def _character(self, ids: list[int], at: int) -> int:
        """How many ids from `at` on make whole characters; 1 if none of the next few do."""
        for size in range(2, _LONGEST_CHARACTER + 1):
            text = self._text(ids[at : at + size]) if at + size <= len(ids) else ""
            if text and "\ufffd" not in text:
                return size
        return 1

    def _text(self, ids: list[int]) -> str:
        try:
            return self._tokenizer.decode([*self._anchor, *ids])[len(self._before) :]
        except (IndexError, OverflowError):  # an id that the tokenizer does not have
            return ""


def visible(text: str, space: str = "·") -> str:
    """One line: spaces, newlines and tabs as marks, and every character that does not print by its number. Texts are
    anybody's: what moves the cursor, changes colours or turns the direction of writing must not reach a terminal."""
    marks = {" ": space, "\n": "↵", "\t": "→"}
    return "".join(marks.get(c) or (c if c.isprintable() else ascii(c)[1:-1]) for c in text)


def beginning(text: str, length: int = 60) -> str:
    """The first characters of a text in quotes, one line."""
    shown = visible(text[: length + 1], " ")
    return f'"{shown[:length]}{"..." if len(shown) > length else ""}"'
