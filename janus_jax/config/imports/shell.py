"""Commands in shell scripts, read and never run: variables, continuations, quotes, here-documents.

Nothing of the environment is used and nothing is executed: `$(...)` and unset variables stay as they are written.
As in a shell, values are put in after a line is divided into commands and words: no letter of a value ends a command,
and a bare value is split at blanks alone.
"""

import codecs
import dataclasses
import re
from collections.abc import Callable, Iterator

from janus_jax.errors import ConfigError

_NAME = r"[A-Za-z_]\w*"
_ASSIGNMENT = re.compile(rf"({_NAME})(\+?)=(.*)", re.DOTALL)
_USE = re.compile(rf"\$({_NAME}|\d)")
_BRACED = re.compile(rf"\$\{{({_NAME}|\d)(?:(\[[@*]\])|(:?)[-=](.*))?\}}", re.DOTALL)
_SPECIAL = re.compile(rf"[\\'\"`]|\$['({{]|(?<![^\s;]){_NAME}\+?=\(")
"""What begins a piece that is not bare; the last is an array."""
_IN_QUOTES = re.compile(rf"\\[$`\"\\]|\$[({{]|`|{_USE.pattern}")
_HEREDOC = re.compile(r"(?<!<)<<-?\s*(['\"]?)(\w+)\1")
_READ = re.compile(rf"\bread\b.*?\b({_NAME})\s*<<")
_DECLARATIONS = frozenset(["export", "local", "readonly", "declare", "typeset"])
_KEYWORDS = frozenset(["then", "do", "else", "{", "!", "time", "exec", "nohup"])
_LONGEST = 30_000
"""Most characters of a word after its variables are replaced."""

_BLANKS = " \t\n"
_EMPTY = "\U000f0000"
"""Begins a quoted text, so that an empty one is a word too. Of a private range of Unicode, as all that follow."""
_HIDE = {ord(one): 0xF0000 + ord(one) for one in _BLANKS}
_SHOW = {hidden: one for one, hidden in _HIDE.items()} | {ord(_EMPTY): None}
_KEEP = {ord(one): 0xF1000 + ord(one) for one in _BLANKS}
"""Blanks of what only a shell can compute: no use of the variable that holds it splits them."""
_SHOW_ALL = _SHOW | {kept: one for one, kept in _KEEP.items()}


@dataclasses.dataclass(frozen=True)
class Command:
    """One simple command: its words, the line it begins in, and why it may be a torn-off piece of the one before."""

    words: tuple[str, ...]
    line: int
    torn_by: int | None = None
    """Line of the comment that ended the command before it, though that went on in the next line."""


