"""Commands in shell scripts, read and never run: variables, continuations, quotes, here-documents.

Nothing of the environment is used and nothing is executed: `$(...)` and unset variables stay as they are written.
"""

import codecs
import dataclasses
import re
import shlex
from collections.abc import Callable, Iterator

from janus_jax.errors import ConfigError

_NAME = r"[A-Za-z_]\w*"
_ASSIGNMENT = re.compile(rf"\s*(?:(?:export|local|readonly|declare(?:\s+-\w+)*)\s+)?({_NAME})=(.*)", re.DOTALL)
_USE = re.compile(rf"\$(?:({_NAME})|\{{({_NAME})(?:(\[@\]|\[\*\])|:?-([^}}]*))?\}})")
_HEREDOC = re.compile(r"(?<!<)<<-?\s*(['\"]?)(\w+)\1")
_EXECUTED = re.compile(r"\$\([^)]*\)|`[^`]*`")
_READ = re.compile(rf"\bread\b.*?\b({_NAME})\s*<<")
_ARRAY = re.compile(rf"(?:^|(?<=[\s;]))({_NAME})\+?=\(([^()]*)\)")
_OPEN_ARRAY = re.compile(rf"(?:^|[\s;]){_NAME}\+?=\([^()]*\Z")
_ENDS = frozenset(";&|()")
_LONGEST = 30_000
"""Most characters of a line after its variables are replaced."""


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
        ConfigError: its variables make a line longer than a recipe's.
    """

    def __init__(self, text: str):
        self.variables: dict[str, str] = {}
        self.used: set[str] = set()
        self.unset: set[str] = set()
        self.executed: set[str] = set()
        self.commands: list[Command] = []
        for line, text_of_line, torn_by in _logical_lines(text, self.variables, self._expand):
            self._read(line, text_of_line, torn_by)

    def _read(self, line: int, text: str, torn_by: int | None) -> None:
        for name, items in _ARRAY.findall(text):
            self.variables[name] = " ".join(shlex.quote(word) for word in _words(self._expand(items)))
        text = _ARRAY.sub("", text)
        if assignment := _ASSIGNMENT.fullmatch(text.strip()):
            words = _words(self._expand(assignment[2]))
            if len(words) <= 1:
                self.variables[assignment[1]] = words[0] if words else ""
                return
        for words in _simple_commands(_words(self._expand(text))):
            while words and (one := _ASSIGNMENT.fullmatch(words[0])):  # NAME=value before a command
                self.variables[one[1]] = one[2]
                words = words[1:]
            if words:
                self.commands.append(Command(tuple(words), line, torn_by))

    def _expand(self, text: str) -> str:
        """The text with the variables that the script sets; quotes decide as in a shell."""
        pieces = []
        text = re.sub(rf'"(\$\{{{_NAME}\[[@*]\]\}})"', r"\1", text)
        for quote, piece in _quoted(text):
            if quote == "'" or ("$" not in piece and "`" not in piece):
                pieces.append(piece)
                continue
            self.executed.update(_EXECUTED.findall(piece))
            if not quote:
                piece = _EXECUTED.sub(lambda one: shlex.quote(one[0]), piece)
            pieces.append(_USE.sub(lambda use, quote=quote: self._value(use, quote), piece))
        expanded = "".join(pieces)
        if len(expanded) > _LONGEST:
            raise ConfigError(f"a line has more than {_LONGEST:,} characters with its variables; allowed: a recipe")
        return expanded

    def _value(self, use: re.Match[str], quote: str) -> str:
        name, array, default = use[1] or use[2], use[3], use[4]
        self.used.add(name)
        value = self.variables.get(name)
        if value is None and default is None:
            self.unset.add(name)
            return use[0]
        value = default if value is None else value
        if array:
            return value  # its words are quoted
        if quote == '"':
            return re.sub(r'(["\\])', r"\\\1", value)
        return re.sub(r"(['\"\\])", r"\\\1", value)


def _logical_lines(
    text: str, variables: dict[str, str], expand: Callable[[str], str]
) -> Iterator[tuple[int, str, int | None]]:
    """(line, text, line of a comment that tore it off) of a script; here-documents go into their variable."""
    lines = text.replace("\r\n", "\n").split("\n")
    number, torn_by = 0, None
    while number < len(lines):
        start, joined, commented = number, "", False
        while number < len(lines):
            piece = lines[number]
            number += 1
            joined += piece
            code = _without_comment(joined)
            commented = len(code) < len(joined)
            if _OPEN_ARRAY.search(code):
                joined, commented = code + "\n", False
                continue
            if commented:
                joined = code
                break
            if re.search(r"(?<!\\)(\\\\)*\\$", joined):
                joined = joined[:-1] + " "
                continue
            if not _closed(joined):
                joined += "\n"
                continue
            break
        if here := _heredoc(joined):
            body = []
            while number < len(lines) and lines[number].strip() != here[2]:
                body.append(lines[number])
                number += 1
            number += 1
            content = re.sub(r"\\\n", " ", "\n".join(body))
            if name := _READ.search(joined):
                variables[name[1]] = content if here[1] else expand(content)
            joined = joined[: here.start()]
            if name:
                continue
        if joined.strip():
            yield start + 1, joined, torn_by if joined.lstrip().startswith("-") else None
        if commented and number - start > 1:
            torn_by = number
        elif joined.strip() and not joined.lstrip().startswith("-"):
            torn_by = None


def _quoted(text: str) -> Iterator[tuple[str, str]]:
    """(quote, piece) of a text: quote is a single quote, a double quote or nothing; the pieces join to the text."""
    start, quote, place = 0, "", 0
    while place < len(text):
        letter = text[place]
        if letter == "\\" and quote != "'":
            place += 2
            continue
        if (quote and letter == quote) or (not quote and letter in "'\""):
            end = place + 1 if quote else place
            if end > start:
                yield quote, text[start:end]
            start, quote = end, "" if quote else letter
        place += 1
    if start < len(text):
        yield quote, text[start:]


def _heredoc(text: str) -> re.Match[str] | None:
    """The first `<<WORD` outside quotes."""
    outside, place = set(), 0
    for quote, piece in _quoted(text):
        outside.update(() if quote else range(place, place + len(piece)))
        place += len(piece)
    return next((one for one in _HEREDOC.finditer(text) if one.start() in outside), None)


def _closed(text: str) -> bool:
    pieces = list(_quoted(text))
    return not pieces or not pieces[-1][0] or (len(pieces[-1][1]) > 1 and pieces[-1][1].endswith(pieces[-1][0]))


def _without_comment(text: str) -> str:
    """The text before a comment: a # outside quotes at the beginning of a word."""
    place = 0
    for quote, piece in _quoted(text):
        if not quote and (comment := re.search(r"(?:^|(?<=[\s;&|]))#", piece)):
            at = place + comment.start()
            if at == 0 or text[at - 1].isspace() or text[at - 1] in ";&|":
                return text[:at]
        place += len(piece)
    return text


