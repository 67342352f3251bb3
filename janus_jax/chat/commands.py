"""What a person types that is no question: lines that begin with a slash."""

import dataclasses
import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from janus_jax.chat.conversation import Chat, Exchange, Piece, Side
from janus_jax.errors import ConfigError, DataError, JanusError, counted, named
from janus_jax.generation.sampling import SamplingOptions
from janus_jax.generation.stopping import StoppingOptions
from janus_jax.storage.local import unwritable, write_whole

_SAMPLING = [field.name for field in dataclasses.fields(SamplingOptions)]
SETTINGS = ["seed", *_SAMPLING, *(field.name for field in dataclasses.fields(StoppingOptions))]
"""What /set takes."""
_BAR = re.compile(r"(?:^|(?<=\s))\|(?=\s|$)")
_SIDES = ("left", "right")


@dataclasses.dataclass
class Outcome:
    """What a command leaves to be done."""

    text: str = ""
    """To show; not trusted."""
    pieces: Iterator[Piece] | None = None
    """Of an answer that begins."""
    quits: bool = False


class Commands:
    """Carries out commands.

    Args:
        model: its path, to show and to save.
    """

    def __init__(self, chat: Chat, model: str):
        self._chat, self._model = chat, model
        self._commands: dict[str, tuple[str, str, Callable[[str], Outcome]]] = {
            "system": ("[TEXT]", 'Set the system message, or show it. /system "" removes it.', self._system),
            "both": ("[A | B]", "Answer side by side under two system messages; either may be empty.", self._both),
            "one": ("[left|right]", "End /both, and go on with the left or the right conversation.", self._one),
            "retry": ("", "Answer the last question again, with the next seed.", self._retry),
            "undo": ("", "Remove the last question with its answer.", self._undo),
            "reset": ("", "Begin a new conversation; system messages and settings stay.", self._reset),
            "set": ("[NAME [VALUE]]", "Change an option, as in /set temperature 0.7, or show it.", self._set),
            "seed": ("[N]", "Set the seed of the random numbers, or show it.", self._seed),
            "show": ("", "Show the model, the settings, and how much of its longest text is used.", self._show),
            "history": ("", "Show the conversation.", self._history),
            "save": ("FILE", "Write the conversation to a new JSONL file.", self._save),
            "help": ("", "Show this.", self._help),
            "quit": ("", "Leave.", self._quit),
        }  # fmt: skip

    @property
    def names(self) -> list[str]:
        """Of all commands, with the slash."""
        return [f"/{name}" for name in self._commands]

    def run(self, line: str) -> Outcome:
        """Carries out a line that begins with a slash.

        Raises:
            JanusError: it cannot be done; nothing changed.
        """
        word, _, rest = line[1:].strip().partition(" ")
        name, *more = re.split(r"\s", word, maxsplit=1)
        rest = " ".join([*more, rest]).strip()
        if name == "exit":
            name = "quit"
        if name not in self._commands:
            near = difflib.get_close_matches(name, self._commands, 1)
            instead = f"did you mean /{near[0]}?" if near else "/help shows what there is"
            raise DataError(f"/{name}: no such command; {instead} (begin with a blank to ask it as a question)")
        usage, _, work = self._commands[name]
        if rest and not usage:
            raise DataError(f"/{name}: takes nothing, but {rest!r} is given")
        return work(rest)

    def _system(self, text: str) -> Outcome:
        if not text:
            return Outcome("\n".join(self._systems()))
        with named("/system"):
            self._chat.set_system("" if text in ('""', "''") else text)
        later = "; it counts from the next answer on, /reset forgets the earlier ones"
        return Outcome(f"{self._systems()[0]}{later if self._chat.sides[0].exchanges else ''}")

    def _both(self, text: str) -> Outcome:
        if text:
            with named("/both"):
                self._chat.set_both(both(text))
        elif len(self._chat.sides) == 1:
            raise DataError("/both: name two system messages, as in /both Be brief. | Explain every step.")
        return Outcome("\n".join(self._systems()))

    def _one(self, text: str) -> Outcome:
        if text not in ("", *_SIDES):
            raise DataError(f"/one {text}: allowed: left or right")
        if len(self._chat.sides) == 1:
            raise DataError("/one: only one conversation goes on")
        self._chat.set_one(_SIDES.index(text or "left"))
        return Outcome(f"The {text or 'left'} conversation goes on. {self._systems()[0]}")

    def _retry(self, _: str) -> Outcome:
        greedy = "temperature is 0, so the answer stays the same" if self._chat.sampling.temperature == 0 else ""
        return Outcome(greedy, self._chat.retry())

    def _undo(self, _: str) -> Outcome:
        return Outcome(f"Removed: {self._chat.undo()}")

    def _reset(self, _: str) -> Outcome:
        self._chat.reset()
        return Outcome("A new conversation.")

    def _set(self, text: str) -> Outcome:
        name, value = [*re.split(r"\s*=\s*|\s+", text, maxsplit=1), ""][:2]
        name = name.lstrip("-").replace("-", "_")
        if not name:
            return Outcome("\n".join(f"{one} = {_written(value)}" for one, value in settings(self._chat).items()))
        if name not in SETTINGS:
            near = difflib.get_close_matches(name, SETTINGS, 1)
            guess = f"did you mean {near[0]}?" if near else f"allowed: {', '.join(SETTINGS)}"
            raise DataError(f"/set {name}: no such option; {guess}")
        if value:
            self._change(name, _read(name, value))
        return Outcome(f"{name} = {_written(settings(self._chat)[name])}")

    def _change(self, name: str, value: Any) -> None:
        chat = self._chat
        if name == "seed":
            if not isinstance(value, int):
                raise ConfigError(f"seed = {value!r}: allowed: a whole number")
            chat.seed = value
        elif name in _SAMPLING:
            chat.sampling = dataclasses.replace(chat.sampling, **{name: value})
        else:
            stopping = dataclasses.replace(chat.stopping, **{name: value})
            stopping.require_ids_below(chat.config.vocab_size)
            chat.stopping = stopping

    def _seed(self, text: str) -> Outcome:
        return self._set(f"seed {text}")

    def _show(self, _: str) -> Outcome:
        chat = self._chat
        lines = [f"model: {self._model}", *self._systems()]
        lines += [f"{name} = {_written(value)}" for name, value in settings(chat).items()]
        count = counted(len(chat.sides[0].exchanges), "exchange")
        used = " and ".join(f"{chat.tokens(side):,}" for side in chat.sides)
        return Outcome("\n".join([*lines, f"conversation: {count}, {used} of {chat.longest:,} tokens"]))

    def _history(self, _: str) -> Outcome:
        parts = []
        for place, side in enumerate(self._chat.sides):
            head = [self._systems()[place]]
            parts += ["\n\n".join([*head, *(f"> {one.question}\n{_answer(one)}" for one in side.exchanges)])]
        return Outcome("\n\n".join(parts))

    def _save(self, text: str) -> Outcome:
        if not text:
            raise DataError("/save: name a file")
        if not any(side.exchanges for side in self._chat.sides):
            raise DataError("/save: no question was asked yet")
        file = Path(text).expanduser()
        if file.exists() or file.is_symlink():
            raise DataError(f"/save {text}: exists; choose another name")
        if not file.parent.is_dir():
            raise DataError(f"/save {text}: {file.parent} is not a directory")
        if reason := unwritable(file.parent):
            raise DataError(f"/save {text}: {reason}")
        rows = [row(side, self._model, settings(self._chat)) for side in self._chat.sides]
        write_whole(file, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows))
        return Outcome(f"wrote {file}")

    def _help(self, _: str) -> Outcome:
        usages = [(f"/{name} {usage}".strip(), what) for name, (usage, what, _) in self._commands.items()]
        width = max(len(usage) for usage, _ in usages)
        lines = [f"{usage:{width}}  {what}" for usage, what in usages]
        lines += [
            "",
            f"Options of /set: {', '.join(SETTINGS)}.",
            "Ctrl-C stops an answer, Ctrl-D leaves. A line that ends with \\ goes on in the next one.",
            "A question that begins with / needs a blank before it.",
        ]
        return Outcome("\n".join(lines))

    def _quit(self, _: str) -> Outcome:
        return Outcome(quits=True)

    def _systems(self) -> list[str]:
        sides = self._chat.sides
        names = ["system"] if len(sides) == 1 else [f"system, {name}" for name in _SIDES]
        return [f"{name}: {side.system or '(none)'}" for name, side in zip(names, sides, strict=True)]