class Script:
    """The commands of a script and the variables that it sets.

    Raises:
        ConfigError: its variables make a line longer than a recipe's, or its brackets nest too deep.
    """

    def __init__(self, text: str):
        self.variables: dict[str, str] = {}
        self.used: set[str] = set()
        self.unset: set[str] = set()
        self.executed: set[str] = set()
        self.commands: list[Command] = []
        self._arrays: dict[str, list[str]] = {}
        try:
            for line, text_of_line, torn_by in _logical_lines(text, self.variables, self._in_quotes):
                for raw in _simple_commands(text_of_line):
                    self._read(line, _raw_words(raw), torn_by)
        except RecursionError:
            raise ConfigError("brackets nest too deep; allowed: a recipe") from None
        self.variables = {name: value.translate(_SHOW_ALL) for name, value in self.variables.items()}

    def _read(self, line: int, raw: list[str], torn_by: int | None) -> None:
        while raw and raw[0] in _KEYWORDS:
            raw = raw[1:]
        if declares := bool(raw) and raw[0] in _DECLARATIONS:
            raw = [one for one in raw[1:] if not one.startswith("-")]
        while raw and (one := _ASSIGNMENT.fullmatch(raw[0])):  # alone, or before a command
            self._assign(*one.groups())
            raw = raw[1:]
        if raw and not declares:
            words = self._words(_without_redirections(raw))
            if words:
                self.commands.append(Command(tuple(one.translate(_SHOW_ALL) for one in words), line, torn_by))

    def _assign(self, name: str, adds: str, raw: str) -> None:
        if raw.startswith("("):
            items = self._words(_raw_words(raw[1:-1]))
            self._arrays[name] = [*self._arrays.get(name, ()), *items] if adds else items
            self.variables[name] = " ".join(self._arrays[name]).translate(_SHOW)
        else:
            value = self._expand(raw).translate(_SHOW)
            self.variables[name] = self.variables.get(name, "") + value if adds else value

    def _words(self, raw: list[str]) -> list[str]:
        """The words that raw ones become; blanks of quotes are hidden in them."""
        words, length = [], 0
        for one in raw:
            expanded = self._expand(one)
            length += len(expanded)
            _require_short(length)
            words += re.findall(rf"[^{_BLANKS}]+", expanded)
        return words

    def _expand(self, raw: str) -> str:
        """The text with the script's variables; blanks of quotes are hidden, those of bare values are not."""
        expanded = ""
        for kind, piece in _pieces(raw):
            if kind in ("'", "$'"):
                expanded += _hidden(_ansi(piece[2:-1]) if kind == "$'" else piece[1:-1])
            elif kind == "\\":
                expanded += _hidden(piece[1:])
            elif kind == '"':
                only_array = (one := _BRACED.fullmatch(piece[1:-1])) and one[2]
                expanded += ("" if only_array else _EMPTY) + self._in_quotes(piece[1:-1])
            elif kind == "$":
                expanded += self._substituted(piece, quoted=False)
            else:
                expanded += _USE.sub(lambda use: self._value(use[1], use[0], quoted=False), piece)
            _require_short(len(expanded))
        return expanded

    def _in_quotes(self, text: str) -> str:
        """What a text between double quotes, or in a here-document, becomes."""
        expanded, place = "", 0
        while special := _IN_QUOTES.search(text, place):
            expanded += text[place : special.start()].translate(_HIDE)
            place = special.end()
            if special[0][0] == "\\":
                expanded += special[0][1]
            elif special[1]:
                expanded += self._value(special[1], special[0], quoted=True)
            else:
                place = min(_skip(text, special.start()), len(text))
                expanded += self._substituted(text[special.start() : place], quoted=True)
            _require_short(len(expanded))
        return expanded + text[place:].translate(_HIDE)

    def _substituted(self, text: str, *, quoted: bool) -> str:
        """The value of `${...}`; `$(...)` and backticks stay."""
        if use := _BRACED.fullmatch(text):
            return self._value(use[1], text, quoted=quoted, array=use[2], empty=not use[3], default=use[4])
        self.executed.add(text)
        return text.translate(_KEEP)

    def _value(
        self, name: str, text: str, *, quoted: bool, array: str = "", empty: bool = True, default: str | None = None
    ) -> str:
        """The value of a variable. `text`: its use, which stays if nothing sets it. `empty`: it may be empty."""
        self.used.add(name)
        if array and name in self._arrays:
            words = " ".join(self._arrays[name])
            return words if quoted else words.translate(_SHOW)  # bare, its words are split too
        value = self.variables.get(name)
        if default is not None and (value is None or not (value or empty)):
            value = self._expand(default)
            value = value.translate(_SHOW) if quoted else value
        if value is None:
            self.unset.add(name)
            return text.translate(_KEEP)
        return value.translate(_HIDE) if quoted else value


def _require_short(length: int) -> None:
    if length > _LONGEST:
        raise ConfigError(f"a line has more than {_LONGEST:,} characters with its variables; allowed: a recipe")


def _hidden(text: str) -> str:
    return _EMPTY + text.translate(_HIDE)


def _logical_lines(
    text: str, variables: dict[str, str], expand: Callable[[str], str]
) -> Iterator[tuple[int, str, int | None]]:
    """(line, text, line of a comment that tore it off) of a script; here-documents go into their variable."""
    lines = text.replace("\r\n", "\n").split("\n")
    number, torn_by = 0, None

    def body(last: str) -> str:
        nonlocal number
        start = number
        while number < len(lines) and lines[number].strip() != last:
            number += 1
        number += 1
        return "\n".join(lines[start : number - 1])

    while number < len(lines):
        start, joined, commented = number, "", False
        while number < len(lines):
            joined += lines[number]
            number += 1
            code = _without_comment(joined)
            commented = len(code) < len(joined)
            joined = code
            if not commented and re.search(r"(?<!\\)(\\\\)*\\$", joined):
                joined = joined[:-1] + " "
                continue
            rest = _open(joined)
            if not rest:
                break
            if rest.startswith("$(") and (here := _HEREDOC.search(rest)):
                joined = joined[: len(joined) - len(rest) + here.start()]
                body(here[2])
            joined, commented = joined + "\n", False
        if here := _heredoc(joined):
            content = re.sub(r"\\\n", " ", body(here[2]))
            if name := _READ.search(joined):
                variables[name[1]] = content if here[1] else expand(content).translate(_SHOW)
            joined = joined[: here.start()]
            if name:
                continue
        if joined.strip():
            yield start + 1, joined, torn_by if joined.lstrip().startswith("-") else None
        if commented and number - start > 1:
            torn_by = number
        elif joined.strip() and not joined.lstrip().startswith("-"):
            torn_by = None


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    """(kind, piece) of a text; the pieces join to it. A kind is what opens the piece: a quote, a backslash, `$` for
    `$(...)`, `${...}` and backticks, `(` for an array. Bare pieces have none; `open`: the last has no end."""
    place = 0
    while special := _SPECIAL.search(text, place):
        opens = special[0]
        is_array = opens[-1] == "(" and opens[0] != "$"
        start = special.end() - 1 if is_array else special.start()
        if start > place:
            yield "", text[place:start]
        place = _until(text, start + 1, ")", "(") if is_array else _skip(text, start)
        kind = "(" if is_array else "$" if opens in ("`", "$(", "${") else opens
        yield (kind if place <= len(text) else "open"), text[start:place]
    if place < len(text):
        yield "", text[place:]


