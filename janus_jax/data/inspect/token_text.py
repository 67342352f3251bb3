"""Text of single tokens, safe to print."""

import itertools
from collections.abc import Sequence

import numpy as np

from janus_jax.text.tokenizer import Tokenizer

MORE_BYTES = "▪"
"""Shown for a token that only holds more bytes of the previous character."""

_PART = "\ufffd"
"""What decoders write for a part of a character."""

_LONGEST_CHARACTER = 4
"""Bytes of a character in UTF-8; each may be a token."""


class TokenDecoder:
    """Decodes token by token.

    Tokenizers drop the leading space of a text, so each id is decoded behind an anchor. An id that is only part of a
    character is decoded together with the next ones. Control tokens are no text: they are shown by their names.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._anchor = tokenizer.encode("a")[-1:]
        self._before = tokenizer.decode(self._anchor)
        self._control = frozenset(tokenizer.control_tokens())
        self._ends = {tokenizer.bos_id, tokenizer.eos_id}
        self._names: dict[int, str] = {}
        self._known: dict[int, str] = {}

    def token(self, id: int) -> str:
        """The text of one id; a control token has its name, and an id without text is shown as `<id>`."""
        if id not in self._known:
            text = self._name(id) or self._text([id])
            self._known[id] = f"<{id}>" if not text or _PART in text else text
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
        """A sequence of ids as one text, without BOS and EOS."""
        runs = itertools.groupby((int(id) for id in ids if id not in self._ends), key=self._name)
        texts: list[str] = []
        for name, run in runs:
            decode = self._text if texts else self._tokenizer.decode
            texts.append("".join(name for _ in run) if name else decode(list(run)))
        return "".join(texts)

    def _character_size(self, ids: list[int], at: int) -> int:
        """Number of ids from `at` on that make whole characters; 1 if the next few do not."""
        if _PART not in self._text(ids[at : at + 1]):
            return 1
        for size in range(2, _LONGEST_CHARACTER + 1):
            if at + size > len(ids) or self._name(ids[at + size - 1]):
                return 1
            text = self._text(ids[at : at + size])
            if text and _PART not in text:
                return size
        return 1

    def _name(self, id: int) -> str:
        """The spelling of a control token, of BOS, EOS and the unknown token; empty for any other id."""
        if id not in self._names:
            tokenizer = self._tokenizer
            name = tokenizer.token(id) or ""
            special = id in (*self._ends, tokenizer.unk_id)
            self._names[id] = name if special or (name in self._control and tokenizer.control_id(name) == id) else ""
        return self._names[id]

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
