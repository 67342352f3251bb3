"""Answers on a terminal while they come, or as plain text where there is none."""

import itertools
from collections.abc import Callable, Sequence
from typing import Protocol

from rich.console import Console
from rich.text import Text

from janus_jax.chat.text import Columns, Flow, harmless, one_line, padded, wrapped

_WIDEST = 100
"""Of one answer: longer lines are hard to read."""
_NARROWEST = 16
"""Of an answer beside another; below it they stand one under the other."""
_BAR = " │ "


class View(Protocol):
    """Shows the answers to one question."""

    def push(self, side: int, text: str) -> None: ...

    def end(self, side: int) -> None:
        """No more text comes of this side."""
        ...

    def close(self) -> None:
        """No more text comes at all."""
        ...


class Screen:
    """Where a chat is shown.

    Args:
        out: gets answers.
        err: gets errors and remarks, and if `plain` what commands tell.
        plain: without wrapping, colours and moves of the cursor.
    """

    def __init__(self, out: Console, err: Console, *, plain: bool):
        self._out, self._err = out, err
        self.plain = plain or out.is_dumb_terminal
        self._waits = False

    def tell(self, text: str) -> None:
        """Shows what a command answers; the text is not trusted."""
        self._lines(self._err if self.plain else self._out, text, "cyan")

    def note(self, text: str) -> None:
        self._lines(self._err, f"note: {text}" if self.plain else text, "dim")

    def error(self, text: str) -> None:
        self._lines(self._err, f"error: {text}", "red")

    def waiting(self, what: str) -> None:
        """Shows why nothing comes yet, until something does."""
        if not self.plain and not self._waits:
            self._print(self._out, what[: self._width()], "dim", end="")
            self._waits = True

    def come(self) -> None:
        """Removes what `waiting` shows."""
        if self._waits:
            self._raw("\r\x1b[K")
            self._waits = False

    def view(self, systems: Sequence[str]) -> View:
        """A view of the answers to one question, one for each system message."""
        if len(systems) == 1:
            return _Flowing(self._raw, None if self.plain else Flow(self._width()))
        width = (self._out.width - 1 - len(_BAR)) // 2
        if self.plain or width < _NARROWEST:
            flow = None if self.plain else lambda: Flow(self._width())
            return _OneBelowOther(self._raw, self._heading, systems, flow)
        return _SideBySide(self._raw, self._heading, systems, width)

    def _width(self) -> Columns:
        return min(self._out.width - 1, _WIDEST)

    def _heading(self, text: str) -> None:
        self._print(self._out, text, "bold")

    def _raw(self, text: str) -> None:
        self._out.file.write(text)
        self._out.file.flush()

    def _lines(self, console: Console, text: str, style: str) -> None:
        lines = [harmless(text)] if self.plain else wrapped(text, self._width())
        self._print(console, "\n".join(lines), style)

    def _print(self, console: Console, text: str, style: str, end: str = "\n") -> None:
        self.come()
        console.print(Text(text, style="" if self.plain else style), soft_wrap=True, end=end)


class _Flowing:
    def __init__(self, write: Callable[[str], None], flow: Flow | None):
        self._write, self._flow = write, flow

    def push(self, side: int, text: str) -> None:
        self._write(harmless(text) if self._flow is None else self._flow.push(harmless(text)))

    def end(self, side: int) -> None:
        if self._flow is not None:
            self._write(self._flow.finish())

    def close(self) -> None:
        self.end(0)
        self._write("\n")


class _OneBelowOther:
    """The second answer is shown when the first has ended."""

    def __init__(
        self,
        write: Callable[[str], None],
        heading: Callable[[str], None],
        systems: Sequence[str],
        flow: Callable[[], Flow] | None,
    ):
        self._write, self._heading, self._systems = write, heading, systems
        self._views = [_Flowing(write, flow and flow()) for _ in systems]
        self._kept = ["" for _ in systems]
        self._ended = [False for _ in systems]
        self._now = 0
        self._head(0)

    def push(self, side: int, text: str) -> None:
        if side == self._now:
            self._views[side].push(side, text)
        else:
            self._kept[side] += text

    def end(self, side: int) -> None:
        self._ended[side] = True
        while self._now < len(self._views) and self._ended[self._now]:
            self._views[self._now].end(self._now)
            self._now += 1
            if self._now < len(self._views):
                self._write("\n\n")
                self._head(self._now)
                self._views[self._now].push(self._now, self._kept[self._now])

    def close(self) -> None:
        for side in range(len(self._views)):
            self.end(side)
        self._write("\n")

    def _head(self, side: int) -> None:
        self._heading(
            f"[{'left' if side == 0 else 'right'}: {one_line(self._systems[side], 60) or 'no system message'}]"
        )


class _SideBySide:
    """Rows of two columns. A row is written for good when both columns have it; the row that grows is written over.

    So nothing moves up, and long answers scroll as any text.
    """

    _MOST_HEAD = 4

    def __init__(
        self, write: Callable[[str], None], heading: Callable[[str], None], systems: Sequence[str], width: Columns
    ):
        self._write, self._width = write, width
        self._flows = [Flow(width) for _ in systems]
        self._texts = ["" for _ in systems]
        self._ended = [False for _ in systems]
        self._rows = 0
        heads = [self._head(system) for system in systems]
        for pair in itertools.zip_longest(*heads, fillvalue=""):
            heading(self._row(pair))
        heading("─" * width + "─┼─" + "─" * width)

    def push(self, side: int, text: str) -> None:
        self._texts[side] += self._flows[side].push(harmless(text))
        self._show()

    def end(self, side: int) -> None:
        self._texts[side] += self._flows[side].finish()
        self._ended[side] = True
        self._show()

    def close(self) -> None:
        if not all(self._ended):
            self._ended = [True for _ in self._ended]
            self._show()

    def _show(self) -> None:
        lines = [text.split("\n") for text in self._texts]
        done = [len(column) - (0 if ended else 1) for column, ended in zip(lines, self._ended, strict=True)]
        rows = [done[i] for i in range(len(done)) if not self._ended[i]]
        until = min(rows) if rows else max(done)
        out = "\r\x1b[K"
        for place in range(self._rows, until):
            out += self._row([column[place] if place < len(column) else "" for column in lines]) + "\n"
        self._rows = max(self._rows, until)
        if rows:
            out += self._row([column[self._rows] if self._rows < len(column) else "" for column in lines])
        self._write(out)

    def _row(self, cells: Sequence[str]) -> str:
        return (padded(cells[0], self._width) + _BAR + cells[1]).rstrip()

    def _head(self, system: str) -> list[str]:
        lines = wrapped(system or "(no system message)", self._width)
        if len(lines) > self._MOST_HEAD:
            lines = [*lines[: self._MOST_HEAD - 1], one_line(" ".join(lines[self._MOST_HEAD - 1 :]), self._width)]
        return lines