def _skip(text: str, place: int) -> int:
    """Index behind what begins at a place: a letter, or quotes or brackets with all they hold. Larger than the text's
    length: they have no end."""
    pair = text[place : place + 2]
    if pair[0] == "\\":
        return min(place + 2, len(text))
    if pair[0] == "'":
        end = text.find("'", place + 1)
        return len(text) + 1 if end < 0 else end + 1
    if pair == "$'":
        return _until(text, place + 2, "'")
    if pair in ("$(", "${"):
        return _until(text, place + 2, ")" if pair == "$(" else "}", pair[1])
    return _until(text, place + 1, pair[0]) if pair[0] in '"`' else place + 1


def _until(text: str, place: int, closing: str, opening: str = "") -> int:
    """Index behind the letter that closes what is open at a place."""
    while place < len(text):
        letter = text[place]
        if letter == closing:
            return place + 1
        if letter == "\\":
            place += 2
        elif closing in "'`" or (closing == '"' and (letter == "'" or text[place : place + 2] == "$'")):
            place += 1
        elif letter == opening:
            place = _until(text, place + 1, closing, opening)
        elif closing == ")" and letter == "#" and text[place - 1] in f"({_BLANKS}":  # a comment
            end = text.find("\n", place)
            place = len(text) if end < 0 else end
        else:
            place = _skip(text, place)
    return len(text) + 1


def _heredoc(text: str) -> re.Match[str] | None:
    """The first `<<WORD` outside quotes."""
    outside, place = set(), 0
    for kind, piece in _pieces(text):
        outside.update(() if kind else range(place, place + len(piece)))
        place += len(piece)
    return next((one for one in _HEREDOC.finditer(text) if one.start() in outside), None)


def _open(text: str) -> str:
    """The quote or bracket that has no end, with what it holds; empty: all are closed."""
    return next((piece for kind, piece in _pieces(text) if kind == "open"), "")


def _without_comment(text: str) -> str:
    """The text before a comment: a # outside quotes at the beginning of a word."""
    place = 0
    for kind, piece in _pieces(text):
        if not kind and (comment := re.search(r"(?:^|(?<=[\s;&|]))#", piece)):
            at = place + comment.start()
            if at == 0 or text[at - 1].isspace() or text[at - 1] in ";&|":
                return text[:at]
        if kind == "open" and (bracket := re.match(r"\$?\(", piece)):
            inside = place + bracket.end()
            return text[:inside] + _without_comment(text[inside:])
        place += len(piece)
    return text


def _simple_commands(text: str) -> Iterator[str]:
    """The commands of a line, not yet divided into words."""
    command = ""
    for kind, piece in _pieces(text):
        if kind:
            command += piece
            continue
        piece = re.sub(r"(?<=\s)\d?>&\d\b", " ", piece).replace("&>", ">")
        first, *others = re.split(r"[;&|()\n]", piece)
        command += first
        for one in others:
            yield command
            command = one
    yield command


def _raw_words(command: str) -> list[str]:
    """The words of a command as they are written. An open quote is split at blanks, as no shell takes it."""
    text = "".join(piece.translate(_HIDE) if kind not in ("", "open") else piece for kind, piece in _pieces(command))
    return [word.translate(_SHOW) for word in re.findall(rf"[^{_BLANKS}]+", text)]


def _without_redirections(raw: list[str]) -> list[str]:
    kept, skip = [], False
    for word in raw:
        if skip:
            skip = False
        elif re.fullmatch(r"\d?>>?", word):
            skip = True  # the file comes next
        elif not re.match(r"\d?>>?[^>]", word):
            kept.append(word)
    return kept


def _ansi(text: str) -> str:
    try:
        return codecs.decode(text.encode("latin-1", "backslashreplace"), "unicode_escape")
    except (UnicodeDecodeError, ValueError):
        return text
