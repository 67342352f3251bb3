"""Samples as text: lines of their file, a few lines for the console, Markdown for TensorBoard.

Prompts and answers are untrusted: what moves a cursor or makes a link must reach neither a terminal nor a page.
"""

import dataclasses
import io
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from janus_jax.data.inspect.token_text import visible
from janus_jax.generation.answers import Answer
from janus_jax.storage.local import finite
from janus_jax.training.console import WIDTH
from janus_jax.training.sample_prompts import Asked

_SHOWN = 200
"""Characters of an answer on the console."""
_SHOWN_SYSTEM, _SYSTEMS = 60, 3
"""The same of a system message, and the number of system messages."""
_BESIDE = 3
"""System messages up to this number have columns of their own in TensorBoard."""


@dataclasses.dataclass(frozen=True)
class Answered:
    """A prompt under a system message with its answers."""

    asked: Asked
    answers: tuple[Answer, ...]

    def record(self, step: int) -> dict[str, Any]:
        """A line of the file; keys as in the output of `janus generate`, and `step` and `system`."""
        asked = self.asked
        return {
            "step": step,
            **asked.rest,
            "system": asked.system,
            "messages": list(asked.messages),
            "prompt_tokens": len(asked.request.ids),
            "answers": [answer.record() | {"log_prob": answer.log_prob} for answer in self.answers],
        }


def lines(samples: Sequence[Answered], step: int) -> bytes:
    """The file of a step: JSON lines."""
    texts = (json.dumps(finite(one.record(step)), ensure_ascii=False) for one in samples)
    return "".join(f"{text}\n" for text in texts).encode("utf-8", "backslashreplace")  # of half a character: \ud800


def values(samples: Sequence[Answered]) -> dict[str, float]:
    """Numbers that tell how answers change: the share that ended by themselves, mean tokens, log-prob of a token."""
    answers = [answer for one in samples for answer in one.answers]
    tokens = sum(len(answer.ids) for answer in answers)
    return {
        "answers": len(answers),
        "ended": sum(answer.finish_reason == "stop" for answer in answers) / len(answers),
        "tokens": tokens / len(answers),
        "log_prob": sum(answer.log_prob for answer in answers) / tokens,
    }


def digest(samples: Sequence[Answered], file: str) -> list[str]:
    """What the console shows: how the answers to the first prompt begin, side by side if they are two, and the file."""
    first, *_ = _by_prompt(samples)
    count = samples[-1].asked.prompt + 1
    shown = [(_system(one.asked), one) for one in first[:_SYSTEMS]]
    if len(first) == 2:
        table = [[system for system, _ in shown], [_start(one.answers[0].text, _SHOWN) for _, one in shown]]
        table.append([_end(one.answers[0]) for _, one in shown])
    else:
        table = [[system, f"{_start(one.answers[0].text, _SHOWN)} {_end(one.answers[0])}"] for system, one in shown]
    more = f"and {len(first) - len(shown)} more system messages, " if len(first) > len(shown) else ""
    name = f"prompt 1 of {count}" if count > 1 else "prompt"
    prompt = _start(first[0].asked.messages[-1]["content"], WIDTH - len(name) - 7)
    return [_printable(f"  {line}") for line in (f"{name}: {prompt}", *_columns(table), f"{more}all in {file}")]


def _system(asked: Asked) -> str:
    return f"system: {_start(asked.system, _SHOWN_SYSTEM)}" if asked.system else "no system message"


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table of two columns with wrapped cells, in lines of at most `WIDTH` - 2 cells of a terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    side_by_side = len(rows) == 3  # headings, beginnings, ends
    table = Table.grid(padding=(0, 3, 0, 0), expand=True)
    table.add_column(ratio=1)
    table.add_column(ratio=1 if side_by_side else 3)
    for row in rows:
        table.add_row(*(Text(cell, overflow="fold") for cell in row))
    console = Console(file=io.StringIO(), width=WIDTH - 2, color_system=None, markup=False, emoji=False)
    with console.capture() as captured:
        console.print(table)
    return [line.rstrip() for line in captured.get().splitlines()]


def markdown(samples: Sequence[Answered]) -> dict[str, str]:
    """Name of each prompt -> the prompt and its answers as Markdown, for TensorBoard."""
    return {f"samples/prompt {of[0].asked.prompt + 1}": _page(of) for of in _by_prompt(samples)}


def table(samples: Sequence[Answered]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows, for wandb."""
    rows = [
        [one.asked.prompt + 1, _conversation(one.asked), one.asked.system, answer.text, answer.finish_reason]
        for one in samples
        for answer in one.answers
    ]
    return ["number", "prompt", "system", "answer", "finish_reason"], rows


def _page(samples: Sequence[Answered]) -> str:
    cells = [[_escaped(one.asked.system) or "*no system message*", *map(_answer, one.answers)] for one in samples]
    heads = ["system message", *("answer" for _ in samples[0].answers)]
    if len(samples) <= _BESIDE:
        heads, *cells = [list(row) for row in zip(*cells, strict=True)]
    rows = [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *cells)]
    return f"**{_escaped(_conversation(samples[0].asked))}**\n\n" + "\n".join(rows)


def _answer(answer: Answer) -> str:
    return f"{_escaped(answer.text)}<br><br>*{_escaped(_end(answer))}*"


def _conversation(asked: Asked) -> str:
    """The turns; one alone is what it says."""
    turns = [message for message in asked.messages if message["role"] != "system"]
    if len(turns) == 1:
        return turns[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in turns)


def _by_prompt(samples: Sequence[Answered]) -> Iterator[list[Answered]]:
    return (list(of) for _, of in itertools.groupby(samples, key=lambda one: one.asked.prompt))


def _end(answer: Answer) -> str:
    return f"({answer.finish_reason}, {len(answer.ids):,} tokens)"


def _start(text: str, length: int) -> str:
    start = visible(text[:length], " ")
    return f"{start}..." if len(text) > length else start


def _printable(line: str) -> str:
    """The line in the encoding of the terminal, which need not have all characters."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return line.encode(encoding, "backslashreplace").decode(encoding)


def _escaped(text: str) -> str:
    """Text that Markdown and HTML show as it is, in a cell of a table."""
    return "".join(_entity(character) for character in text)


def _entity(character: str) -> str:
    if character == "\n":
        return "<br>"
    if character.isalnum() or character in " ,.'":
        return character
    return f"&#{ord(character)};" if character.isprintable() else f"&#92;{ascii(character)[2:-1]}"