def both(text: str) -> list[str]:
    """The two system messages of `A | B`.

    Raises:
        DataError: the text has no bar between blanks, or several.
    """
    parts = [part.strip() for part in _BAR.split(text)]
    if len(parts) != 2:
        how = "no" if len(parts) == 1 else f"{len(parts) - 1} times"
        raise DataError(f"has {how} ' | '; allowed: one between two system messages, of which one may be empty")
    return ["" if part in ('""', "''") else part for part in parts]


def settings(chat: Chat) -> dict[str, Any]:
    """All options by name."""
    stopping = {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(chat.stopping).items()}
    return {"seed": chat.seed, **dataclasses.asdict(chat.sampling), **stopping}


def row(side: Side, model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """A conversation as a line of JSONL."""
    answers = [{"finish_reason": one.reason, "tokens": one.tokens, "seed": one.seed} for one in side.exchanges]
    return {"messages": side.messages(), "answers": answers, "model": model, "settings": dict(options)}


def one_message(error: JanusError) -> str:
    """An error in one line."""
    return " ".join(str(error).split())


def _answer(one: Exchange) -> str:
    mark = {"interrupted": " [stopped by you]", "length": " [cut at its longest]"}.get(one.reason or "", "")
    return f"{one.answer or '(empty)'}{mark}"


def _read(name: str, text: str) -> Any:
    """A value as its option takes it; text that is none stays text, and the option says what is allowed."""
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if name == "stop":
        return value if isinstance(value, list | str) else text
    if name == "stop_ids":
        return value if isinstance(value, list) else [_number(part) for part in re.split(r"[\s,]+", text)]
    return value if value is not text else _number(text)


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
