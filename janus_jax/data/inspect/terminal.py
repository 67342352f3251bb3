"""The report on a terminal. It fits 80 columns, and colours only repeat the labels."""

import re
from collections.abc import Iterable

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from janus_jax.data.inspect import wording
from janus_jax.data.inspect.facts import PartFacts, RowFacts, SplitFacts
from janus_jax.data.inspect.rows import CHOSEN, EOS, PADDING, PROMPT, REJECTED, AnnotatedRow, Segment
from janus_jax.data.inspect.token_text import MORE_BYTES, TokenDecoder, visible
from janus_jax.data.statistics import Histogram

STYLES = {PADDING: "dim", PROMPT: "cyan", CHOSEN: "green", REJECTED: "magenta", EOS: "bold yellow"}
MARKS = {PADDING: ".", PROMPT: "p", CHOSEN: "c", REJECTED: "r", EOS: "e"}

_LABEL_WIDTH = 10
_SEGMENTS = 2
"""Examples of a row that are shown without --full."""
_FIRST_LINES, _LAST_LINES = 4, 2
"""Lines of a longer text that are shown without --full."""
_JOINED = "\ue000"
"""Stands for the space of an option and its value while lines are broken, so that one line has both."""
_BARS = " ▁▂▃▄▅▆▇█"


def show_row(console: Console, row: AnnotatedRow, decoder: TokenDecoder, slots: range | None, full: bool) -> None:
    """A row: a strip of its roles, the texts of its first or all examples, and a table of slots."""
    step = "" if row.step is None else f", step {row.step}"
    console.rule(f"row {row.number} of epoch {row.epoch}{step}", align="left", style="dim")
    length = len(row.tokens)
    share, examples = wording.percent(row.used / length), wording.counted(len(row.segments), "example")
    console.print(f"{row.used:,} of {length:,} slots hold a token ({share}); {examples}")
    if not row.used:
        console.print("padding only")
        return
    _print_strip(console, row)
    shown = row.segments if full else row.segments[:_SEGMENTS]
    for segment in shown:
        _print_segment(console, row, segment, full)
    if len(shown) < len(row.segments):
        more = wording.counted(len(row.segments) - len(shown), "more example")
        console.print(f"{more} in this row (use --full or --html)")
    console.print()
    first = next(segment for segment in row.segments if segment.spans)
    _print_slots(console, row, decoder, list(slots or ()) or _edge_slots(first))
    console.print()