def _words(text: str) -> list[str]:
    """The words of a line, quotes removed. A line that no shell takes (an open quote) is split at blanks."""
    text = re.sub(r"\$'((?:[^'\\]|\\.)*)'", lambda ansi: shlex.quote(_ansi(ansi[1])), text)
    text = re.sub(r"(?<=\s)\d?>&\d\b", " ", text).replace("&>", ">")
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|()")
    lexer.whitespace_split, lexer.commenters = True, ""
    try:
        return list(lexer)
    except ValueError:
        return text.split()


def _ansi(text: str) -> str:
    try:
        return codecs.decode(text.encode("latin-1", "backslashreplace"), "unicode_escape")
    except (UnicodeDecodeError, ValueError):
        return text


def _simple_commands(words: list[str]) -> Iterator[list[str]]:
    """The commands of a line, without separators, redirections and the words of `if` and `for`."""
    command: list[str] = []
    skip = False
    for word in [*words, ";"]:
        if word and set(word) <= _ENDS:
            while command and command[0] in ("then", "do", "else", "{", "!", "time", "exec", "nohup"):
                command = command[1:]
            if command:
                yield command
            command, skip = [], False
        elif skip:
            skip = False
        elif re.fullmatch(r"\d?>>?", word):
            skip = True  # the file comes next
        elif not re.match(r"\d?>>?[^>]", word):
            command.append(word)
