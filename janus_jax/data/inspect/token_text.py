"""Text of single tokens, safe to print."""

from collections.abc import Sequence

import numpy as np

from janus_jax.text.tokenizer import Tokenizer

MORE_BYTES = "▪"
"""Shown for a token that only holds more bytes of the previous character."""

_LONGEST_CHARACTER = 4
"""Bytes of a character in UTF-8; each may be a token."""


class TokenDecoder:
    """Decodes token by token.

    Tokenizers drop the leading space of a text, so each id is decoded behind an anchor. An id that is only part of a
    character is decoded together with the next ones.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._anchor = tokenizer.encode("a")[-1:]
        self._before = tokenizer.decode(self._anchor)
        named = {tokenizer.unk_id: "<unk>", tokenizer.bos_id: "<s>", tokenizer.eos_id: "</s>"}
        self._known: dict[int, str] = {id: name for id, name in named.items() if id is not None}

    def token(self, id: int) -> str:
        """The text of one id; special ids have their usual names, and ids without text are shown as `<id>`."""
        if id not in self._known:
            text = self._text([id])
            self._known[id] = f"<{id}>" if not text or "\ufffd" in text else text
        return self._known[id]

    def tokens(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """One text per id of a sequence."""
        ids = [int(id) for id in ids]
        texts: list[str] = []
        while (at := len(texts)) < len(ids):
            size = self._character_size(ids, at) if self.token(ids[at]) == f"<{ids[at]}>" else 1
            if size > 1:
                texts += [self._text(ids[at : at + size]), *[MORE_BYTES] * (size - 1)]
            else:
                texts.append(self.token(ids[at]))
        return texts

    def text(self, ids: Sequence[int] | np.ndarray) -> str:
        """A sequence of ids as one text."""
        return self._tokenizer.decode([int(id) for id in ids])

    def _character_size(self, ids: list[int], at: int) -> int:
        """Number of ids from `at` on that make whole characters; 1 if the next few do not."""
        for size in range(2, _LONGEST_CHARACTER + 1):
            text = self._text(ids[at : at + size]) if at + size <= len(ids) else ""
            if text and "\ufffd" not in text:
                return size
        return 1

    def _text(self, ids: list[int]) -> str:
        try:
            return self._tokenizer.decode([*self._anchor, *ids])[len(self._before) :]
        except (IndexError, OverflowError):  # an id outside the vocabulary
            return ""


def visible(text: str, space: str = "·") -> str:
    """A text on one line: spaces, newlines and tabs as marks, unprintable characters escaped.

    Texts are untrusted: what moves the cursor, sets colours or reverses writing must not reach a terminal.
    """
    marks = {" ": space, "\n": "↵", "\t": "→"}
    return "".join(marks.get(c) or (c if c.isprintable() else ascii(c)[1:-1]) for c in text)


def beginning(text: str, length: int = 60) -> str:
    """How a text begins, in quotes on one line."""
    start = visible(text[: length + 1], " ")
    return f'"{start[:length]}{"..." if len(start) > length else ""}"'
