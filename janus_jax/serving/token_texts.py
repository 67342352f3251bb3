"""Tokens as log-probs show them: their characters, their bytes, and where they stand in a text."""

import codecs
import functools
import re
from collections.abc import Iterable

from janus_jax.generation.detokenizer import Detokenizer
from janus_jax.text.tokenizer import Tokenizer

_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")
_NO_CHARACTER = "\N{REPLACEMENT CHARACTER}"


def _byte_level() -> dict[str, int]:
    """The character that stands for each byte in byte-level vocabularies (GPT-2's table)."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [value for value in range(256) if value not in own]
    return {chr(value): value for value in own} | {chr(256 + n): value for n, value in enumerate(others)}


_BYTES = _byte_level()


class TokenTexts:
    """Texts of single tokens of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, detokenizer: Detokenizer):
        self._tokenizer, self._detokenizer = tokenizer, detokenizer
        self._control = {tokenizer.control_id(token) for token in tokenizer.control_tokens()}
        self.bytes = functools.lru_cache(maxsize=1 << 16)(self._bytes)

    def _bytes(self, number: int, begins: bool = False) -> bytes | None:
        """The bytes that a token is for in a text; None for a control token, or an id that the tokenizer lacks.

        Args:
            begins: it begins the text, where sentencepiece leaves out a blank.
        """
        token = self._tokenizer.token(number) if 0 <= number < self._tokenizer.vocab_size else None
        if token is None or number in self._control:
            return None
        text = self._detokenizer.decode([number]) if begins else self._detokenizer.inside(number)
        if (match := _BYTE.fullmatch(token)) and text != token:
            return bytes([int(match[1], 16)])
        if _NO_CHARACTER in text and all(character in _BYTES for character in token):
            return bytes(_BYTES[character] for character in token)
        return text.encode()

    def text(self, number: int, begins: bool = False) -> str:
        """A token's characters. `bytes:\\xe4` if its bytes are no whole characters; a control token's spelling."""
        content = self.bytes(number, begins)
        if content is None:
            return self._tokenizer.token(number) or f"token_id:{number}"
        try:
            return content.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{value:02x}" for value in content)


class Offsets:
    """Where each token of a text begins, in characters.

    A token that goes on with an unfinished character has the place of that character.

    Args:
        inside: the tokens follow other text.
    """

    def __init__(self, texts: TokenTexts, detokenizer: Detokenizer, inside: bool = False):
        self._texts, self._stream, self._begins = texts, detokenizer.stream(inside=inside), not inside
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._place = self._certain = 0

    def push(self, ids: Iterable[int]) -> list[int]:
        """The place of each of the next tokens."""
        places = []
        for number in ids:
            content = self._texts.bytes(number, self._begins) or b""
            places.append(self._place)
            new = self._stream.push([number])
            self._place += len(self._decoder.decode(content))
            self._certain += len(new)
            own = content.decode(errors="ignore")
            if own and new.endswith(own) and own.encode() == content:
                # Bytes before it may have made other characters than they seemed to.
                places[-1], self._place = self._certain - len(own), self._certain
            self._begins = False
        return places

    def skip(self, characters: int) -> None:
        """The next token stands behind other text of so many characters."""
        self._place = self._certain = characters
