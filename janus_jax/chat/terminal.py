"""`janus chat`: questions from a person or a pipe, answers and what commands tell back."""

import concurrent.futures
import contextlib
import io
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console

from janus_jax.chat.commands import Commands, one_message
from janus_jax.chat.conversation import Chat, Piece
from janus_jax.chat.screen import Screen, View
from janus_jax.errors import JanusError, counted, named
from janus_jax.storage import staging

_PROMPT, _MORE = "> ", ". "
_SLOW_S = 1.0
"""Until a person is told that the model works."""
_KEPT = 1000
"""Lines of the history file."""
_CONSOLE: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}
_FORGIVEN = (2, 14)
"""Exit codes of errors that do not end a conversation with a person: bad input, storage."""


class Stopped(Exception):
    """The person pressed Ctrl-C."""


class Keys:
    """What Ctrl-C does: it ends a wait for the model, or what is typed, and never the program."""

    def __init__(self, screen: Screen):
        self._screen = screen
        self._pressed = self._raises = False
        self.quiet = False
        """Whether text of the answer stands on the line that grows."""

    def wait(self, future: concurrent.futures.Future[Any]) -> Any:
        """The result of a future.

        Raises:
            Stopped: Ctrl-C was pressed since the question was asked.
        """
        with self.stopping():
            while True:
                done, _ = concurrent.futures.wait([future], timeout=_SLOW_S)
                if done:
                    return future.result()
                if not self.quiet:
                    self._screen.waiting("working; Ctrl-C stops it")

    @contextlib.contextmanager
    def stopping(self) -> Iterator[None]:
        """Inside, Ctrl-C raises Stopped; also if it was pressed before."""
        self._raises = True
        try:
            if self._pressed:
                raise Stopped
            yield
        finally:
            self._raises = False

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Inside, Ctrl-C does not end the program."""
        before = signal.signal(signal.SIGINT, self._press)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def forget(self) -> None:
        """A new question begins."""
        self._pressed = self.quiet = False

    def _press(self, number: int, frame: Any) -> None:
        self._pressed = True
        if self._raises:
            self._raises = False
            raise Stopped


class Person:
    """Lines that a person types, with the history of earlier ones."""

    def __init__(self, screen: Screen, keys: Keys, names: list[str]):
        self._screen, self._keys, self._names = screen, keys, names
        self._readline: Any = None

    def lines(self) -> Iterator[str]:
        """What is typed, until Ctrl-D, or Ctrl-C twice at an empty prompt."""
        warned = False
        while True:
            self._keys.forget()
            parts: list[str] = []
            try:
                with self._keys.stopping():
                    while not parts or parts[-1].endswith("\\"):
                        parts.append(input(_MORE if parts else _PROMPT))
            except EOFError:
                print()
                return
            except Stopped:
                print()
                if not parts and not self._typed():
                    if warned:
                        return
                    warned = True
                    self._screen.note("Ctrl-C again, Ctrl-D or /quit leaves.")
                continue
            warned = False
            yield "\n".join(part.removesuffix("\\") for part in parts)

    @contextlib.contextmanager
    def history(self) -> Iterator[None]:
        """Inside, readline edits lines; it keeps them in a file that only this user can read."""
        try:
            import readline
        except ImportError:
            yield
            return
        self._readline = readline
        readline.set_completer_delims(" ")
        readline.set_completer(self._complete)
        libedit = "libedit" in (readline.__doc__ or "")
        readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
        readline.parse_and_bind("set enable-bracketed-paste on")  # lines that are pasted together are one question
        file = staging.cache() / "chat_history"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
            file.chmod(0o600)
            readline.read_history_file(file)
        except OSError as error:
            self._screen.note(f"what you type is not kept: {file}: {error.strerror}")
            yield
            return
        readline.set_history_length(_KEPT)
        before = readline.get_current_history_length()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                readline.append_history_file(readline.get_current_history_length() - before, file)
                file.chmod(0o600)

    def _typed(self) -> str:
        return self._readline.get_line_buffer() if self._readline else ""

    def _complete(self, text: str, state: int) -> str | None:
        if not text.startswith("/") or self._readline.get_begidx():
            return None
        fitting = [name for name in self._names if name.startswith(text)]
        return f"{fitting[state]} " if state < len(fitting) else None


def talk(chat: Chat, commands: Commands, screen: Screen) -> None:
    """A conversation with whoever writes standard input: a person, or a pipe with one question a line.

    Raises:
        JanusError: of a pipe, a line that cannot be answered; otherwise one that no other question would mend.
    """
    if screen.plain:
        _answer_all(chat, commands, screen)
        return
    keys = Keys(screen)
    chat.wait = keys.wait
    person = Person(screen, keys, commands.names)
    screen.note("Ask, or type /help. Ctrl-C stops an answer, Ctrl-D leaves.")
    with keys.heard(), person.history():
        for line in person.lines():
            try:
                if not take(line, chat, commands, screen, keys):
                    return
            except JanusError as error:
                screen.come()
                if error.exit_code not in _FORGIVEN:
                    raise
                screen.error(one_message(error))


def _answer_all(chat: Chat, commands: Commands, screen: Screen) -> None:
    by_hand = sys.stdin.isatty()
    number = 0
    while True:
        if by_hand:
            print(_PROMPT, end="", file=sys.stderr, flush=True)
        if not (line := sys.stdin.readline()):
            return
        number += 1
        with named(f"standard input:{number}"):
            if not take(line.rstrip("\n"), chat, commands, screen):
                return


def take(line: str, chat: Chat, commands: Commands, screen: Screen, keys: Keys | None = None) -> bool:
    """Answers a line; whether the conversation goes on.

    Raises:
        JanusError: it cannot be answered.
    """
    if line.startswith("/"):
        outcome = commands.run(line)
        if outcome.text:
            screen.tell(outcome.text)
        if outcome.pieces is not None:
            _answer(outcome.pieces, chat, screen, keys)
        return not outcome.quits
    if question := line.strip():
        _answer(chat.ask(question), chat, screen, keys)
    return True


def _answer(pieces: Iterator[Piece], chat: Chat, screen: Screen, keys: Keys | None) -> None:
    """Shows an answer while it comes, and what it took."""
    view: View | None = None
    clock, stopped = Clock(), False
    with _silent_keyboard() if keys else contextlib.nullcontext():
        try:
            for piece in pieces:
                clock.count(piece.tokens)
                if view is None:
                    screen.come()
                    view = screen.view([side.system for side in chat.sides])
                if keys and piece.text:
                    keys.quiet = True
                view.push(piece.side, piece.text)
                if piece.ended:
                    view.end(piece.side)
        except Stopped:
            stopped = True
        if view is not None:
            view.close()
    if view is None:
        screen.note("Stopped before the first token; the question is not part of the conversation.")
        return
    for note in _remarks(chat, stopped):
        screen.note(note)
    if not screen.plain:
        screen.note(f"{clock.text(chat.seed)}\n")


def _remarks(chat: Chat, stopped: bool) -> Iterator[str]:
    """What is to be known of the newest answers."""
    if stopped:
        yield "Stopped; the conversation keeps what came."
    last = [side.exchanges[-1] for side in chat.sides]
    full = any(one.reason == "length" and one.prompt_tokens + one.tokens >= chat.longest for one in last)
    if full:
        yield f"Cut: the model's longest text, {chat.longest:,} tokens, is full. /undo and /reset make room."
    elif any(one.reason == "length" for one in last):
        most = chat.stopping.max_new_tokens
        yield f"Cut after max_new_tokens = {most}; /set max_new_tokens {2 * most} and /retry give more."
    if any(one.reason == "stop" and not one.answer for one in last):
        yield "The model ended its answer at once."


class Clock:
    """How fast an answer came."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()
        self._first: float | None = None
        self._tokens = self._first_tokens = 0

    def count(self, tokens: int) -> None:
        """Tokens have come."""
        self._last = time.monotonic()
        if self._first is None:
            self._first, self._first_tokens = self._last, tokens
        self._tokens += tokens

    def text(self, seed: int) -> str:
        """Time to the first token, and tokens a second after those that came with it."""
        first = self._last if self._first is None else self._first
        later, spent = self._tokens - self._first_tokens, self._last - first
        rate = f", {later / spent:,.1f} tokens/s" if later and spent > 0 else ""
        return f"{counted(self._tokens, 'token')}, first after {first - self._began:.2f} s{rate}, seed {seed}"


@contextlib.contextmanager
def _silent_keyboard() -> Iterator[None]:
    """Inside, the terminal does not show what is typed: it would stand in the answer. The next prompt gets it."""
    try:
        import termios

        number = sys.stdin.fileno()
        before = termios.tcgetattr(number)
    except (ImportError, OSError, ValueError):
        yield
        return
    silent = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    termios.tcsetattr(number, termios.TCSANOW, silent)
    try:
        yield
    finally:
        termios.tcsetattr(number, termios.TCSANOW, before)


def make_screen() -> Screen:
    """Plain, unless standard input and output are a terminal: then standard output has answers alone."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        errors = "surrogateescape" if stream is sys.stdin else "replace"
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
    person = sys.stdin.isatty() and sys.stdout.isatty()
    return Screen(Console(**_CONSOLE), Console(stderr=not person, **_CONSOLE), plain=not person)