def _print_strip(console: Console, row: AnnotatedRow) -> None:
    """The roles of the row's slots on one line, each character for many slots."""
    length = len(row.tokens)
    width = min(console.width, length)
    starts = {segment.start * width // length for segment in row.segments if segment.start}
    strip = Text()
    for at in range(width):
        role = int(row.roles[at * length // width])
        strip.append("|" if at in starts else MARKS[role], style="bold" if at in starts else STYLES[role])
    console.print(strip)
    names = [f"{MARKS[role]} {name}" for role, name in enumerate(row.role_names) if name and role not in (EOS, PADDING)]
    console.print(Text(f"{'  '.join(names)}  . padding  | start of an example", style="dim"))


def _print_segment(console: Console, row: AnnotatedRow, segment: Segment, full: bool) -> None:
    console.print()
    console.print(Text(f"example {segment.example} of {segment.dataset}", style="bold"))
    console.print(Text(segment.description(row.role_names), style="dim"))
    for span in segment.spans:
        style = STYLES[span.role]
        tokens = [
            Text(visible(row.texts[at]), style + (" underline" if at % 2 else "")) for at in range(span.start, span.end)
        ]
        _print_text(console, row.role_names[span.role], tokens, style, full)
        if span.end - 1 in segment.eos_targets:
            target = Text(f"{visible(row.eos)} is the target of slot {span.end - 1}", STYLES[EOS])
            _print_text(console, "eos", [target], STYLES[EOS], full)


def _print_text(console: Console, label: str, tokens: list[Text], style: str, full: bool) -> None:
    lines = _lines(tokens, console.width - _LABEL_WIDTH)
    left_out = 0 if full else max(0, len(lines) - _FIRST_LINES - _LAST_LINES)
    if left_out > 1:
        lines[_FIRST_LINES:-_LAST_LINES] = [Text(f"... {left_out} lines left out ...", style="dim")]
    for number, line in enumerate(lines):
        console.print(Text(f"{label if not number else '':<{_LABEL_WIDTH}}", style=style) + line, soft_wrap=True)


def _lines(tokens: list[Text], width: int) -> list[Text]:
    """Breaks lines after newlines and between tokens; a token longer than a line is folded."""
    lines, room = [Text()], width
    for token in tokens:
        size = token.cell_len
        if size > room and size <= width:
            lines.append(Text())
            room = width
        for character in token.plain:
            cells = cell_len(character)
            if cells > room:
                lines.append(Text())
                room = width
            lines[-1].append(character, token.style)
            room -= cells
            if character == "↵":
                lines.append(Text())
                room = width
    return lines if lines[-1].plain or len(lines) == 1 else lines[:-1]


def _edge_slots(segment: Segment) -> list[int]:
    """The slots around the ends of an example's spans."""
    edges = {edge for span in segment.spans for edge in (span.start, span.end)}
    near = {at for edge in edges for at in range(edge - 2, edge + 2)}
    return sorted(near & set(range(segment.start, segment.end)))


def _print_slots(console: Console, row: AnnotatedRow, decoder: TokenDecoder, slots: list[int]) -> None:
    table = _table()
    for name in ("slot", "token", "", "target", "", "weight", "position", "segment", "branch"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True, max_width=None if name else 12)
    before = None
    for at in slots:
        if not 0 <= at < len(row.tokens):
            continue
        if before is not None and at > before + 1:
            table.add_row("...")
        before = at
        text, target = visible(row.texts[at]), visible(decoder.token(int(row.targets[at])))
        if row.segment[at] == 0:
            text, target = "padding", ""
        table.add_row(
            str(at),
            str(row.tokens[at]),
            Text(text, STYLES[int(row.roles[at])]),
            str(row.targets[at]),
            Text(target, "bold" if row.weights[at] else "dim"),
            f"{row.weights[at]:g}",
            str(row.position[at]),
            str(row.segment[at]),
            str(row.branch[at]),
        )
    console.print(table)


def show_legend(console: Console) -> None:
    """Explains marks and numbering."""
    console.print(
        f"· space  ↵ newline  → tab  {MORE_BYTES} more bytes of the previous character\n"
        "Every second token is underlined. Rows, slots, examples and epochs count from 0.\n"
        "Branches start with the prompt's last token: it predicts the response's first.",
        style="dim",
        soft_wrap=True,
    )
    console.print()


def show_facts(console: Console, facts: SplitFacts) -> None:
    """All numbers of a split."""
    console.rule(Text(facts.title), style="bold")
    template = visible(facts.template, " ")
    console.print(f"objective {facts.objective}   template {template}   token boundary {facts.boundary}")
    for note in facts.notes:
        console.print(f"note: {note}", style="yellow")
    _heading(console, "Rows")
    _print_statements(console, wording.row_statements(facts))
    _print_histogram(console, facts.rows)
    if facts.shares:
        _heading(console, f"Shares of epoch {facts.rows.epoch}")
        _print_table(console, wording.shares_table(facts.shares))
    for name, part in wording.named_parts(facts).items():
        _print_part_facts(console, part, name)
    _print_statements(console, wording.overlap_statements(facts))
    console.print()


def show_verdicts(console: Console, verdicts: Iterable[wording.Verdict]) -> None:
    """The end of the report."""
    for verdict in verdicts:
        style = {"wrong": "red", "look at this": "yellow", "fine": "green"}[verdict.level]
        console.print(Text(visible(verdict.title, " "), f"bold {style}"))
        for line in verdict.lines:
            whole = re.sub(r"(--\S+) (?=\S)", rf"\1{_JOINED}", visible(line, " "))
            for part in Text(whole).wrap(console, console.width - 2):
                console.print(Text(f"  {part.plain.replace(_JOINED, ' ')}", style))


def _print_part_facts(console: Console, part: PartFacts, name: str) -> None:
    _heading(console, f"Examples: {name}")
    _print_statements(console, wording.part_statements(part))
    console.print(wording.lengths_note(part), style="dim")
    _print_table(console, wording.lengths_table(part))
    for column, histogram in wording.histograms(part).items():
        console.print(f"{column:<17} {_sparkline(histogram)}")


def _print_statements(console: Console, statements: Iterable[wording.Statement]) -> None:
    for statement in statements:
        console.print(Text(visible(statement.text, " ")))
        for detail in statement.details:
            console.print(Padding(Text(visible(detail, " ")), (0, 0, 0, 2), expand=False))


def _print_table(console: Console, content: wording.Table) -> None:
    table = _table()
    for number, column in enumerate(content.columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in content.rows:
        table.add_row(*map(Text, row))
    console.print(table)


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)


def _heading(console: Console, text: str) -> None:
    console.print()
    console.print(Text(text, style="bold"))


def _print_histogram(console: Console, rows: RowFacts) -> None:
    """Number of rows by fill, without empty bins."""
    fills = rows.fill_histogram
    most = max(fills.counts)
    for number, count in enumerate(fills.counts):
        if count:
            share = f"{fills.width * number:.0f}-{fills.width * (number + 1):.0f} % full"
            console.print(f"{share:>14} {'█' * max(round(40 * count / most), 1)} {wording.counted(count, 'row')}")


def _sparkline(histogram: Histogram) -> str:
    """A histogram on one line, between the values at its ends."""
    most = max(histogram.counts) or 1
    bars = "".join(_BARS[-(-count * (len(_BARS) - 1) // most)] for count in histogram.counts)
    end = histogram.start + histogram.width * len(histogram.counts)
    outside = histogram.below + histogram.above
    more = f", {outside:,} outside" if outside else ""
    return f"{histogram.start:>6.0f} {bars} {end:.0f} tokens{more}"
